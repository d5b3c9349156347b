"""CT-like DICOM series of invented patients, with exact labels of two organs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from unet_med.geometry import Geometry
from unet_med.phantoms.places import PhantomSet, places
from unet_med.phantoms.torso import ORGANS, FloatArray, Torso, make_torso, rotation

RESCALE_INTERCEPT_HU = -1024
NOISE_HU = 12.0


def make_grid(seed: int, number: int, torso: Torso) -> Geometry:
    """Returns the oblique grid on which a patient is scanned, about 41 x 34 x 26 voxels of 4 to 6 mm."""
    random = np.random.default_rng([seed, number, 7])
    spacing = np.array([random.choice([4.0, 4.2, 4.5]), random.choice([4.0, 4.2, 4.5]), random.choice([5.0, 5.5, 6.0])])
    shape = np.array([172.0, 144.0, 140.0]) // spacing
    directions = np.diag([-1.0, -1.0, 1.0]) @ rotation(random.uniform(-12.0, 12.0, 3))
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing
    affine[:3, 3] = torso.centre_mm - affine[:3, :3] @ ((shape - 1) / 2.0)
    # a DICOM file holds decimals of at most 16 characters: the grid is what the file will say
    affine[:3, 3] = [float(_decimal(value)) for value in affine[:3, 3]]
    return Geometry((int(shape[0]), int(shape[1]), int(shape[2])), affine)


def write_phantoms_3d(
    folder: Path, cases: int = 12, seed: int = 0, unlabelled: int = 3, truth: Path | None = None
) -> PhantomSet:
    """Writes CT-like DICOM series of invented patients with exact labels of two organs.

    ``folder/images/<case>/*.dcm`` and ``folder/labels/<case>.nii.gz`` (uint8, on the series' grid) are for training,
    ``folder/unlabelled/<case>/*.dcm`` for prediction; the labels of the latter lie in ``truth``.

    Args:
        folder: Where to write; made if missing.
        cases: Number of labelled patients.
        seed: The same seed gives the same files.
        unlabelled: Number of further patients.
        truth: Folder for the labels of the unlabelled; default ``folder/truth``.
    """
    found = places(folder, truth, [f"patient{n + 1:02d}" for n in range(cases + unlabelled)], cases, ("", ".nii.gz"))
    for number, (series, label) in enumerate(found.pairs()):
        torso = make_torso(seed, number)
        grid = make_grid(seed, number, torso)
        points = grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1))
        noise = np.random.default_rng([seed, number, 11]).normal(0.0, NOISE_HU, grid.shape)
        _write_series(series, torso.hounsfield(points) + noise, grid, seed, number)
        _write_label(label, torso.organs(points), grid)
    return replace(found, label_names=ORGANS)


def _write_label(path: Path, labels: npt.NDArray[np.uint8], grid: Geometry) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(labels, grid.affine, dtype=np.uint8)
    image.header.set_xyzt_units("mm")
    image.set_sform(grid.affine, code=1)
    image.set_qform(grid.affine, code=1)
    nibabel.save(image, path)


def _write_series(folder: Path, values_hu: FloatArray, grid: Geometry, seed: int, number: int) -> None:
    """Writes one file for each slice; instance numbers run against the slice normal in every second patient."""
    folder.mkdir(parents=True, exist_ok=True)
    affine = grid.to_lps()
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    cosines = affine[:3, :3] / spacing
    stored = np.clip(np.rint(values_hu) - RESCALE_INTERCEPT_HU, 0, 4095).astype(np.uint16)
    slices = grid.shape[2]
    study, series, frame = (_uid(seed, number, part) for part in ("study", "series", "frame of reference"))
    for k in range(slices):
        instance = k + 1 if number % 2 == 0 else slices - k
        dataset = _header(seed, number, instance)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = study, series, frame
        dataset.ImagePositionPatient = [_decimal(value) for value in affine[:3, :3] @ [0, 0, k] + affine[:3, 3]]
        dataset.ImageOrientationPatient = [_decimal(value) for value in (*cosines[:, 0], *cosines[:, 1])]
        dataset.PixelSpacing = [_decimal(spacing[1]), _decimal(spacing[0])]  # between rows, between columns
        dataset.SliceThickness = _decimal(spacing[2])
        dataset.Columns, dataset.Rows = grid.shape[:2]
        dataset.PixelData = np.ascontiguousarray(stored[:, :, k].T).tobytes()
        dataset.save_as(folder / f"IM{instance:04d}.dcm", enforce_file_format=True)


def _header(seed: int, number: int, instance: int) -> FileDataset:
    """Returns the tags that do not depend on the place of the slice."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = _uid(seed, number, f"instance {instance}")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _uid(0, 0, "implementation")
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.StudyDate, dataset.StudyTime, dataset.AccessionNumber = "20200101", "120000", ""
    dataset.ContentDate, dataset.ContentTime = "20200101", "120000"
    dataset.Modality, dataset.Manufacturer, dataset.ReferringPhysicianName = "CT", "unet-med phantom", ""
    dataset.StudyDescription = dataset.SeriesDescription = "phantom, no real patient"
    dataset.PatientName, dataset.PatientID = f"PHANTOM^{number + 1:02d}", f"PHANTOM{number + 1:02d}"
    dataset.PatientBirthDate = dataset.PatientSex = ""
    dataset.StudyID, dataset.SeriesNumber, dataset.InstanceNumber = str(number + 1), number + 1, instance
    dataset.AcquisitionNumber, dataset.PositionReferenceIndicator, dataset.KVP = 1, "", "120"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = str(RESCALE_INTERCEPT_HU), "1", "HU"
    return dataset


def _uid(seed: int, number: int, part: str) -> Any:
    return generate_uid(entropy_srcs=["unet-med phantom", str(seed), str(number), part])


def _decimal(value: float) -> str:
    """Returns a DICOM decimal string (at most 16 characters)."""
    return f"{value:.9f}".rstrip("0").rstrip(".") if abs(value) < 1e5 else f"{value:.8g}"
