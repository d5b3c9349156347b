"""Enhanced multi-frame DICOM: one header for each frame, so that frames go the same way as classic slices.

Where a frame lies, how its values are rescaled and what tells it from others at the same place stands in functional
groups, shared by all frames or given for each one. They are read straight from the bytes: a file may have thousands of
frames, and building data sets of them takes a thousand times longer than the few values wanted here.
"""

from __future__ import annotations

import io
import math
import os
import struct
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet_med.errors import InputRefusedError
from unet_med.io.dicom import EXPORT_AGAIN, walker
from unet_med.io.dicom.headers import (
    DIMENSIONS,
    FILE_NUMBER,
    PIXEL_GROUP,
    SPLIT_TAGS,
    Header,
    decoded_text,
    dimension_tag,
    open_elements,
)

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MOST_FRAMES = 200_000
"""More frames in one file are refused."""

_MOST_BYTES = 512 * 1024 * 1024
"""Longest header of a file whose functional groups are read."""

_MOST_VALUE = 4096
_FIRST_READ = 256 * 1024
_AS_SLICES = "export it as single-frame slices, or convert it to NIfTI with other software (for example dcm2niix)"

_SHARED, _PER_FRAME = 0x52009229, 0x52009230
_POSITION, _ORIENTATION, _SPACING = 0x00200032, 0x00200037, 0x00280030
_THICKNESS, _BETWEEN, _INTERCEPT, _SLOPE = 0x00180050, 0x00180088, 0x00281052, 0x00281053
_FRAME_TYPE, _DIMENSION_VALUES = 0x00089007, 0x00209157

_Wanted = Mapping[int, "bytes | _Wanted"]
_Values = dict[int, tuple[bytes, bytes]]  # tag to VR and value

_SPLIT_VRS = {"number": b"DS", "text": b"CS", "doubles": b"FD"}
_CONVERTED: _Wanted = {split.tag: _SPLIT_VRS[split.kind] for split in SPLIT_TAGS}
_FRAME_TYPES: _Wanted = {_FRAME_TYPE: b"CS", 0x00089208: b"CS"}
_GROUPS: _Wanted = {
    0x00209113: {_POSITION: b"DS"},
    0x00209116: {_ORIENTATION: b"DS"},
    0x00289110: {_SPACING: b"DS", _THICKNESS: b"DS", _BETWEEN: b"DS"},
    0x00289145: {_INTERCEPT: b"DS", _SLOPE: b"DS"},
    0x00209111: {
        **{0x00209056: b"SH", 0x00209128: b"UL", 0x00209156: b"US", 0x00189074: b"DT", 0x00189151: b"DT"},
        _DIMENSION_VALUES: b"UL",
    },
    0x00209310: {0x0020930D: b"FD"},
    0x00189226: _FRAME_TYPES,
    0x00189329: _FRAME_TYPES,
    0x00189751: _FRAME_TYPES,
    0x00189504: _FRAME_TYPES,
    0x00189114: {0x00189082: b"FD"},
    0x00189117: {0x00189087: b"FD", 0x00189075: b"CS", 0x00189076: {0x00189089: b"FD"}},
    0x00189115: {0x00189079: b"FD"},
    0x00189112: {0x00181314: b"DS"},
    0x00189118: {0x00209153: b"FD", 0x00209241: b"FL"},
    0x00209253: {0x00209245: b"FL"},
    0x00189325: {0x00180060: b"DS"},
    0x00189314: {0x00181210: b"SH"},
    0x00189251: {0x00189257: b"CS"},
    0x00209170: _CONVERTED,
    0x00209171: _CONVERTED,
}
"""Functional groups (sequences) and what is wanted of them, with the VR by the standard."""

_MEANS = {
    0x00189082: 0x00180081,  # effective echo time
    0x00189079: 0x00180082,  # inversion times
    0x00209153: 0x00181060,  # nominal cardiac trigger delay
    0x00209156: 0x00200012,  # frame acquisition number
    0x00189074: 0x00080032,  # frame acquisition date and time
    0x00189151: 0x00080033,  # frame reference date and time
    _FRAME_TYPE: 0x00080008,
}
"""Elements of functional groups to the classic elements of the same meaning."""

_SPLITS = frozenset(
    {split.tag for split in SPLIT_TAGS}
    | {0x0020930D, 0x00209241, 0x00209245, 0x00189257, 0x00089208, 0x00189075, 0x00209056}
)
_TUPLES = frozenset({0x00189087, 0x00189089, 0x0019100E})
_NUMBERS = {b"FD": "d", b"FL": "f", b"US": "H", b"UL": "L", b"SS": "h", b"SL": "l"}


def frame_headers(header: Header, number: int = 1, first: int = 1) -> list[Header]:
    """Returns one header for each frame of a file with functional groups, in stored order.

    Args:
        header: Of the file.
        number: Which file of its series it is; tells frames of several files apart.
        first: Instance number of its first frame: frames are counted on through the files of a series.

    Returns:
        Headers with ``frame``, place, spacing, slope and the split values of the frame. All have a place, or none has.

    Raises:
        InputRefusedError: The functional groups are damaged, do not match the number of frames, or some frames have no
            place in space.
    """
    shared, frames, order = _read_groups(header)
    headers = []
    for index, own in enumerate(frames):
        headers.append(_frame_header(header, {**shared, **own}, order, index, number, first + index))
    placed = sum(one.has_place for one in headers)
    if 0 < placed < len(headers):
        lost = next(index for index, one in enumerate(headers, start=1) if not one.has_place)
        raise InputRefusedError(
            f"{len(headers) - placed} of {len(headers)} frames have no position, orientation or pixel spacing",
            f"frame {lost} is the first",
            EXPORT_AGAIN + ", with its geometry",
        )
    return headers


def frames_text(frames: Sequence[int]) -> str:
    """Returns numbers of frames as short text: ``0-39``, every other one ``0-38/2``, else ``0,3,5``; ascending."""
    ordered = sorted(frames)
    if len(ordered) > 2:
        steps = {b - a for a, b in pairwise(ordered)}
        if len(steps) == 1:
            step = steps.pop()
            return f"{ordered[0]}-{ordered[-1]}" + (f"/{step}" if step > 1 else "")
    return ",".join(map(str, ordered))


def frames_in(text: str) -> Container[int]:
    """Returns the numbers that :func:`frames_text` wrote.

    Raises:
        ValueError: The text is none of its own.
    """
    if "-" not in text:
        return frozenset(int(number) for number in text.split(","))
    ends, _, step = text.partition("/")
    first, _, last = ends.partition("-")
    return range(int(first), int(last) + 1, int(step or 1))


def frame_rescale(dataset: Dataset, frame: int) -> tuple[float, float] | None:
    """Returns slope and intercept of a frame from its functional groups; ``None`` where they do not tell.

    The real-world value map is left alone: it gives other quantities than the modality's own.

    Args:
        dataset: With its shared and per-frame functional groups.
        frame: From 0.
    """
    for keyword, item in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        groups = dataset.get(keyword)
        if groups and item < len(groups) and (rescale := groups[item].get("PixelValueTransformationSequence")):
            slope, intercept = rescale[0].get("RescaleSlope"), rescale[0].get("RescaleIntercept")
            return (
                1.0 if slope in (None, "") else float(slope),
                0.0 if intercept in (None, "") else float(intercept),
            )
    return None


def frame_rescales(path: Path) -> Sequence[tuple[float, float] | None]:
    """Returns :func:`frame_rescale` of all frames of a file; quick, and remembered for the last files asked for.

    Empty for a file without functional groups.

    Raises:
        InputRefusedError: The functional groups are damaged.
        OSError: The file cannot be read.
    """
    status = path.stat()
    return _frame_rescales(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=8)
def _frame_rescales(path: Path, changed: int, size: int) -> tuple[tuple[float, float] | None, ...]:
    del changed, size  # part of the key alone
    from unet_med.io.dicom.headers import read_header

    header = read_header(path)
    if not isinstance(header, Header) or not header.grouped:
        return ()
    shared, frames, order = _read_groups(header)
    rescales = []
    for own in frames:
        values = {**shared, **own}
        slope, intercept = (_first(_value(values, tag, order)) for tag in (_SLOPE, _INTERCEPT))
        known = slope is not None or intercept is not None
        rescales.append((1.0 if slope is None else slope, intercept or 0.0) if known else None)
    return tuple(rescales)


# ---- one frame ------------------------------------------------------------------------------------------------------


def _frame_header(header: Header, values: _Values, order: str, frame: int, number: int, instance: int) -> Header:
    position = _exactly(_value(values, _POSITION, order), 3)
    orientation = _exactly(_value(values, _ORIENTATION, order), 6)
    spacing = _exactly(_value(values, _SPACING, order), 2)
    split = _split_values(values, order)
    split[FILE_NUMBER] = float(number)
    kind = split.get(0x00080008)
    return replace(
        header,
        instance=instance,
        image_type=tuple(part.strip().upper() for part in kind.split("\\")) if kind else header.image_type,
        position=position,
        orientation=orientation,
        pixel_spacing=spacing if spacing and min(spacing) > 0 else None,
        thickness=_first(_value(values, _THICKNESS, order)),
        between=_first(_value(values, _BETWEEN, order)),
        slope=_slope(values, order, header.slope),
        split=split,
        frame=frame,
    )


def _split_values(values: _Values, order: str) -> dict[int, Any]:
    split: dict[int, Any] = {}
    for tag in values:
        means = _MEANS.get(tag, tag)
        if means not in _SPLITS:
            continue
        value = _value(values, tag, order)
        if isinstance(value, tuple) and means not in _TUPLES:
            value = _first(value)
        if value is not None and value != "":
            split[means] = value
    index = _value(values, _DIMENSION_VALUES, order)
    if isinstance(index, tuple):
        split.update({dimension_tag(column): value for column, value in enumerate(index[:DIMENSIONS])})
    return split


def _slope(values: _Values, order: str, otherwise: float | None) -> float | None:
    """Returns the rescale slope of a frame; NaN when it is no number."""
    if _SLOPE not in values or not values[_SLOPE][1].strip(b" \0"):
        return otherwise
    slope = _first(_value(values, _SLOPE, order))
    return math.nan if slope is None else slope


def _value(values: _Values, tag: int, order: str) -> Any:
    """Returns a tuple of finite numbers, a text, or ``None`` where there is nothing that fits the VR."""
    if tag not in values:
        return None
    vr, value = values[tag]
    return _decoded(vr, value, order)


@lru_cache(maxsize=4096)
def _decoded(vr: bytes, value: bytes, order: str) -> Any:
    if vr in (b"DS", b"IS"):
        try:
            numbers = tuple(float(part) for part in decoded_text(value).split("\\"))
        except ValueError:
            return None
    elif vr in _NUMBERS:
        size = struct.calcsize(f"<{_NUMBERS[vr]}")
        if not value or len(value) % size:
            return None
        numbers = struct.unpack(f"{order}{len(value) // size}{_NUMBERS[vr]}", value)
        numbers = tuple(map(float, numbers))
    else:
        return decoded_text(value)
    return numbers if all(map(math.isfinite, numbers)) else None


def _first(value: Any) -> float | None:
    return value[0] if isinstance(value, tuple) and value else None


def _exactly(value: Any, count: int) -> tuple[float, ...] | None:
    return value if isinstance(value, tuple) and len(value) == count else None


# ---- the functional groups ------------------------------------------------------------------------------------------


def _read_groups(header: Header) -> tuple[_Values, list[_Values], str]:
    """Returns the values shared by all frames, those of each frame, and the byte order.

    Raises:
        InputRefusedError: They are damaged or do not match the number of frames.
    """
    if header.frames > MOST_FRAMES:
        raise InputRefusedError(f"a file claims {header.frames} frames", remedy=_AS_SLICES)
    try:
        shared, frames, order = _parsed(header)
    except (walker.NeedMoreError, walker.UnusualError, struct.error):
        raise InputRefusedError(
            "the functional groups of a multi-frame file are damaged", remedy=EXPORT_AGAIN
        ) from None
    except OSError:
        raise InputRefusedError("a file cannot be read any more", remedy="check the disk, then run again") from None
    if len(frames) != header.frames:
        more = "or more " if len(frames) > header.frames else ""
        raise InputRefusedError(
            f"a file of {header.frames} frames describes {len(frames)} {more}of them", remedy=EXPORT_AGAIN
        )
    return shared, frames, order


def _parsed(header: Header) -> tuple[_Values, list[_Values], str]:
    with header.path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        window = walker.Window(file, size, file.read(_FIRST_READ))
        index, encoding = open_elements(window, {})
        while True:
            try:
                return (*_top(window.data, index, encoding, header.frames), encoding.order)
            except walker.NeedMoreError:
                before = len(window.data)
                window.forward(index, 8 * before)
                if len(window.data) <= before - index or before > _MOST_BYTES:
                    raise
                index = 0


def _top(data: bytes, index: int, encoding: walker.Encoding, frames: int) -> tuple[_Values, list[_Values]]:
    """Goes through the elements of the data set up to the pixels."""
    shared: _Values = {}
    while index < len(data):
        tag, vr, length, value = walker.element(data, index, encoding)
        if tag >> 16 == PIXEL_GROUP:
            return shared, []
        if tag in (_SHARED, _PER_FRAME):
            inner = walker.without_vr(encoding) if vr == b"UN" else encoding
            items = list(_items(data, value, length, inner, frames if tag == _PER_FRAME else 1))
            if tag == _PER_FRAME:
                return shared, [item for item, _ in items]
            shared, end = items[0] if items else ({}, value)
            index = end if length == walker.UNDEFINED else value + length
        elif length == walker.UNDEFINED:
            index = _passed(data, value, walker.without_vr(encoding) if vr == b"UN" else encoding)
        else:
            index = value + length
    raise walker.NeedMoreError


def _items(data: bytes, index: int, length: int, encoding: walker.Encoding, most: int) -> Iterator[tuple[_Values, int]]:
    """Yields the wanted values of each item and the index behind it; at the end, behind the sequence.

    One item more than ``most`` ends it: there are too many.
    """
    end = len(data) + 1 if length == walker.UNDEFINED else index + length
    if length != walker.UNDEFINED and end > len(data):
        raise walker.NeedMoreError
    head = walker.without_vr(encoding)
    count = 0
    while index < end and count <= most:
        tag, _, size, start = walker.element(data, index, head)
        if tag == walker.SEQUENCE_END:
            return
        if tag != walker.ITEM:
            raise walker.UnusualError
        values: _Values = {}
        index = _item(data, start, size, encoding, _GROUPS, values)
        count += 1
        yield values, index


def _item(data: bytes, index: int, length: int, encoding: walker.Encoding, wanted: _Wanted, values: _Values) -> int:
    """Reads the wanted elements of an item into ``values``; returns the index behind it."""
    end = None if length == walker.UNDEFINED else index + length
    if end is not None and end > len(data):
        raise walker.NeedMoreError
    while end is None or index < end:
        tag, vr, size, value = walker.element(data, index, encoding)
        if tag == walker.ITEM_END:
            return value
        inner = wanted.get(tag)
        nested = walker.without_vr(encoding) if vr == b"UN" else encoding
        if inner is not None and not isinstance(inner, bytes):
            index = _first_item(data, value, size, nested, inner, values)
        elif size == walker.UNDEFINED:
            index = _passed(data, value, nested)
        else:
            index = value + size
            if index > len(data):
                raise walker.NeedMoreError
            if inner is not None and size <= _MOST_VALUE:
                values.setdefault(tag, (inner if vr in (b"", b"UN") else vr, data[value:index]))
    if end is not None and index > end:
        raise walker.UnusualError
    return index


def _first_item(
    data: bytes, index: int, length: int, encoding: walker.Encoding, wanted: _Wanted, values: _Values
) -> int:
    """Reads the first item of a sequence into ``values``; returns the index behind the sequence."""
    undefined = length == walker.UNDEFINED
    end = index + length
    if not undefined and end > len(data):
        raise walker.NeedMoreError
    if not undefined and length == 0:
        return end
    tag, _, size, start = walker.element(data, index, walker.without_vr(encoding))
    if undefined and tag == walker.SEQUENCE_END:
        return start
    if tag != walker.ITEM:
        raise walker.UnusualError
    behind = _item(data, start, size, encoding, wanted, values)
    return _passed(data, behind, encoding) if undefined else end


def _passed(data: bytes, index: int, encoding: walker.Encoding) -> int:
    """Returns the index behind the rest of a sequence of undefined length."""
    window = walker.Window(io.BytesIO(), 0, data)
    index = walker.pass_sequence(window, index, encoding)
    return window.at + index
