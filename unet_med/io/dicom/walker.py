"""A walk through the elements of a DICOM file, forward only, that never holds much more than a window of it.

It reads what nearly every file is made of (explicit and implicit VR, little and big endian, deflated) without building
data sets, because thousands of headers must be read in a second. Whatever is irregular raises and is left to pydicom.
Lengths are believed only as far as the file goes, and nesting costs no stack: a damaged file ends the walk.
"""

from __future__ import annotations

import struct
import zlib
from typing import BinaryIO, NamedTuple

UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
SHORT_VRS = frozenset(
    {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS"}
    | {b"ST", b"TM", b"UI", b"UL", b"US"}
)
CHUNK = 64 * 1024
_DEEPEST = 200
_MOST_INFLATED = 1 << 30
_HEAD = 12


class NeedMoreError(Exception):
    """The elements go on beyond the bytes at hand."""


class UnusualError(Exception):
    """The bytes are encoded in a way that the walk does not follow."""


class Encoding(NamedTuple):
    """How elements are written.

    Attributes:
        explicit: Whether each element carries its VR.
        order: ``<`` little endian, ``>`` big endian.
        with_vr: Group, element, VR, length.
        without_vr: Group, element, length.
        length: A length of four bytes.
    """

    explicit: bool
    order: str
    with_vr: struct.Struct
    without_vr: struct.Struct
    length: struct.Struct


def _encoding(explicit: bool, order: str) -> Encoding:
    return Encoding(
        explicit, order, struct.Struct(order + "HH2sH"), struct.Struct(order + "HHL"), struct.Struct(order + "L")
    )


EXPLICIT, IMPLICIT = _encoding(True, "<"), _encoding(False, "<")
EXPLICIT_BIG, IMPLICIT_BIG = _encoding(True, ">"), _encoding(False, ">")


def without_vr(encoding: Encoding) -> Encoding:
    """Returns the encoding of the same byte order that carries no VR (the items of a sequence of unknown VR)."""
    return IMPLICIT if encoding.order == "<" else IMPLICIT_BIG


class Window:
    """A part of a file, moving forward.

    Attributes:
        data: The bytes at hand.
        at: Where they begin in the file (in the inflated bytes of a deflated file).
    """

    __slots__ = ("_file", "_inflate", "_size", "at", "data")

    def __init__(self, file: BinaryIO, size: int, start: bytes) -> None:
        self._file = file
        self._size = size
        self._inflate: zlib._Decompress | None = None
        self.data = start
        self.at = 0

    def forward(self, index: int, need: int = CHUNK) -> bytes:
        """Drops what lies before ``index`` and returns ``need`` bytes or more from there on; fewer at the end.

        Raises:
            NeedMoreError: The file ends before ``index``.
        """
        missing = index - len(self.data)
        if missing > 0:
            self._skip(missing)
        self.at += index
        rest = self.data[index:]
        self.data = rest + self._read(max(CHUNK, need - len(rest)))
        return self.data

    def inflate(self, index: int) -> bytes:
        """Takes everything from ``index`` on as deflated, and returns the first bytes of what it holds.

        Raises:
            UnusualError: It is not deflated.
        """
        self._file.seek(self.at + index)
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        self.at, self.data = 0, b""
        self.data = self._read(CHUNK)
        return self.data

    def _read(self, count: int) -> bytes:
        if self._inflate is None:
            return self._file.read(count)
        parts = []
        while count > 0 and not self._inflate.eof:
            packed = self._inflate.unconsumed_tail or self._file.read(CHUNK)
            try:
                part = self._inflate.decompress(packed, count)
            except zlib.error:
                raise UnusualError from None
            if not packed and not part:
                break
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _skip(self, count: int) -> None:
        if self._inflate is None:
            if self.at + len(self.data) + count > self._size:
                raise NeedMoreError
            self._file.seek(count, 1)
            return
        while count > 0:
            part = self._read(min(count, CHUNK))
            if not part or self.at > _MOST_INFLATED:
                raise NeedMoreError
            count -= len(part)


def element(data: bytes, index: int, encoding: Encoding) -> tuple[int, bytes, int, int]:
    """Returns tag, VR (empty where it is not written), length, and the index where the value begins.

    Raises:
        NeedMoreError: The bytes end before.
        UnusualError: There is no such VR.
    """
    if index + 12 > len(data) and (
        index + 8 > len(data) or (encoding.explicit and data[index + 4 : index + 6] in LONG_VRS)
    ):
        raise NeedMoreError
    if not encoding.explicit:
        group, number, length = encoding.without_vr.unpack_from(data, index)
        return group << 16 | number, b"", length, index + 8
    group, number, vr, length = encoding.with_vr.unpack_from(data, index)
    if vr in SHORT_VRS:
        return group << 16 | number, vr, length, index + 8
    if vr in LONG_VRS:
        return group << 16 | number, vr, encoding.length.unpack_from(data, index + 8)[0], index + 12
    if group == 0xFFFE:
        return group << 16 | number, b"", encoding.length.unpack_from(data, index + 4)[0], index + 8
    raise UnusualError


def pass_sequence(window: Window, index: int, encoding: Encoding) -> int:
    """Returns the index in ``window.data``, which may have moved, behind a sequence of undefined length.

    Args:
        window: Holds the sequence, or its beginning.
        index: Where its first item begins.
        encoding: Of its items.

    Raises:
        NeedMoreError: The file ends before.
        UnusualError: It is no sequence, or nested deeper than any real one.
    """
    data = window.data
    head = without_vr(encoding)
    inside: list[tuple[bool, Encoding]] = [(False, encoding)]  # is it an item, and how is it written
    while inside:
        if index + _HEAD > len(data):
            data, index = window.forward(index), 0
        in_item, here = inside[-1]
        tag, vr, length, value = element(data, index, here if in_item else head)
        if tag == (ITEM_END if in_item else SEQUENCE_END):
            inside.pop()
            index = value
            continue
        if not in_item and tag != ITEM:
            raise UnusualError
        if length != UNDEFINED:
            index = value + length
            continue
        index = value
        inside.append((not in_item, head if in_item and vr == b"UN" else here))
        if len(inside) > _DEEPEST:
            raise UnusualError
    return index
