"""Masks as DICOM RT Structure Sets, written by contours along the borders of pixels.

A contour runs along the outer edges of the pixels of a connected region (pixels that touch by a corner alone are two
regions), so that its area is that of the pixels, and whoever fills it by the centres of pixels finds the very same
pixels: single voxels, lines one voxel thin and regions at the border of the image.

A hole is joined to the outline by a channel of no width (the "keyhole" of DICOM PS3.3 C.8.8.6). Of all ways to write
a hole this is the one that every reader fills right: those that combine the contours of a slice by exclusive or, those
that unite them, and those that look at one contour after the other. An inner contour of its own, by contrast, is
filled by readers that unite. The channel runs between pixels, and the contours of a slice never overlap.

The file is in implicit VR: in explicit VR a contour cannot be longer than 64 KiB.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import dcmread
from pydicom.charset import default_encoding
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import ImplicitVRLittleEndian
from scipy import ndimage

from unet_med.errors import InputRefusedError
from unet_med.geometry import CORNER_TOLERANCE_MM
from unet_med.io.export.dicom_base import (
    MAKER,
    REPORT,
    FloatArray,
    FoundSlice,
    SourceSeries,
    ds,
    finish,
    guarded,
    label_code_item,
    made_by,
    new_object,
    read_source,
    reference_item,
    save,
    slice_layout,
    stamp_slices,
    today,
)
from unet_med.io.export.mask import MaskExport
from unet_med.io.export.sidecars import RESEARCH_ONLY
from unet_med.labels import Label

KIND = "rtstruct"

STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
_STUDY_COMPONENT = "1.2.840.10008.3.1.2.3.1"
_CONTOUR_DATA = Tag("ContourData")
_ANATOMY = "123037004"
_DIGITS_OF_A_PIXEL = 4
"""Coordinates are rounded to this power of ten of a pixel."""

Point = tuple[int, int]
Loop = list[Point]


def write(export: MaskExport, path: Path) -> None:
    """Writes the contours of every label; a label that does not occur becomes a region without contours.

    Raises:
        InputRefusedError: The image is no DICOM volume.
    """
    source = read_source(export)
    with guarded("the RT structure set cannot be made", source.id):
        dataset = new_object(source, KIND, STRUCTURE_SET, ImplicitVRLittleEndian)
        dataset.Modality = "RTSTRUCT"
        dataset.OperatorsName = ""
        dataset.InstanceNumber = 1
        dataset.StructureSetLabel = "UNET_MED"
        dataset.StructureSetName = f"{MAKER} (research)"
        dataset.StructureSetDescription = made_by(source)
        dataset.StructureSetDate, dataset.StructureSetTime = today(source)
        dataset.FrameOfReferenceUID = source.frame_uid
        dataset.ReferencedFrameOfReferenceSequence = [_frame_of_reference(source)]
        labels = export.label_map.labels
        dataset.StructureSetROISequence = [_region(source, label) for label in labels]
        dataset.ROIContourSequence = [_contours(source, label) for label in labels]
        dataset.RTROIObservationsSequence = [_observation(label) for label in labels]
        dataset.ApprovalStatus = "UNAPPROVED"
        finish(dataset, source, KIND, f"{MAKER} structures")
    save(dataset, path)


# ---- modules --------------------------------------------------------------------------------------------------------


def _frame_of_reference(source: SourceSeries) -> Dataset:
    series = Dataset()
    series.SeriesInstanceUID = source.series_uid
    series.ContourImageSequence = [reference_item(image.sop_class, image.sop_uid) for image in source.images]
    study = reference_item(_STUDY_COMPONENT, source.study_uid)
    study.RTReferencedSeriesSequence = [series]
    frame = Dataset()
    frame.FrameOfReferenceUID = source.frame_uid
    frame.RTReferencedStudySequence = [study]
    return frame


def _region(source: SourceSeries, label: Label) -> Dataset:
    region = Dataset()
    region.ROINumber = label.index
    region.ReferencedFrameOfReferenceUID = source.frame_uid
    region.ROIName = label.name[:64]
    region.ROIGenerationAlgorithm = "AUTOMATIC"
    region.ROIGenerationDescription = RESEARCH_ONLY
    return region


def _observation(label: Label) -> Dataset:
    observation = Dataset()
    observation.ObservationNumber = observation.ReferencedROINumber = label.index
    anatomy = label.code is not None and label.code.category.value == _ANATOMY
    observation.RTROIInterpretedType = "ORGAN" if anatomy else ""
    observation.ROIInterpreter = ""
    if (code := label_code_item(label)) is not None:
        observation.RTROIIdentificationCodeSequence = [code]
    return observation


def _contours(source: SourceSeries, label: Label) -> Dataset:
    region = Dataset()
    region.ROIDisplayColor = list(label.colour)
    region.ReferencedROINumber = label.index
    contours: list[Dataset] = []
    for number, outline in _outlines(source.stored_labels == label.index):
        affine = source.layout.slice_affine(number)
        corners = np.array(outline, dtype=np.float64) - 0.5
        contour = Dataset()
        contour.set_original_encoding(True, True, default_encoding)  # so that the coordinates are written as they are
        contour.ContourImageSequence = [source.reference(number)]
        contour.ContourGeometricType = "CLOSED_PLANAR"
        contour.NumberOfContourPoints = len(outline)
        contour.ContourNumber = len(contours) + 1
        points = corners @ affine[:3, :2].T + affine[:3, 3]
        contour[_CONTOUR_DATA] = _coordinates(points, min(source.layout.spacing_mm))
        contours.append(contour)
    if contours:
        region.ContourSequence = contours
    return region


def _coordinates(points: FloatArray, pixel_mm: float) -> RawDataElement:
    """Returns points (n, 3) in mm as the element ContourData; each number has at most 16 characters."""
    digits = max(3, _DIGITS_OF_A_PIXEL - int(np.floor(np.log10(pixel_mm))))
    texts = []
    for value in (np.round(points, digits) + 0.0).ravel().tolist():
        text = f"{value:.{digits}f}".rstrip("0").rstrip(".")
        texts.append(text if len(text) <= 16 else ds(value))
    data = "\\".join(texts).encode("ascii")
    data += b" " * (len(data) % 2)
    return RawDataElement(_CONTOUR_DATA, "DS", len(data), data, 0, True, True)


# ---- contours along the borders of pixels ---------------------------------------------------------------------------


def _outlines(mask: npt.NDArray[np.bool_]) -> Iterator[tuple[int, Loop]]:
    """Yields the slice and the outline of each connected region of a mask (columns, rows, slices)."""
    box = ndimage.find_objects(mask.astype(np.uint8))
    for x, y, z in box:
        for number in range(z.start, z.stop):
            for outline in outlines_of(mask[x, y, number]):
                yield number, [(column + x.start, row + y.start) for column, row in outline]


def outlines_of(mask: npt.NDArray[np.bool_]) -> list[Loop]:
    """Returns one closed outline for each connected region of a picture.

    Args:
        mask: (columns, rows).

    Returns:
        Corners of pixels (column, row): pixel (c, r) has the corners c and c + 1, r and r + 1. The first is not
        repeated at the end. Holes are joined by channels.
    """
    loops: dict[int, list[Loop]] = defaultdict(list)
    for region, loop in _loops(mask):
        loops[region].append(loop)
    return [_without_straight_points(_joined(loops[region])) for region in sorted(loops)]


def _loops(mask: npt.NDArray[np.bool_]) -> Iterator[tuple[int, Loop]]:
    """Yields every border as the corners it passes, with the number of its region; the region lies on one side.

    Edges are numbered by (direction, column, row) of the corner where they start; the directions 0 to 3 are towards
    growing columns, growing rows, and back. The region lies where the direction turns by +1.
    """
    regions, _ = ndimage.label(mask)  # pixels that share an edge
    inside = np.pad(regions, 1)
    here, left, above = inside[1:, 1:], inside[:-1, 1:], inside[1:, :-1]
    both = inside[:-1, :-1]
    owner = np.stack(  # (direction, column, row): the region of the edge that starts at this corner, 0 for no edge
        [
            np.where(here != above, here, 0),
            np.where(left != here, left, 0),
            np.where(both != left, both, 0),
            np.where(above != both, above, 0),
        ]
    )
    steps = ((1, 0), (0, 1), (-1, 0), (0, -1))
    _, width, height = owner.shape
    edges = {int(edge): int(region) for edge, region in _nonzero(owner)}
    moves = [step[0] * height + step[1] for step in steps]
    plane = width * height
    while edges:
        first = edge = next(iter(edges))
        region = edges[first]
        loop: Loop = []
        while True:
            direction, corner = divmod(edge, plane)
            loop.append((corner // height, corner % height))
            del edges[edge]
            ahead = corner + moves[direction]
            edge = next(
                (
                    candidate
                    for turn in (1, 0, 3)
                    if (candidate := (direction + turn) % 4 * plane + ahead) in edges or candidate == first
                ),
                first,
            )
            if edge == first:
                break
        yield region, loop


def _nonzero(owner: npt.NDArray[Any]) -> Iterator[tuple[Any, Any]]:
    flat = owner.ravel()
    numbers = np.flatnonzero(flat)
    return zip(numbers.tolist(), flat[numbers].tolist(), strict=True)


def _area(loop: Loop) -> float:
    """Signed area in pixels: positive where the region lies inside."""
    x, y = np.array(loop, dtype=np.int64).T
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2.0


def _joined(loops: Sequence[Loop]) -> Loop:
    """Returns the borders of one region as one outline: each hole joined to what lies on its left.

    From the leftmost corner of a hole the channel runs along its row of corners up to the next border. The pixels above
    and below it belong to the region, so that it meets no other border on its way.
    """
    outer = next(loop for loop in loops if _area(loop) > 0)
    holes = sorted((loop for loop in loops if loop is not outer), key=min)
    borders = {corner for loop in loops for corner in loop}
    joined = list(outer)
    for hole in holes:
        start = hole.index(min(hole))
        column, row = hole[start]
        column -= 1
        while (column, row) not in borders:
            column -= 1
        at = joined.index((column, row))
        joined[at + 1 : at + 1] = [*hole[start:], *hole[: start + 1], (column, row)]
    return joined


def _without_straight_points(loop: Loop) -> Loop:
    """Leaves out corners where the outline does not change its direction."""
    points = np.array(loop, dtype=np.int64)
    before = np.sign(points - np.roll(points, 1, axis=0))
    after = np.sign(np.roll(points, -1, axis=0) - points)
    kept = points[(before != after).any(axis=1)]
    return [(int(column), int(row)) for column, row in kept]


# ---- reading back ---------------------------------------------------------------------------------------------------


def check(path: Path, export: MaskExport) -> dict[str, Any]:
    """Reads the contours from the file, fills them by counting crossings, and stamps the filled slices.

    The same library reads the elements that wrote them, but what they mean is computed anew: mm to pixels by the
    geometry of the source, pixels by the centres inside of a contour.

    Raises:
        InputRefusedError: when it says anything else than the mask in memory.
    """
    layout = slice_layout(export)
    with guarded("the written RT structure set cannot be read", export.source.id):
        dataset = dcmread(path)
        names = {int(item.ROINumber): str(item.ROIName) for item in dataset.StructureSetROISequence}
        contours = [
            (int(region.ReferencedROINumber), _points(contour))
            for region in dataset.ROIContourSequence
            for contour in region.get("ContourSequence") or ()
        ]
    if names != {label.index: label.name[:64].strip() for label in export.label_map.labels}:
        raise InputRefusedError("the written regions have other names than the labels", export.source.id, REPORT)
    found: dict[int, FoundSlice] = {}
    normal = layout.normal
    heights = np.array([stored.position for stored in layout.slices]) @ normal
    inverses: dict[int, FloatArray] = {}
    for label, points in contours:
        number = int(np.abs(heights - float(points[0] @ normal)).argmin())
        if number not in inverses:
            inverses[number] = np.asarray(np.linalg.inv(layout.slice_affine(number)), dtype=np.float64)
        places = points @ inverses[number][:3, :3].T + inverses[number][:3, 3]
        if number not in found:
            affine = layout.slice_affine(number)
            affine[:3, 3] += affine[:3, 2] * places[:, 2].mean()
            found[number] = FoundSlice(affine, np.zeros(layout.size, dtype=np.uint16))
        if np.ptp(places[:, 2]) * layout.step_mm > CORNER_TOLERANCE_MM:
            raise InputRefusedError("a written contour is not plane", export.source.id, REPORT)
        one, inside = found[number], filled(places[:, :2], layout.size)
        if np.any(one.labels[inside]):
            raise InputRefusedError("written contours overlap", export.source.id, REPORT)
        one.labels[inside] = label
    return stamp_slices(export, "pydicom, filled by crossings", list(found.values()), exact=False)


def _points(contour: Dataset) -> FloatArray:
    """Returns the points (n, 3) of a contour, LPS mm, from its text."""
    element = contour.get_item(_CONTOUR_DATA)
    raw = getattr(element, "value", b"")
    if not isinstance(raw, bytes):
        return np.array(raw, dtype=np.float64).reshape(-1, 3)
    return np.array(raw.decode("ascii").split("\\"), dtype=np.float64).reshape(-1, 3)


def filled(points: FloatArray, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Returns which pixels (columns, rows) have their centre inside of a polygon, by the even-odd rule.

    Args:
        points: (n, 2) corners in pixels; the centre of pixel (c, r) is (c, r).
        size: Columns and rows.
    """
    inside = np.zeros(size, dtype=np.bool_)
    low = np.ceil(points.min(axis=0)).astype(int).clip(0, size)
    high = np.ceil(points.max(axis=0)).astype(int).clip(0, size)
    columns, rows = high - low
    x0, y0 = (points - low).T
    x1, y1 = np.roll(points - low, -1, axis=0).T
    first = np.ceil(np.minimum(y0, y1)).astype(int).clip(0, rows)
    last = np.ceil(np.maximum(y0, y1)).astype(int).clip(0, rows)
    counts = last - first
    edge = np.repeat(np.arange(len(points)), counts)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    crossing = x0[edge] + (row - y0[edge]) / (y1[edge] - y0[edge]) * (x1[edge] - x0[edge])
    column = np.ceil(crossing).astype(int).clip(0, columns)
    toggles = np.bincount(column * rows + row, minlength=(columns + 1) * rows).reshape(columns + 1, rows)
    inside[low[0] : high[0], low[1] : high[1]] = np.cumsum(toggles[:columns], axis=0) % 2 == 1
    return inside
