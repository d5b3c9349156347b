"""How many voxels the convex hull of an object holds, from the ends of its lines alone.

The hull is that of the points half a voxel from each centre along the axes, as in scikit-image, and a voxel is in it
when its centre is, or lies on its side. In two dimensions all is whole numbers, and all objects are done at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Whole = npt.NDArray[np.int64]

_ON_SIDE = 1e-10
"""A centre is on a side of a hull in space when it is no further out than this, in voxels."""


@dataclass(frozen=True, eq=False)
class Lines:
    """The lines of voxels along the last axis that cross objects, and where each object begins and ends on them.

    Attributes:
        numbers: (n,) whose line it is.
        places: (n, d - 1) index of the line.
        first: (n,) first voxel of the object on it.
        last: (n,) its last one.
    """

    numbers: Whole
    places: Whole
    first: Whole
    last: Whole

    def of(self, numbers: Whole) -> Lines:
        """Returns the lines of some objects."""
        chosen = np.isin(self.numbers, numbers)
        return Lines(self.numbers[chosen], self.places[chosen], self.first[chosen], self.last[chosen])

    def moved(self, by: Whole) -> Lines:
        """Returns the lines of a block in the image in which it begins at ``by`` (d,)."""
        return Lines(self.numbers, self.places + by[:-1], self.first + by[-1], self.last + by[-1])

    @staticmethod
    def joined(parts: list[Lines]) -> Lines:
        """Returns the lines of objects that were seen part by part, each once, in order."""
        numbers, places = np.concatenate([one.numbers for one in parts]), np.concatenate([one.places for one in parts])
        first, last = np.concatenate([one.first for one in parts]), np.concatenate([one.last for one in parts])
        order = np.lexsort((*places.T[::-1], numbers))
        keys = np.column_stack([numbers, places])[order]
        if not len(keys):
            return parts[0]
        begins = np.flatnonzero(np.r_[True, (keys[1:] != keys[:-1]).any(axis=1)])
        return Lines(
            numbers[order][begins],
            places[order][begins],
            np.minimum.reduceat(first[order], begins),
            np.maximum.reduceat(last[order], begins),
        )


def hull_voxels(lines: Lines) -> tuple[Whole, Whole]:
    """Returns the numbers of the objects, ascending, and how many voxels the convex hull of each one holds.

    Args:
        lines: Sorted by number, then by place; all lines of each object.
    """
    return _hull_areas(lines) if lines.places.shape[1] == 1 else _hull_volumes(lines)


def _hull_areas(lines: Lines) -> tuple[Whole, Whole]:
    numbers, begins, which = np.unique(lines.numbers, return_index=True, return_inverse=True)
    if not len(numbers):
        return numbers, numbers
    rows = lines.places[:, 0]
    low = _nearest_inside(which, rows, lines.first)
    high = -_nearest_inside(which, rows, -lines.last)
    counts = rows[np.r_[begins[1:], len(rows)] - 1] - rows[begins] + 1
    return numbers, np.add.reduceat(high - low + 1, np.cumsum(counts) - counts)


def _nearest_inside(which: Whole, rows: Whole, ends: Whole) -> Whole:
    """Returns for every row of every object, gaps included, the first place inside its hull.

    Args:
        which: (n,) object of each line, from 0, ascending.
        rows: (n,) its row, ascending in each object.
        ends: (n,) the object's first place in it.
    """
    owner = np.repeat(which, 3)
    x = 2 * np.repeat(rows, 3) + np.tile([-1, 0, 1], len(rows))  # in half pixels: all whole numbers
    y = 2 * np.repeat(ends, 3) + np.tile([0, -1, 0], len(rows))
    order = np.lexsort((y, x, owner))
    owner, x, y = owner[order], x[order], y[order]
    lowest = np.r_[True, (owner[1:] != owner[:-1]) | (x[1:] != x[:-1])]
    owner, x, y = owner[lowest], x[lowest], y[lowest]
    while True:  # a point above the line between its neighbours is no corner of the hull, whatever becomes of those
        inner = np.flatnonzero((owner[:-2] == owner[1:-1]) & (owner[1:-1] == owner[2:])) + 1
        a, b = inner - 1, inner + 1
        above = (x[b] - x[a]) * (y[inner] - y[a]) >= (y[b] - y[a]) * (x[inner] - x[a])
        if not above.any():
            break
        kept = np.ones(len(x), dtype=np.bool_)
        kept[inner[above]] = False
        owner, x, y = owner[kept], x[kept], y[kept]
    return _first_places(owner, x, y)


def _first_places(owner: Whole, x: Whole, y: Whole) -> Whole:
    """Returns for each row between the ends of each lower hull the first whole place on or above it."""
    begins = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
    ends = np.r_[begins[1:], len(owner)] - 1
    first, last = (x[begins] + 1) // 2, (x[ends] - 1) // 2
    counts = last - first + 1
    whose = np.repeat(np.arange(len(begins)), counts)
    rows = 2 * (np.arange(len(whose)) - np.repeat(np.cumsum(counts) - counts, counts) + first[whose])
    span = int(x.max() - x.min()) + 2
    keys = np.repeat(np.arange(len(begins)), ends - begins + 1) * span + (x - x.min())
    left = np.searchsorted(keys, whose * span + (rows - x.min()), side="right") - 1
    run, rise = x[left + 1] - x[left], y[left + 1] - y[left]
    return np.asarray(-((-(y[left] * run + rise * (rows - x[left]))) // (2 * run)))


def _hull_volumes(lines: Lines) -> tuple[Whole, Whole]:
    numbers, begins = np.unique(lines.numbers, return_index=True)
    bounds = [*begins.tolist(), len(lines.numbers)]
    found = [_hull_volume(lines.places[a:b], lines.first[a:b], lines.last[a:b]) for a, b in pairwise(bounds)]
    return numbers, np.array(found, dtype=np.int64)


def _hull_volume(places: Whole, first: Whole, last: Whole) -> int:
    from scipy.spatial import ConvexHull

    ends = np.concatenate([np.column_stack([places, first]), np.column_stack([places, last])]).astype(np.float64)
    origin = ends.min(axis=0)
    around = 0.5 * np.concatenate([np.eye(3), -np.eye(3)])
    hull = ConvexHull(np.unique((ends - origin)[:, np.newaxis] + around, axis=0).reshape(-1, 3))
    facets = np.unique(hull.equations, axis=0)
    sizes = (ends.max(axis=0) - origin).astype(np.intp) + 1
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in sizes[:2]), indexing="ij"), axis=-1).reshape(-1, 2)
    total = 0
    for some in np.array_split(grid, max(1, len(grid) * len(facets) // 2**22)):
        room = _ON_SIDE - (some @ facets[:, :2].T + facets[:, 3])  # (lines, facets): what is left for the last axis
        slope = facets[:, 2]
        up, down, level = slope > 1e-12, slope < -1e-12, np.abs(slope) <= 1e-12
        top = np.floor((room[:, up] / slope[up]).min(axis=1))
        bottom = np.ceil((room[:, down] / slope[down]).max(axis=1))
        inside = (room[:, level] >= 0).all(axis=1)
        total += int(np.maximum(top - bottom + 1, 0)[inside].sum())
    return total
