"""Keeps the memory that one training step frees for the next one."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NEVER_TRIM, _NEVER_MAP = -1, 0
_DEFAULT_TRIM_BYTES, _DEFAULT_MAPPINGS = 128 * 1024, 65536


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Inside, the C library gives no memory back to the system, so that the same pages serve step after step.

    By default glibc maps every large tensor anew and unmaps it when it is freed. Each page of it then costs a fault
    and a clearing at the first touch, which is a sixth of a training step on two cores. The process holds on to the
    largest amount it ever used at once; what is free goes back to the system at the end. With another C library this
    does nothing.

    Source: ``man 3 mallopt``.
    """
    library = _glibc()
    if library is None:
        yield
        return
    mallopt: Callable[[int, int], int] = library.mallopt
    mallopt(_MMAP_MAX, _NEVER_MAP)
    mallopt(_TRIM_THRESHOLD, _NEVER_TRIM)
    try:
        yield
    finally:
        mallopt(_MMAP_MAX, _DEFAULT_MAPPINGS)
        mallopt(_TRIM_THRESHOLD, _DEFAULT_TRIM_BYTES)
        library.malloc_trim(ctypes.c_size_t(0))


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
