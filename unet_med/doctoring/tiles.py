"""Which pictures are tiles of one: the last column of one goes on in the first column of another.

Two neighbouring columns of a picture differ by no more than any other two. How well edges agree by chance is seen in
the same set: edges that were turned round or rolled cannot belong together. Only what agrees far better counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Grey = npt.NDArray[np.floating[Any]]
Lines = npt.NDArray[np.float32]

SAME_EDGE = 0.8
"""Correlation above which one edge may go on in another."""

MOST_STEP = 1.6
"""How much larger than the steps inside the pictures the step from one to the other may be."""

_SHORTEST = 32
_LONGEST = 4096
_SLOW = 8
_FLAT = 0.05
_ROWS = 512
_ROLLS = (0.23, 0.41, 0.67)


@dataclass(frozen=True, eq=False)
class Edges:
    """The four edges of a picture (I, J): first and last column, first and last row.

    Attributes:
        left, right: (J,) grey values.
        top, bottom: (I,) grey values.
        steps: Mean difference of each of them to the line inside of it, in this order.
    """

    left: Lines
    right: Lines
    top: Lines
    bottom: Lines
    steps: tuple[float, float, float, float]


def edges(grey: Grey) -> Edges | None:
    """Returns the edges of a picture; ``None`` of volumes and of pictures that are too small or very large."""
    if grey.ndim != 2 or min(grey.shape) < _SHORTEST or max(grey.shape) > _LONGEST:
        return None
    lines = (grey[0], grey[-1], grey[:, 0], grey[:, -1])
    inner = (grey[1], grey[-2], grey[:, 1], grey[:, -2])
    steps = [float(np.abs(a - b).mean()) for a, b in zip(lines, inner, strict=True)]
    left, right, top, bottom = (np.array(line, dtype=np.float32) for line in lines)
    return Edges(left, right, top, bottom, (steps[0], steps[1], steps[2], steps[3]))


def neighbours(pictures: Sequence[Edges | None], apart: Callable[[int, int], bool]) -> Iterable[tuple[int, int, str]]:
    """Yields ``(one, other, edge)``: the right or bottom edge of ``one`` goes on in ``other``.

    Args:
        pictures: One for each picture; ``None`` has no neighbour.
        apart: Whether a pair matters.
    """
    for side in ("right", "bottom"):
        ends = [None if one is None else _end(one, side) for one in pictures]
        for length in sorted({len(end[0]) for end in ends if end is not None}):
            members = {n: end for n, end in enumerate(ends) if end is not None and len(end[0]) == length}
            for one, other in _joined(members, apart):
                yield one, other, side


_End = tuple[Lines, float, Lines, float]


def _end(picture: Edges, side: str) -> _End:
    """The last line and the first line across one axis, each with the step inside of it."""
    if side == "right":
        return picture.right, picture.steps[1], picture.left, picture.steps[0]
    return picture.bottom, picture.steps[3], picture.top, picture.steps[2]


def _joined(members: Mapping[int, _End], apart: Callable[[int, int], bool]) -> Iterator[tuple[int, int]]:
    """Yields the pictures of which the last line of one goes on in the first line of the other."""
    if len(members) < 2:
        return
    numbers, ends = list(members), list(members.values())
    last, first = np.stack([end[0] for end in ends]), np.stack([end[2] for end in ends])
    shapes_last, shapes_first = _structure(last), _structure(first)
    limit = _limit(shapes_last, shapes_first)
    best_next, best_before = _best(shapes_last, shapes_first), _best(shapes_first, shapes_last)
    for one, (other, alike) in best_next.items():
        if alike < limit or best_before[other][0] != one or not apart(numbers[one], numbers[other]):
            continue
        if _without_the_strongest(shapes_last[one], shapes_first[other]) < SAME_EDGE:
            continue
        step = float(np.abs(last[one] - first[other]).mean())
        if step <= MOST_STEP * 0.5 * (ends[one][1] + ends[other][3]):
            yield numbers[one], numbers[other]


def _structure(lines: Lines) -> Lines:
    """Returns lines without slow changes, of length 1; 0 where nothing but noise would be left."""
    slow = ndimage.gaussian_filter1d(lines, lines.shape[1] / _SLOW, axis=1, mode="nearest")
    fast = lines - slow
    fast -= fast.mean(axis=1, keepdims=True)
    size = np.linalg.norm(fast, axis=1, keepdims=True)
    spread = np.linalg.norm(lines - lines.mean(axis=1, keepdims=True), axis=1, keepdims=True)
    structured = (size > 0) & (size > _FLAT * spread)
    return np.where(structured, fast / np.where(structured, size, 1.0), 0.0).astype(np.float32)


def _without_the_strongest(one: Lines, other: Lines) -> float:
    """Returns how edges correlate beside the structure in which they agree most: one alone agrees by chance."""
    places = np.arange(len(one))
    beside = np.abs(places - int((one * other).argmax())) > len(one) / _SLOW
    first, second = one[beside] - one[beside].mean(), other[beside] - other[beside].mean()
    scale = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / scale if scale > 0 else 0.0


def _limit(last: Lines, first: Lines) -> float:
    """Returns what correlation counts: half way from the best of edges that cannot belong together to 1."""
    length = last.shape[1]
    strangers = [first[:, ::-1], *(np.roll(first, round(share * length), axis=1) for share in _ROLLS)]
    chance = max(float(alike.max()) for other in strangers for _, alike in _rows(last, other))
    return max(SAME_EDGE, (1.0 + chance) / 2.0)


def _best(lines: Lines, others: Lines) -> dict[int, tuple[int, float]]:
    """Returns for each line the most like of the other pictures' and the correlation."""
    best: dict[int, tuple[int, float]] = {}
    for start, alike in _rows(lines, others):
        numbers = np.arange(len(alike))
        alike[numbers, start + numbers] = -1.0
        chosen = alike.argmax(axis=1)
        best |= {start + n: (int(chosen[n]), float(alike[n, chosen[n]])) for n in range(len(alike))}
    return best


def _rows(lines: Lines, others: Lines) -> Iterator[tuple[int, Lines]]:
    for start in range(0, len(lines), _ROWS):
        yield start, lines[start : start + _ROWS] @ others.T
