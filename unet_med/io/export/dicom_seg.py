"""Masks as DICOM Segmentation (SEG), written by highdicom, read back frame by frame from the bytes.

Frames lie on the stored slices of the source, also where the mask was made on another grid (untilted, resampled).
``BINARY`` (one bit for a voxel) is what viewers know; ``LABELMAP`` holds all labels in one frame for each slice and is
young; ``FRACTIONAL`` holds the model's probabilities in steps of 1/255. Only frames with content are stored; every
label is described, also one that does not occur.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import numpy.typing as npt
from highdicom.color import CIELabColor
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code as DicomCode
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from unet_med.errors import InputRefusedError
from unet_med.io.export.dicom_base import (
    MAKER,
    REPORT,
    FloatArray,
    FoundSlice,
    SourceSeries,
    device_serial,
    ds,
    finish,
    guarded,
    lossy_compression,
    number_in,
    read_source,
    reference_item,
    save,
    slice_at,
    slice_layout,
    stamp_slices,
    today,
)
from unet_med.io.export.mask import MaskExport
from unet_med.io.export.sidecars import RESEARCH_ONLY
from unet_med.labels import Code, Label
from unet_med.version import __version__

KIND = "dicom-seg"

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
LABEL_MAP_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.7"

_FULL = 255
_HALF = 128
_TYPES = {
    "binary": hd.seg.SegmentationTypeValues.BINARY,
    "labelmap": hd.seg.SegmentationTypeValues.LABELMAP,
    "fractional": hd.seg.SegmentationTypeValues.FRACTIONAL,
}
_ARTIFICIAL_INTELLIGENCE = DicomCode("123110", "DCM", "Artificial Intelligence")


def sop_class(export: MaskExport) -> str:
    """Returns the class of the SEG that this mask is written as."""
    return LABEL_MAP_SEGMENTATION if export.options.seg_type == "labelmap" else SEGMENTATION


def segment_numbers(export: MaskExport) -> dict[int, int]:
    """Returns the segment number of each label: 1, 2, ... in the order of the label map."""
    return {label.index: number for number, label in enumerate(export.label_map.labels, start=1)}


def write(export: MaskExport, path: Path) -> None:
    """Writes the mask.

    Raises:
        InputRefusedError: The image is no DICOM volume, a label has no code, or probabilities are wanted and missing.
    """
    source = read_source(export)
    described = _described(source)
    pixels = _pixels(source)
    with guarded("the DICOM segmentation cannot be made", source.id):
        dataset = hd.seg.Segmentation(
            source_images=_stand_ins(source),
            pixel_array=pixels,
            segmentation_type=_TYPES[export.options.seg_type],
            segment_descriptions=described,
            series_instance_uid=source.own_uid(KIND, "series"),
            series_number=1,
            sop_instance_uid=source.own_uid(KIND, "instance"),
            instance_number=1,
            manufacturer=MAKER,
            manufacturer_model_name=MAKER,
            software_versions=__version__,
            device_serial_number=device_serial(source),
            content_label="SEGMENTATION",
            content_description=RESEARCH_ONLY,
            max_fractional_value=_FULL,
            transfer_syntax_uid=ExplicitVRLittleEndian,
        )
        _refer(dataset, source)
        dataset.ContentDate, dataset.ContentTime = today(source)
        finish(dataset, source, KIND, f"{MAKER} segmentation")
    save(dataset, path)


def _described(source: SourceSeries) -> list[hd.seg.SegmentDescription]:
    export = source.export
    uncoded = [label.name for label in export.label_map.labels if label.code is None]
    if uncoded or not export.label_map.labels:
        raise InputRefusedError(
            f"no code is known for {', '.join(uncoded) or 'any label'}, and every segment of a DICOM SEG has one",
            source.id,
            "give codes in the labels block of a file for --labels: category and type, each with scheme, value and "
            "meaning",
        )
    algorithm = hd.AlgorithmIdentificationSequence(
        name=MAKER,
        family=_ARTIFICIAL_INTELLIGENCE,
        version=__version__,
        parameters={"model_sha256": ", ".join(source.model_sha256) or "none", "use": RESEARCH_ONLY},
    )
    return [_segment(source, label, number, algorithm) for number, label in enumerate(export.label_map.labels, 1)]


def _segment(source: SourceSeries, label: Label, number: int, algorithm: Any) -> hd.seg.SegmentDescription:
    code = label.code
    if code is None:
        raise InputRefusedError("a label has no code", source.id, "give codes with --labels")
    segment = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=label.name[:64],
        segmented_property_category=_code(code.category),
        segmented_property_type=_code(code.type),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        tracking_uid=source.own_uid("label", str(label.index)),
        tracking_id=label.name[:64],
        display_color=CIELabColor.from_rgb(*label.colour),
    )
    if code.modifier is not None:
        segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
            hd.sr.CodedConcept.from_code(_code(code.modifier))
        ]
    return segment


def _code(code: Code) -> DicomCode:
    return DicomCode(code.value, code.scheme, code.meaning[:64])


def _pixels(source: SourceSeries) -> npt.NDArray[Any]:
    """Returns what highdicom wants: (slices, rows, columns) segment numbers, or for FRACTIONAL probabilities behind."""
    export = source.export
    if export.options.seg_type == "fractional":
        return _probabilities(source)
    numbers = segment_numbers(export)
    table = np.zeros(max(numbers, default=0) + 1, dtype=np.uint8 if len(numbers) < 256 else np.uint16)
    for index, number in numbers.items():
        table[index] = number
    stored = source.stored_labels
    if stored.size and int(stored.max()) >= len(table):
        raise InputRefusedError(
            f"the mask holds the value {int(stored.max())}, which is no label", source.id, "use the model's own labels"
        )
    return np.ascontiguousarray(table[stored].transpose(2, 1, 0))


def _probabilities(source: SourceSeries) -> npt.NDArray[np.float32]:
    columns, rows = source.layout.size
    maps = _quantised(source.export)
    pixels = np.empty((len(source.layout.slices), rows, columns, len(maps)), dtype=np.float32)
    for number, one in enumerate(maps):
        stored = source.layout.labels_on_slices(one)
        pixels[..., number] = stored.transpose(2, 1, 0) / np.float32(_FULL)
    return pixels


def _quantised(export: MaskExport) -> npt.NDArray[np.uint8]:
    """Returns the probability of each label on the grid (labels, I, J, K) in steps of 1/255."""
    found = export.probabilities
    if found is None or found.shape != (len(export.label_map.labels), *export.labels.shape):
        raise InputRefusedError(
            "a fractional DICOM SEG holds probabilities, and there are none",
            export.source.id,
            "use --seg-type binary",
        )
    return np.rint(np.clip(found, 0.0, 1.0) * _FULL).astype(np.uint8)


def _stand_ins(source: SourceSeries) -> list[Dataset]:
    """Returns a header for each stored slice, as if each were a file: its place and nothing of the patient.

    The instance UID tells the number of the slice; :func:`_refer` puts the real references in its place.
    """
    layout = source.layout
    thickness = number_in(source.header, "SliceThickness") or layout.step_mm
    stand_ins = []
    for number, stored in enumerate(layout.slices):
        header = Dataset()
        header.SOPClassUID = CTImageStorage
        header.SOPInstanceUID = _placeholder(number)
        header.StudyInstanceUID, header.SeriesInstanceUID = source.study_uid, source.series_uid
        header.FrameOfReferenceUID = source.frame_uid
        header.PatientID = header.PatientName = header.PatientBirthDate = header.PatientSex = None
        header.AccessionNumber = header.StudyID = header.StudyDate = header.StudyTime = None
        header.ReferringPhysicianName = None
        header.Modality = source.modality
        header.Columns, header.Rows = layout.size
        header.PixelSpacing = [ds(layout.spacing_mm[1]), ds(layout.spacing_mm[0])]
        header.SliceThickness = ds(abs(thickness))
        if layout.regrid is None:
            header.SpacingBetweenSlices = ds(layout.step_mm)
        header.ImageOrientationPatient = [ds(value) for value in (*layout.row, *layout.column)]
        header.ImagePositionPatient = [ds(value) for value in stored.position]
        for keyword, value in lossy_compression(source).items():
            setattr(header, keyword, value)
        stand_ins.append(header)
    return stand_ins


def _placeholder(number: int) -> str:
    return f"2.25.{number + 1}"


def _refer(dataset: Dataset, source: SourceSeries) -> None:
    """Puts the real source images, with frame numbers, in the place of the stand-ins."""
    numbers = {_placeholder(number): number for number in range(len(source.layout.slices))}
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        for derivation in frame.get("DerivationImageSequence") or ():
            for item in derivation.SourceImageSequence:
                if (number := numbers.get(item.ReferencedSOPInstanceUID)) is not None:  # segments share items
                    item.update(source.reference(number))
    dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence = _all_images(source)
    dataset.SourceImageSequence = _all_images(source)


def _all_images(source: SourceSeries) -> list[Dataset]:
    return [reference_item(image.sop_class, image.sop_uid) for image in source.images]


# ---- reading back ---------------------------------------------------------------------------------------------------


def check(path: Path, export: MaskExport) -> dict[str, Any]:
    """Reads the file with pydicom alone, unpacks its frames, and stamps them.

    Raises:
        InputRefusedError: when it says anything else than the mask in memory.
    """
    with guarded("the written DICOM segmentation cannot be read", export.source.id):
        dataset = dcmread(path)
        names = {int(item.SegmentNumber): str(item.SegmentLabel) for item in dataset.SegmentSequence}
        frames = list(_frames(dataset))
    numbers = segment_numbers(export)
    meant = {numbers[label.index]: label.name[:64].strip() for label in export.label_map.labels}
    if {number: name for number, name in names.items() if number} != meant:
        raise InputRefusedError("the written segments have other names than the labels", export.source.id, REPORT)
    if export.options.seg_type == "fractional":
        return _check_fractional(export, frames)
    index = np.zeros(max(numbers.values()) + 1, dtype=np.uint16)
    for label, number in numbers.items():
        index[number] = label
    found: dict[tuple[float, ...], FoundSlice] = {}
    for affine, segment, pixels in frames:
        labels = index[pixels.T if segment is None else pixels.T * segment]
        first = found.setdefault(tuple(affine[:3, 3]), FoundSlice(affine, np.zeros_like(labels)))
        if np.any(first.labels[labels > 0]):
            raise InputRefusedError("written segments overlap", export.source.id, REPORT)
        first.labels[labels > 0] = labels[labels > 0]
    return stamp_slices(export, "pydicom", list(found.values()), exact=True)


def _frames(dataset: Dataset) -> Iterator[tuple[FloatArray, int | None, npt.NDArray[Any]]]:
    """Yields for each frame where it lies (LPS), its segment number (``None``: its values are that) and its pixels."""
    rows, columns, bits = int(dataset.Rows), int(dataset.Columns), int(dataset.BitsAllocated)
    size = rows * columns
    shared = dataset.SharedFunctionalGroupsSequence[0]
    label_map = dataset.SegmentationType == "LABELMAP"
    data = dataset.PixelData
    for number, own in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        first, last = number * size * bits // 8, -(-(number + 1) * size * bits // 8)
        if bits == 1:
            stored = np.unpackbits(np.frombuffer(data[first:last], dtype=np.uint8), bitorder="little")
            pixels = stored[number * size % 8 :][:size]
        else:
            pixels = np.frombuffer(data[first:last], dtype=f"<u{bits // 8}")
        segment = None if label_map else int(_group(own, shared, "SegmentIdentification").ReferencedSegmentNumber)
        yield _affine(own, shared), segment, pixels.reshape(rows, columns).astype(np.uint16)


def _group(own: Dataset, shared: Dataset, name: str) -> Dataset:
    """Returns a functional group of a frame, its own or the one shared by all frames."""
    keyword = f"{name}Sequence"
    item: Dataset = (own if keyword in own else shared)[keyword].value[0]
    return item


def _affine(own: Dataset, shared: Dataset) -> FloatArray:
    """Returns (column, row, 0) to LPS mm."""
    directions = np.array(_group(own, shared, "PlaneOrientation").ImageOrientationPatient, dtype=np.float64)
    measures = _group(own, shared, "PixelMeasures")
    between_rows, between_columns = (float(value) for value in measures.PixelSpacing)
    affine = np.eye(4)
    affine[:3, 0] = directions[:3] * between_columns
    affine[:3, 1] = directions[3:] * between_rows
    step = float(measures.get("SpacingBetweenSlices") or measures.get("SliceThickness") or 1.0)
    affine[:3, 2] = np.cross(directions[:3], directions[3:]) * step
    affine[:3, 3] = np.array(_group(own, shared, "PlanePosition").ImagePositionPatient, dtype=np.float64)
    return affine


def _check_fractional(
    export: MaskExport, frames: Sequence[tuple[FloatArray, int | None, npt.NDArray[Any]]]
) -> dict[str, Any]:
    """Compares every stored probability, and stamps the voxels where a label has one half or more."""
    layout = slice_layout(export)
    on_grid = _quantised(export)
    meant = np.stack([layout.labels_on_slices(one) for one in on_grid])
    found = np.zeros_like(meant)
    places: dict[int, FloatArray] = {}
    for affine, segment, pixels in frames:
        number = slice_at(affine, layout.slices, export.source.id)
        places[number] = affine
        found[(segment or 1) - 1, :, :, number] = pixels.T
    if different := int(np.count_nonzero(found != meant)):
        raise InputRefusedError(f"{different} written probabilities differ", export.source.id, REPORT)
    stored = _likely(export, found)
    slices = [FoundSlice(affine, stored[:, :, number]) for number, affine in places.items()]
    return stamp_slices(replace(export, labels=_likely(export, on_grid)), "pydicom", slices, exact=True)


def _likely(export: MaskExport, quantised: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """Returns the likeliest label (...) of probabilities (labels, ...), 0 where none has one half."""
    index = np.array([label.index for label in export.label_map.labels], dtype=np.uint16)
    labels: npt.NDArray[np.uint16] = index[quantised.argmax(axis=0)]
    labels[quantised.max(axis=0) < _HALF] = 0
    return labels
