"""Compressed DICOM frames to stored values: which installed library decodes what, and what must be true of a frame.

A frame whose own header contradicts the DICOM header, or that ends early, is refused before it is decoded: most
decoders fill what is missing with grey and say nothing. Native code runs here, so :mod:`unet_med.io.dicom.decoding`
calls it in a process of its own.
"""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_ROOT = "1.2.840.10008.1.2.4."
RLE = "1.2.840.10008.1.2.5"
JPEG_LOSSY = frozenset({_ROOT + "50", _ROOT + "51"})
JPEG_LOSSLESS = frozenset({_ROOT + "57", _ROOT + "70"})
JPEG_LS = frozenset({_ROOT + "80", _ROOT + "81"})
JPEG_2000 = frozenset({_ROOT + "90", _ROOT + "91"})
HTJ2K = frozenset({_ROOT + "201", _ROOT + "202", _ROOT + "203"})
LOSSLESS = JPEG_LOSSLESS | {RLE, _ROOT + "80", _ROOT + "90", _ROOT + "201", _ROOT + "202"}
"""Syntaxes that give back the stored words as they were, bits above Bits Stored included."""

_JPEG = JPEG_LOSSY | JPEG_LOSSLESS
_LIBRARIES: tuple[tuple[frozenset[str], dict[str, str]], ...] = (
    (frozenset({RLE}), {"imagecodecs": "imagecodecs._imcd", "pydicom": "pydicom"}),
    (JPEG_LOSSY, {"imagecodecs": "imagecodecs._jpeg8", "gdcm": "gdcm", "pillow": "PIL"}),
    (JPEG_LOSSLESS, {"imagecodecs": "imagecodecs._jpeg8", "gdcm": "gdcm"}),
    (JPEG_LS, {"imagecodecs": "imagecodecs._jpegls", "pyjpegls": "jpeg_ls", "gdcm": "gdcm"}),
    (
        JPEG_2000,
        {"imagecodecs": "imagecodecs._jpeg2k", "pylibjpeg": "pylibjpeg openjpeg", "gdcm": "gdcm", "pillow": "PIL"},
    ),
    (HTJ2K, {"imagecodecs": "imagecodecs._htj2k", "pylibjpeg": "pylibjpeg openjpeg"}),
)
"""For each syntax the libraries in the order in which they are tried, and the modules that they need."""

_EIGHT_BITS_ALONE = {"pillow": JPEG_LOSSY, "gdcm": frozenset({_ROOT + "51"})}
"""Libraries that do not decode more than 8 bits of these syntaxes."""


class Outcome(IntEnum):
    """What became of a frame."""

    DONE = 0
    DAMAGED = 1
    TOO_BIG = 2
    OTHER_SIZE = 3
    CUT = 4
    NO_SIGN = 5
    NO_DECODER = 6


class StreamError(Exception):
    """The code stream cannot be what the DICOM header says; ``outcome`` tells why."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome)
        self.outcome = outcome


@dataclass(frozen=True, slots=True)
class Frame:
    """One compressed picture of one sample per pixel.

    Attributes:
        syntax: UID of the transfer syntax.
        rows: Height.
        columns: Width.
        bits_allocated: 8, 16 or 32.
        bits_stored: Bits that carry the value.
        signed: Whether values are two's complement.
        data: The code stream, without the items that hold it.
    """

    syntax: str
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    data: bytes

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the decoded values."""
        return np.dtype(f"<{'i' if self.signed else 'u'}{self.bits_allocated // 8}")

    @property
    def decoded_bytes(self) -> int:
        """Bytes of the decoded values."""
        return self.rows * self.columns * self.bits_allocated // 8


# ---- which library ---------------------------------------------------------------------------------------------------


def is_known(syntax: str) -> bool:
    """Whether a transfer syntax is one of compressed still pictures that some library decodes."""
    return any(syntax in syntaxes for syntaxes, _ in _LIBRARIES)


def decoders(syntax: str, bits: int = 8) -> tuple[str, ...]:
    """Returns the installed libraries that decode a transfer syntax, in the order in which they are tried.

    Args:
        syntax: Its UID.
        bits: Bits stored in a pixel.
    """
    libraries = next((libraries for syntaxes, libraries in _LIBRARIES if syntax in syntaxes), {})
    return tuple(
        library
        for library, modules in libraries.items()
        if (bits <= 8 or syntax not in _EIGHT_BITS_ALONE.get(library, ())) and all(map(is_installed, modules.split()))
    )


@lru_cache(maxsize=32)
def is_installed(module: str) -> bool:
    """Whether a module can be found; it is not imported, only the package that it is in."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


# ---- decoding --------------------------------------------------------------------------------------------------------


def decode(frame: Frame) -> Array:
    """Returns the stored values (rows, columns) of a frame; runs native code in this process.

    Raises:
        StreamError: The code stream contradicts the header.
        Exception: Whatever the last of the installed decoders raises.
    """
    stream = _check_stream(frame)
    fault: Exception = StreamError(Outcome.NO_DECODER)
    for library in decoders(frame.syntax, frame.bits_stored):
        try:
            values = _decode_with(library, frame)
        except (MemoryError, StreamError):
            raise
        except Exception as error:  # noqa: BLE001 - another library may read it
            fault = error
            continue
        if values.shape != (frame.rows, frame.columns) or values.dtype.kind not in "iu":
            raise StreamError(Outcome.OTHER_SIZE)
        return _stored(values, frame, stream)
    raise fault


class _Stream(NamedTuple):
    """What a code stream says of itself."""

    rows: int
    columns: int
    samples: int
    bits: int
    signed: bool


def _check_stream(frame: Frame) -> _Stream:
    """Compares the code stream's own header with the DICOM header."""
    if frame.syntax == RLE:
        return _Stream(frame.rows, frame.columns, 1, frame.bits_allocated, frame.signed)
    data = frame.data
    stream = _jpeg(data) if frame.syntax in _JPEG | JPEG_LS else _jpeg_2000(data, frame.syntax in HTJ2K)
    if (stream.rows, stream.columns, stream.samples) != (frame.rows, frame.columns, 1):
        raise StreamError(Outcome.OTHER_SIZE)
    if not 0 < stream.bits <= frame.bits_allocated:
        raise StreamError(Outcome.OTHER_SIZE)
    return stream


_LONE_MARKERS = frozenset({0x01, *range(0xD0, 0xD9)})
_SIZES = frozenset({0xF7, *range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_SCAN, _END = 0xDA, b"\xff\xd9"


def _jpeg(data: bytes) -> _Stream:
    """Reads the frame header of JPEG or JPEG-LS, and checks that the picture goes on to the end of the data."""
    if data[:2] != b"\xff\xd8":
        raise StreamError(Outcome.DAMAGED)
    at = 2
    stream = None
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            raise StreamError(Outcome.DAMAGED)
        marker = data[at + 1]
        if marker == 0xFF or marker in _LONE_MARKERS:
            at += 1 if marker == 0xFF else 2
            continue
        if marker == _SCAN:
            break
        if marker in _SIZES and at + 10 <= len(data):
            bits, rows, columns, samples = struct.unpack_from(">BHHB", data, at + 4)
            stream = _Stream(rows, columns, samples, bits, False)
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    if stream is None:
        raise StreamError(Outcome.DAMAGED)
    end = data.find(_END, at)
    if end < 0 or data[end + 2 :].strip(b"\0\xff"):
        raise StreamError(Outcome.CUT)
    return stream


def _jpeg_2000(data: bytes, throughput: bool) -> _Stream:
    """Reads the size marker of JPEG 2000; checks that HTJ2K, whose decoders see no other sign of it, is whole."""
    at = data.find(b"\xff\x4f\xff\x51", 0, 4096)  # some files wrap the code stream in boxes
    if at < 0 or at + 43 > len(data):
        raise StreamError(Outcome.DAMAGED)
    width, height, left, top = struct.unpack_from(">4L", data, at + 8)
    samples, depth = struct.unpack_from(">HB", data, at + 40)
    if throughput and data.rstrip(b"\0")[-2:] != _END:
        raise StreamError(Outcome.CUT)
    return _Stream(height - top, width - left, samples, (depth & 0x7F) + 1, bool(depth & 0x80))


def _stored(values: Array, frame: Frame, stream: _Stream) -> Array:
    """Returns decoded numbers as the stored words that they stand for.

    Lossless syntaxes give back words, of which Bits Stored carry the value; the others give back values. Code streams
    mostly have no sign: two's complement is told by the header alone.
    """
    doubtful = frame.signed and not stream.signed and stream.bits < frame.bits_stored and frame.syntax not in _JPEG
    if doubtful and ((values >> (stream.bits - 1)) & 1).any():
        raise StreamError(Outcome.NO_SIGN)  # readers disagree on the sign bit of such streams
    words = np.ascontiguousarray(values.astype(frame.dtype, copy=False))
    bits = frame.bits_stored if frame.syntax in LOSSLESS else max(stream.bits, frame.bits_stored)
    unused = frame.bits_allocated - bits
    if unused <= 0:
        return words
    if frame.signed:
        return (words << unused) >> unused
    return words & ((1 << bits) - 1)


def _decode_with(library: str, frame: Frame) -> Array:
    """Returns what a library makes of the code stream."""
    if library != "imagecodecs":
        return _by_pydicom(library, frame)
    import imagecodecs

    if frame.syntax == RLE:
        return _run_lengths(frame, imagecodecs.packbits_decode)
    if frame.syntax in _JPEG:
        return np.asarray(imagecodecs.jpeg8_decode(frame.data))
    if frame.syntax in JPEG_LS:
        return np.asarray(imagecodecs.jpegls_decode(frame.data))
    if frame.syntax in JPEG_2000:
        return np.asarray(imagecodecs.jpeg2k_decode(frame.data))
    return np.asarray(imagecodecs.htj2k_decode(frame.data))


def _by_pydicom(library: str, frame: Frame) -> Array:
    """Decodes with one of the libraries that pydicom drives."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    padded = frame.data + b"\0" * (len(frame.data) % 2)
    items = struct.pack("<HHLHHL", 0xFFFE, 0xE000, 0, 0xFFFE, 0xE000, len(padded)) + padded
    described: dict[str, Any] = {
        "rows": frame.rows,
        "columns": frame.columns,
        "samples_per_pixel": 1,
        "number_of_frames": 1,
        "photometric_interpretation": "MONOCHROME2",
        "bits_allocated": frame.bits_allocated,
        "bits_stored": frame.bits_stored,
        "pixel_representation": int(frame.signed),
        "pixel_keyword": "PixelData",
    }
    decoder = get_decoder(UID(frame.syntax))
    array, _ = decoder.as_array(items, raw=True, index=0, decoding_plugin=library, **described)
    return np.asarray(array)


def _run_lengths(frame: Frame, unpack: Callable[[bytes], bytes | bytearray]) -> Array:
    """Decodes RLE: one segment for each byte of a pixel, the highest first."""
    data, planes, pixels = frame.data, frame.bits_allocated // 8, frame.rows * frame.columns
    if len(data) < 64 or struct.unpack_from("<L", data)[0] != planes:
        raise StreamError(Outcome.OTHER_SIZE)
    starts: Sequence[int] = (*struct.unpack_from(f"<{planes}L", data, 4), len(data))
    words = np.empty((pixels, planes), dtype=np.uint8)
    for plane in range(planes):
        start, stop = starts[plane], starts[plane + 1]
        if not 64 <= start <= stop <= len(data):
            raise StreamError(Outcome.DAMAGED)
        if (stop - start) * 64 < pixels:
            raise StreamError(Outcome.CUT)
        unpacked = unpack(data[start:stop])
        if len(unpacked) < pixels:
            raise StreamError(Outcome.CUT)
        if len(unpacked) >= pixels + max(frame.columns, 2):
            raise StreamError(Outcome.OTHER_SIZE)  # a row more than there should be is no padding
        words[:, planes - 1 - plane] = np.frombuffer(unpacked, np.uint8, pixels)
    return words.view(f"<u{planes}").reshape(frame.rows, frame.columns)
