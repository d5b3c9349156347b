"""From a landscape to objects: summits, the basins that climb to them, and the saddles in between.

Every voxel climbs to the highest of its neighbours until it stands on a summit; the voxels of one summit are its basin.
Going down from the highest saddle, two groups of basins become one where the lower summit is too low for an object of
its own, or the saddle is hardly below it: summits are judged by how far they rise (their dynamics, Grimaud 1992), and
the border of two objects runs along the valley, as in a watershed from markers (Meyer 1996). A voxel's object depends
on what it climbs over and on what its object touches, on nothing farther away: parts of an image can be done apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from unet_med.instances.maps import ObjectMaps

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]

_SMOOTHING = (0.25, 0.5, 0.25)
_FOREGROUND_SHARE = 0.05
"""How much the probability of an object counts in the landscape: it gives a slope to what is flat otherwise."""
_BORDER_SHARE = 0.5
"""How much of the distance a certain border takes away; small objects are border for a good part."""
_PASSES = 2


@dataclass(frozen=True, eq=False)
class Relief:
    """How high summits are, and how high the ways are from one to the next.

    Attributes:
        heights: (basins,) float32 in [0, 1].
        pairs: (touching, 2) basins that touch, the highest saddle first.
        saddles: (touching,) float32, the height of the highest way from one into the other.
    """

    heights: FloatArray
    pairs: IntArray
    saddles: FloatArray


@dataclass(frozen=True, eq=False)
class Basins:
    """A landscape, cut into the basins of its summits.

    Attributes:
        places: (voxels,) flat index of every voxel of the foreground, ascending.
        members: (voxels,) the basin of each, from 0.
        summits: (basins,) flat index of each summit, ascending.
        relief: Summits and saddles.
    """

    places: npt.NDArray[np.int64]
    members: IntArray
    summits: npt.NDArray[np.int64]
    relief: Relief


def foreground_of(maps: ObjectMaps) -> FloatArray:
    """Returns the probability of any object, (*shape) float32 in [0, 1]."""
    found: FloatArray = np.float32(1) - maps.classes[0]
    return found


def landscape(maps: ObjectMaps) -> FloatArray:
    """Returns how deep inside of an object each voxel lies, from 0 to 1: the distance, less where a border is.

    It is smoothed by about a voxel. Shares and smoothing were chosen on nuclei and cells of held-out images.
    """
    height = maps.distance * (np.float32(1) - np.float32(_BORDER_SHARE) * maps.border)
    height *= np.float32(1 - _FOREGROUND_SHARE)
    height += np.float32(_FOREGROUND_SHARE) * foreground_of(maps)
    for axis in [*range(height.ndim)] * _PASSES:
        ndimage.convolve1d(height, _SMOOTHING, axis=axis, output=height, mode="nearest")
    return height


def basins_of(height: FloatArray, inside: BoolArray) -> Basins:
    """Cuts the foreground into the basins of all summits.

    Args:
        height: (*shape) float32.
        inside: (*shape), where there is foreground; diagonal neighbours touch.
    """
    shape = tuple(size + 2 for size in height.shape)
    core = tuple(slice(1, -1) for _ in shape)
    padded = np.full(shape, -np.inf, dtype=np.float32)
    np.copyto(padded[core], height, where=inside)
    places = np.flatnonzero(inside)
    number = np.full(inside.shape, -1, dtype=np.int32)
    number.ravel()[places] = np.arange(len(places), dtype=np.int32)
    members, tops = _climbed(number.ravel(), places + _steepest(padded, inside.shape)[places])
    numbers = np.zeros(shape, dtype=np.int32)
    numbers[core].flat[places] = members + 1
    pairs, saddles = _saddles(padded, numbers)
    summits = places[tops]
    return Basins(places, members, summits, Relief(height.ravel()[summits], pairs, saddles))


def grouped(relief: Relief, seed_threshold: float, seed_depth: float) -> IntArray:
    """Joins basins to objects.

    Args:
        relief: Their summits and saddles.
        seed_threshold: Height that the summit of an object has at least.
        seed_depth: How far below the lower of two summits their saddle is at least where they are two objects, as a
            share of the lower one.

    Returns:
        (basins,) the basin of the highest summit of each one's object; -1 where no summit is high enough.
    """
    parent = list(range(len(relief.heights)))
    heights = relief.heights.tolist()

    def top(basin: int) -> int:
        while parent[basin] != basin:
            parent[basin] = parent[parent[basin]]
            basin = parent[basin]
        return basin

    for (first, second), saddle in zip(relief.pairs.tolist(), relief.saddles.tolist(), strict=True):
        one, other = top(first), top(second)
        if one == other:
            continue
        if (heights[one], -one) < (heights[other], -other):
            one, other = other, one
        if heights[other] < seed_threshold or saddle > heights[other] * (1 - seed_depth):
            parent[other] = one
    groups = np.array([top(basin) for basin in parent], dtype=np.int32)
    groups[relief.heights[groups] < seed_threshold] = -1
    return groups


def _steepest(padded: FloatArray, shape: Sequence[int]) -> npt.NDArray[np.int64]:
    """Returns how far the highest neighbour of each voxel is in flat order, 0 on summits; the first of equal ones."""
    best = np.full(shape, -np.inf, dtype=np.float32)
    where = np.zeros(shape, dtype=np.int8)
    strides = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
    steps = list(product((-1, 0, 1), repeat=len(shape)))
    higher = np.empty(shape, dtype=bool)
    for code, step in enumerate(steps):
        there = padded[_shifted(step, shape)]
        np.greater(there, best, out=higher)
        np.copyto(best, there, where=higher)
        np.copyto(where, np.int8(code), where=higher)
    distances = np.array([np.dot(step, strides) for step in steps], dtype=np.int64)
    found: npt.NDArray[np.int64] = distances[where.ravel()]
    return found


def _shifted(step: Sequence[int], shape: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(1 + by, 1 + by + size) for by, size in zip(step, shape, strict=True))


def _climbed(number: IntArray, next_place: npt.NDArray[np.int64]) -> tuple[IntArray, npt.NDArray[np.int64]]:
    """Follows all voxels to their summits; returns the basin of each, and which of them are summits."""
    higher = number[next_place]
    while True:
        farther = higher[higher]
        if np.array_equal(farther, higher):
            break
        higher = farther
    is_top = higher == np.arange(len(higher), dtype=np.int32)
    basin = np.cumsum(is_top, dtype=np.int32) - np.int32(1)
    return basin[higher], np.flatnonzero(is_top)


def _saddles(padded: FloatArray, numbers: IntArray) -> tuple[IntArray, FloatArray]:
    """Returns which basins touch and the highest saddle between them; ``numbers`` is 0 outside, basin + 1 inside."""
    inner = [size - 2 for size in numbers.shape]
    here = _shifted([0] * numbers.ndim, inner)
    low, high, saddles = [], [], []
    for step in product((-1, 0, 1), repeat=numbers.ndim):
        if step <= (0,) * numbers.ndim:
            continue  # the other half says the same
        there = _shifted(step, inner)
        first, second = numbers[here], numbers[there]
        place = np.nonzero((first != second) & (first > 0) & (second > 0))
        low.append(np.minimum(first[place], second[place]))
        high.append(np.maximum(first[place], second[place]))
        saddles.append(np.minimum(padded[here][place], padded[there][place]))
    return _highest(np.concatenate(low) - 1, np.concatenate(high) - 1, np.concatenate(saddles))


def _highest(low: IntArray, high: IntArray, saddles: FloatArray) -> tuple[IntArray, FloatArray]:
    """Keeps the highest saddle of each pair; sorts pairs by it, equal ones by their basins."""
    order = np.lexsort((-saddles, high, low))
    low, high, saddles = low[order], high[order], saddles[order]
    new = np.ones(len(low), dtype=bool)
    new[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    low, high, saddles = low[new], high[new], saddles[new]
    order = np.lexsort((high, low, -saddles))
    return np.stack([low[order], high[order]], axis=1), saddles[order]
