"""Polygons as pixels, in numpy alone; pixel centres lie at whole numbers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

ON_LINE = 0.01
"""A pixel's centre lies on a line when it is no further off than this, in pixels."""

_CROSSINGS_AT_ONCE = 2**20

FloatArray = npt.NDArray[np.float64]
Picture = npt.NDArray[np.bool_]


def polygon_parity(points: FloatArray, size: tuple[int, int]) -> Picture:
    """Returns the pixels (columns, rows) whose centre an odd number of turns of the polygon encloses.

    Args:
        points: (n, 2) corners, column and row; the last is joined with the first.
        size: Columns and rows of the picture.
    """
    x0, y0 = points.T
    x1, y1 = np.roll(points, -1, axis=0).T
    low, high = np.minimum(y0, y1), np.maximum(y0, y1)
    begin = np.clip(np.ceil(low), 0, size[1]).astype(np.intp)
    end = np.clip(np.ceil(high), 0, size[1]).astype(np.intp)  # rows with low <= row < high: a corner counts once
    counts = np.maximum(end - begin, 0)
    flips = np.zeros((size[0] + 1, size[1]), dtype=np.uint8)
    for some in _parts(counts):
        edges = np.repeat(np.arange(some.start, some.stop), counts[some])
        firsts = np.cumsum(counts[some]) - counts[some]
        rows = np.arange(len(edges)) - np.repeat(firsts, counts[some]) + begin[edges]
        crossing = x0[edges] + (rows - y0[edges]) * (x1 - x0)[edges] / (y1 - y0)[edges]
        columns = np.clip(np.ceil(crossing), 0, size[0]).astype(np.intp)
        np.add.at(flips.reshape(-1), columns * size[1] + rows, np.uint8(1))  # what wraps around stays even or odd
    flips &= 1
    return np.asarray(np.bitwise_xor.accumulate(flips, axis=0)[:-1], dtype=np.bool_)


def _parts(counts: npt.NDArray[np.intp]) -> list[slice]:
    """Returns slices of the edges that together cross few enough rows to be held at once."""
    bins = (np.cumsum(counts) - 1) // _CROSSINGS_AT_ONCE
    bounds = [0, *(np.flatnonzero(np.diff(bins)) + 1).tolist(), len(counts)]
    return [slice(start, stop) for start, stop in pairwise(bounds)]


def polygon_line(points: FloatArray, size: tuple[int, int]) -> Picture:
    """Returns the pixels (columns, rows) whose centre lies on the line of the polygon."""
    line = np.zeros(size, dtype=np.bool_)
    following = np.roll(points, -1, axis=0)
    move = following - points
    for along in (0, 1):
        across = 1 - along
        steep = np.abs(move[:, along]) >= np.abs(move[:, across])
        start, stop, shift = points[steep], following[steep], move[steep]
        low = np.minimum(start[:, along], stop[:, along]) - ON_LINE
        high = np.maximum(start[:, along], stop[:, along]) + ON_LINE
        begin = np.clip(np.ceil(low), 0, size[along]).astype(np.intp)
        end = np.clip(np.floor(high) + 1, 0, size[along]).astype(np.intp)
        counts = np.maximum(end - begin, 0)
        edges = np.repeat(np.arange(len(start)), counts)
        places = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + begin[edges]
        length = np.where(shift[:, along] == 0, 1.0, shift[:, along])[edges]
        share = np.clip((places - start[edges, along]) / length, 0.0, 1.0)
        others = start[edges, across] + share * shift[edges, across]
        nearest = np.rint(others)
        hit = (np.abs(others - nearest) <= ON_LINE) & (nearest >= 0) & (nearest < size[across])
        index = [np.empty(0, dtype=np.intp)] * 2
        index[along], index[across] = places[hit], nearest[hit].astype(np.intp)
        line[index[0], index[1]] = True
    return line
