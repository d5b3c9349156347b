"""Writes small DICOM series whose voxels say where they are: 2x + 3y + 5z + 40 of the position in mm (LPS)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import format_number_as_ds

SLOPE = 0.01
"""Step of stored values, so that a value is exact to half of it."""


def rotation(*degrees: float) -> np.ndarray:
    """Rotation about x, then y, then z."""
    result = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        turn = np.eye(3)
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        result = turn @ result
    return result


def truth(points_lps: np.ndarray) -> np.ndarray:
    """Value at positions (..., 3)."""
    return points_lps @ np.array([2.0, 3.0, 5.0]) + 40.0


@dataclass
class Series:
    """One series; ``slices`` gives its data sets, to be changed and then written."""

    columns: int = 9
    rows: int = 7
    count: int = 6
    between_rows: float = 1.25
    between_columns: float = 0.8
    step: float = 2.5
    origin: tuple[float, float, float] = (-5.0, -3.0, 2.0)
    turn: np.ndarray = field(default_factory=lambda: rotation(10.0, -20.0, 30.0))
    modality: str = "CT"
    sop_class: str = CTImageStorage
    number: int = 13
    study: str = field(default_factory=generate_uid)
    uid: str = field(default_factory=generate_uid)
    frame: str = field(default_factory=generate_uid)
    syntax: str = ExplicitVRLittleEndian

    def position(self, index: float) -> np.ndarray:
        return np.array(self.origin) + self.turn[:, 2] * self.step * index

    def values(self, position: np.ndarray, rows: int | None = None, columns: int | None = None) -> np.ndarray:
        r, c = np.mgrid[: rows or self.rows, : columns or self.columns]
        offsets = (
            c[..., None] * self.between_columns * self.turn[:, 0] + r[..., None] * self.between_rows * self.turn[:, 1]
        )
        return truth(position + offsets)

    def slice(self, index: float, instance: int) -> FileDataset:
        position = self.position(index)
        data = new_dataset(self.sop_class, self.syntax)
        data.StudyInstanceUID, data.SeriesInstanceUID = self.study, self.uid
        data.FrameOfReferenceUID = self.frame
        data.Modality, data.SeriesNumber, data.InstanceNumber = self.modality, self.number, instance
        data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        data.SliceThickness = self.step
        data.PixelSpacing = [self.between_rows, self.between_columns]
        data.ImageOrientationPatient = [format_number_as_ds(float(v)) for v in (*self.turn[:, 0], *self.turn[:, 1])]
        data.ImagePositionPatient = [format_number_as_ds(float(v)) for v in position]
        set_values(data, self.values(position))
        return data

    def slices(self) -> list[FileDataset]:
        return [self.slice(index, index + 1) for index in range(self.count)]


def new_dataset(sop_class: str, syntax: str = ExplicitVRLittleEndian) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = syntax
    data = FileDataset("", Dataset(), file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    data.PatientName, data.PatientID = "SECRET^JANE", "SECRET-42"
    data.StudyInstanceUID, data.SeriesInstanceUID = generate_uid(), generate_uid()
    return data


def set_values(data: Dataset, values: np.ndarray, slope: float = SLOPE, intercept: float = 0.0) -> None:
    """Stores real values as signed 16 bit."""
    set_stored(data, np.rint((values - intercept) / slope).astype(np.int16))
    data.RescaleSlope, data.RescaleIntercept = slope, intercept


def set_stored(data: Dataset, stored: np.ndarray, bits_stored: int | None = None) -> None:
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = stored.shape
    data.BitsAllocated = 8 * stored.dtype.itemsize
    data.BitsStored = bits_stored or data.BitsAllocated
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(stored.dtype.kind == "i")
    data.PixelData = stored.tobytes() + b"\0" * (stored.nbytes % 2)
    data["PixelData"].VR = "OW" if stored.dtype.itemsize > 1 else "OB"


def renew(data: Dataset) -> None:
    """Gives a data set an identity of its own."""
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()


def write(folder: Path, slices: Sequence[FileDataset], names: Sequence[str] | None = None) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / (names[n] if names else f"IM{n:04d}.dcm") for n in range(len(slices))]
    for path, data in zip(paths, slices, strict=True):
        data.save_as(path, enforce_file_format=True)
    return paths
