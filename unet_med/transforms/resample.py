"""Resampling between two grids that cover the same box: separable splines as banded matrices.

Along one axis, spline interpolation of order 0, 1 or 3 is a matrix with a narrow band: a target row depends on a few
source rows (order 3: on the neighbours that the B-spline prefilter reaches before it has decayed below float32). Any
range of target rows can therefore be computed from its *support*, and a volume slab by slab. The function is that of
``scipy.ndimage.zoom(order, mode="nearest", grid_mode=True)``; order 1 is also
``torch.nn.functional.interpolate(align_corners=False)`` (Unser, IEEE Signal Processing Magazine 16, 22-38, 1999).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import floor, sqrt
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Order = Literal[0, 1, 3]

_POLE = sqrt(3.0) - 2.0
_REACH = 14
"""Neighbours on each side that the cubic prefilter uses: the next one weighs less than 1e-8."""

_BLOCK_SPAN = 36
"""Source rows between the first and the last target row of one dense block."""


@dataclass(frozen=True)
class GridChange:
    """Resampling of a whole grid, which can also be had slab by slab.

    Attributes:
        source, target: Shapes of the two grids; they cover the same box.
        order: Order of the spline.
        coarse: An axis that is resampled by the nearest slice instead.
    """

    source: tuple[int, ...]
    target: tuple[int, ...]
    order: Order
    coarse: int | None = None

    def support(self, axis: int, start: int, stop: int) -> tuple[int, int]:
        """Returns the source rows [lo, hi) along ``axis`` that the target rows [start, stop) need."""
        return spline_support(self._order(axis), self.target[axis], self.source[axis], start, stop)

    def slab(self, cut: Tensor, axis: int, start: int, stop: int) -> Tensor:
        """Returns target rows [start, stop) along ``axis``, the other axes whole.

        Args:
            cut: (C, *source) with ``axis`` cut to the support of the rows.
            axis: Spatial axis (0 is the tensor's second).
            start: First target row.
            stop: The row after the last.
        """
        lo, _ = self.support(axis, start, stop)
        for other in sorted(range(len(self.source)), key=lambda a: self.target[a] / self.source[a]):
            rows = (lo, start, stop) if other == axis else (0, 0, self.target[other])
            first, begin, end = rows
            order = self._order(other)
            cut = spline_rows(order, cut, other + 1, first, self.source[other], self.target[other], begin, end)
        return cut

    def _order(self, axis: int) -> Order:
        return 0 if axis == self.coarse else self.order


def linear_support(out_size: int, in_size: int, start: int, stop: int) -> tuple[int, int]:
    """Returns the source rows [lo, hi) that target rows [start, stop) of a linear resampling need."""
    return spline_support(1, out_size, in_size, start, stop)


def linear_rows(source: Tensor, axis: int, lo: int, in_size: int, out_size: int, start: int, stop: int) -> Tensor:
    """Returns target rows [start, stop) of a linear resampling along one axis; see :func:`spline_rows`."""
    return spline_rows(1, source, axis, lo, in_size, out_size, start, stop)


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
    first, taps = _taps(order)
    shift = 0.5 if order == 0 else 0.0
    lowest = floor(_coordinate(start, in_size, out_size) + shift) + first
    highest = floor(_coordinate(stop - 1, in_size, out_size) + shift) + first + len(taps)
    return min(max(lowest, 0), in_size - 1), max(min(highest, in_size), 1)


def spline_rows(
    order: Order, source: Tensor, axis: int, lo: int, in_size: int, out_size: int, start: int, stop: int
) -> Tensor:
    """Returns target rows [start, stop) of a spline resampling along one axis.

    Args:
        order: Order of the spline.
        source: Float tensor of any shape, on any device, cut along ``axis``.
        axis: Axis of the tensor.
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
    pieces = []
    step = _block_rows(in_size, out_size)
    for first in range(start - start % step, stop, step):
        rows = max(first, start), min(first + step, stop)
        low, weights = _weights(order, in_size, out_size, *rows)
        part = source.narrow(axis, low - lo, weights.shape[1]).movedim(axis, -1)
        pieces.append((part @ weights.to(source.device).T).movedim(-1, axis))
    return torch.cat(pieces, axis)


def _block_rows(in_size: int, out_size: int) -> int:
    return max(8, min(128, _BLOCK_SPAN * out_size // in_size))


@lru_cache(maxsize=1024)
def _weights(order: Order, in_size: int, out_size: int, start: int, stop: int) -> tuple[int, Tensor]:
    """Returns the first source row and the dense (target rows, source rows) float32 weights of a block."""
    low, high = spline_support(order, out_size, in_size, start, stop)
    at = np.array([_coordinate(row, in_size, out_size) for row in range(start, stop)])
    first, _ = _taps(order)
    base = np.floor(at + 0.5 if order == 0 else at)
    taps = _taps_at(order, at - base)
    index = (base[:, None] + first + np.arange(taps.shape[1])).clip(0, in_size - 1).astype(np.int64) - low
    weights = np.zeros((stop - start, high - low))
    np.add.at(weights, (np.arange(stop - start)[:, None], index), taps)
    return low, torch.from_numpy(weights.astype(np.float32))


def _coordinate(row: int, in_size: int, out_size: int) -> float:
    """Where a target row lies among the source rows; faces of the two grids aligned."""
    return (row + 0.5) * (in_size / out_size) - 0.5


def _taps(order: Order) -> tuple[int, npt.NDArray[np.float64]]:
    """Returns the first tap's place relative to the base row, and the prefilter (order 3) or ones."""
    if order == 3:
        return -1 - _REACH, np.zeros(4 + 2 * _REACH)
    return 0, np.zeros(1 + order)


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
