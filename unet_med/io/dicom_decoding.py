"""Compressed DICOM pixels, decoded in a process of their own with a limit on memory and time.

Native decoders can crash on damaged pixels, take all memory, or never come back. So they run in a fresh interpreter,
started when the first compressed frame comes and kept for the next ones. It is spoken to through two pipes in plain
numbers and bytes; nothing that it sends is run or unpickled. When it dies or takes too long, the frame at hand is
refused and the next one gets a new process. It ends when its parent does.

A frame whose own header contradicts the DICOM header, or that ends early, is refused before it is decoded: most
decoders fill what is missing with grey and say nothing.
"""

from __future__ import annotations

import atexit
import importlib.util
import math
import os
import queue
import signal
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from unet_med.errors import InputRefusedError, MachineError

Array = npt.NDArray[Any]

_JPEG_2000 = "1.2.840.10008.1.2.4."
RLE = "1.2.840.10008.1.2.5"
JPEG = frozenset(_JPEG_2000 + end for end in ("50", "51", "57", "70"))
JPEG_LS = frozenset(_JPEG_2000 + end for end in ("80", "81"))
JPEG_2000 = frozenset(_JPEG_2000 + end for end in ("90", "91"))
HTJ2K = frozenset(_JPEG_2000 + end for end in ("201", "202", "203"))
LOSSLESS = frozenset({RLE, *(_JPEG_2000 + end for end in ("57", "70", "80", "90", "201", "202"))})
"""Syntaxes that give back the stored words as they were, bits above Bits Stored included."""

COMMAND = (sys.executable, "-P", "-c", "from unet_med.io.dicom_decoding import main; main()")
LARGEST_FRAME = 1 << 28
"""Bytes of a decoded frame; a larger one is refused."""

_MEMORY = 2 << 30
_SECONDS = 2.0
_SECONDS_PER_BYTE = 2e-6
_PATIENCE = 5.0
"""The clock may show so many times the processor time that a frame may take: a machine can be busy."""

_START_SECONDS = 120.0
_STARTS = 2
_COPY_AGAIN = "copy the series again from its origin"

_JOB = struct.Struct("<16sLLBBBQ")  # syntax, rows, columns, bits allocated, bits stored, signed, bytes
_ANSWER = struct.Struct("<BQ")  # outcome, bytes
_DONE, _FAULTY, _TOO_BIG, _OTHER_SIZE, _CUT, _SIGN, _NO_DECODER = range(7)
_REASONS = {
    _FAULTY: "they are damaged",
    _TOO_BIG: "decoding them takes too much memory",
    _OTHER_SIZE: "their own header contradicts the DICOM header",
    _CUT: "they end early",
    _SIGN: "they do not tell the sign of their values",
    _NO_DECODER: "no decoder for them is installed any more",
}


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


# ---- which decoder ---------------------------------------------------------------------------------------------------


class _Option(NamedTuple):
    """A library that decodes some syntaxes; ``needs`` are the modules that must be installed."""

    library: str
    needs: tuple[str, ...]
    most_bits: int = 64


_TABLE: tuple[tuple[frozenset[str], tuple[_Option, ...]], ...] = (
    (frozenset({RLE}), (_Option("imagecodecs", ("imagecodecs._imcd",)), _Option("pydicom", ("pydicom",)))),
    (
        frozenset({_JPEG_2000 + "50"}),
        (_Option("imagecodecs", ("imagecodecs._jpeg8",)), _Option("gdcm", ("gdcm",)), _Option("pillow", ("PIL",), 8)),
    ),
    (
        # Neither GDCM nor Pillow reads the 12 bits that this process is made for.
        frozenset({_JPEG_2000 + "51"}),
        (
            _Option("imagecodecs", ("imagecodecs._jpeg8",)),
            _Option("gdcm", ("gdcm",), 8),
            _Option("pillow", ("PIL",), 8),
        ),
    ),
    (
        frozenset({_JPEG_2000 + "57", _JPEG_2000 + "70"}),
        (_Option("imagecodecs", ("imagecodecs._jpeg8",)), _Option("gdcm", ("gdcm",))),
    ),
    (
        JPEG_LS,
        (
            _Option("imagecodecs", ("imagecodecs._jpegls",)),
            _Option("pyjpegls", ("jpeg_ls",)),
            _Option("gdcm", ("gdcm",)),
        ),
    ),
    (
        JPEG_2000,
        (
            _Option("imagecodecs", ("imagecodecs._jpeg2k",)),
            _Option("pylibjpeg", ("pylibjpeg", "openjpeg")),
            _Option("gdcm", ("gdcm",)),
            _Option("pillow", ("PIL",)),
        ),
    ),
    (
        HTJ2K,
        (
            _Option("imagecodecs", ("imagecodecs._htj2k",)),
            _Option("pylibjpeg", ("pylibjpeg", "openjpeg")),
        ),
    ),
)


def is_known(syntax: str) -> bool:
    """Whether a transfer syntax is one of compressed still pictures that some library decodes."""
    return any(syntax in syntaxes for syntaxes, _ in _TABLE)


def decoders(syntax: str, bits: int = 8) -> tuple[str, ...]:
    """Returns the installed libraries that decode a transfer syntax, in the order in which they are tried.

    Args:
        syntax: Its UID.
        bits: Bits stored in a pixel.
    """
    options = next((options for syntaxes, options in _TABLE if syntax in syntaxes), ())
    return tuple(
        option.library for option in options if bits <= option.most_bits and all(map(is_installed, option.needs))
    )


@lru_cache(maxsize=32)
def is_installed(module: str) -> bool:
    """Whether a module can be found; it is not imported, only the package that it is in."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


# ---- the parent's end ------------------------------------------------------------------------------------------------


class _Decoder:
    """A decoder process, and the threads that keep its pipes moving."""

    def __init__(self) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        self._process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,  # no buffer that a fork could copy half full
            env=environment,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        self._jobs: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[int, bytearray] | None] = queue.SimpleQueue()
        self._waiting = 0
        self._ready = False
        for work in (self._write, self._listen):
            threading.Thread(target=work, daemon=True).start()
        _living.add(self)

    @property
    def idle(self) -> bool:
        """Whether it lives and owes no answer."""
        return self._waiting == 0 and self._process.poll() is None

    def wait_ready(self) -> bool:
        """Waits until it can decode; ``False`` when it died before."""
        if not self._ready:
            try:
                self._ready = self._answers.get(timeout=_START_SECONDS) is not None
            except queue.Empty:
                self._ready = False
        return self._ready

    def submit(self, frame: Frame) -> None:
        """Hands over a frame; does not wait."""
        self._waiting += 1
        self._jobs.put(frame)

    def result(self, frame: Frame) -> Array:
        """Returns the oldest frame that was handed over, (rows, columns).

        Raises:
            InputRefusedError: It cannot be decoded. After a crash or a time out nothing else can be had from here.
        """
        seconds = _seconds(frame)
        try:
            answer = self._answers.get(timeout=seconds * _PATIENCE)
        except queue.Empty:
            raise _refusal(f"decoding them takes more than {seconds * _PATIENCE:.0f} seconds") from None
        if answer is None:
            slow = hasattr(signal, "SIGXCPU") and self._process.wait() == -signal.SIGXCPU
            raise _refusal(f"decoding them takes more than {seconds:.0f} seconds" if slow else "the decoder crashed")
        self._waiting -= 1
        outcome, data = answer
        if outcome != _DONE:
            raise _refusal(_REASONS.get(outcome, _REASONS[_FAULTY]))
        if len(data) != frame.decoded_bytes:
            raise _refusal(_REASONS[_OTHER_SIZE])
        return np.frombuffer(data, dtype=frame.dtype).reshape(frame.rows, frame.columns)

    def stop(self) -> None:
        """Ends the process at once; safe to call again."""
        self._process.kill()
        self._process.wait()
        self._jobs.put(None)

    def forget(self) -> None:
        """Lets go of the pipes without touching the process, which belongs to the parent of this fork."""
        self._process.returncode = 0
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def _write(self) -> None:
        pipe = self._process.stdin
        if pipe is None:
            return
        with suppress(OSError, ValueError), pipe:
            while (frame := self._jobs.get()) is not None:
                for part in (memoryview(_job(frame)), memoryview(frame.data)):
                    at = 0
                    while at < len(part):
                        at += pipe.write(part[at:])

    def _listen(self) -> None:
        pipe = self._process.stdout
        if pipe is None:
            return
        with suppress(OSError, ValueError), pipe:
            while (head := _exactly(pipe, _ANSWER.size)) is not None:
                outcome, size = _ANSWER.unpack(head)
                data = _exactly(pipe, size) if size <= LARGEST_FRAME else None
                if data is None:
                    break
                self._answers.put((outcome, data))
        self._answers.put(None)


def _seconds(frame: Frame) -> float:
    """Processor time that a frame may take."""
    return _SECONDS + _SECONDS_PER_BYTE * frame.decoded_bytes


def _job(frame: Frame) -> bytes:
    end = frame.syntax.removeprefix("1.2.840.10008.1.2.").encode("ascii")
    size = len(frame.data)
    return _JOB.pack(end, frame.rows, frame.columns, frame.bits_allocated, frame.bits_stored, frame.signed, size)


def _exactly(pipe: IO[bytes], size: int) -> bytearray | None:
    """Returns ``size`` bytes; ``None`` when the other end is closed before."""
    data = bytearray(size)
    view = memoryview(data)
    at = 0
    while at < size:
        count: int | None = pipe.readinto(view[at:])  # type: ignore[attr-defined]
        if not count:
            return None
        at += count
    return data


def _refusal(why: str) -> InputRefusedError:
    return InputRefusedError(f"the pixels cannot be decoded: {why}", remedy=_COPY_AGAIN)


_lock = threading.Lock()
_spare: list[_Decoder] = []
_living: weakref.WeakSet[_Decoder] = weakref.WeakSet()


class Batch:
    """Frames of one series on their way through a decoder: handed over ahead, fetched in the same order."""

    def __init__(self) -> None:
        self._decoder: _Decoder | None = None
        self._frames: list[Frame] = []

    def submit(self, frame: Frame) -> None:
        """Hands over a frame without waiting.

        Raises:
            InputRefusedError: It is too large.
            MachineError: No decoder process can be started.
        """
        if not 0 < frame.decoded_bytes <= LARGEST_FRAME:
            raise InputRefusedError(
                f"a picture of {frame.columns} x {frame.rows} pixels is too large to decode", remedy=_COPY_AGAIN
            )
        if self._decoder is None:
            self._decoder = _take()
        self._frames.append(frame)
        self._decoder.submit(frame)

    def result(self) -> Array:
        """Returns the oldest frame that was handed over, (rows, columns).

        Raises:
            InputRefusedError: It cannot be decoded.
        """
        frame = self._frames.pop(0)
        if self._decoder is None:
            raise _refusal(_REASONS[_FAULTY])
        return self._decoder.result(frame)

    def close(self) -> None:
        """Keeps the process for the next batch, or ends it when it is busy or dead."""
        decoder, self._decoder = self._decoder, None
        if decoder is None:
            return
        with _lock:
            if decoder.idle and not _spare:
                _spare.append(decoder)
                return
        decoder.stop()


@contextmanager
def batch() -> Iterator[Batch]:
    """Gives a :class:`Batch`, and closes it."""
    one = Batch()
    try:
        yield one
    finally:
        one.close()


def _take() -> _Decoder:
    """Returns an idle decoder that is ready.

    Raises:
        MachineError: It dies while it starts.
    """
    with _lock:
        decoder = _spare.pop() if _spare else None
    if decoder is not None and decoder.idle:
        return decoder
    for _ in range(_STARTS):
        decoder = _Decoder()
        if decoder.wait_ready():
            return decoder
        decoder.stop()
    raise MachineError(
        "the process that decodes pixels does not start", remedy="free some memory, then start the same command again"
    )


def _end() -> None:
    while _spare:
        _spare.pop().stop()


def _after_fork() -> None:
    """Leaves the decoders to the parent: their threads are not in this process, and both would read one pipe."""
    global _lock
    _lock = threading.Lock()
    _spare.clear()
    for decoder in list(_living):
        decoder.forget()


atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# ---- the process that decodes ----------------------------------------------------------------------------------------


def main() -> None:
    """Decodes frames from standard input to standard output until the input is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    jobs = os.fdopen(os.dup(0), "rb", buffering=1 << 20)
    answers = os.fdopen(os.dup(1), "wb", buffering=1 << 20)
    os.dup2(2, 1)  # what libraries print must not get between the answers
    import warnings

    warnings.simplefilter("ignore")
    with suppress(ImportError):
        import imagecodecs  # noqa: F401 - before the first frame is timed
    limits = _Limits()
    _send(answers, _DONE, b"")
    while (head := _exactly(jobs, _JOB.size)) is not None:
        end, rows, columns, bits_allocated, bits_stored, signed, size = _JOB.unpack(head)
        data = _exactly(jobs, size)
        if data is None:
            return
        syntax = "1.2.840.10008.1.2." + end.rstrip(b"\0").decode("ascii")
        frame = Frame(syntax, rows, columns, bits_allocated, bits_stored, bool(signed), bytes(data))
        limits.set(frame)
        outcome, decoded = _outcome(frame)
        _send(answers, outcome, decoded)


def _send(pipe: BinaryIO, outcome: int, data: bytes | memoryview) -> None:
    pipe.write(_ANSWER.pack(outcome, len(data)))
    pipe.write(data)
    pipe.flush()


class _Limits:
    """Memory and processor time that a frame may take, where the system can limit them."""

    def __init__(self) -> None:
        try:
            import resource
        except ImportError:  # Windows: only the parent's clock limits it
            self._resource: Any = None
            return
        self._resource = resource
        self._base = _address_space()

    def set(self, frame: Frame) -> None:
        """Sets the limits for the next frame."""
        if self._resource is None:
            return
        used = self._resource.getrusage(self._resource.RUSAGE_SELF)
        self._lower(self._resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime + _seconds(frame)))
        if self._base:
            self._lower(self._resource.RLIMIT_AS, self._base + _MEMORY)

    def _lower(self, what: int, value: int) -> None:
        _, hard = self._resource.getrlimit(what)
        soft = value if hard == self._resource.RLIM_INFINITY else min(value, hard)
        with suppress(OSError, ValueError):
            self._resource.setrlimit(what, (soft, hard))


def _address_space() -> int:
    """Returns the bytes of address space that this process has; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - a file of the system
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return 0


class _StreamError(Exception):
    """The code stream cannot be what the DICOM header says; ``outcome`` is the answer."""

    def __init__(self, outcome: int) -> None:
        super().__init__(outcome)
        self.outcome = outcome


def _outcome(frame: Frame) -> tuple[int, bytes | memoryview]:
    """Returns the answer for a frame."""
    try:
        values = decode(frame)
    except _StreamError as error:
        return error.outcome, b""
    except MemoryError:
        return _TOO_BIG, b""
    except Exception:  # noqa: BLE001 - libraries raise whatever they like; a crash is the parent's to see
        return _FAULTY, b""
    return _DONE, values.reshape(-1).view(np.uint8).data


def decode(frame: Frame) -> Array:
    """Returns the stored values (rows, columns) of a frame; runs native code in this process.

    Raises:
        _StreamError: The code stream contradicts the header.
        Exception: Whatever the last of the installed decoders raises.
    """
    stream = _check_stream(frame)
    fault: Exception = _StreamError(_NO_DECODER)
    for library in decoders(frame.syntax, frame.bits_stored):
        try:
            values = _decode_with(library, frame)
        except (MemoryError, _StreamError):
            raise
        except Exception as error:  # noqa: BLE001 - another library may read it
            fault = error
            continue
        if values.shape != (frame.rows, frame.columns) or values.dtype.kind not in "iu":
            raise _StreamError(_OTHER_SIZE)
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
    stream = _jpeg(data) if frame.syntax in JPEG | JPEG_LS else _jpeg_2000(data, frame.syntax in HTJ2K)
    if (stream.rows, stream.columns, stream.samples) != (frame.rows, frame.columns, 1):
        raise _StreamError(_OTHER_SIZE)
    if not 0 < stream.bits <= frame.bits_allocated:
        raise _StreamError(_OTHER_SIZE)
    return stream


_LONE_MARKERS = frozenset({0x01, *range(0xD0, 0xD9)})
_SIZES = frozenset({0xF7, *range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_SCAN, _END = 0xDA, b"\xff\xd9"


def _jpeg(data: bytes) -> _Stream:
    """Reads the frame header of JPEG or JPEG-LS, and checks that the picture goes on to the end of the data."""
    if data[:2] != b"\xff\xd8":
        raise _StreamError(_FAULTY)
    at = 2
    stream = None
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            raise _StreamError(_FAULTY)
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
        raise _StreamError(_FAULTY)
    end = data.find(_END, at)
    if end < 0 or data[end + 2 :].strip(b"\0\xff"):
        raise _StreamError(_CUT)
    return stream


def _jpeg_2000(data: bytes, throughput: bool) -> _Stream:
    """Reads the size marker of JPEG 2000; checks that HTJ2K, whose decoders see no other sign of it, is whole."""
    at = data.find(b"\xff\x4f\xff\x51", 0, 4096)  # some files wrap the code stream in boxes
    if at < 0 or at + 43 > len(data):
        raise _StreamError(_FAULTY)
    width, height, left, top = struct.unpack_from(">4L", data, at + 8)
    samples, depth = struct.unpack_from(">HB", data, at + 40)
    if throughput and data.rstrip(b"\0")[-2:] != _END:
        raise _StreamError(_CUT)
    return _Stream(height - top, width - left, samples, (depth & 0x7F) + 1, bool(depth & 0x80))


def _stored(values: Array, frame: Frame, stream: _Stream) -> Array:
    """Returns decoded numbers as the stored words that they stand for.

    Lossless syntaxes give back words, of which Bits Stored carry the value; the others give back values. Code streams
    mostly have no sign: two's complement is told by the header alone.
    """
    doubtful = frame.signed and not stream.signed and stream.bits < frame.bits_stored and frame.syntax not in JPEG
    if doubtful and ((values >> (stream.bits - 1)) & 1).any():
        raise _StreamError(_SIGN)  # readers disagree on the sign bit of such streams
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
    if frame.syntax in JPEG:
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
        raise _StreamError(_OTHER_SIZE)
    starts: Sequence[int] = (*struct.unpack_from(f"<{planes}L", data, 4), len(data))
    words = np.empty((pixels, planes), dtype=np.uint8)
    for plane in range(planes):
        start, stop = starts[plane], starts[plane + 1]
        if not 64 <= start <= stop <= len(data):
            raise _StreamError(_FAULTY)
        if (stop - start) * 64 < pixels:
            raise _StreamError(_CUT)
        unpacked = unpack(data[start:stop])
        if len(unpacked) < pixels:
            raise _StreamError(_CUT)
        if len(unpacked) >= pixels + max(frame.columns, 2):
            raise _StreamError(_OTHER_SIZE)  # a row more than there should be is no padding
        words[:, planes - 1 - plane] = np.frombuffer(unpacked, np.uint8, pixels)
    return words.view(f"<u{planes}").reshape(frame.rows, frame.columns)
