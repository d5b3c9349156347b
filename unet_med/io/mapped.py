"""Arrays that lie in a file and not in memory."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.io.atomic import disk_errors

_CANNOT = {errno.EINVAL, errno.EOPNOTSUPP}


def mapped(path: Path, shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Returns the array of a ``.npy`` file, to be read and written; zeros where the file is not there or is another's.

    Raises:
        MachineError: when the disk is full or the folder cannot be written.
    """
    with disk_errors(path.name):
        if path.exists():
            try:
                found: npt.NDArray[Any] = np.load(path, mmap_mode="r+")
            except (OSError, ValueError):
                found = np.zeros(0)
            if found.shape == tuple(shape) and found.dtype == dtype:
                return found
        path.parent.mkdir(parents=True, exist_ok=True)
        return fresh(path, shape, dtype)


def fresh(path: Path, shape: Sequence[int], dtype: npt.DTypeLike, *, fortran_order: bool = False) -> npt.NDArray[Any]:
    """Makes a ``.npy`` file of zeros and returns its array; its place on the disk is taken at once.

    Without that a disk that is full would end the process when it writes to the array. Of a file that found no place
    nothing is left: the next start would take it for a whole one.

    Raises:
        OSError: when the disk is full or the folder cannot be written.
    """
    array: npt.NDArray[Any] = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.dtype(dtype), shape=tuple(shape), fortran_order=fortran_order
    )
    try:
        _take_place(path)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return array


def _take_place(path: Path) -> None:
    """Takes the place of a file on the disk, where the file system can do that."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise


def store(array: npt.NDArray[Any]) -> None:
    """Writes what was changed in a mapped array to the disk; nothing for other arrays."""
    pages = _pages(array)
    if pages is not None:
        pages.flush()


def let_go(array: npt.NDArray[Any]) -> None:
    """Gives the memory of a mapped array back to the system, which keeps its content; nothing for other arrays."""
    pages = _pages(array)
    if pages is not None and hasattr(mmap, "MADV_DONTNEED"):
        pages.madvise(mmap.MADV_DONTNEED)


def _pages(array: npt.NDArray[Any]) -> mmap.mmap | None:
    owner: object = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    return owner if isinstance(owner, mmap.mmap) else None
