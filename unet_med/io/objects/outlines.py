"""The exact outlines of the objects of a label image: polygons along the sides of their pixels.

Coordinates are those of QuPath and ImageJ: the first pixel reaches from 0 to 1. A polygon is a list of rings, the
outline and the holes. Pixels of one object that touch only at a corner belong to different polygons, and a ring never
meets itself, so that every polygon is a valid one. Filling them gives back the object, pixel by pixel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ring = npt.NDArray[np.int64]
Polygons = list[list[Ring]]

_STEP = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
"""Directions in which sides are walked; the object lies on the side of the next one, what is outside on that before."""

_CORNER = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
"""Where a side of each direction begins, seen from the first corner of its pixel."""


def outlines(labels: npt.NDArray[np.integer[Any]], start: tuple[int, int] = (0, 0)) -> dict[int, Polygons]:
    """Returns the polygons of every object of a picture.

    Args:
        labels: (I, J) whole numbers, 0 for background.
        start: Where the picture lies in a larger one.

    Returns:
        For each number its polygons; each a list of rings (n, 2), x and y in pixels, first the outline (its signed
        area is positive), then the holes (negative). The first corner is not repeated at the end.
    """
    from skimage.measure import label  # half a second that other formats need not wait

    found: dict[int, Polygons] = {int(number): [] for number in np.unique(labels) if number}
    if not found:
        return found
    pieces = np.pad(label(labels, background=0, connectivity=1), 1)
    sides = _sides(pieces)
    polygons: dict[int, list[Ring]] = {}
    numbers: dict[int, int] = {}
    for first, ring in _rings(sides):
        pixel = int(sides.pixels[first])
        piece = int(pieces.flat[pixel])
        i, j = divmod(pixel, pieces.shape[1])
        numbers[piece] = int(labels[i - 1, j - 1])
        polygons.setdefault(piece, []).append(ring + start)
    for piece, rings in polygons.items():
        found[numbers[piece]].append(_outline_first(rings))
    return found


@dataclass(frozen=True, eq=False)
class _Sides:
    """The sides of pixels that an outline follows.

    Attributes:
        pixels: Flat place of the pixel inside of each, in the padded picture.
        corners: (n, 2) where each begins, in the picture.
        following: Which side comes next.
        turns: Whether the outline turns where a side begins.
        meets: Whether another part of the outline of the same piece passes there, too.
    """

    pixels: npt.NDArray[np.int64]
    corners: Ring
    following: npt.NDArray[np.int64]
    turns: npt.NDArray[np.bool_]
    meets: npt.NDArray[np.bool_]


def _sides(pieces: npt.NDArray[np.integer[Any]]) -> _Sides:
    """Returns all sides between a piece and something else; the pieces have a margin of one pixel of 0."""
    width = pieces.shape[1]
    flat = pieces.ravel()
    inside = np.flatnonzero(flat)
    move = _STEP @ np.array([width, 1])
    own = [inside[flat[inside + move[(way + 3) % 4]] != flat[inside]] for way in range(4)]
    offsets = np.cumsum([0, *(len(pixels) for pixels in own)])
    following = np.empty(offsets[-1], dtype=np.int64)
    turns, meets = np.zeros((2, offsets[-1]), dtype=np.bool_)
    for way, pixels in enumerate(own):
        piece = flat[pixels]
        ahead, beside = pixels + move[way], pixels + move[way] + move[(way + 3) % 4]
        goes_on, cornered = flat[ahead] == piece, flat[beside] == piece
        outwards, inwards = goes_on & cornered, ~goes_on
        here = following[offsets[way] : offsets[way + 1]]
        for chosen, target, direction in (
            (outwards, beside, (way + 3) % 4),
            (goes_on & ~cornered, ahead, way),
            (inwards, pixels, (way + 1) % 4),
        ):
            here[chosen] = offsets[direction] + np.searchsorted(own[direction], target[chosen])
        turns[here[outwards | inwards]] = True
        meets[here[inwards & cornered]] = True
    pixels = np.concatenate(own)
    corners = np.stack(np.divmod(pixels, width), axis=1) - 1 + np.repeat(_CORNER, np.diff(offsets), axis=0)
    return _Sides(pixels, corners, following, turns, meets)


def _rings(sides: _Sides) -> Iterator[tuple[int, Ring]]:
    """Yields closed lines of corners, each with one of its sides."""
    following, turns = sides.following.tolist(), sides.turns.tolist()
    done = bytearray(len(following))
    for first in range(len(following)):
        if done[first]:
            continue
        ring: list[int] = []
        here = first
        while not done[here]:
            done[here] = 1
            if turns[here]:
                ring.append(here)
            here = following[here]
        for part in _apart(ring, sides) if sides.meets[ring].any() else (ring,):
            yield first, sides.corners[part]


def _apart(ring: list[int], sides: _Sides) -> Iterator[list[int]]:
    """Yields the parts of a ring that passes some corners twice, none of which does."""
    walked: list[int] = []
    seen: dict[tuple[int, int], int] = {}
    for here in ring:
        i, j = sides.corners[here].tolist()
        begin = seen.get((i, j))
        if begin is not None:
            yield walked[begin:]
            for gone in walked[begin:]:
                del seen[tuple(sides.corners[gone].tolist())]
            del walked[begin:]
        seen[i, j] = len(walked)
        walked.append(here)
    yield walked


def _outline_first(rings: list[Ring]) -> list[Ring]:
    return rings if len(rings) == 1 else sorted(rings, key=lambda ring: -signed_area(ring))


def signed_area(ring: Ring) -> float:
    """Returns the area in pixels; negative for a ring that goes round a hole."""
    x, y = ring.T
    return 0.5 * float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))
