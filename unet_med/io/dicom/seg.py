"""DICOM SEG in: segments as labels on the slices of an image, or on the grid of their own frames.

Frames are placed by their position, orientation and pixel size alone, in any order, with missing frames empty; a frame
may be turned or mirrored against the image, or smaller, as long as its pixels lie on pixels of the image. Kinds:

- ``BINARY``: bit-packed, or one byte for each pixel.
- ``FRACTIONAL``: a voxel belongs to a segment when its value is *above* half of MaximumFractionalValue, so that two
  probabilities that add up to 1 never claim one voxel.
- ``LABELMAP``: the pixel is the segment's number.

A voxel that two segments claim is refused: one label image cannot hold both.
"""

from __future__ import annotations

import zlib
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames

from unet_med.errors import InputRefusedError
from unet_med.geometry import Geometry
from unet_med.io.dicom import decoding
from unet_med.io.dicom.codecs import RLE, Frame
from unet_med.io.dicom.headers import EXPLICIT_BIG, NATIVE_SYNTAXES
from unet_med.io.dicom.items import (
    COPY_AGAIN,
    EXPORT_AGAIN,
    code_of,
    first,
    items,
    no_value,
    numbers,
    printable_name,
    read_dataset,
    reading,
    text,
    unit_vectors,
    whole_number,
)
from unet_med.io.dicom.pixels import missing_decoder
from unet_med.io.dicom.slices import Annotation, LabelArray, Segment, SliceLayout, StoredSlice, Vector
from unet_med.io.source import SourceRef

OFF_VOXELS = 0.1
"""A frame lies on its image when none of its pixels is further off than this, in voxels of the image."""

_DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"
_AHEAD = 6
_MOST_SLICES = 20_000
_MOST_PIXELS = 2**28
_OWN_GRID = 0.01
"""Largest deviation of a frame from a regular grid of the SEG itself, in steps of that grid."""

Bits = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class SegFrame:
    """One frame: its segment (0 in a label map), place (LPS mm) and pixel size along a row and a column."""

    segment: int
    position: Vector
    row: Vector
    column: Vector
    spacing_mm: tuple[float, float]


@dataclass(frozen=True)
class SegFile:
    """What the header of a SEG says.

    Attributes:
        kind: ``BINARY``, ``FRACTIONAL`` or ``LABELMAP``.
        segments: Without the background of a label map.
        frames: In stored order.
        size: Columns and rows.
        bits: Bits of a stored pixel: 1, 8 or 16.
        syntax: Transfer syntax.
        highest: MaximumFractionalValue.
        background: Values of a label map that mean no segment.
        step_mm: Distance of slices that it declares, if any.
    """

    kind: str
    segments: tuple[Segment, ...]
    frames: tuple[SegFrame, ...]
    size: tuple[int, int]
    bits: int
    syntax: str
    highest: int = 1
    background: frozenset[int] = frozenset({0})
    step_mm: float | None = None


def describe_seg(dataset: Dataset, ref: SourceRef, syntax: str) -> SourceRef:
    """Returns ``ref`` with what the header of a SEG says.

    Raises:
        InputRefusedError: It cannot be read exactly.
    """
    seg = parse_seg(dataset, syntax)
    notes = []
    if seg.kind == "FRACTIONAL":
        notes.append("fractional: voxels above half of the maximum belong to a segment")
    geometry = None
    try:
        geometry = grid_of(own_layout(seg))
    except InputRefusedError as error:
        notes.append(f"no grid of its own ({error.what}): read on its image")
    return replace(
        ref,
        axes="IJK",
        shape=geometry.shape if geometry is not None else (*seg.size, len({frame.position for frame in seg.frames})),
        geometry=geometry,
        dtype="uint8" if max(segment.number for segment in seg.segments) < 256 else "uint16",
        notes=(*ref.notes, *notes),
        layout=Annotation(
            segments=seg.segments,
            series_uids=frozenset(
                uid for item in items(dataset, "ReferencedSeriesSequence") if (uid := text(item, "SeriesInstanceUID"))
            ),
            sop_uids=frozenset(_referred_images(dataset)),
            frame_uid=text(dataset, "FrameOfReferenceUID"),
            study_uid=text(dataset, "StudyInstanceUID"),
        ),
    )


def _referred_images(dataset: Dataset) -> Iterator[str]:
    for series in items(dataset, "ReferencedSeriesSequence"):
        for image in items(series, "ReferencedInstanceSequence"):
            yield text(image, "ReferencedSOPInstanceUID")
    shared = items(dataset, "SharedFunctionalGroupsSequence")
    for group in [*shared, *items(dataset, "PerFrameFunctionalGroupsSequence")]:
        for derivation in items(group, "DerivationImageSequence"):
            for image in items(derivation, "SourceImageSequence"):
                yield text(image, "ReferencedSOPInstanceUID")


# ---- the header -----------------------------------------------------------------------------------------------------


def parse_seg(dataset: Dataset, syntax: str) -> SegFile:
    """Returns what the header of a SEG says.

    Raises:
        InputRefusedError: It lacks what is needed to read it exactly.
    """
    kind = text(dataset, "SegmentationType").upper()
    if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
        raise InputRefusedError(
            "the segmentation is of no known type", remedy="export it as BINARY, FRACTIONAL or LABELMAP"
        )
    bits = whole_number(dataset, "BitsAllocated") or 0
    stored = whole_number(dataset, "BitsStored") or bits
    if (
        stored > bits
        or bits not in ((1, 8) if kind != "LABELMAP" else (8, 16))
        or (whole_number(dataset, "SamplesPerPixel") or 1) != 1
    ):
        raise InputRefusedError(f"a {kind} segmentation of {bits} bits cannot be read", remedy=EXPORT_AGAIN)
    size = (whole_number(dataset, "Columns") or 0, whole_number(dataset, "Rows") or 0)
    count = whole_number(dataset, "NumberOfFrames") or 1
    if not 0 < size[0] * size[1] <= _MOST_PIXELS:
        raise InputRefusedError(f"the segmentation has frames of {size[0]} x {size[1]} pixels", remedy=EXPORT_AGAIN)
    if missing := "" if syntax == _DEFLATED_FRAMES else missing_decoder(syntax, bits):
        raise InputRefusedError(f"no decoder is installed for {missing}", remedy='pip install "unet-med[dicom]"')
    highest = whole_number(dataset, "MaximumFractionalValue") or 0
    if kind == "FRACTIONAL" and not 0 < highest < 2**bits:
        raise InputRefusedError(
            "the fractional segmentation does not say which value means all (MaximumFractionalValue)",
            remedy="export it as BINARY",
        )
    background = {0}
    if kind == "LABELMAP" and (padding := whole_number(dataset, "PixelPaddingValue")) is not None:
        background.add(padding % 2**bits)
    return SegFile(
        kind=kind,
        segments=_segments(dataset, background if kind == "LABELMAP" else {0}),
        frames=_frames(dataset, count, labelled=kind == "LABELMAP"),
        size=size,
        bits=bits,
        syntax=syntax,
        highest=highest,
        background=frozenset(background),
        step_mm=_declared_step(dataset),
    )


def _segments(dataset: Dataset, background: set[int]) -> tuple[Segment, ...]:
    found: dict[int, Segment] = {}
    for item in items(dataset, "SegmentSequence"):
        number = whole_number(item, "SegmentNumber")
        if number is None or not 0 <= number < 2**16 or number in found:
            raise InputRefusedError("a segment has no number of its own", remedy=EXPORT_AGAIN)
        if number in background:
            continue
        name = printable_name(text(item, "SegmentLabel"), number, dataset)
        found[number] = Segment(number, name, _segment_code(item))
    if not found:
        raise InputRefusedError("the segmentation lists no segment", remedy=EXPORT_AGAIN)
    return tuple(found[number] for number in sorted(found))


def _segment_code(item: Dataset) -> str:
    """Returns the code of what a segment is, with its side or region: ``SCT:64033007+SCT:7771000``."""
    kind = first(item, "SegmentedPropertyTypeCodeSequence")
    codes = [code_of(kind)]
    codes += sorted(code_of(one) for one in items(kind, "SegmentedPropertyTypeModifierCodeSequence"))
    for region in items(item, "AnatomicRegionSequence"):
        codes.append(code_of(region))
        codes += sorted(code_of(one) for one in items(region, "AnatomicRegionModifierSequence"))
    return "+".join(code for code in codes if code) if codes[0] else ""


def _frames(dataset: Dataset, count: int, *, labelled: bool) -> tuple[SegFrame, ...]:
    shared = first(dataset, "SharedFunctionalGroupsSequence")
    groups = items(dataset, "PerFrameFunctionalGroupsSequence")
    if len(groups) != count:
        raise InputRefusedError(
            f"the segmentation has {count} frames and says of {len(groups)} where they lie", remedy=EXPORT_AGAIN
        )
    return tuple(_frame(group, shared, labelled=labelled) for group in groups)


def _frame(group: Dataset, shared: Dataset | None, *, labelled: bool) -> SegFrame:
    def item(keyword: str) -> Dataset | None:
        return first(group, keyword) or first(shared, keyword)

    segment = whole_number(item("SegmentIdentificationSequence"), "ReferencedSegmentNumber")
    position = numbers(item("PlanePositionSequence"), "ImagePositionPatient", 3)
    orientation = numbers(item("PlaneOrientationSequence"), "ImageOrientationPatient", 6)
    spacing = numbers(item("PixelMeasuresSequence"), "PixelSpacing", 2)
    lacks = [
        name
        for name, value in (
            ("segment", 0 if labelled else segment),
            ("position", position),
            ("orientation", orientation),
            ("pixel spacing", spacing if spacing is not None and min(spacing) > 0 else None),
        )
        if value is None
    ]
    if lacks or position is None or orientation is None or spacing is None:
        raise InputRefusedError(f"a frame has no {' and no '.join(lacks)}", remedy=EXPORT_AGAIN)
    row, column = unit_vectors(orientation)
    return SegFrame(
        0 if labelled or segment is None else segment,
        _vector(position),
        _vector(row),
        _vector(column),
        (spacing[1], spacing[0]),
    )


def _vector(values: Sequence[float] | npt.NDArray[np.float64]) -> Vector:
    return float(values[0]), float(values[1]), float(values[2])


def _declared_step(dataset: Dataset) -> float | None:
    measures = first(first(dataset, "SharedFunctionalGroupsSequence"), "PixelMeasuresSequence")
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        value = measures.get(keyword) if measures is not None else None
        if value not in (None, "") and float(value) > 0:
            return float(value)
    return None


# ---- its own grid ---------------------------------------------------------------------------------------------------


def own_layout(seg: SegFile) -> SliceLayout:
    """Returns the grid that the frames of a SEG make by themselves, with the slices between them that hold nothing.

    Raises:
        InputRefusedError: They make none.
    """
    one = seg.frames[0]
    row, column = np.array(one.row), np.array(one.column)
    normal = np.cross(row, column)
    positions = np.array([frame.position for frame in seg.frames])
    apart = positions - positions[0]
    heights = apart @ normal
    same = all(
        np.allclose((*frame.row, *frame.column), (*one.row, *one.column), atol=1e-4)
        and np.allclose(frame.spacing_mm, one.spacing_mm, rtol=1e-4)
        for frame in seg.frames
    )
    across = np.abs(np.stack([apart @ row, apart @ column], axis=1)) / one.spacing_mm
    if not same or across.max() > OFF_VOXELS:
        raise InputRefusedError("its frames lie askew", remedy=EXPORT_AGAIN)
    ordered = np.unique(np.round(heights - heights.min(), 3))
    gaps = np.diff(ordered)
    step = float(gaps.min()) if gaps.size else seg.step_mm
    if step is None:
        raise InputRefusedError("its only slice has no thickness", remedy=EXPORT_AGAIN)
    if gaps.size and seg.step_mm is not None and _fits(ordered, seg.step_mm) and seg.step_mm < step:
        step = seg.step_mm
    count = round(float(ordered[-1]) / step) + 1
    if not _fits(ordered, step) or count > _MOST_SLICES:
        raise InputRefusedError("its frames are unevenly spaced", remedy=EXPORT_AGAIN)
    if count > 1:
        step = float(ordered[-1]) / (count - 1)
    lowest = positions[int(heights.argmin())]
    slices = tuple(StoredSlice(0, 0, _vector(lowest + normal * step * number), "") for number in range(count))
    return SliceLayout(slices, seg.size, _vector(row), _vector(np.cross(normal, row)), one.spacing_mm, step)


def _fits(heights: npt.NDArray[np.float64], step: float) -> bool:
    places = heights / step
    return bool(np.abs(places - np.rint(places)).max() <= max(_OWN_GRID, 2e-3 / step))


def grid_of(layout: SliceLayout) -> Geometry:
    """Returns the grid of slices that lie on it."""
    return Geometry.from_lps((*layout.size, len(layout.slices)), layout.slice_affine(0))


# ---- voxels ---------------------------------------------------------------------------------------------------------


def read_seg(path: Path, layout: SliceLayout | None, values: Mapping[int, int] | None, where: str) -> LabelArray:
    """Returns the labels of a SEG on stored slices, (columns, rows, slices).

    Args:
        path: The SEG.
        layout: The slices of the image; ``None`` for the SEG's own grid.
        values: Segment number to label value, 0 for segments that are left out; ``None``: the segment's own number.
        where: Safe id for errors.

    Raises:
        InputRefusedError: The file is damaged, lies on another grid, or two segments claim one voxel.
    """
    with reading("the segmentation cannot be read", where):
        dataset = read_dataset(path, pixels=True)
        seg = parse_seg(dataset, str(getattr(dataset.file_meta, "TransferSyntaxUID", "")) or _guessed_syntax(dataset))
        target = own_layout(seg) if layout is None else layout
        canvas = _Canvas(target, seg, values, where)
        for number, pixels in _decoded(dataset, seg, canvas.wanted):
            canvas.paint(number, pixels)
        return canvas.labels()


def _guessed_syntax(dataset: Dataset) -> str:
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

    implicit, little = dataset.original_encoding
    return str(ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else EXPLICIT_BIG)


class _Canvas:
    """Segments as they come together on the slices of an image."""

    def __init__(self, layout: SliceLayout, seg: SegFile, values: Mapping[int, int] | None, where: str) -> None:
        self.layout = layout
        self.seg = seg
        self.where = where
        self.values = {one.number: one.number if values is None else values.get(one.number) for one in seg.segments}
        unknown = sorted(number for number, value in self.values.items() if value is None)
        if unknown:
            names = {one.number: one.name for one in seg.segments}
            raise no_value("segment", unknown[0], names[unknown[0]], where)
        numbers_used = {frame.segment for frame in seg.frames} - {0}
        if strangers := sorted(numbers_used - set(self.values)):
            raise InputRefusedError(
                f"a frame belongs to segment {strangers[0]}, which is not listed", where, EXPORT_AGAIN
            )
        highest = max((*self.values, 1))
        dtype = np.uint8 if highest < 2**8 else np.uint16
        self.owner: npt.NDArray[Any] = np.zeros((*layout.size, len(layout.slices)), dtype=dtype)
        self.clashes: Counter[tuple[int, int]] = Counter()
        self.outside = 0
        # A label map is painted whole, so that it is checked whole.
        self.wanted = [n for n, frame in enumerate(seg.frames) if frame.segment == 0 or self.values[frame.segment]]

    def paint(self, number: int, pixels: npt.NDArray[Any]) -> None:
        """Adds one frame (rows, columns)."""
        seg, frame = self.seg, self.seg.frames[number]
        if seg.kind == "LABELMAP":
            present = [int(value) for value in np.unique(pixels) if int(value) not in seg.background]
            for value in present:
                if value not in self.values:
                    raise InputRefusedError(
                        f"the label map holds {value}, which is no segment", self.where, EXPORT_AGAIN
                    )
                if self.values[value]:
                    self._add(frame, value, pixels == value)
            return
        if int(pixels.max(initial=0)) > (1 if seg.kind == "BINARY" else seg.highest):
            raise InputRefusedError(
                f"the {seg.kind.lower()} segmentation holds {int(pixels.max())}, more than its maximum",
                self.where,
                EXPORT_AGAIN,
            )
        chosen = pixels > 0 if seg.kind == "BINARY" else pixels.astype(np.int64) * 2 > seg.highest
        self._add(frame, frame.segment, chosen)

    def _add(self, frame: SegFrame, segment: int, mask: Bits) -> None:
        rows, columns = np.nonzero(mask)
        if not rows.size:
            return
        index = place_frame(frame, self.seg.size, self.layout, self.where)
        place = [table[columns if along == 0 else rows] if along is not None else table[0] for table, along in index]
        i, j, k = np.broadcast_arrays(*place)
        inside = (i >= 0) & (j >= 0) & (k >= 0)
        self.outside += int(inside.size - inside.sum())
        i, j, k = i[inside], j[inside], k[inside]
        before = self.owner[i, j, k]
        for other in np.unique(before[(before != 0) & (before != segment)]):
            if self.values[int(other)] != self.values[segment]:
                first_one, second = sorted((int(other), segment))
                self.clashes[first_one, second] += int((before == other).sum())
        self.owner[i, j, k] = segment

    def labels(self) -> LabelArray:
        """Returns the label values.

        Raises:
            InputRefusedError: Two segments claim one voxel, or voxels lie outside of the image.
        """
        if self.outside:
            raise InputRefusedError(
                f"{self.outside} voxels of the segmentation lie outside of the image",
                self.where,
                "check that the two belong together and that no slice of the series is missing",
            )
        if self.clashes:
            (one, other), count = self.clashes.most_common(1)[0]
            names = {segment.number: segment.name for segment in self.seg.segments}
            raise InputRefusedError(
                f"segments {one} ({names[one]}) and {other} ({names[other]}) overlap in {count} voxels: one label "
                "image cannot hold both",
                self.where,
                "export them without overlap, or leave one of them out (--label-names, 0=NAME)",
            )
        highest = max((value or 0 for value in self.values.values()), default=0)
        table = np.zeros(max((*self.values, 1)) + 1, dtype=np.uint8 if highest < 2**8 else np.uint16)
        for number, value in self.values.items():
            table[number] = value or 0
        return np.asarray(table[self.owner])


Table = tuple[npt.NDArray[np.intp], int | None]
"""Indices along one axis of the image, and the axis of the frame they follow (0 columns, 1 rows, ``None`` neither)."""


def place_frame(frame: SegFrame, size: tuple[int, int], layout: SliceLayout, where: str) -> tuple[Table, Table, Table]:
    """Returns for the image's columns, rows and slices which pixels of a frame fall on them; -1 for outside.

    Raises:
        InputRefusedError: The pixels of the frame lie between the voxels of the image.
    """
    axes = np.stack([np.array(layout.row), np.array(layout.column), layout.normal])
    steps = np.array([*layout.spacing_mm, _least_step(layout)])
    moves = axes @ np.stack(
        [np.array(frame.row) * frame.spacing_mm[0], np.array(frame.column) * frame.spacing_mm[1]], 1
    )
    follows = [int(np.abs(moves[:, along] / steps).argmax()) for along in (0, 1)]
    drift = np.abs(moves) * (np.array(size) - 1) / steps[:, np.newaxis]
    pace = np.abs(moves[follows, (0, 1)]) / steps[follows]
    drift[follows, (0, 1)] = np.abs(pace - 1.0) * np.maximum(np.array(size) - 1, 1)
    fixed = 3 - sum(follows)
    if follows[0] == follows[1] or drift.max() > OFF_VOXELS or (fixed != 2 and layout.regrid is not None):
        raise _other_grid("its pixels have another size, or its planes another direction", where)
    positions = np.array([one.position for one in layout.slices])
    heights = positions @ axes[2]
    start = float(np.dot(frame.position, axes[2]))
    if fixed == 2:
        number = _slices(np.array([start]), heights, steps[2], where)
        origin = positions[max(int(number[0]), 0)]
    else:
        number, origin = np.zeros(1, dtype=np.intp), positions[0]
    tables: list[Table] = [(number, None)] * 3
    for axis in range(3):
        along = follows.index(axis) if axis in follows else None
        if axis == fixed == 2:
            continue
        count = 1 if along is None else size[along]
        move = 0.0 if along is None else float(moves[axis, along])
        if axis == 2:
            tables[2] = _slices(start + move * np.arange(count, dtype=np.float64), heights, steps[2], where), along
            continue
        begin = float((np.array(frame.position) - origin) @ axes[axis])
        tables[axis] = _pixels((begin + move * np.arange(count)) / steps[axis], layout.size[axis], where), along
    return tables[0], tables[1], tables[2]


def _least_step(layout: SliceLayout) -> float:
    heights = np.array([one.position for one in layout.slices]) @ layout.normal
    gaps = np.abs(np.diff(heights))
    return float(gaps.min()) if gaps.size and gaps.min() > 0 else layout.step_mm


def _pixels(places: npt.NDArray[np.float64], length: int, where: str) -> npt.NDArray[np.intp]:
    nearest = np.rint(places)
    if np.abs(places - nearest).max() > OFF_VOXELS:
        raise _other_grid("its pixels lie between those of the image", where)
    return np.where((nearest >= 0) & (nearest < length), nearest, -1).astype(np.intp)


def _slices(
    places: npt.NDArray[np.float64], heights: npt.NDArray[np.float64], step: float, where: str
) -> npt.NDArray[np.intp]:
    """Returns the stored slice at each height (mm along the normal); -1 beyond the first and the last."""
    apart = np.abs(places[:, np.newaxis] - heights[np.newaxis])
    nearest = apart.argmin(axis=1)
    off = apart[np.arange(len(places)), nearest] > OFF_VOXELS * step
    between = off & (places > heights.min()) & (places < heights.max())
    if between.any():
        raise _other_grid("its frames lie between the slices of the image", where)
    return np.where(off, -1, nearest).astype(np.intp)


def _other_grid(what: str, where: str) -> InputRefusedError:
    return InputRefusedError(
        f"the segmentation is on another grid than the image: {what}",
        where,
        "give the image that was segmented, or resample the segmentation onto the image with nearest neighbour",
    )


# ---- pixels ---------------------------------------------------------------------------------------------------------


def _decoded(dataset: Dataset, seg: SegFile, wanted: Sequence[int]) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Yields the wanted frames as (rows, columns)."""
    columns, rows = seg.size
    element = dataset.get("PixelData")
    if not element:
        raise InputRefusedError("the segmentation has no pixels", remedy=COPY_AGAIN)
    if seg.syntax in NATIVE_SYNTAXES:
        data = np.frombuffer(element, dtype=np.uint8)
        if seg.syntax == EXPLICIT_BIG and dataset["PixelData"].VR == "OW" and seg.bits < 16:
            data = data[: data.size // 2 * 2].reshape(-1, 2)[:, ::-1].ravel()
        for number in wanted:
            yield number, _native(data, number, seg).reshape(rows, columns)
    else:
        yield from _decompressed(dataset, seg, wanted)


def _decompressed(dataset: Dataset, seg: SegFile, wanted: Sequence[int]) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Yields the wanted frames of compressed pixels, some of them decoded ahead in the decoder process."""
    columns, rows = seg.size
    shape, size, bits = (rows, columns), (columns * rows * seg.bits + 7) // 8, seg.bits
    packed = bits == 1 and seg.syntax == RLE
    if packed:
        shape, bits = (1, size), 8  # eight pixels in each byte
    pending: deque[int] = deque()
    with decoding.batch() as batch:

        def ready(frame: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return _native(frame.reshape(-1), 0, seg).reshape(rows, columns) if packed else frame

        for number, data in enumerate(_code_streams(dataset, len(seg.frames))):
            if number not in wanted:
                continue
            if seg.syntax == _DEFLATED_FRAMES:
                inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size)
                yield number, _native(np.frombuffer(inflated, dtype=np.uint8), 0, seg).reshape(rows, columns)
                continue
            batch.submit(Frame(seg.syntax, *shape, max(bits, 8), bits, signed=False, data=data))
            pending.append(number)
            if len(pending) > _AHEAD:
                yield pending.popleft(), ready(batch.result())
        while pending:
            yield pending.popleft(), ready(batch.result())


def _code_streams(dataset: Dataset, count: int) -> Iterator[bytes]:
    """Yields the compressed frames.

    Raises:
        InputRefusedError: There are fewer than there should be.
    """
    offsets = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    extended = (offsets[0], offsets[1]) if offsets[0] and offsets[1] else None
    found = 0
    for data in generate_frames(dataset.PixelData, number_of_frames=count, extended_offsets=extended):
        found += 1
        yield data
    if found != count:
        raise InputRefusedError(f"the segmentation holds {found} of {count} frames", remedy=COPY_AGAIN)


def _native(data: npt.NDArray[np.uint8], number: int, seg: SegFile) -> npt.NDArray[Any]:
    """Returns the pixels of one frame out of the bytes of all; frames of bits follow each other without padding."""
    pixels = seg.size[0] * seg.size[1]
    begin, end = number * pixels * seg.bits, (number + 1) * pixels * seg.bits
    part = data[begin // 8 : (end + 7) // 8]
    if part.size < (end + 7) // 8 - begin // 8:
        raise InputRefusedError("the segmentation is truncated", remedy=COPY_AGAIN)
    if seg.bits == 1:
        return np.unpackbits(part, bitorder="little")[begin % 8 :][:pixels]
    return part if seg.bits == 8 else part.view(">u2" if seg.syntax == EXPLICIT_BIG else "<u2")
