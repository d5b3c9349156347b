"""Pixels of DICOM slices as real values: read or decoded, rescaled, MONOCHROME1 turned, padding found.

Uncompressed pixels are taken straight out of the file: a walk of our own through the header finds them and the few
values that give them their meaning. Compressed frames go to the decoder process
(:mod:`unet_med.io.dicom.decoding`), several at a time. pydicom helps with headers that the walk does not follow, and
with modality lookup tables.
"""

from __future__ import annotations

import io
import os
import struct
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from unet_med.errors import InputRefusedError
from unet_med.io.dicom import COPY_AGAIN, EXPORT_AGAIN, codecs, decoding, walker
from unet_med.io.dicom.headers import (
    DEFLATED,
    EXPLICIT_BIG,
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    NATIVE_SYNTAXES,
    open_elements,
)

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

INVERTED_MODALITIES = frozenset({"CR", "DX", "MG", "RG", "PX", "IO", "XA", "RF"})
"""Projections, whose MONOCHROME1 pixels are turned so that more signal is brighter."""

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

_MODALITY, _SAMPLES, _PHOTOMETRIC, _FRAMES = 0x00080060, 0x00280002, 0x00280004, 0x00280008
_ROWS, _COLUMNS, _ALLOCATED, _STORED = 0x00280010, 0x00280011, 0x00280100, 0x00280101
_HIGH, _SIGNED = 0x00280102, 0x00280103
_PADDING_VALUE, _PADDING_LIMIT, _INTERCEPT, _SLOPE = 0x00280120, 0x00280121, 0x00281052, 0x00281053
_LOOKUP, _FRAME_GROUPS, _SHARED_GROUPS = 0x00283000, 0x52009230, 0x52009229
_EXTENDED_OFFSETS, _FLOATS, _DOUBLES, _PIXELS = 0x7FE00001, 0x7FE00008, 0x7FE00009, 0x7FE00010
_WANTED = frozenset(
    {
        *(_MODALITY, _SAMPLES, _PHOTOMETRIC, _FRAMES, _ROWS, _COLUMNS, _ALLOCATED, _STORED, _HIGH, _SIGNED),
        *(_PADDING_VALUE, _PADDING_LIMIT, _INTERCEPT, _SLOPE, _EXTENDED_OFFSETS),
    }
)
_NOTED = frozenset({_LOOKUP, _FRAME_GROUPS, _SHARED_GROUPS})
_SYNTAXES = {
    walker.EXPLICIT: EXPLICIT_LITTLE,
    walker.IMPLICIT: IMPLICIT_LITTLE,
    walker.EXPLICIT_BIG: EXPLICIT_BIG,
}
_META_SYNTAX = 0x00020010
_MOST_VALUE = 16 * 1024 * 1024
_MOST_BYTES = 1 << 31
_MOST_INFLATED = 3 << 28
_BLOCK = 1 << 20
_AHEAD = 6
_SCAN_AGAIN = "scan the folder again"


@dataclass(frozen=True, eq=False)
class Slice:
    """One decoded slice.

    Attributes:
        values: (rows, columns) float32, real values.
        padding: (rows, columns), where the stored value means "no measurement"; ``None`` for nowhere.
    """

    values: npt.NDArray[np.float32]
    padding: Mask | None


@lru_cache(maxsize=64)
def missing_decoder(syntax: str, bits: int = 8) -> str:
    """Returns the name of a transfer syntax that nothing installed here can decode; empty when something can.

    Args:
        syntax: Its UID.
        bits: Bits stored in a pixel; not every library decodes JPEG of more than 8.
    """
    if syntax in NATIVE_SYNTAXES or codecs.decoders(syntax, bits):
        return ""
    if not codecs.is_known(syntax):
        return "an unknown transfer syntax"
    from pydicom.uid import UID

    return str(UID(syntax).name)


def turned(modality: str, photometric: str) -> bool:
    """Whether a picture is stored dark on bright and turned: MONOCHROME1 of a projection."""
    return photometric == "MONOCHROME1" and modality in INVERTED_MODALITIES


def read_slice(path: Path, frame: int = 0) -> Slice:
    """Reads and decodes one frame of a file; of a file of one frame, the only one.

    Raises:
        InputRefusedError: The file holds no such grey picture any more, or it cannot be decoded.
        Exception: Whatever pydicom raises on a damaged header.
    """
    return next(read_slices([(path, frame)]))


def read_slices(places: Iterable[tuple[Path, int]]) -> Generator[Slice, None, None]:
    """Yields the slices at (file, frame), in this order; compressed ones are decoded some slices ahead.

    Raises:
        InputRefusedError: See :func:`read_slice`; the slice that was asked for next is meant.
    """
    with decoding.batch() as batch:
        pending: deque[_Pending] = deque()
        for path, frame in places:
            pending.append(_begin(path, frame, batch))
            if len(pending) > _AHEAD or not pending[0].decoding:
                yield _finish(pending.popleft(), batch)
        while pending:
            yield _finish(pending.popleft(), batch)


@dataclass(frozen=True, slots=True)
class _Pending:
    """A slice on its way: ``stored`` words are at hand, or being decoded, or there is an ``error``."""

    file: _PixelFile | None
    frame: int
    words: Array | None = None
    error: Exception | None = None

    @property
    def decoding(self) -> bool:
        return self.words is None and self.error is None


def _begin(path: Path, frame: int, batch: decoding.Batch) -> _Pending:
    """Reads a frame, and hands it to the decoder if it is compressed."""
    try:
        with path.open("rb", buffering=0) as file:
            pixels = _look(path, file)
            pixels.check(frame)
            if pixels.syntax in NATIVE_SYNTAXES:
                return _Pending(pixels, frame, pixels.words(file, frame))
            batch.submit(pixels.compressed(file, frame))
            return _Pending(pixels, frame)
    except Exception as error:  # noqa: BLE001 - raised when this slice's turn comes
        return _Pending(None, frame, error=error)


def _finish(one: _Pending, batch: decoding.Batch) -> Slice:
    """Returns the real values of a slice."""
    if one.error is not None:
        raise one.error
    if one.file is None:
        raise InputRefusedError("the file holds no pixels", remedy=_SCAN_AGAIN)
    return one.file.slice(batch.result() if one.words is None else one.words, one.frame)


# ---- what the header says of the pixels ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, slots=True)
class _PixelFile:
    """Where the pixels of a file are, and what its header says of them.

    Attributes:
        path: The file.
        values: Elements of :data:`_WANTED` as they are stored.
        noted: Which of :data:`_NOTED` the header has.
        order: Byte order.
        syntax: UID of the transfer syntax.
        tag: Element of the pixels.
        at: Where its value begins in the file, or in ``data``.
        length: Bytes of the value; :data:`walker.UNDEFINED` where items hold compressed pixels.
        swapped: Whether 8-bit pixels are stored in big-endian words.
        data: The pixels, where they are not in the file as such (deflated), or were read already.
        items: Where the items of compressed pixels begin (from ``at`` on) and their lengths, once they were listed.
    """

    path: Path
    values: Mapping[int, bytes]
    noted: frozenset[int]
    order: str
    syntax: str
    tag: int
    at: int
    length: int
    swapped: bool = False
    data: bytes | None = None
    items: list[tuple[int, int]] = field(default_factory=list)

    # ---- values of the header

    def text(self, tag: int) -> str:
        return self.values.get(tag, b"").decode("latin-1").strip(" \0\t\r\n")

    def short(self, tag: int, absent: int = 0) -> int:
        value = self.values.get(tag, b"")
        return int(struct.unpack_from(f"{self.order}H", value)[0]) if len(value) >= 2 else absent

    def number(self, tag: int) -> float | None:
        text = self.text(tag)
        return float(text) if text else None

    @property
    def shape(self) -> tuple[int, int]:
        return self.short(_ROWS), self.short(_COLUMNS)

    @property
    def frames(self) -> int:
        return int(self.number(_FRAMES) or 1)

    @property
    def bits_allocated(self) -> int:
        return self.short(_ALLOCATED)

    @property
    def bits_stored(self) -> int:
        return self.short(_STORED) or self.bits_allocated

    @property
    def signed(self) -> bool:
        return bool(self.short(_SIGNED))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the words in the file."""
        kind = "f" if self.tag != _PIXELS else "i" if self.signed else "u"
        return np.dtype(f"{self.order}{kind}{self.bits_allocated // 8}")

    def check(self, frame: int) -> None:
        """Refuses what is no grey picture that can be read.

        Raises:
            InputRefusedError: It is none.
        """
        if self.short(_SAMPLES, 1) != 1 or not all(self.shape) or not 0 <= frame < self.frames:
            raise InputRefusedError("the file holds no single grey picture", remedy=_SCAN_AGAIN)
        allowed = {_FLOATS: (32,), _DOUBLES: (64,)}.get(self.tag, (8, 16, 32, 64))
        if self.bits_allocated not in allowed or self.bits_stored > self.bits_allocated:
            raise InputRefusedError(
                f"pixels of {self.bits_allocated} bits ({self.bits_stored} stored) cannot be read",
                remedy=EXPORT_AGAIN,
            )
        if self.tag == _PIXELS and self.bits_stored <= self.short(_HIGH) < self.bits_allocated:
            raise InputRefusedError("the pixels are not in the low bits of their words", remedy=EXPORT_AGAIN)

    # ---- stored words

    def words(self, file: BinaryIO, frame: int) -> Array:
        """Returns the words (rows, columns) of an uncompressed frame, all bits allocated.

        Raises:
            InputRefusedError: The file ends before.
        """
        rows, columns = self.shape
        size = rows * columns * self.dtype.itemsize
        start = frame * size
        if self.length == walker.UNDEFINED or start + size > self.length or size > _MOST_BYTES:
            raise InputRefusedError("the pixels are fewer than the header says", remedy=COPY_AGAIN)
        if not self.swapped:
            return np.frombuffer(self.part(file, start, size), dtype=self.dtype).reshape(rows, columns)
        odd = start % 2  # words of two bytes run on from frame to frame
        pairs = np.frombuffer(self.part(file, start - odd, (odd + size + 1) // 2 * 2), dtype=np.uint8).reshape(-1, 2)
        words = pairs[:, ::-1].reshape(-1)[odd : odd + size].view(self.dtype)
        return words.reshape(rows, columns)

    def part(self, file: BinaryIO, start: int, size: int) -> bytes:
        """Returns ``size`` bytes of the value of the pixels.

        Raises:
            InputRefusedError: The file ends before.
        """
        if self.data is not None:
            data = self.data[self.at + start : self.at + start + size]
        else:
            file.seek(self.at + start)
            data = file.read(size)
        if len(data) < size:
            raise InputRefusedError("the file is truncated", remedy=COPY_AGAIN)
        return data

    def compressed(self, file: BinaryIO, frame: int) -> codecs.Frame:
        """Returns a compressed frame.

        Raises:
            InputRefusedError: The items that hold it do not tell where it is.
        """
        rows, columns = self.shape
        if not self.items:
            self.items.extend(_items(self, file))
        data = b"".join([self.part(file, start, size) for start, size in _items_of(self, file, frame)])
        return codecs.Frame(self.syntax, rows, columns, self.bits_allocated, self.bits_stored, self.signed, data)

    # ---- real values

    def slice(self, words: Array, frame: int) -> Slice:
        """Returns the real values of words (rows, columns)."""
        stored = self._without_unused_bits(words)
        padding = self._padding(stored, words)
        values = self._real(stored, frame)
        if turned(self.text(_MODALITY), self.text(_PHOTOMETRIC)):
            ends = self._real(self._range(stored.dtype), frame)
            values = np.float32(ends[0]) + np.float32(ends[1]) - values
        return Slice(values, padding)

    def _without_unused_bits(self, words: Array) -> Array:
        """Returns the values of Bits Stored; what lies above is no part of them."""
        unused = self.bits_allocated - self.bits_stored
        if unused <= 0 or words.dtype.kind == "f" or self.syntax not in NATIVE_SYNTAXES:
            return words
        return (words << unused) >> unused if self.signed else words & ((1 << self.bits_stored) - 1)

    def _real(self, stored: Array, frame: int) -> npt.NDArray[np.float32]:
        """Applies the modality's lookup table, or slope and intercept in float64."""
        if _LOOKUP in self.noted:
            return _looked_up(self.path, stored)
        slope, intercept = self._rescale(frame)
        if slope is None and intercept is None:
            return stored.astype(np.float32)
        factor, offset = 1.0 if slope is None else slope, intercept or 0.0
        if not (abs(factor) > 0 and np.isfinite(factor) and np.isfinite(offset)):
            raise InputRefusedError("the rescale slope or intercept is no usable number", remedy=EXPORT_AGAIN)
        if factor == 1 and offset == int(offset) and abs(offset) < 1 << 23 and stored.dtype.itemsize <= 2:
            return np.add(stored, np.float32(offset), dtype=np.float32)  # exact: every number has 24 bits at most
        values = np.empty(stored.shape, dtype=np.float32)
        step = max(1, _BLOCK // max(1, stored[:1].size))
        for start in range(0, len(stored), step):
            block = np.multiply(stored[start : start + step], np.float64(factor), dtype=np.float64)
            block += offset
            values[start : start + step] = block
        return values

    def _rescale(self, frame: int) -> tuple[float | None, float | None]:
        """Returns slope and intercept of a frame."""
        if self.noted & {_FRAME_GROUPS, _SHARED_GROUPS}:
            from unet_med.io.dicom.multiframe import frame_rescales

            rescales = frame_rescales(self.path)
            own = rescales[frame] if frame < len(rescales) else None
            if own is not None:
                return own
        return self.number(_SLOPE), self.number(_INTERCEPT)

    def _range(self, dtype: np.dtype[Any]) -> Array:
        """Returns the smallest and largest value that the pixels could store."""
        if dtype.kind == "f":
            raise InputRefusedError("a MONOCHROME1 picture of floating-point values", remedy=EXPORT_AGAIN)
        half = 1 << (self.bits_stored - 1)
        return np.array([-half, half - 1] if self.signed else [0, 2 * half - 1], dtype=dtype)

    def _padding(self, stored: Array, words: Array) -> Mask | None:
        """Returns where the stored values are padding, compared in the pixels' own type."""
        first = self._padding_number(_PADDING_VALUE)
        if first is None or stored.dtype.kind == "f":
            return None
        limit = self._padding_number(_PADDING_LIMIT)
        low, high = sorted((first, first if limit is None else limit))
        smallest, largest = map(int, self._range(np.dtype(np.int64 if self.signed else np.uint64)))
        if low < smallest or high > largest:
            # The padding uses bits above Bits Stored. Compressed pixels have none: it cannot occur there.
            stored = words
        info = np.iinfo(stored.dtype)
        if high < info.min or low > info.max:
            return None
        low, high = max(low, int(info.min)), min(high, int(info.max))
        mask: Mask = stored == low if low == high else (stored >= low) & (stored <= high)
        return mask if mask.any() else None

    def _padding_number(self, tag: int) -> int | None:
        """Returns a padding value as the pixels would store it, whatever VR its writer chose."""
        raw = self.values.get(tag, b"")
        if not raw:
            return None
        number = int.from_bytes(raw[:2], "little" if self.order == "<" else "big")
        bits = min(16, self.bits_allocated)
        number &= (1 << bits) - 1
        return number - (1 << bits) if self.signed and number >> (bits - 1) else number


_last: dict[tuple[Path, int, int], _PixelFile] = {}
"""The last file of several frames, for its next frame."""


def _look(path: Path, file: BinaryIO) -> _PixelFile:
    """Returns where the pixels of a file are.

    Raises:
        InputRefusedError: There are none.
    """
    status = os.fstat(file.fileno())
    key = path, status.st_mtime_ns, status.st_size
    if (known := _last.get(key)) is not None:
        return known
    try:
        found = _walk(path, file, status.st_size)
    except (walker.UnusualError, struct.error):
        found = _ask_pydicom(path)
    except walker.NeedMoreError:
        raise InputRefusedError("the file is truncated", remedy=COPY_AGAIN) from None
    if found is None:
        raise InputRefusedError("the file holds no pixels", remedy=_SCAN_AGAIN)
    if found.frames > 1:
        _last.clear()
        _last[key] = found
    return found


def _walk(path: Path, file: BinaryIO, size: int) -> _PixelFile | None:
    """Goes through the elements up to the pixels."""
    window = walker.Window(file, size, file.read(walker.CHUNK))
    values: dict[int, bytes] = {}
    noted: set[int] = set()
    meta: dict[int, bytes] = {}
    index, encoding = open_elements(window, meta)
    syntax = meta.get(_META_SYNTAX, b"").decode("latin-1").strip(" \0\t\r\n") or _SYNTAXES[encoding]
    items_without_vr = walker.without_vr(encoding)
    data = window.data
    while True:
        if index + 12 > len(data):
            data, index = window.forward(index), 0
            if not data:
                return None
        tag, vr, length, value = walker.element(data, index, encoding)
        if tag in (_PIXELS, _FLOATS, _DOUBLES):
            swapped = encoding.order == ">" and vr == b"OW"
            at, inflated = window.at + value, None
            if syntax == DEFLATED:
                if length > _MOST_INFLATED:
                    raise InputRefusedError("deflated pixels of such a size are not read", remedy=EXPORT_AGAIN)
                at, inflated = 0, window.forward(value, length)
            pixels = _PixelFile(
                *(path, values, frozenset(noted), encoding.order, syntax, tag, at, length), data=inflated
            )
            return _with_swap(pixels) if swapped else pixels
        if tag in _NOTED and length:
            noted.add(tag)
        if length == walker.UNDEFINED:
            index = walker.pass_sequence(window, value, items_without_vr if vr == b"UN" else encoding)
            data = window.data
            continue
        index = value + length
        if tag in _WANTED and length <= _MOST_VALUE:
            if index > len(data):
                data, value, index = window.forward(value, length), 0, length
                if length > len(data):
                    raise walker.NeedMoreError
            values[tag] = data[value:index]


def _with_swap(pixels: _PixelFile) -> _PixelFile:
    """Notes that bytes are stored in words of two, where that turns them round."""
    return replace(pixels, swapped=pixels.bits_allocated == 8)


def _ask_pydicom(path: Path) -> _PixelFile | None:
    """Reads the same with pydicom, whole: files that the walk does not follow."""
    from pydicom.dataelem import RawDataElement

    tags = [*_WANTED, *_NOTED, _FLOATS, _DOUBLES, _PIXELS]
    with _pydicom_reading(path, tags) as dataset:
        values: dict[int, bytes] = {}
        for tag in _WANTED:
            element: Any = dataset.get_item(tag)
            if isinstance(element, RawDataElement) and isinstance(element.value, bytes):
                values[tag] = element.value
        noted = frozenset(tag for tag in _NOTED if tag in dataset)
        pixels: Any = next((dataset.get_item(tag) for tag in (_PIXELS, _FLOATS, _DOUBLES) if tag in dataset), None)
        syntax = str(dataset.file_meta.TransferSyntaxUID)
        little = bool(dataset.original_encoding[1])
    if not isinstance(pixels, RawDataElement) or not isinstance(pixels.value, bytes):
        return None
    data = pixels.value
    length = len(data) if syntax in NATIVE_SYNTAXES else walker.UNDEFINED
    order = "<" if little else ">"
    found = _PixelFile(path, values, noted, order, syntax, int(pixels.tag), 0, length, data=data)
    return _with_swap(found) if not little and pixels.VR == "OW" else found


@contextmanager
def _pydicom_reading(path: Path, tags: list[int]) -> Iterator[Dataset]:
    """Gives a file as pydicom reads it; whatever goes wrong there refuses it."""
    from pydicom import dcmread
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    from unet_med.io.dicom.items import reading

    if path.stat().st_size > _MOST_BYTES:
        raise InputRefusedError("an irregular file is too large to be read", remedy=EXPORT_AGAIN)
    with reading("the file cannot be read"):
        dataset = dcmread(io.BytesIO(path.read_bytes()), force=True, specific_tags=list(tags))
        if "TransferSyntaxUID" not in dataset.file_meta:
            implicit, little = dataset.original_encoding
            explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
        yield dataset


def _looked_up(path: Path, stored: Array) -> npt.NDArray[np.float32]:
    """Applies the modality lookup table of a file."""
    from pydicom.pixels.processing import apply_rescale

    with _pydicom_reading(path, [_LOOKUP, _SIGNED, _INTERCEPT, _SLOPE]) as dataset:
        return np.asarray(apply_rescale(stored, dataset), dtype=np.float32)


# ---- the items that hold compressed frames ---------------------------------------------------------------------------


def _items(pixels: _PixelFile, file: BinaryIO) -> list[tuple[int, int]]:
    """Returns where the items of compressed pixels begin and their lengths; the first is the table of offsets.

    Raises:
        InputRefusedError: They do not end within the file.
    """
    end = (len(pixels.data) if pixels.data is not None else os.fstat(file.fileno()).st_size) - pixels.at
    if pixels.length != walker.UNDEFINED:
        end = min(end, pixels.length)
    found: list[tuple[int, int]] = []
    at = 0
    while at + 8 <= end:
        group, element, length = walker.IMPLICIT.without_vr.unpack(pixels.part(file, at, 8))
        tag = group << 16 | element
        at += 8
        if tag == walker.SEQUENCE_END:
            break
        if tag != walker.ITEM or at + length > end:
            raise InputRefusedError("the compressed pixels are truncated", remedy=COPY_AGAIN)
        found.append((at, length))
        at += length
    if len(found) < 2:
        raise InputRefusedError("the file holds no compressed pixels", remedy=COPY_AGAIN)
    return found


def _items_of(pixels: _PixelFile, file: BinaryIO, frame: int) -> list[tuple[int, int]]:
    """Returns the items of one frame.

    Raises:
        InputRefusedError: Neither the number of items nor a table of offsets tells which they are.
    """
    table, *fragments = pixels.items
    if pixels.frames == 1:
        return fragments
    if len(fragments) == pixels.frames:
        return [fragments[frame]]
    offsets: tuple[int, ...] = ()
    if extended := pixels.values.get(_EXTENDED_OFFSETS):
        offsets = struct.unpack(f"<{len(extended) // 8}Q", extended[: len(extended) // 8 * 8])
    elif table[1]:
        offsets = struct.unpack(f"<{table[1] // 4}L", pixels.part(file, table[0], table[1] // 4 * 4))
    numbers = {start - fragments[0][0]: number for number, (start, _) in enumerate(fragments)}
    if len(offsets) != pixels.frames or any(offset not in numbers for offset in offsets):
        raise InputRefusedError("the file does not tell where its frames begin", remedy=EXPORT_AGAIN)
    bounds = [*(numbers[offset] for offset in offsets), len(fragments)]
    return fragments[bounds[frame] : bounds[frame + 1]]
