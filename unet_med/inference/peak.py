"""The largest memory that this process has held, over spans of time that may overlap, where the system tells."""

from __future__ import annotations

import re
import sys
import threading
from pathlib import Path

import psutil

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


class PeakMeter:
    """Measures the peak memory of this process for several cases at a time.

    Where the system can forget the past (Linux), a span's peak is that of the process between its begin and its end;
    elsewhere it is that of the whole process so far.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: dict[int, float] = {}
        self._next = 0

    def begin(self) -> int:
        """Begins a span; returns its number."""
        with self._lock:
            self._note()
            self._next += 1
            self._spans[self._next] = 0.0
            return self._next

    def end(self, span: int) -> float:
        """Ends a span and returns its peak in MB (1e6 bytes)."""
        with self._lock:
            self._note()
            return self._spans.pop(span)

    def _note(self) -> None:
        """Charges the peak since the last note to every span, then has the system forget it."""
        peak = peak_mb()
        for span, before in self._spans.items():
            self._spans[span] = max(before, peak)
        reset_peak()


def reset_peak() -> None:
    """Starts a new measurement where the system allows it (Linux)."""
    try:
        _RESET.write_text("5", encoding="ascii")
    except OSError:
        return


def peak_mb() -> float:
    """Returns the peak resident memory of this process in MB (1e6 bytes) since :func:`reset_peak`."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"))
        if found:
            return round(int(found.group(1)) * 1024 / 1e6, 1)
    except OSError:
        pass
    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):
        return round(float(memory.peak_wset) / 1e6, 1)
    if sys.platform == "win32":
        return round(float(memory.rss) / 1e6, 1)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6, 1)
