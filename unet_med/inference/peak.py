"""The largest memory that this process has held, case by case where the system can forget the past."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import psutil

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


def reset_peak() -> None:
    """Starts a new measurement where the system allows it (Linux); elsewhere the peak is that of the whole process."""
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
