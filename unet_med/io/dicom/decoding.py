"""Compressed DICOM pixels, decoded in a process of their own with a limit on memory and time.

Native decoders can crash on damaged pixels, take all memory, or never come back. So they run in a fresh interpreter,
started when the first compressed frame comes and kept for the next ones. It is spoken to through two pipes in plain
numbers and bytes; nothing that it sends is run or unpickled. When it dies or takes too long, the frame at hand is
refused and the next one gets a new process. It ends when its parent does.
"""

from __future__ import annotations

import atexit
import math
import os
import queue
import signal
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from unet_med.errors import InputRefusedError, MachineError
from unet_med.io.dicom import COPY_AGAIN
from unet_med.io.dicom.codecs import Frame, Outcome, StreamError, decode

Array = npt.NDArray[Any]

COMMAND = (sys.executable, "-P", "-c", "from unet_med.io.dicom.decoding import main; main()")
LARGEST_FRAME = 1 << 28
"""Bytes of a decoded frame; a larger one is refused."""

_MEMORY = 2 << 30
_SECONDS = 2.0
_SECONDS_PER_BYTE = 2e-6
_PATIENCE = 5.0
"""The clock may show so many times the processor time that a frame may take: a machine can be busy."""

_START_SECONDS = 120.0
_STARTS = 2

_JOB = struct.Struct("<16sLLBBBQ")  # syntax, rows, columns, bits allocated, bits stored, signed, bytes
_ANSWER = struct.Struct("<BQ")  # outcome, bytes
_REASONS = {
    Outcome.DAMAGED: "they are damaged",
    Outcome.TOO_BIG: "decoding them takes too much memory",
    Outcome.OTHER_SIZE: "their own header contradicts the DICOM header",
    Outcome.CUT: "they end early",
    Outcome.NO_SIGN: "they do not tell the sign of their values",
    Outcome.NO_DECODER: "no decoder for them is installed any more",
}


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
        if outcome != Outcome.DONE:
            raise _refusal(_REASONS[Outcome(outcome)])
        if len(data) != frame.decoded_bytes:
            raise _refusal(_REASONS[Outcome.OTHER_SIZE])
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
    return InputRefusedError(f"the pixels cannot be decoded: {why}", remedy=COPY_AGAIN)


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
                f"a picture of {frame.columns} x {frame.rows} pixels is too large to decode", remedy=COPY_AGAIN
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
            raise _refusal(_REASONS[Outcome.DAMAGED])
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
    _send(answers, Outcome.DONE, b"")
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


def _send(pipe: BinaryIO, outcome: Outcome, data: bytes | memoryview) -> None:
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


def _outcome(frame: Frame) -> tuple[Outcome, bytes | memoryview]:
    """Returns the answer for a frame."""
    try:
        values = decode(frame)
    except StreamError as error:
        return error.outcome, b""
    except MemoryError:
        return Outcome.TOO_BIG, b""
    except Exception:  # noqa: BLE001 - libraries raise whatever they like; a crash is the parent's to see
        return Outcome.DAMAGED, b""
    return Outcome.DONE, values.reshape(-1).view(np.uint8).data
