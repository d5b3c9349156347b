"""Writes truth in DICOM for tests: SEG by highdicom, RTSTRUCT by hand; both belong to a series of the dicom_writer."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dicom_writer as w
import highdicom as hd
import numpy as np
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
from pydicom.dataset import Dataset, FileDataset
from pydicom.sr.coding import Code
from pydicom.uid import RTStructureSetStorage, SegmentationStorage, generate_uid
from pydicom.valuerep import format_number_as_ds

TISSUE = Code("85756007", "SCT", "Tissue")
LIVER = Code("10200004", "SCT", "Liver")
SPLEEN = Code("78961009", "SCT", "Spleen")


def complete(slices: Sequence[FileDataset]) -> list[FileDataset]:
    """Returns slices with what highdicom asks for."""
    done = []
    for data in slices:
        full = copy.deepcopy(data)
        full.PatientBirthDate, full.PatientSex, full.AccessionNumber, full.StudyID = "19700101", "F", "SECRET-7", "1"
        full.StudyDate, full.StudyTime, full.ReferringPhysicianName = "20200101", "120000", ""
        done.append(full)
    return done


def describe(number: int, name: str, code: Code = TISSUE) -> SegmentDescription:
    return SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=TISSUE,
        segmented_property_type=code,
        algorithm_type=SegmentAlgorithmTypeValues.MANUAL,
    )


def segmentation(
    slices: Sequence[FileDataset],
    masks: np.ndarray,
    names: Sequence[str | tuple[str, Code]] = ("liver",),
    kind: str = "BINARY",
    **more: Any,
) -> hd.seg.Segmentation:
    """Returns a SEG.

    Args:
        slices: Its images.
        masks: (slices, rows, columns) of numbers, or (slices, rows, columns, segments) of bits or fractions.
        names: Names, or names with codes, of segments 1, 2, ...
        kind: BINARY, FRACTIONAL or LABELMAP.
        more: For highdicom.
    """
    described = [(name, TISSUE) if isinstance(name, str) else name for name in names]
    return hd.seg.Segmentation(
        source_images=complete(slices),
        pixel_array=masks,
        segmentation_type=SegmentationTypeValues(kind),
        segment_descriptions=[describe(n, *one) for n, one in enumerate(described, start=1)],
        series_instance_uid=generate_uid(),
        series_number=300,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="none",
        manufacturer_model_name="none",
        software_versions="0",
        device_serial_number="0",
        **more,
    )


@dataclass
class Plane:
    """One frame of a SEG made by hand: pixels (rows, columns) and where they lie."""

    pixels: np.ndarray
    position: Sequence[float]
    row: Sequence[float]
    column: Sequence[float]
    between_rows: float
    between_columns: float
    segment: int = 1


def plain_seg(series: w.Series, planes: Sequence[Plane], names: Sequence[str] = ("liver",)) -> FileDataset:
    """Returns a BINARY SEG of frames of any place, with bits packed across frames."""
    data = w.new_dataset(SegmentationStorage)
    data.StudyInstanceUID, data.FrameOfReferenceUID, data.Modality = series.study, series.frame, "SEG"
    data.SeriesNumber, data.SegmentationType = 301, "BINARY"
    data.SegmentSequence = []
    for number, name in enumerate(names, start=1):
        segment = Dataset()
        segment.SegmentNumber, segment.SegmentLabel = number, name
        data.SegmentSequence.append(segment)
    referred = Dataset()
    referred.SeriesInstanceUID = series.uid
    data.ReferencedSeriesSequence = [referred]
    data.PerFrameFunctionalGroupsSequence = [_group(plane) for plane in planes]
    data.Rows, data.Columns = planes[0].pixels.shape
    data.NumberOfFrames, data.SamplesPerPixel, data.PhotometricInterpretation = len(planes), 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 1, 1, 0, 0
    bits = np.concatenate([plane.pixels.astype(np.uint8).ravel() for plane in planes])
    packed = np.packbits(bits, bitorder="little").tobytes()
    data.PixelData = packed + b"\0" * (len(packed) % 2)
    data["PixelData"].VR = "OB"
    return data


def _group(plane: Plane) -> Dataset:
    group, segment, place, turn, measures = Dataset(), Dataset(), Dataset(), Dataset(), Dataset()
    segment.ReferencedSegmentNumber = plane.segment
    place.ImagePositionPatient = [format_number_as_ds(float(value)) for value in plane.position]
    turn.ImageOrientationPatient = [format_number_as_ds(float(value)) for value in (*plane.row, *plane.column)]
    measures.PixelSpacing = [plane.between_rows, plane.between_columns]
    group.SegmentIdentificationSequence, group.PlanePositionSequence = [segment], [place]
    group.PlaneOrientationSequence, group.PixelMeasuresSequence = [turn], [measures]
    return group


@dataclass
class Structures:
    """An RTSTRUCT of a series; ``regions`` are name and contours, each a list of (x, y, z) in mm."""

    series: w.Series
    slices: Sequence[FileDataset]

    def dataset(
        self,
        regions: Mapping[str, Sequence[np.ndarray]],
        kind: str = "CLOSED_PLANAR",
        known_images: bool = True,
    ) -> FileDataset:
        data = w.new_dataset(RTStructureSetStorage)
        data.StudyInstanceUID, data.Modality, data.SeriesNumber = self.series.study, "RTSTRUCT", 400
        data.StructureSetLabel, data.StructureSetDate, data.StructureSetTime = "set", "20200101", "120000"
        data.StructureSetROISequence, data.ROIContourSequence = [], []
        for number, (name, contours) in enumerate(regions.items(), start=1):
            region, drawn = Dataset(), Dataset()
            region.ROINumber, region.ROIName = number, name
            region.ReferencedFrameOfReferenceUID = self.series.frame
            drawn.ReferencedROINumber = number
            drawn.ContourSequence = [self._contour(points, kind, known_images) for points in contours]
            data.StructureSetROISequence.append(region)
            data.ROIContourSequence.append(drawn)
        data.ReferencedFrameOfReferenceSequence = [self._references(known_images)]
        return data

    def _contour(self, points: np.ndarray, kind: str, known_images: bool) -> Dataset:
        contour, image = Dataset(), Dataset()
        image.ReferencedSOPClassUID = self.series.sop_class
        image.ReferencedSOPInstanceUID = self.slices[0].SOPInstanceUID if known_images else generate_uid()
        contour.ContourImageSequence = [image]
        contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(points)
        contour.ContourData = [f"{value:.10g}" for value in np.ravel(points)]
        return contour

    def _references(self, known_images: bool) -> Dataset:
        frame, study, series = Dataset(), Dataset(), Dataset()
        series.SeriesInstanceUID = self.series.uid
        series.ContourImageSequence = []
        for one in self.slices:
            image = Dataset()
            image.ReferencedSOPClassUID = self.series.sop_class
            image.ReferencedSOPInstanceUID = one.SOPInstanceUID if known_images else generate_uid()
            series.ContourImageSequence.append(image)
        study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = "1.2.840.10008.3.1.2.3.1", self.series.study
        study.RTReferencedSeriesSequence = [series]
        frame.FrameOfReferenceUID = self.series.frame
        frame.RTReferencedStudySequence = [study]
        return frame

    def points(self, index: float, corners: Sequence[tuple[float, float]]) -> np.ndarray:
        """Returns corners (column, row) in pixels of slice ``index`` as (n, 3) in mm."""
        series = self.series
        flat = np.array(corners) * (series.between_columns, series.between_rows)
        return series.position(index) + flat @ series.turn[:, :2].T


def save(data: FileDataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def circle(centre: tuple[float, float], radius: float, corners: int = 40) -> list[tuple[float, float]]:
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return [(centre[0] + radius * np.cos(a), centre[1] + radius * np.sin(a)) for a in angles]
