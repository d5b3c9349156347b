"""RTSTRUCT in: contours as labels on the slices of an image.

Each contour is filled in the plane of its slice: a pixel belongs to it when the pixel's centre lies inside or on the
line. Contours of one region in one slice are combined by XOR, so that a contour within another is a hole; a contour
that leads to its hole and back over one line (keyhole) works by the same rule. Corners keep their exact positions.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

from unet_med.errors import InputRefusedError
from unet_med.io.dicom.items import (
    EXPORT_AGAIN,
    items,
    no_value,
    printable_name,
    read_dataset,
    reading,
    text,
    whole_number,
)
from unet_med.io.dicom.slices import Annotation, LabelArray, Segment, SliceLayout
from unet_med.io.polygons import polygon_line, polygon_parity
from unet_med.io.source import SourceRef

CLOSED = frozenset({"CLOSED_PLANAR", "CLOSEDPLANAR_XOR"})

OFF_SLICE = 0.25
"""A contour lies in a slice when none of its points is further off than this, in steps between slices."""

FloatArray = npt.NDArray[np.float64]
Picture = npt.NDArray[np.bool_]


def describe_rtstruct(dataset: Dataset, ref: SourceRef) -> SourceRef:
    """Returns ``ref`` with what the header of an RTSTRUCT says; its segments are the regions with closed contours.

    Raises:
        InputRefusedError: It holds no closed contour, or contours of several frames of reference.
    """
    regions = {whole_number(item, "ROINumber"): item for item in items(dataset, "StructureSetROISequence")}
    if len(regions) < len(items(dataset, "StructureSetROISequence")):
        raise InputRefusedError("two regions of the structure set have one number", remedy=EXPORT_AGAIN)
    segments: dict[int, Segment] = {}
    frames: set[str] = set()
    images: set[str] = set()
    skipped = 0
    for region in items(dataset, "ROIContourSequence"):
        number = whole_number(region, "ReferencedROINumber")
        contours = items(region, "ContourSequence")
        closed = [one for one in contours if _is_closed(one)]
        skipped += len(contours) - len(closed)
        if not closed:
            continue
        if number is None or number not in regions:
            raise InputRefusedError("contours belong to no region that is listed", remedy=EXPORT_AGAIN)
        segments[number] = Segment(number, printable_name(text(regions[number], "ROIName"), number, dataset))
        frames.add(text(regions[number], "ReferencedFrameOfReferenceUID"))
        images |= {text(one, "ReferencedSOPInstanceUID") for c in closed for one in items(c, "ContourImageSequence")}
    if not segments:
        raise InputRefusedError(
            "the structure set holds no closed contour", remedy="export the structures as closed planar contours"
        )
    referred = items(dataset, "ReferencedFrameOfReferenceSequence")
    if not frames - {""}:
        frames = {text(item, "FrameOfReferenceUID") for item in referred}
    if len(frames - {""}) > 1:
        raise InputRefusedError(
            f"the structure set holds contours in {len(frames - {''})} frames of reference",
            remedy="export one structure set for each series",
        )
    series: set[str] = set()
    for frame in referred:
        for study in items(frame, "RTReferencedStudySequence"):
            for one in items(study, "RTReferencedSeriesSequence"):
                series.add(text(one, "SeriesInstanceUID"))
                images |= {text(image, "ReferencedSOPInstanceUID") for image in items(one, "ContourImageSequence")}
    return replace(
        ref,
        dtype="uint8" if len(segments) < 256 else "uint16",
        notes=(*ref.notes, *([f"contours that are not closed are left out: {skipped}"] if skipped else [])),
        layout=Annotation(
            segments=tuple(segments[number] for number in sorted(segments)),
            series_uids=frozenset(series - {""}),
            sop_uids=frozenset(images - {""}),
            frame_uid=next(iter(frames - {""}), ""),
            study_uid=text(dataset, "StudyInstanceUID"),
        ),
    )


def _is_closed(contour: Dataset) -> bool:
    return text(contour, "ContourGeometricType").upper() in CLOSED


# ---- contours on slices ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Contour:
    """A contour in its slice: (points, 2), columns and rows in pixels from the centre of the first."""

    number: int
    points: FloatArray


def read_rtstruct(
    path: Path, layout: SliceLayout, values: Mapping[int, int], where: str
) -> tuple[LabelArray, list[str]]:
    """Returns the labels of an RTSTRUCT on the stored slices of an image, (columns, rows, slices), and notes.

    Args:
        path: The RTSTRUCT.
        layout: The slices.
        values: ROI number to label value; 0 for regions that are left out.
        where: Safe id for errors.

    Raises:
        InputRefusedError: The file is damaged, contours do not lie in the slices, or two regions claim one voxel.
    """
    with reading("the structure set cannot be read", where):
        dataset = read_dataset(path)
        names = {
            number: printable_name(text(item, "ROIName"), number, dataset)
            for item in items(dataset, "StructureSetROISequence")
            if (number := whole_number(item, "ROINumber")) is not None
        }
        contours: dict[int, list[_Contour]] = {}
        plane = _Planes(layout, where)
        for region in items(dataset, "ROIContourSequence"):
            number = whole_number(region, "ReferencedROINumber")
            closed = [one for one in items(region, "ContourSequence") if _is_closed(one)]
            if number is None or not closed:
                continue
            if number not in values:
                raise no_value("region", number, names.get(number, ""), where)
            if values[number]:
                contours.setdefault(number, []).extend(
                    found for one in closed if (found := plane.contour(one)) is not None
                )
        return _painted(contours, layout, values, names, plane)


class _Planes:
    """Finds the slice of each contour; counts what was unusual."""

    def __init__(self, layout: SliceLayout, where: str) -> None:
        self.where = where
        self.layout = layout
        self.axes = np.stack([np.array(layout.row), np.array(layout.column), layout.normal])
        self.positions = np.array([one.position for one in layout.slices])
        self.heights = self.positions @ self.axes[2]
        gaps = np.abs(np.diff(self.heights))
        self.step = float(gaps.min()) if gaps.size and gaps.min() > 0 else layout.step_mm
        self.points = 0
        self.notes: list[str] = []

    def contour(self, item: Dataset) -> _Contour | None:
        """Returns a contour in its slice; ``None`` for one of fewer than three points.

        Raises:
            InputRefusedError: It lies in no slice.
        """
        points = _points(item, self.where)
        if len(points) < 3:
            self.points += 1
            return None
        heights = points @ self.axes[2]
        number = int(np.abs(self.heights - heights.mean()).argmin())
        off = float(np.abs(heights - self.heights[number]).max())
        if off > OFF_SLICE * self.step:
            raise self._elsewhere(heights, off)
        flat = (points - self.positions[number]) @ self.axes[:2].T / self.layout.spacing_mm
        return _Contour(number, np.asarray(flat, dtype=np.float64))

    def _elsewhere(self, heights: FloatArray, off: float) -> InputRefusedError:
        if float(np.ptp(heights)) > 2 * OFF_SLICE * self.step:
            what = "a contour runs across the slices of the image"
        elif self.heights.min() < heights.mean() < self.heights.max():
            what = f"a contour lies between the slices of the image, {off:.2f} mm from the nearest"
        else:
            what = f"a contour lies beyond the first or last slice of the image, {off:.2f} mm from it"
        return InputRefusedError(
            what, self.where, "give the whole series that the contours were drawn on; a slice of it may be missing"
        )


def _points(item: Dataset, where: str) -> FloatArray:
    """Returns the points of a contour (points, 3), LPS mm."""
    element: Any = item.get_item("ContourData")
    raw = element.value if element is not None else None
    if isinstance(element, RawDataElement) and isinstance(raw, bytes):
        raw = raw.strip(b" \0").split(b"\\") if raw.strip(b" \0") else []
    numbers = np.array([float(value) for value in raw or ()], dtype=np.float64)
    count = whole_number(item, "NumberOfContourPoints")
    if numbers.size % 3 or (count is not None and numbers.size != 3 * count) or not np.isfinite(numbers).all():
        raise InputRefusedError("a contour has a broken list of points", where, EXPORT_AGAIN)
    shift = item.get("ContourOffsetVector")
    if shift and any(float(value) for value in shift):
        raise InputRefusedError("a contour is shifted out of its plane (ContourOffsetVector)", where, EXPORT_AGAIN)
    return numbers.reshape(-1, 3)


def _painted(
    contours: Mapping[int, list[_Contour]],
    layout: SliceLayout,
    values: Mapping[int, int],
    names: Mapping[int, str],
    planes: _Planes,
) -> tuple[LabelArray, list[str]]:
    """Fills the regions one after the other."""
    ordinals = {number: place for place, number in enumerate(sorted(contours), start=1)}
    owner = np.zeros((*layout.size, len(layout.slices)), dtype=np.uint8 if len(ordinals) < 256 else np.uint16)
    table = np.zeros(len(ordinals) + 1, dtype=np.uint8 if max(values.values(), default=0) < 256 else np.uint16)
    clashes: Counter[tuple[int, int]] = Counter()
    notes: Counter[str] = Counter()
    numbers = {place: number for number, place in ordinals.items()}
    for number, place in ordinals.items():
        table[place] = values[number]
        slices: dict[int, list[FloatArray]] = defaultdict(list)
        for one in contours[number]:
            slices[one.number].append(one.points)
        for index, polygons in slices.items():
            mask = _filled(polygons, layout.size, notes)
            before = owner[:, :, index][mask]
            for other in np.unique(before[(before != 0) & (before != place)]):
                if values[numbers[int(other)]] != values[number]:
                    clashes[numbers[int(other)], number] += int((before == other).sum())
            owner[:, :, index][mask] = place
        if slices and (gap := max(slices) - min(slices) + 1 - len(slices)):
            notes["slices without a contour lie between slices with one: they stay empty"] += gap
    if clashes:
        (one_number, other), count = clashes.most_common(1)[0]
        raise InputRefusedError(
            f"regions {one_number} ({names[one_number]}) and {other} ({names[other]}) overlap in {count} voxels: one "
            "label image cannot hold both",
            planes.where,
            "leave one of them out (--label-names, 0=NAME)",
        )
    if planes.points:
        notes["contours of fewer than three points are left out"] += planes.points
    return np.asarray(table[owner]), [f"{what} ({count})" for what, count in sorted(notes.items())]


def _filled(polygons: list[FloatArray], size: tuple[int, int], notes: Counter[str]) -> Picture:
    """Returns the pixels (columns, rows) of one region in one slice."""
    unique = {points.tobytes(): points for points in polygons}
    if len(unique) < len(polygons):
        notes["contours are there twice: the second is left out"] += len(polygons) - len(unique)
    inside = np.zeros(size, dtype=np.bool_)
    line = np.zeros(size, dtype=np.bool_)
    filled = 0
    for points in unique.values():
        if points.min() < -1.0 or (points.max(axis=0) > size).any():
            notes["contours reach beyond the picture: cut off"] += 1
        low = np.clip(np.floor(points.min(axis=0)), 0, size).astype(np.intp)
        high = np.clip(np.ceil(points.max(axis=0)) + 1, 0, size).astype(np.intp)
        if (high <= low).any():
            continue
        box = slice(low[0], high[0]), slice(low[1], high[1])
        extent = int(high[0] - low[0]), int(high[1] - low[1])
        one = polygon_parity(points - low, extent)
        count, both = int(one.sum()), int((one & inside[box]).sum())
        if 0 < both < min(count, filled):
            notes["contours cross each other: what they share counts as outside"] += 1
        filled += count - 2 * both
        inside[box] ^= one
        line[box] |= polygon_line(points - low, extent)
    return inside | line
