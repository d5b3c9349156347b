"""What a DICOM file says of its image, read from the first bytes of the file.

A small walker of our own goes through the two encodings that nearly every file has (explicit and implicit VR, little
endian), because a thousand headers must be read in well under a second; whatever is unusual goes to pydicom. Values
stay private: nothing of a header is printed but numbers and codes from fixed lists.
"""

from __future__ import annotations

import logging
import math
import os
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from unet_med.io.dicom import walker

for _library in ("pydicom", "highdicom"):
    # What they log quotes values of headers, names and dates among them: it must reach no handler.
    logging.getLogger(_library).disabled = True

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
NATIVE_SYNTAXES = frozenset({IMPLICIT_LITTLE, EXPLICIT_LITTLE, DEFLATED, EXPLICIT_BIG})

_MOST_VALUE = 64 * 1024
"""A wanted value that claims to be longer is none."""

PIXEL_GROUP = 0x7FE0
_PIXEL_ELEMENTS = (0x0008, 0x0009, 0x0010)  # float, double, integer
_MAX_FRAGMENTS = 65536
_VIDEO = "1.2.840.10008.1.2.4.10"
"""Begin of the syntaxes that hold all frames in one stream."""

_FRAME_GROUPS = 0x52009230
_SIEMENS, _MOSAIC_IMAGES = 0x00190010, 0x0019100A

_TRANSFER_SYNTAX = 0x00020010
_MEDIA_CLASS = 0x00020002
_BODY_PART = 0x00180015


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
    SplitTag(0x00209128, "time", "number", ""),
    SplitTag(0x00181060, "phase", "number", "ms"),
    SplitTag(0x00189087, "b", "doubles", "s/mm2"),
    SplitTag(0x0019100C, "b", "number", "s/mm2"),
    SplitTag(0x00189089, "direction", "doubles"),
    SplitTag(0x0019100E, "direction", "doubles"),
    SplitTag(0x00180082, "inversion", "number", "ms"),
    SplitTag(0x00181314, "flip", "number", "degrees"),
    SplitTag(0x00180060, "energy", "number", "kV"),
    SplitTag(0x00181210, "kernel", "text"),
    SplitTag(0x00080008, "type", "text"),
    SplitTag(0x00200012, "acquisition", "number", ""),
    SplitTag(0x00080032, "time", "text"),
    SplitTag(0x00080033, "time", "text"),
)

_SYNTAXES = {
    walker.IMPLICIT: IMPLICIT_LITTLE,
    walker.EXPLICIT: EXPLICIT_LITTLE,
    walker.EXPLICIT_BIG: EXPLICIT_BIG,
}

DIMENSIONS = 8
"""So many dimension indices of a multi-frame file are looked at to tell frames apart."""

FILE_NUMBER = 1 << 32
"""Stands in ``Header.split`` for which file of its series a frame is in."""


STACK_ID = 0x00209056


def dimension_tag(column: int) -> int:
    """Returns what stands in ``Header.split`` for one of the dimension index values, counted from 0."""
    return FILE_NUMBER + 1 + column


_FRAME_SPLITS = (
    SplitTag(0x0020930D, "time", "number", "s"),
    SplitTag(0x00209241, "phase", "number", "%"),
    SplitTag(0x00209245, "phase", "number", "%"),
    SplitTag(0x00189075, "direction", "text"),
    SplitTag(0x00189257, "label", "text"),
    SplitTag(0x00089208, "component", "text"),
)
_LAST_SPLITS = (
    SplitTag(STACK_ID, "stack", "text"),
    *(SplitTag(dimension_tag(column), f"dimension{column + 1}-", "number") for column in range(DIMENSIONS)),
    SplitTag(FILE_NUMBER, "file", "number"),
)
_TYPE_PLACE = next(number for number, split in enumerate(SPLIT_TAGS) if split.word == "type")

SPLIT_ORDER = (*SPLIT_TAGS[:_TYPE_PLACE], *_FRAME_SPLITS, *SPLIT_TAGS[_TYPE_PLACE:], *_LAST_SPLITS)
"""What may tell repeats apart, the first choice first: the tags of classic files, and what only frames have."""

_WANTED = frozenset(
    {
        *(_MEDIA_CLASS, _TRANSFER_SYNTAX, 0x00080008, 0x00080016, 0x00080018, 0x00080060, 0x00180050, 0x00180088),
        *(0x00181164, 0x0020000D, 0x0020000E, 0x00200011, 0x00200013, 0x00200032, 0x00200037, 0x00200052),
        *(0x00280002, 0x00280004, 0x00280008, 0x00280010, 0x00280011, 0x00280030, 0x00280100, 0x00280101),
        *(0x00280103, 0x00280120, 0x00280301, 0x00281052, 0x00281053, _SIEMENS, _MOSAIC_IMAGES, _BODY_PART),
        *(split.tag for split in SPLIT_TAGS),
    }
)

_LAST_GROUP = 0x0028
"""Behind this group there is nothing that is wanted but the pixels."""

_PLAIN = frozenset({IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG})

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

BODY_PARTS = frozenset(
    {
        *("ABDOMEN", "ABDOMENPELVIS", "ADRENAL", "ANKLE", "AORTA", "ARM", "BILEDUCT", "BLADDER", "BRAIN", "BREAST"),
        *("BRONCHUS", "CALCANEUS", "CAROTID", "CHEST", "CHESTABDOMEN", "CHESTABDPELVIS", "CLAVICLE", "COLON", "CSPINE"),
        *("CTSPINE", "DUODENUM", "ELBOW", "ESOPHAGUS", "EXTREMITY", "EYE", "FEMUR", "FINGER", "FOOT", "FOREARM"),
        *("GALLBLADDER", "HAND", "HEAD", "HEADNECK", "HEART", "HIP", "HUMERUS", "JAW", "KIDNEY", "KNEE", "LARYNX"),
        *("LEG", "LIVER", "LSPINE", "LSSPINE", "LUNG", "NECK", "NECKCHEST", "NECKCHESTABDOMEN", "NECKCHESTABDPELV"),
        *("ORBIT", "OVARY", "PANCREAS", "PELVIS", "PROSTATE", "RECTUM", "RIB", "SCAPULA", "SHOULDER", "SKULL"),
        *("SPINE", "SPLEEN", "SSPINE", "STERNUM", "STOMACH", "THIGH", "THYMUS", "THYROID", "TLSPINE", "TONGUE"),
        *("TRACHEA", "TSPINE", "UTERUS", "WHOLEBODY", "WRIST"),
    }
)
"""Names of body parts of the standard (PS3.16, Annex L) that may be printed; anything else counts as not known."""


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
    grouped: bool = False
    mosaic: bool = False


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
        mosaic: Whether its picture is many small slices side by side (Siemens).
        body_part: One of :data:`BODY_PARTS`; empty when not known.
        grouped: Whether it has functional groups for each frame (enhanced multi-frame).
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
    grouped: bool = False
    mosaic: bool = False
    body_part: str = ""

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
    group, element, vr, length = walker.EXPLICIT.with_vr.unpack_from(start)
    if (group, element) not in ((2, 0), (2, 1), (2, 2)) and not (group == 8 and element <= 0x0100):
        return False
    if vr in walker.SHORT_VRS:
        return bool(length <= 1024)
    return group == 8 and int(walker.IMPLICIT.without_vr.unpack_from(start)[2]) <= 1024


def read_header(path: Path) -> Header | Damaged | None:
    """Returns what a file says of its image; ``None`` when it is no DICOM file."""
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(walker.CHUNK)
            if not looks_like_dicom(start):
                return None
            raw = _walk(file, size, start)
            if raw is None:
                raw = _ask_pydicom(path)
            if raw is None:
                return Damaged(path) if start[128:132] == b"DICM" else None
            header = _header(path, size, raw, _pixel_fault(file, size, raw))
    except OSError:
        return Damaged(path)
    if not header.series_uid and not header.sop_class and not header.rows:
        return Damaged(path) if start[128:132] == b"DICM" else None
    return header


# ---- the walk -------------------------------------------------------------------------------------------------------


def _walk(file: BinaryIO, size: int, start: bytes) -> _Raw | None:
    """Returns the wanted elements, or ``None`` when pydicom should try."""
    raw = _Raw({})
    window = walker.Window(file, size, start)
    try:
        index, encoding = open_elements(window, raw.values)
        raw.syntax = decoded_text(raw.values.get(_TRANSFER_SYNTAX, b"")) or _SYNTAXES[encoding]
        raw.order = encoding.order
        _elements(file, size, window, index, raw, encoding)
    except walker.NeedMoreError:
        raw.broken = True
        raw.syntax = raw.syntax or decoded_text(raw.values.get(_TRANSFER_SYNTAX, b""))
    except walker.UnusualError:
        if raw.syntax != DEFLATED:
            return None
        raw.broken = True  # pydicom would inflate it whole, however large that is
    if raw.syntax == DEFLATED and raw.pixels_at is not None:
        raw.pixels_at = -1  # a place in the inflated bytes is none in the file: only the length is known
    return raw


def open_elements(window: walker.Window, meta: dict[int, bytes]) -> tuple[int, walker.Encoding]:
    """Passes preamble and group 2; returns where the other elements begin in ``window.data``, and their encoding.

    Args:
        window: At the beginning of the file.
        meta: Takes the wanted values of group 2.

    Raises:
        NeedMoreError: The file ends before.
        UnusualError: Group 2 cannot be followed.
    """
    data = window.data
    index = 132 if data[128:132] == b"DICM" else 0
    while data[index : index + 2] == b"\x02\x00":
        tag, _, length, value = walker.element(data, index, walker.EXPLICIT)
        index = value + length
        if index + 12 > len(data):
            data, value, index = window.forward(value), 0, length
            if length > len(data):
                raise walker.NeedMoreError
        if tag in _WANTED and length <= _MOST_VALUE:
            meta[tag] = data[value:index]
    syntax = decoded_text(meta.get(_TRANSFER_SYNTAX, b""))
    if syntax == DEFLATED:
        window.inflate(index)
        return 0, walker.EXPLICIT
    if syntax == IMPLICIT_LITTLE:
        return index, walker.IMPLICIT
    if syntax == EXPLICIT_BIG:
        return index, walker.EXPLICIT_BIG
    if syntax:
        return index, walker.EXPLICIT
    if len(data) < index + 8:
        raise walker.NeedMoreError
    explicit = data[index + 4 : index + 6] in walker.SHORT_VRS | walker.LONG_VRS
    return index, walker.EXPLICIT if explicit else walker.IMPLICIT


def _elements(file: BinaryIO, size: int, window: walker.Window, index: int, raw: _Raw, how: walker.Encoding) -> None:
    """Reads elements up to the pixels into ``raw``."""
    values, data, wanted = raw.values, window.data, _WANTED
    explicit, head, head_without, long_length = how.explicit, how.with_vr, how.without_vr, how.length
    short_vrs, long_vrs, undefined = walker.SHORT_VRS, walker.LONG_VRS, walker.UNDEFINED
    end, ahead = len(data), True
    while True:
        if index + 12 > end:
            data, index = window.forward(index), 0
            end = len(data)
            if not data:
                return
        vr = b""
        if index + 12 > end:
            tag, vr, length, value = walker.element(data, index, how)
            group = tag >> 16
        elif explicit:
            # The same as walker.element, without the call: headers of some vendors have a thousand elements.
            group, number, vr, length = head.unpack_from(data, index)
            tag = group << 16 | number
            if vr in short_vrs:
                value = index + 8
            elif vr in long_vrs:
                length, value = long_length.unpack_from(data, index + 8)[0], index + 12
            else:
                tag, vr, length, value = walker.element(data, index, how)
        else:
            group, number, length = head_without.unpack_from(data, index)
            tag, value = group << 16 | number, index + 8
        if group > _LAST_GROUP:
            if group == PIXEL_GROUP and tag & 0xFFFF in _PIXEL_ELEMENTS:
                raw.pixels_at, raw.pixels_length = window.at + value, length
                return
            if ahead and _pixels_are_last(file, size, raw, how):
                return
            ahead = False
            raw.grouped = raw.grouped or tag == _FRAME_GROUPS
        if length == undefined:
            index = walker.pass_sequence(window, value, walker.without_vr(how) if vr == b"UN" else how)
            data = window.data
            end = len(data)
            continue
        index = value + length
        if tag in wanted and length <= _MOST_VALUE:
            if index > end:
                data, value, index = window.forward(value, length), 0, length
                end = len(data)
                if length > end:
                    raise walker.NeedMoreError
            values[tag] = data[value:index]


def _pixels_are_last(file: BinaryIO, size: int, raw: _Raw, how: walker.Encoding) -> bool:
    """Looks for uncompressed pixels at the end of the file, where they are in nearly every classic slice.

    What lies between the image description and them is of no interest, and long in the files of some vendors.
    """
    if raw.syntax not in _PLAIN or 0x00200032 not in raw.values or (_integer(raw, 0x00280008) or 1) != 1:
        return False
    length = _pixel_bytes(raw, 1)
    length += length % 2
    if not 0 < length < size:
        return False
    here = file.tell()
    for vr in (b"OW", b"OB") if how.explicit else (b"",):
        pixels = how.with_vr.pack(PIXEL_GROUP, 0x0010, vr, 0) + how.length.pack(length) if vr else b""
        pixels = pixels or how.without_vr.pack(PIXEL_GROUP, 0x0010, length)
        start = size - length - len(pixels)
        file.seek(max(start, 0))
        if file.read(len(pixels)) == pixels:
            raw.pixels_at, raw.pixels_length = size - length, length
            return True
    file.seek(here)
    return False


def _pixel_bytes(raw: _Raw, frames: int) -> int:
    """Returns how long uncompressed pixels are by the image description, without padding."""
    numbers = [_short(raw, tag) or 0 for tag in (0x00280010, 0x00280011, 0x00280100)]
    return (math.prod(numbers) * (_short(raw, 0x00280002) or 1) * frames + 7) // 8


def _ask_pydicom(path: Path) -> _Raw | None:
    """Reads the same elements with pydicom: big endian, deflated and irregular files."""
    from pydicom.dataelem import RawDataElement
    from pydicom.filereader import read_partial

    found: list[int] = []

    def at_pixels(tag: int, vr: str | None, length: int) -> bool:
        pixels = tag >> 16 == PIXEL_GROUP and tag & 0xFFFF in _PIXEL_ELEMENTS
        if pixels:
            found.append(length)
        return pixels

    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")  # pydicom's texts may quote values of the header
            dataset = read_partial(file, at_pixels, force=True, specific_tags=sorted(_WANTED))
            syntax = str(getattr(dataset.file_meta, "TransferSyntaxUID", ""))
            media_class = str(getattr(dataset.file_meta, "MediaStorageSOPClassUID", ""))
            implicit, little = dataset.original_encoding
            values = {element.tag: element.value for element in dataset.values() if isinstance(element, RawDataElement)}
    except OSError:
        raise
    except Exception:  # noqa: BLE001 - what pydicom raises on damaged files is of many kinds
        return None
    raw = _Raw({_MEDIA_CLASS: media_class.encode()}, order="<" if little else ">")
    raw.syntax = syntax or (IMPLICIT_LITTLE if implicit else EXPLICIT_LITTLE if little else EXPLICIT_BIG)
    raw.values.update({int(tag): value for tag, value in values.items() if isinstance(value, bytes) and tag in _WANTED})
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
    frames = _integer(raw, 0x00280008) or 1
    if raw.pixels_length == walker.UNDEFINED:
        pictures = 1 if raw.syntax.startswith(_VIDEO) else frames
        return "" if raw.pixels_at < 0 or _fragments_end(file, size, raw.pixels_at, pictures) else "truncated"
    if raw.pixels_at >= 0 and raw.pixels_at + raw.pixels_length > size:
        return "truncated"
    short = raw.syntax in NATIVE_SYNTAXES and raw.pixels_length < _pixel_bytes(raw, frames)
    return "truncated" if short else ""


def _fragments_end(file: BinaryIO, size: int, position: int, pictures: int) -> bool:
    """Whether the fragments of compressed pixels, one or more for each picture, end within the file."""
    for count in range(_MAX_FRAGMENTS):
        if position == size:
            return count > pictures
        file.seek(position)
        head = file.read(8)
        if len(head) < 8:
            return False
        group, element, length = walker.IMPLICIT.without_vr.unpack(head)
        if group << 16 | element == walker.SEQUENCE_END:
            return count > pictures
        if group << 16 | element != walker.ITEM:
            return False
        position += 8 + length
        if position > size:
            return False
    return True


# ---- values ---------------------------------------------------------------------------------------------------------


def _header(path: Path, size: int, raw: _Raw, fault: str) -> Header:
    def text(tag: int) -> str:
        return decoded_text(raw.values.get(tag, b""))

    modality = text(0x00080060).upper()
    body_part = text(_BODY_PART).upper()
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
        frames=max(_integer(raw, 0x00280008) or 1, 1),
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
        grouped=raw.grouped,
        mosaic=_is_mosaic(raw),
        body_part=body_part if body_part in BODY_PARTS else "",
        split={split.tag: value for split in SPLIT_TAGS if (value := _split_value(raw, split)) is not None},
    )


def decoded_text(value: bytes) -> str:
    """Returns a text value without what pads it."""
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
    numbers = _floats(decoded_text(value)) if value else None
    return numbers if numbers is not None and len(numbers) == count else None


def _positive(numbers: tuple[float, ...] | None) -> tuple[float, ...] | None:
    return numbers if numbers is not None and min(numbers) > 0 else None


def _number(raw: _Raw, tag: int) -> float | None:
    value = raw.values.get(tag)
    numbers = _floats(decoded_text(value)) if value else None
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
    if not decoded_text(raw.values.get(0x00281053, b"")):
        return None
    slope = _number(raw, 0x00281053)
    return math.nan if slope is None else slope


def _is_mosaic(raw: _Raw) -> bool:
    """Whether the picture is a Siemens mosaic, by its image type or by the vendor's count of slices in it."""
    if "MOSAIC" in decoded_text(raw.values.get(0x00080008, b"")).upper().split("\\"):
        return True
    vendor = decoded_text(raw.values.get(_SIEMENS, b"")).upper()
    return vendor.startswith("SIEMENS MR") and (_short(raw, _MOSAIC_IMAGES) or 0) > 1


def _split_value(raw: _Raw, split: SplitTag) -> Any:
    if split.tag not in raw.values:
        return None
    readers: dict[str, Callable[[], Any]] = {
        "number": lambda: _number(raw, split.tag),
        "doubles": lambda: _doubles(raw, split.tag),
        "text": lambda: decoded_text(raw.values[split.tag]) or None,
    }
    return readers[split.kind]()
