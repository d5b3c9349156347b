"""Resampling between two grids that cover the same box: separable splines as banded matrices.

Along one axis, spline interpolation of order 0, 1 or 3 is a matrix with a narrow band: a target row depends on a few
source rows (order 3: on the neighbours that the B-spline prefilter reaches before it has decayed below float32). Any
range of target rows can therefore be computed from its *support*, and a volume slab by slab. Blocks of the band are
small dense matrices, so the work is done by matrix products. The function is that of
``scipy.ndimage.zoom(order, mode="nearest", grid_mode=True)``; order 1 is also
``torch.nn.functional.interpolate(align_corners=False)`` (Unser, IEEE Signal Processing Magazine 16, 22-38, 1999).

However a grid is cut into slabs, a voxel is the same sum; its terms are added in an order that the matrix product may
choose by the shape of the slab, so slabs agree to the rounding of float32 (below 1e-6 of the range), not to the bit.
On a GPU this holds for torch's default of products in full float32; TF32 would cost 5e-4 of the range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import permutations, product
from math import prod, sqrt
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unet_med.io.mapped import let_go

Order = Literal[0, 1, 3]
_Rows = TypeVar("_Rows", float, npt.NDArray[np.float64])

_POLE = sqrt(3.0) - 2.0
_REACH = 11
"""Neighbours on each side that the cubic prefilter uses: all further ones together weigh less than 3e-7."""

_BLOCK_SPAN = 16
"""Source rows between the first and the last target row of a dense block: wider blocks multiply more zeros."""

_CHUNK_VALUES = 2**24
"""Target voxels of one channel that are computed together: their intermediate grids should stay in the cache."""

_LABEL_VOXELS = 2**23
_MIXED_VOXELS = 2**19
"""Voxels of a slab of labels, and those among them that are interpolated together."""

_TIE = 1e-6
"""Shares of labels that differ by less are equal."""

_LAST_AXIS_COST = 1.6
"""How much longer a matrix product takes along the axis whose neighbours are adjacent in memory (measured)."""


@dataclass
class Scratch:
    """Memory for intermediate grids that is used again: fresh pages cost more than the arithmetic on them."""

    _buffers: dict[int, Tensor] = field(default_factory=dict)

    def take(self, slot: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Returns a contiguous tensor with arbitrary content, valid until the slot is taken again."""
        size = prod(shape)
        held = self._buffers.get(slot)
        if held is None or held.numel() < size or held.device != device:
            self._buffers.pop(slot, None)
            held = self._buffers[slot] = empty((size,), device)
        return held[:size].view(shape)


def empty(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Returns an uninitialised float32 tensor; on the CPU from NumPy, which asks for huge pages (3x faster to fill)."""
    if device.type == "cpu":
        return torch.from_numpy(np.empty(shape, dtype=np.float32))
    return torch.empty(shape, dtype=torch.float32, device=device)


@dataclass(frozen=True)
class GridChange:
    """Resampling of a whole grid, which can also be had slab by slab.

    Attributes:
        source, target: Shapes of the two grids (2 or 3 axes); they cover the same box.
        order: Order of the spline.
        coarse: An axis that is resampled by the nearest slice instead.
    """

    source: tuple[int, ...]
    target: tuple[int, ...]
    order: Order
    coarse: int | None = None

    def whole(self, source: Tensor) -> Tensor:
        """Returns the grid (C, *target) of ``source`` (C, *source) float32, chunk by chunk."""
        if self.source == self.target:
            return source
        out = empty((source.shape[0], *self.target), source.device)
        scratch = Scratch()
        for start, stop in self.chunks():
            lo, hi = self.support(0, start, stop)
            self.slab(source[:, lo:hi], 0, start, stop, out[:, start:stop], scratch)
        return out

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Yields the rows [start, stop) of axis 0 that are cheap to compute one after the other."""
        rows = max(32, _CHUNK_VALUES // prod(self.target[1:]) // 32 * 32)
        for start in range(0, self.target[0], rows):
            yield start, min(start + rows, self.target[0])

    def support(self, axis: int, start: int, stop: int) -> tuple[int, int]:
        """Returns the source rows [lo, hi) along ``axis`` that the target rows [start, stop) need."""
        return spline_support(self._order(axis), self.target[axis], self.source[axis], start, stop)

    def nearest(self, axis: int) -> Tensor:
        """Returns for each target row along ``axis`` the number of the nearest source row, (rows,) int64."""
        own, wanted = self.source[axis], self.target[axis]
        if own == wanted:
            return torch.arange(own)
        return torch.from_numpy(_first_tap(0, own, wanted, np.arange(wanted, dtype=np.float64)).astype(np.int64))

    def slab(
        self,
        cut: Tensor,
        axis: int,
        start: int,
        stop: int,
        out: Tensor | None = None,
        scratch: Scratch | None = None,
    ) -> Tensor:
        """Returns target rows [start, stop) along ``axis``, the other axes whole.

        Args:
            cut: (C, *source) float32 with ``axis`` cut to the support of the rows, on any device.
            axis: Spatial axis (0 is the tensor's second).
            start: First target row.
            stop: The row after the last.
            out: Where to write; ``None``: into a new tensor, or nowhere when the grids are the same.
            scratch: Memory to use again from call to call.
        """
        if self.source == self.target:
            return cut if out is None else out.copy_(cut)
        shape = tuple(stop - start if a == axis else size for a, size in enumerate(self.target))
        out = empty((cut.shape[0], *shape), cut.device) if out is None else out
        scratch = scratch or Scratch()
        steps = self._steps(axis, start, stop)
        for grid, place in zip(cut, out, strict=True):
            for number, step in enumerate(steps):
                size = tuple(step.stop - step.start if a == step.axis else n for a, n in enumerate(grid.shape))
                target = place if number == len(steps) - 1 else scratch.take(number % 2, size, grid.device)
                step.apply(grid, target)
                grid = target
        return out

    def _order(self, axis: int) -> Order:
        return 0 if axis == self.coarse else self.order

    def _steps(self, axis: int, start: int, stop: int) -> tuple[_AxisStep, ...]:
        """Returns what is done along each axis that changes, in the cheapest order: shrinking axes come first."""
        steps = []
        for a, (own, wanted) in enumerate(zip(self.source, self.target, strict=True)):
            lo, rows = (self.support(a, start, stop)[0], (start, stop)) if a == axis else (0, (0, wanted))
            if own != wanted:
                steps.append(_AxisStep(self._order(a), a, lo, own, wanted, *rows))
        lo, hi = self.support(axis, start, stop)
        shape = tuple(hi - lo if a == axis else size for a, size in enumerate(self.source))
        return min(permutations(steps), key=lambda chosen: _cost(chosen, shape))


@dataclass(frozen=True)
class _AxisStep:
    """Resampling along one axis of a grid: target rows [start, stop) from source rows that begin at ``lo``."""

    order: Order
    axis: int
    lo: int
    in_size: int
    out_size: int
    start: int
    stop: int

    @property
    def block(self) -> int:
        """Target rows of one dense block."""
        return max(16, min(128, _BLOCK_SPAN * self.out_size // self.in_size))

    @property
    def products(self) -> float:
        """Multiplications for each target voxel."""
        return self.block * self.in_size / self.out_size + _taps(self.order)

    def apply(self, grid: Tensor, out: Tensor) -> None:
        """Writes the target rows of ``grid`` (2 or 3 axes) to ``out``."""
        axis = self.axis
        if grid.ndim == 2:
            grid, out, axis = grid[None], out[None], axis + 1
        for begin in range(self.start - self.start % self.block, self.stop, self.block):
            first, last = max(begin, self.start), min(begin + self.block, self.stop)
            low, weights = _weights(self.order, self.in_size, self.out_size, first, last)
            weights = weights.to(grid.device)
            rows = grid.narrow(axis, low - self.lo, weights.shape[1])
            place = out.narrow(axis, first - self.start, last - first)
            if axis == 0:
                rows, place = rows.transpose(0, 1), place.transpose(0, 1)
            if axis == 2:
                torch.bmm(rows, weights.T.expand(len(rows), -1, -1), out=place)
            else:
                torch.bmm(weights.expand(len(rows), -1, -1), rows, out=place)


def _cost(steps: tuple[_AxisStep, ...], shape: tuple[int, ...]) -> float:
    sizes, total = list(shape), 0.0
    for step in steps:
        sizes[step.axis] = step.stop - step.start
        total += prod(sizes) * step.products * (_LAST_AXIS_COST if step.axis == len(shape) - 1 else 1.0)
    return total


def spline_rows(
    source: Tensor, axis: int, order: Order, lo: int, in_size: int, out_size: int, start: int, stop: int
) -> Tensor:
    """Returns target rows [start, stop) of a resampling along one axis.

    Args:
        source: (C, I, J[, K]) float32 on any device, cut along ``axis``.
        axis: Axis of the tensor, from 1.
        order: Order of the spline.
        lo: Row of the whole source that is the first row of ``source``.
        in_size: Rows of the whole axis in the source.
        out_size: Rows of the whole axis in the target.
        start: First target row; ``source`` must hold the support of the rows.
        stop: The row after the last.

    Returns:
        A tensor like ``source`` with ``stop - start`` rows along ``axis``; a view where the sizes are equal.
    """
    if in_size == out_size:
        return source.narrow(axis, start - lo, stop - start)
    out = empty(tuple(stop - start if a == axis else n for a, n in enumerate(source.shape)), source.device)
    if source.ndim == 4 and axis == 1:  # all channels in one product, the axis in the middle or at the end
        grids, places, axis = source.flatten(2), out.flatten(2), 1
    elif source.ndim == 4:
        grids, places, axis = source.flatten(0, 1), out.flatten(0, 1), axis - 1
    else:
        grids, places = source, out
    _AxisStep(order, axis, lo, in_size, out_size, start, stop).apply(grids, places)
    return out


def resample_labels(labels: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Returns labels on the grid ``shape``: each label is interpolated linearly, and the largest share wins.

    Equal shares go to the smallest label; no value appears that was not there. Only voxels between different labels
    are interpolated, and of those only the (at most 8) labels around each, so many labels cost what few do.

    Args:
        labels: (*s) integers, any memory order.
        shape: The target grid, which covers the same box.
    """
    if labels.shape == shape:
        return np.ascontiguousarray(labels)
    resampled = np.empty(shape, dtype=labels.dtype)
    write_labels(labels, resampled)
    return resampled


class LabelRows(Protocol):
    """Labels that are cut along their first axis, perhaps not in memory."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        ...

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        """Returns some rows along the first axis."""
        ...


class LabelSlabs:
    """Labels as :class:`LabelRows`, each part of which is read and turned into others when it is asked for.

    Args:
        stored: (1, *s), perhaps not in memory.
        read: What becomes of a part (*s).
    """

    def __init__(
        self, stored: npt.NDArray[Any], read: Callable[[npt.NDArray[np.integer[Any]]], npt.NDArray[np.integer[Any]]]
    ) -> None:
        self._stored = stored
        self._read = read

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        return self._stored.shape[1:]

    def __getitem__(self, rows: slice) -> npt.NDArray[np.integer[Any]]:
        return self._read(np.asarray(self._stored[:, rows])[0])


def write_labels(labels: LabelRows, out: npt.NDArray[Any]) -> None:
    """Writes labels on the grid of ``out``, as :func:`resample_labels` returns them, slab by slab.

    Args:
        labels: (*s) integers.
        out: Receives them, perhaps in a file; its first axis is cut.
    """
    corners = [_corners(own, wanted) for own, wanted in zip(labels.shape, out.shape, strict=True)]
    step = max(1, _LABEL_VOXELS // prod(out.shape[1:]))
    for start in range(0, out.shape[0], step):
        rows = slice(start, min(start + step, out.shape[0]))
        _fill_labels(labels, [corners[0].rows(rows), *corners[1:]], out[rows])
        let_go(out)


@dataclass(frozen=True, eq=False)
class _Corners:
    """The two source rows of each target row along one axis (both the same at an edge), and the second one's share."""

    low: npt.NDArray[np.int64]
    high: npt.NDArray[np.int64]
    share: npt.NDArray[np.float64]

    def rows(self, rows: slice | npt.NDArray[np.int64]) -> _Corners:
        return _Corners(self.low[rows], self.high[rows], self.share[rows])


def _corners(in_size: int, out_size: int) -> _Corners:
    place = _place(in_size, out_size, np.arange(out_size, dtype=np.float64)).clip(0, in_size - 1)
    low = np.floor(place).astype(np.int64)
    return _Corners(low, np.minimum(low + 1, in_size - 1), place - low)


def _fill_labels(labels: LabelRows, corners: list[_Corners], out: npt.NDArray[Any]) -> None:
    """Writes the winning labels of one slab of the target."""
    first, last = int(corners[0].low[0]), int(corners[0].high[-1]) + 1
    source = np.ascontiguousarray(labels[first:last])
    corners = [_Corners(corners[0].low - first, corners[0].high - first, corners[0].share), *corners[1:]]
    lows = [axis.low for axis in corners]
    out[...] = _gather(source, lows)
    between = [number for number, axis in enumerate(corners) if axis.share.any()]
    mixed = np.nonzero(_gather(_differs(source, between), lows))
    for begin in range(0, len(mixed[0]), _MIXED_VOXELS):
        some = tuple(places[begin : begin + _MIXED_VOXELS] for places in mixed)
        out[some] = _winners(source, [axis.rows(at) for axis, at in zip(corners, some, strict=True)])


def _gather(source: npt.NDArray[Any], rows: list[npt.NDArray[np.int64]]) -> npt.NDArray[Any]:
    for axis, places in enumerate(rows):
        if len(places) != source.shape[axis] or (places != np.arange(len(places))).any():
            source = source.take(places, axis=axis)
    return source


def _differs(source: npt.NDArray[Any], axes: list[int]) -> npt.NDArray[np.bool_]:
    """Whether the voxel and its next neighbours along the axes (the cell it is the first corner of) differ."""
    lowest, highest = source, source
    for axis in axes:
        following = np.minimum(np.arange(source.shape[axis]) + 1, source.shape[axis] - 1)
        lowest = np.minimum(lowest, lowest.take(following, axis=axis))
        highest = np.maximum(highest, highest.take(following, axis=axis))
    return np.asarray(lowest != highest)


def _winners(source: npt.NDArray[Any], corners: Sequence[_Corners]) -> npt.NDArray[Any]:
    """Returns the label with the largest share at each of n places, whose corners (n,) are given for each axis."""
    found, shares = [], []
    for chosen in product(*[(False, True) if axis.share.any() else (False,) for axis in corners]):
        index = tuple(axis.high if high else axis.low for axis, high in zip(corners, chosen, strict=True))
        share = np.prod(
            [axis.share if high else 1 - axis.share for axis, high in zip(corners, chosen, strict=True)], axis=0
        )
        found.append(source[index])
        shares.append(share)
    best, best_share = found[0], np.full(len(found[0]), -1.0)
    for label in found:
        total = np.zeros(len(label))
        for other, share in zip(found, shares, strict=True):
            total += np.where(other == label, share, 0.0)
        better = (total > best_share + _TIE) | ((total > best_share - _TIE) & (label < best))
        best, best_share = np.where(better, label, best), np.where(better, total, best_share)
    return best


def spline_support(order: Order, out_size: int, in_size: int, start: int, stop: int) -> tuple[int, int]:
    """Returns the source rows [lo, hi) that target rows [start, stop) need.

    Args:
        order: Order of the spline.
        out_size: Rows of the whole axis in the target.
        in_size: Rows of the whole axis in the source.
        start: First target row.
        stop: The row after the last; ``0 <= start < stop <= out_size``.
    """
    if in_size == out_size:
        return start, stop
    lo = int(_first_tap(order, in_size, out_size, start))
    hi = int(_first_tap(order, in_size, out_size, stop - 1)) + _taps(order)
    return min(max(lo, 0), in_size - 1), max(min(hi, in_size), 1)


@lru_cache(maxsize=1024)
def _weights(order: Order, in_size: int, out_size: int, start: int, stop: int) -> tuple[int, Tensor]:
    """Returns the first source row and the dense (target rows, source rows) float32 weights of a block."""
    low, high = spline_support(order, out_size, in_size, start, stop)
    rows = np.arange(start, stop, dtype=np.float64)
    place, first = _place(in_size, out_size, rows), _first_tap(order, in_size, out_size, rows)
    taps = _taps_at(order, place - np.floor(place))
    source = first[:, None].astype(np.int64) + np.arange(taps.shape[1])
    edge_for_what_is_beyond = source.clip(0, in_size - 1)
    weights = np.zeros((stop - start, high - low))
    np.add.at(weights, (np.arange(stop - start)[:, None], edge_for_what_is_beyond - low), taps)
    return low, torch.from_numpy(weights.astype(np.float32))


def _place(in_size: int, out_size: int, row: _Rows) -> _Rows:
    """Where target rows lie among the source rows, the faces of the two grids aligned."""
    return (row + 0.5) * (in_size / out_size) - 0.5


def _first_tap(order: Order, in_size: int, out_size: int, row: _Rows) -> _Rows:
    """The first source row that has a weight in a target row; a whole number, may lie beyond the edge."""
    shift = {0: 0.5, 1: 0.0, 3: -1.0 - _REACH}[order]
    return (_place(in_size, out_size, row) + shift) // 1


def _taps(order: Order) -> int:
    return 4 + 2 * _REACH if order == 3 else 1 + order


def _taps_at(order: Order, t: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Returns the weights (rows, taps) at the fractions ``t`` (rows,) from 0 to 1."""
    if order == 0:
        return np.ones((len(t), 1))
    if order == 1:
        return np.stack([1 - t, t], axis=1)
    spline = np.stack([(1 - t) ** 3, 4 - 6 * t**2 + 3 * t**3, 1 + 3 * t + 3 * t**2 - 3 * t**3, t**3], axis=1) / 6
    prefilter = sqrt(3.0) * _POLE ** np.abs(np.arange(-_REACH, _REACH + 1))
    weights = np.stack([np.convolve(row, prefilter) for row in spline])
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))
