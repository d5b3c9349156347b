"""Voxels together with their place, in memory and on disk.

``ImageSource`` and ``MaskSink`` are how the rest of the package meets files of any size: a region is read, a region
of labels is written, and ``close`` makes the file visible. ``Volume`` is the in-memory case.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from unet_med.errors import InputRefusedError
from unet_med.geometry import Geometry

Region = tuple[slice, ...]
"""One slice (step 1) for each spatial axis I, J (and K)."""

SLAB_VOXELS = 2**18
"""Voxels that are looked at together: what is computed of them in 8 bytes each is small beside any volume."""


@dataclass(frozen=True, eq=False)
class Volume:
    """An image in memory.

    Attributes:
        array: (C, I, J) or (C, I, J, K), any real dtype.
        geometry: The grid of the spatial axes.
    """

    array: npt.NDArray[Any]
    geometry: Geometry

    def __post_init__(self) -> None:
        if self.array.ndim < 1 or self.array.shape[1:] != self.geometry.shape:
            raise InputRefusedError(
                f"an array of shape {self.array.shape} does not fit a grid of {self.geometry.shape}",
                remedy="give the array as (C, I, J[, K])",
            )

    @property
    def channels(self) -> int:
        """Number of channels."""
        return int(self.array.shape[0])


@runtime_checkable
class ImageSource(Protocol):
    """An image that can be read region by region.

    Attributes:
        id: Safe name of the source (see :mod:`unet_med.identity`).
        geometry: Grid of one frame.
        channels: Number of channels.
        frames: Number of independent pictures or volumes of the same grid (time points, pages); mostly 1.
    """

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def geometry(self) -> Geometry: ...  # noqa: D102
    @property
    def channels(self) -> int: ...  # noqa: D102
    @property
    def frames(self) -> int: ...  # noqa: D102

    def read(self, region: Region | None = None, frame: int = 0) -> Volume:
        """Returns the voxels of ``region`` (all of them for ``None``) of one frame, all channels."""
        ...


class MaskSink(Protocol):
    """A label image that is written region by region and becomes visible, whole and checked, on ``close``."""

    def write(self, region: Region | None, labels: npt.NDArray[np.integer[Any]], frame: int = 0) -> None:
        """Writes integer labels (I, J[, K]) of ``region`` (all for ``None``)."""
        ...

    def labels_of(self, frame: int = 0) -> npt.NDArray[np.unsignedinteger[Any]]:
        """Lends the sink's own array of one frame, (I, J[, K]), to write labels straight into."""
        ...

    def close(self) -> list[Path]:
        """Finishes, re-reads, checks and renames into place; returns the files, the mask first."""
        ...

    def abort(self) -> None:
        """Removes what was written; safe to call at any time."""
        ...


@dataclass(frozen=True, eq=False)
class ArraySource:
    """A :class:`Volume` as an :class:`ImageSource` with one frame."""

    id: str
    volume: Volume

    @property
    def geometry(self) -> Geometry:
        """Grid of the volume."""
        return self.volume.geometry

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.volume.channels

    @property
    def frames(self) -> int:
        """Always 1."""
        return 1

    def read(self, region: Region | None = None, frame: int = 0) -> Volume:
        """Returns a region as a view."""
        if frame != 0:
            raise InputRefusedError(f"frame {frame} of 1", self.id, "ask for frame 0")
        if region is None:
            return self.volume
        return Volume(self.volume.array[(slice(None), *region)], self.geometry.crop(region))


def slabs(array: npt.NDArray[Any], voxels: int = SLAB_VOXELS) -> Iterator[Region]:
    """Yields regions of at most ``voxels`` that cover an array, in the order of its memory."""
    fastest_first = sorted(range(array.ndim), key=lambda axis: abs(array.strides[axis]))
    steps = [1] * array.ndim
    for axis in fastest_first:
        steps[axis] = min(max(1, array.shape[axis]), max(1, voxels))
        voxels //= steps[axis]
    slowest_first = fastest_first[::-1]
    for starts in product(*(range(0, array.shape[axis], steps[axis]) for axis in slowest_first)):
        begin = dict(zip(slowest_first, starts, strict=True))
        yield tuple(slice(begin[axis], min(begin[axis] + steps[axis], array.shape[axis])) for axis in range(array.ndim))
