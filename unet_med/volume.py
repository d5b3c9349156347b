"""Voxels together with their place, in memory and on disk.

``ImageSource`` and ``MaskSink`` are how the rest of the package meets files of any size: a region is read, a region
of labels is written, and ``close`` makes the file visible. ``Volume`` is the in-memory case; :func:`lazily` makes one
of a source, of which only the parts that are asked for are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt

from unet_med.errors import InputRefusedError
from unet_med.geometry import Geometry

Region = tuple[slice, ...]
"""One slice (step 1) for each spatial axis I, J (and K)."""

SLAB_VOXELS = 2**18
"""Voxels that are looked at together: what is computed of them in 8 bytes each is small beside any volume."""

_BAND_BYTES = 2**26
_BANDS_KEPT = 2
"""What is read of a source at once, and how many of these bands are kept: rows of windows overlap a little."""
BANDS_BYTES = (_BANDS_KEPT + 1) * _BAND_BYTES
"""What a :class:`LazyArray` holds in memory at most, with the band that it hands out."""


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

    @property
    def in_memory(self) -> bool:
        """Whether its array is one; else it is a :class:`LazyArray`."""
        array: object = self.array
        return not isinstance(array, LazyArray)


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

    def numbers_of(self, frame: int = 0) -> npt.NDArray[np.uint32]:
        """Lends the sink's own array of one frame, wide enough for numbers of objects."""
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


def bands(array: npt.NDArray[Any], voxels: int = 2**22) -> Iterator[tuple[int, int, npt.NDArray[Any]]]:
    """Yields all of an image (C, *s) in the order of its memory, or of its file where it is a :class:`LazyArray`.

    Args:
        array: The image.
        voxels: Of a band, about; it is one row at least.

    Yields:
        The spatial axis along which bands follow each other, the first row of this one, and its voxels.
    """
    sizes = array.shape[1:]
    axis = max(range(len(sizes)), key=lambda one: abs(array.strides[one + 1]) if sizes[one] > 1 else 0)
    rows = max(1, voxels * sizes[axis] // max(1, prod(sizes)))
    for start in range(0, sizes[axis], rows):
        yield axis, start, np.asarray(array[(slice(None),) * (axis + 1) + (slice(start, start + rows),)])


def lazily(source: ImageSource, frame: int = 0) -> Volume:
    """Returns a frame of a source as a volume whose array is a :class:`LazyArray`: nothing is read yet."""
    return Volume(cast("npt.NDArray[Any]", LazyArray(source, frame)), source.geometry)


class LazyArray:
    """A frame of a source as something like an array (C, I, J[, K]): cut and turned at will, read by ``np.asarray``.

    What covers most of the image in all axes but one is read in bands along the axis that runs slowest in files (the
    last one), so that a pass over the image in this direction decodes every tile of a file once.

    Args:
        source: Is read.
        frame: Which one of its frames.

    Attributes:
        slowest: The axis of the source along which it is cheap to read in order.
    """

    def __init__(self, source: ImageSource, frame: int = 0) -> None:
        self._bands = _Bands(source, frame)
        self._ranges = tuple(range(n) for n in source.geometry.shape)
        self._order = tuple(range(len(self._ranges)))

    @property
    def slowest(self) -> int:  # noqa: D102 - an attribute of the class
        return self._bands.axis

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels and voxels along each axis, as it is cut and turned."""
        return (self._bands.source.channels, *(len(self._ranges[axis]) for axis in self._order))

    @property
    def ndim(self) -> int:
        """One more than there are spatial axes."""
        return 1 + len(self._order)

    @property
    def size(self) -> int:
        """Voxels of all channels."""
        return prod(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return self._bands.dtype

    @property
    def strides(self) -> tuple[int, ...]:
        """Steps in values if the source lay in memory, the first axis fastest and channels slowest."""
        sizes = self._bands.source.geometry.shape
        steps = [prod(sizes[:axis]) * self._ranges[axis].step for axis in range(len(sizes))]
        return (prod(sizes), *(steps[axis] for axis in self._order))

    def transpose(self, *axes: int) -> LazyArray:
        """Returns a view with its axes in another order; channels stay the first one."""
        if sorted(axes) != list(range(self.ndim)) or axes[0] != 0:
            raise ValueError(f"axes {axes} do not turn an image of {self.ndim - 1} axes")
        return self._view(self._ranges, tuple(self._order[axis - 1] for axis in axes[1:]))

    def __getitem__(self, index: Any) -> LazyArray:
        index = index if isinstance(index, tuple) else (index,)
        if Ellipsis in index:
            place = index.index(Ellipsis)
            index = (*index[:place], *[slice(None)] * (self.ndim - len(index) + 1), *index[place + 1 :])
        index = (*index, *[slice(None)] * (self.ndim - len(index)))
        if index[0] != slice(None) or not all(isinstance(part, slice) for part in index) or len(index) > self.ndim:
            raise TypeError("an image that is not in memory is cut by slices, all channels together")
        ranges = list(self._ranges)
        for axis, part in zip(self._order, index[1:], strict=True):
            ranges[axis] = ranges[axis][part]
        return self._view(tuple(ranges), self._order)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if 0 in self.shape:
            return np.zeros(self.shape, dtype=dtype or self.dtype)
        ends = [sorted((places[0], places[-1])) for places in self._ranges]
        bounds = tuple(slice(first, last + 1) for first, last in ends)
        steps = tuple(slice(None, None, places.step) for places in self._ranges)
        values = self._bands.read(bounds)[(slice(None), *steps)].transpose(0, *(axis + 1 for axis in self._order))
        return np.array(values, dtype=dtype) if copy else np.asarray(values, dtype=dtype)

    def _view(self, ranges: tuple[range, ...], order: tuple[int, ...]) -> LazyArray:
        view = object.__new__(LazyArray)
        view._bands, view._ranges, view._order = self._bands, ranges, order
        return view


class _Bands:
    """Reads a frame of a source; the last bands that were read are kept."""

    def __init__(self, source: ImageSource, frame: int) -> None:
        self.source = source
        self._frame = frame
        shape = source.geometry.shape
        first = source.read(tuple(slice(0, 1) for _ in shape), frame).array
        self.dtype = first.dtype
        voxels = _BAND_BYTES // max(1, first.nbytes)
        self.axis = len(shape) - 1
        if prod(shape) // shape[self.axis] > voxels:  # one plane of a volume is too much: the longest other axis
            self.axis = max(range(len(shape)), key=lambda axis: (shape[axis], axis))
        rows = max(1, voxels * shape[self.axis] // prod(shape))
        self._rows = min(1 << (rows.bit_length() - 1), shape[self.axis])  # a power of two: whole tiles of most files
        self._kept: dict[int, npt.NDArray[Any]] = {}

    def read(self, bounds: Region) -> npt.NDArray[Any]:
        """Returns (C, *s) of a region of the source, not to be written to."""
        shape = self.source.geometry.shape
        others = [n for axis, n in enumerate(shape) if axis != self.axis]
        asked = prod(part.stop - part.start for axis, part in enumerate(bounds) if axis != self.axis)
        if 2 * asked < prod(others):
            return self.source.read(bounds, self._frame).array
        rows, cut = bounds[self.axis], self.axis + 1
        parts = []
        for number in range(rows.start // self._rows, -(-rows.stop // self._rows)):
            begin = number * self._rows
            own = slice(max(rows.start - begin, 0), min(rows.stop - begin, self._rows))
            index = (slice(None), *(own if axis == self.axis else part for axis, part in enumerate(bounds)))
            parts.append(self._band(number)[index])
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=cut)

    def _band(self, number: int) -> npt.NDArray[Any]:
        if number not in self._kept:
            while len(self._kept) >= _BANDS_KEPT:
                del self._kept[next(iter(self._kept))]
            begin = number * self._rows
            region = [slice(0, n) for n in self.source.geometry.shape]
            region[self.axis] = slice(begin, min(begin + self._rows, region[self.axis].stop))
            band = self.source.read(tuple(region), self._frame).array.view()
            band.flags.writeable = False
            self._kept[number] = band
        return self._kept[number]
