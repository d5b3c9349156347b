"""What a DICOM file says of its image, read from the first bytes of the file.

A small walker of our own goes through the two encodings that nearly every file has (explicit and implicit VR, little
endian), because a thousand headers must be read in well under a second; whatever is unusual goes to pydicom. Values
stay private: nothing of a header is printed but numbers and codes from fixed lists.
"""

from __future__ import annotations

import math
import os
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
NATIVE_SYNTAXES = frozenset({IMPLICIT_LITTLE, EXPLICIT_LITTLE, DEFLATED, EXPLICIT_BIG})

_FIRST_READ = 64 * 1024
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_SHORT_VRS = frozenset(
    {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS"}
    | {b"ST", b"TM", b"UI", b"UL", b"US"}
)
_EXPLICIT = struct.Struct("<HH2sH")
_IMPLICIT = struct.Struct("<HHL")
_LENGTH = struct.Struct("<L")
_PIXEL_GROUP = 0x7FE0
_PIXEL_ELEMENTS = (0x0008, 0x0009, 0x0010)  # float, double, integer
_MAX_FRAGMENTS = 4096

_TRANSFER_SYNTAX = 0x00020010
_MEDIA_CLASS = 0x00020002


@dataclass(frozen=True)
class SplitTag:
    """A tag that tells slices at one position apart.

    Attributes:
        tag: Group and element.
        word: What one group is called in an id (``echo``, ``time``, ...).
        kind: ``number`` (text), ``doubles`` (binary) or ``text``.
        unit: Unit of the value where it may be told; ``None`` where it may not (times, free text).
    """

    tag: int
    word: str
    kind: str
    unit: str | None = None


SPLIT_TAGS = (
    SplitTag(0x00180086, "echo", "number", ""),
    SplitTag(0x00180081, "echo", "number", "ms"),
    SplitTag(0x00200100, "time", "number", ""),
    SplitTag(0x00209128, "time", "number"),
    SplitTag(0x00181060, "phase", "number", "ms"),
    SplitTag(0x00189087, "b", "doubles", "s/mm2"),
    SplitTag(0x0019100C, "b", "number", "s/mm2"),
    SplitTag(0x00189089, "direction", "doubles"),
    SplitTag(0x0019100E, "direction", "doubles"),
    SplitTag(0x00180082, "inversion", "number", "ms"),
    SplitTag(0x00181314, "flip", "number", "degrees"),
    SplitTag(0x00180060, "energy", "number", "kV"),
    SplitTag(0x00080008, "type", "text"),
    SplitTag(0x00200012, "acquisition", "number", ""),
    SplitTag(0x00080032, "time", "text"),
    SplitTag(0x00080033, "time", "text"),
)

_WANTED = frozenset(
    {
        *(_MEDIA_CLASS, _TRANSFER_SYNTAX, 0x00080008, 0x00080016, 0x00080018, 0x00080060, 0x00180050, 0x00180088),
        *(0x00181164, 0x0020000D, 0x0020000E, 0x00200011, 0x00200013, 0x00200032, 0x00200037, 0x00200052),
        *(0x00280002, 0x00280004, 0x00280008, 0x00280010, 0x00280011, 0x00280030, 0x00280100, 0x00280101),
        *(0x00280103, 0x00280120, 0x00280301, 0x00281052, 0x00281053),
        *(split.tag for split in SPLIT_TAGS),
    }
)

MODALITIES = frozenset(
    {
        *("AR", "AU", "BDUS", "BI", "BMD", "CR", "CT", "DG", "DOC", "DX", "ECG", "EPS", "ES", "FID"),
        *("GM", "HC", "HD", "IO", "IOL", "IVOCT", "IVUS", "KER", "KO", "LEN", "LS", "MG", "MR", "NM"),
        *("OAM", "OCT", "OP", "OPM", "OPT", "OPTBSV", "OPTENF", "OPV", "OSS", "OT", "PLAN", "PR", "PT", "PX"),
        *(
            "REG",
            "RESP",
            "RF",
            "RG",
            "RTDOSE",
            "RTIMAGE",
            "RTPLAN",
            "RTRECORD",
            "RTSTRUCT",
            "RWV",
            "SEG",
            "SM",
            "SMR",
            "SR",
        ),
        *("SRF", "STAIN", "TG", "US", "VA", "XA", "XC"),
    }
)
"""The modality codes of the standard that may be printed; anything else in the tag counts as not known."""


class _NeedMoreError(Exception):
    """The header goes on beyond the bytes at hand."""


class _UnusualError(Exception):
    """The file has an encoding that the walker leaves to pydicom."""


@dataclass(frozen=True)
class Damaged:
    """A file that is DICOM, or cannot be opened, and of which not even the series is known."""

    path: Path


@dataclass(slots=True)
class _Raw:
    values: dict[int, bytes]
    order: str = "<"
    syntax: str = ""
    pixels_at: int | None = None
    pixels_length: int = 0
    broken: bool = False


@dataclass(frozen=True, slots=True)
class Header:
    """One DICOM image file.

    Attributes:
        size: Bytes in the file.
        position: ImagePositionPatient, LPS mm.
        orientation: Direction cosines of a row, then of a column (ImageOrientationPatient).
        pixel_spacing: Millimetres [between rows, between columns] (PixelSpacing).
        detector_spacing: The same at the detector (ImagerPixelSpacing).
        slope: RescaleSlope; ``None`` when absent, NaN when it is no number.
        fault: Why the pixels cannot be whole; empty when they look whole.
        split: Tag of :data:`SPLIT_TAGS` to its value, where it has one.
        frame: Which frame of a multi-frame file it stands for, from 0.
    """

    path: Path
    size: int
    syntax: str
    sop_class: str
    sop_uid: str
    study_uid: str
    series_uid: str
    series_number: int | None
    instance: int | None
    modality: str
    image_type: tuple[str, ...]
    rows: int
    columns: int
    frames: int
    samples: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    signed: bool
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    pixel_spacing: tuple[float, ...] | None
    detector_spacing: tuple[float, ...] | None
    frame_uid: str
    thickness: float | None
    between: float | None
    slope: float | None
    has_padding: bool
    burned_in: bool
    has_pixels: bool
    fault: str = ""
    split: dict[int, Any] = field(default_factory=dict)
    frame: int = 0

    @property
    def has_place(self) -> bool:
        """Whether the slice has a position, an orientation and a pixel size."""
        return self.position is not None and self.orientation is not None and self.pixel_spacing is not None


def looks_like_dicom(start: bytes) -> bool:
    """Whether the first bytes of a file (132 or more) are those of a DICOM file, with or without preamble."""
    return start[128:132] == b"DICM" or _first_tag_fits(start)


def _first_tag_fits(start: bytes) -> bool:
    """Whether a file without preamble begins with an element of group 2 or 8."""
    if len(start) < 16:
        return False
    group, element, vr, length = _EXPLICIT.unpack_from(start)
    if (group, element) not in ((2, 0), (2, 1), (2, 2)) and not (group == 8 and element <= 0x0100):
        return False
    if vr in _SHORT_VRS:
        return bool(length <= 1024)
    return group == 8 and int(_IMPLICIT.unpack_from(start)[2]) <= 1024


def read_header(path: Path) -> Header | Damaged | None:
    """Returns what a file says of its image; ``None`` when it is no DICOM file."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(_FIRST_READ)
            if not looks_like_dicom(start):
                return None
            raw = _walk(file, start, size)
            if raw is None:
                raw = _ask_pydicom(file)
            if raw is None:
                return Damaged(path) if start[128:132] == b"DICM" else None
            header = _header(path, size, raw, _pixel_fault(file, size, raw))
    except OSError:
        return Damaged(path)
    if not header.series_uid and not header.sop_class and not header.rows:
        return Damaged(path) if start[128:132] == b"DICM" else None
    return header


# ---- the walker -----------------------------------------------------------------------------------------------------


def _walk(file: BinaryIO, start: bytes, size: int) -> _Raw | None:
    """Returns the wanted elements, or ``None`` when pydicom should try."""
    data = start
    while True:
        try:
            return _parse(data, complete=len(data) >= size)
        except _NeedMoreError:
            data += file.read(max(_FIRST_READ, 7 * len(data)))
        except (_UnusualError, struct.error):
            return None


def _parse(data: bytes, complete: bool) -> _Raw:
    raw = _Raw({})
    position = 132 if data[128:132] == b"DICM" else 0
    try:
        if data[position : position + 2] == b"\x02\x00":
            position = _elements(data, position, raw, explicit=True, complete=complete, meta=True)
            raw.syntax = _text(raw.values.get(_TRANSFER_SYNTAX, b""))
        explicit = _is_explicit(raw, data, position)
        _elements(data, position, raw, explicit=explicit, complete=complete)
    except _NeedMoreError:
        if not complete:
            raise
        raw.broken = True
    return raw


def _is_explicit(raw: _Raw, data: bytes, position: int) -> bool:
    """Whether elements carry their VR, from the transfer syntax or else from the first element."""
    if raw.syntax == IMPLICIT_LITTLE:
        return False
    if raw.syntax in (DEFLATED, EXPLICIT_BIG):
        raise _UnusualError
    if raw.syntax:
        return True
    if len(data) < position + 8:
        raise _NeedMoreError
    explicit = data[position + 4 : position + 6] in _SHORT_VRS | _LONG_VRS
    raw.syntax = EXPLICIT_LITTLE if explicit else IMPLICIT_LITTLE
    return explicit


def _element(data: bytes, position: int, explicit: bool) -> tuple[int, bytes, int, int]:
    """Returns tag, VR, length and where the value begins."""
    if position + 12 > len(data):
        if position + 8 > len(data):
            raise _NeedMoreError
        if explicit and data[position + 4 : position + 6] in _LONG_VRS:
            raise _NeedMoreError
    if not explicit:
        group, element, length = _IMPLICIT.unpack_from(data, position)
        return group << 16 | element, b"", length, position + 8
    group, element, vr, length = _EXPLICIT.unpack_from(data, position)
    if vr in _SHORT_VRS:
        return group << 16 | element, vr, length, position + 8
    if vr in _LONG_VRS:
        return group << 16 | element, vr, _LENGTH.unpack_from(data, position + 8)[0], position + 12
    if group == 0xFFFE:
        return group << 16 | element, b"", _LENGTH.unpack_from(data, position + 4)[0], position + 8
    raise _UnusualError


def _elements(data: bytes, position: int, raw: _Raw, *, explicit: bool, complete: bool, meta: bool = False) -> int:
    """Reads elements up to the pixels (or up to the end of group 2) into ``raw``; returns where it stopped."""
    values = raw.values
    while True:
        if position == len(data) and (meta or complete):
            return position
        if meta and data[position : position + 2] != b"\x02\x00":
            return position
        tag, vr, length, value = _element(data, position, explicit)
        if tag >> 16 == _PIXEL_GROUP and tag & 0xFFFF in _PIXEL_ELEMENTS:
            raw.pixels_at, raw.pixels_length = value, length
            return position
        if length == _UNDEFINED:
            position = _skip_sequence(data, value, explicit and vr != b"UN")
            continue
        position = value + length
        if position > len(data):
            raise _NeedMoreError
        if tag in _WANTED:
            values[tag] = data[value:position]


def _skip_sequence(data: bytes, position: int, explicit: bool) -> int:
    """Returns where a sequence of undefined length ends."""
    while True:
        tag, _, length, value = _element(data, position, explicit=False)
        if tag == _SEQUENCE_END:
            return value
        if tag != _ITEM:
            raise _UnusualError
        position = _skip_item(data, value, explicit) if length == _UNDEFINED else value + length


def _skip_item(data: bytes, position: int, explicit: bool) -> int:
    """Returns where an item of undefined length ends."""
    while True:
        tag, vr, length, value = _element(data, position, explicit)
        if tag == _ITEM_END:
            return value
        nested = length == _UNDEFINED
        position = _skip_sequence(data, value, explicit and vr != b"UN") if nested else value + length


def _ask_pydicom(file: BinaryIO) -> _Raw | None:
    """Reads the same elements with pydicom: big endian, deflated and irregular files."""
    import zlib

    from pydicom.dataelem import RawDataElement
    from pydicom.errors import InvalidDicomError
    from pydicom.filereader import read_partial

    found: list[int] = []

    def at_pixels(tag: int, vr: str | None, length: int) -> bool:
        pixels = tag >> 16 == _PIXEL_GROUP and tag & 0xFFFF in _PIXEL_ELEMENTS
        if pixels:
            found.append(length)
        return pixels

    file.seek(0)
    faults: tuple[type[Exception], ...] = (InvalidDicomError, struct.error, zlib.error, RuntimeError, EOFError)
    faults += (ValueError, KeyError, TypeError, AttributeError, IndexError)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's texts may quote values of the header
            dataset = read_partial(file, at_pixels, force=True, specific_tags=sorted(_WANTED))
            syntax = str(getattr(dataset.file_meta, "TransferSyntaxUID", ""))
            media_class = str(getattr(dataset.file_meta, "MediaStorageSOPClassUID", ""))
    except faults:
        return None
    raw = _Raw({_MEDIA_CLASS: media_class.encode()}, syntax=syntax)
    implicit, little = dataset.original_encoding
    raw.order = "<" if little else ">"
    raw.syntax = syntax or (IMPLICIT_LITTLE if implicit else EXPLICIT_LITTLE if little else EXPLICIT_BIG)
    for tag in _WANTED:
        element = dataset.get_item(tag)
        value: Any = element.value if isinstance(element, RawDataElement) else None
        if isinstance(value, bytes):
            raw.values[tag] = value
    if found:
        # Where the pixels begin is not told (a deflated file has no such place): only their length is known.
        raw.pixels_at, raw.pixels_length = -1, found[0]
    return raw


# ---- are the pixels whole? ------------------------------------------------------------------------------------------


def _pixel_fault(file: BinaryIO, size: int, raw: _Raw) -> str:
    """Returns why the pixels of the file cannot be whole; empty when they look whole."""
    if raw.broken and raw.pixels_at is None:
        return "truncated in its header"
    if raw.pixels_at is None:
        return "without pixels"
    if raw.pixels_length == _UNDEFINED:
        return "" if raw.pixels_at < 0 or _fragments_end(file, size, raw.pixels_at) else "truncated"
    if raw.pixels_at >= 0 and raw.pixels_at + raw.pixels_length > size:
        return "truncated"
    numbers = [_short(raw, tag) or 0 for tag in (0x00280010, 0x00280011, 0x00280100)]
    samples, frames = _short(raw, 0x00280002) or 1, int(_number(raw, 0x00280008) or 1)
    expected = (math.prod(numbers) * samples * frames + 7) // 8
    return "truncated" if raw.syntax in NATIVE_SYNTAXES and raw.pixels_length < expected else ""


def _fragments_end(file: BinaryIO, size: int, position: int) -> bool:
    """Whether the fragments of compressed pixels end within the file."""
    for count in range(_MAX_FRAGMENTS):
        if position == size:
            return count > 1
        file.seek(position)
        head = file.read(8)
        if len(head) < 8:
            return False
        group, element, length = _IMPLICIT.unpack(head)
        if group << 16 | element == _SEQUENCE_END:
            return count > 1
        if group << 16 | element != _ITEM:
            return False
        position += 8 + length
        if position > size:
            return False
    return True


# ---- values ---------------------------------------------------------------------------------------------------------


def _header(path: Path, size: int, raw: _Raw, fault: str) -> Header:
    def text(tag: int) -> str:
        return _text(raw.values.get(tag, b""))

    modality = text(0x00080060).upper()
    bits_allocated = _short(raw, 0x00280100) or 0
    return Header(
        path=path,
        size=size,
        syntax=raw.syntax,
        sop_class=text(0x00080016) or text(_MEDIA_CLASS),
        sop_uid=text(0x00080018),
        study_uid=text(0x0020000D),
        series_uid=text(0x0020000E),
        series_number=_integer(raw, 0x00200011),
        instance=_integer(raw, 0x00200013),
        modality=modality if modality in MODALITIES else "",
        image_type=tuple(part.strip().upper() for part in text(0x00080008).split("\\")),
        rows=_short(raw, 0x00280010) or 0,
        columns=_short(raw, 0x00280011) or 0,
        frames=_integer(raw, 0x00280008) or 1,
        samples=_short(raw, 0x00280002) or 1,
        photometric=text(0x00280004).upper(),
        bits_allocated=bits_allocated,
        bits_stored=_short(raw, 0x00280101) or bits_allocated,
        signed=bool(_short(raw, 0x00280103)),
        position=_numbers(raw, 0x00200032, 3),
        orientation=_numbers(raw, 0x00200037, 6),
        pixel_spacing=_positive(_numbers(raw, 0x00280030, 2)),
        detector_spacing=_positive(_numbers(raw, 0x00181164, 2)),
        frame_uid=text(0x00200052),
        thickness=_number(raw, 0x00180050),
        between=_number(raw, 0x00180088),
        slope=_slope(raw),
        has_padding=bool(raw.values.get(0x00280120)),
        burned_in=text(0x00280301).upper() == "YES",
        has_pixels=raw.pixels_at is not None,
        fault=fault,
        split={split.tag: value for split in SPLIT_TAGS if (value := _split_value(raw, split)) is not None},
    )


def _text(value: bytes) -> str:
    return value.decode("latin-1").strip(" \0\t\r\n")


def _short(raw: _Raw, tag: int) -> int | None:
    value = raw.values.get(tag, b"")
    return int(struct.unpack_from(f"{raw.order}H", value)[0]) if len(value) >= 2 else None


def _floats(text: str) -> tuple[float, ...] | None:
    try:
        numbers = tuple(float(part) for part in text.split("\\"))
    except ValueError:
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def _numbers(raw: _Raw, tag: int, count: int) -> tuple[float, ...] | None:
    value = raw.values.get(tag)
    numbers = _floats(_text(value)) if value else None
    return numbers if numbers is not None and len(numbers) == count else None


def _positive(numbers: tuple[float, ...] | None) -> tuple[float, ...] | None:
    return numbers if numbers is not None and min(numbers) > 0 else None


def _number(raw: _Raw, tag: int) -> float | None:
    value = raw.values.get(tag)
    numbers = _floats(_text(value)) if value else None
    return numbers[0] if numbers else None


def _integer(raw: _Raw, tag: int) -> int | None:
    number = _number(raw, tag)
    return int(number) if number is not None and number == int(number) else None


def _doubles(raw: _Raw, tag: int) -> tuple[float, ...] | None:
    value = raw.values[tag]
    if not value or len(value) % 8:
        return None
    numbers = struct.unpack(f"{raw.order}{len(value) // 8}d", value)
    return numbers if all(map(math.isfinite, numbers)) else None


def _slope(raw: _Raw) -> float | None:
    """Returns RescaleSlope; NaN when the tag holds no number."""
    if not _text(raw.values.get(0x00281053, b"")):
        return None
    slope = _number(raw, 0x00281053)
    return math.nan if slope is None else slope


def _split_value(raw: _Raw, split: SplitTag) -> Any:
    if split.tag not in raw.values:
        return None
    readers: dict[str, Callable[[], Any]] = {
        "number": lambda: _number(raw, split.tag),
        "doubles": lambda: _doubles(raw, split.tag),
        "text": lambda: _text(raw.values[split.tag]) or None,
    }
    return readers[split.kind]()
