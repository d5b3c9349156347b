"""Which images are nearly the same: cropped by a voxel or two, with noise, brighter, in another format.

Three looks, each at fewer pairs: the correlation of very coarse copies finds for each image those most like it; where
they lie on one another is found by a Fourier correlation of finer copies; there the grey values must agree, and so must
the structures that are left when slow changes and noise are taken away. Different patients in one place agree in the
first, not in the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

Grey = npt.NDArray[np.floating[Any]]

SAME_GREY = 0.9
"""Correlation of the grey values above which two images may be one."""

SAME_STRUCTURE = 0.95
"""Correlation of their structures, which must be reached, too."""

_CELLS = {2: 16, 3: 8}
_EDGE = {2: 96, 3: 48}
_MOST_CELLS = 2**20
_PARTNERS = 3
_COARSE = 0.5
_CLIP = (0.5, 99.5)
_STRUCTURE = (1.0, 4.0)
_SHIFT_SHARE = 0.125
_OVERLAP = 8
_SIZE_DIFFERENCE = (4, 0.1)
_FFT_CACHE = 32


@dataclass(frozen=True, eq=False)
class Likeness:
    """What is kept of an image to compare it with others.

    Attributes:
        shape: Of the image.
        coarse: Unit vector: means over a few cells, less their mean.
        fine: float16, means over cells of a few voxels, of mean 0 and standard deviation 1.
    """

    shape: tuple[int, ...]
    coarse: npt.NDArray[np.float32]
    fine: npt.NDArray[np.float16]


def cell_size(shapes: Sequence[tuple[int, ...]]) -> dict[int, tuple[int, ...]]:
    """Returns for pictures (2) and volumes (3) the voxels along each side of a cell: the same for a whole set."""
    sizes: dict[int, tuple[int, ...]] = {}
    for ndim in {len(shape) for shape in shapes}:
        median = np.median([shape for shape in shapes if len(shape) == ndim], axis=0)
        sizes[ndim] = tuple(max(1, int(np.ceil(length / _EDGE[ndim]))) for length in median)
    return sizes


def likeness(grey: Grey, cell: Sequence[int]) -> Likeness | None:
    """Returns what is kept of an image (I, J[, K]); ``None`` where nothing is seen in it, or it is far larger."""
    if any(length < 2 * size for length, size in zip(grey.shape, cell, strict=True)):
        return None
    fine = _means(grey, [np.arange(0, n - n % size, size) for n, size in zip(grey.shape, cell, strict=True)], cell)
    if fine.size > _MOST_CELLS:
        return None
    low, high = np.percentile(fine, _CLIP)
    fine = fine.clip(low, high)
    sd = float(fine.std())
    if not sd > 0:
        return None
    fine = (fine - fine.mean()) / sd
    starts = [np.arange(_CELLS[grey.ndim]) * n // _CELLS[grey.ndim] for n in fine.shape]
    coarse = _means(fine, starts).ravel()
    coarse -= coarse.mean()
    norm = float(np.linalg.norm(coarse))
    if not norm > 0:
        return None
    return Likeness(grey.shape, (coarse / norm).astype(np.float32), fine.astype(np.float16))


def _means(array: Grey, starts: Sequence[npt.NDArray[np.intp]], cell: Sequence[int] | None = None) -> Grey:
    """Returns means over parts that begin at ``starts`` and are ``cell`` long, or reach to the next."""
    means = array
    for axis, begin in enumerate(starts):
        if cell is not None:
            means = means[(slice(None),) * axis + (slice(len(begin) * cell[axis]),)]
        sums = np.add.reduceat(means, begin, axis=axis, dtype=np.float64)
        lengths = np.maximum(1, np.diff(np.append(begin, means.shape[axis])))
        means = sums / lengths.reshape([-1 if other == axis else 1 for other in range(array.ndim)])
    return np.asarray(means)


def near_duplicates(
    images: Sequence[Likeness | None], apart: Callable[[int, int], bool]
) -> Iterable[tuple[int, int, float]]:
    """Yields pairs of images that are nearly the same, and the correlation of their structures.

    Args:
        images: One for each image; ``None`` is like no other.
        apart: Whether a pair (the lower number first) matters.
    """
    compare = _Comparison(images)
    for one, other in sorted(_candidates(images, apart)):
        found = compare(one, other)
        if found >= SAME_STRUCTURE:
            yield one, other, found


def _candidates(images: Sequence[Likeness | None], apart: Callable[[int, int], bool]) -> set[tuple[int, int]]:
    """For each image the few that are most like it from afar."""
    pairs: set[tuple[int, int]] = set()
    for ndim in _CELLS:
        known = [(number, image) for number, image in enumerate(images) if image is not None and _ndim(image) == ndim]
        if len(known) < 2:
            continue
        vectors = np.stack([image.coarse for _, image in known])
        for place, (number, image) in enumerate(known):
            alike = vectors @ vectors[place]
            taken = 0
            for rank in np.argsort(-alike):
                partner, candidate = known[int(rank)]
                pair = (min(number, partner), max(number, partner))
                if taken == _PARTNERS or alike[rank] < _COARSE:
                    break
                if partner != number and _similar_size(image, candidate) and apart(*pair):
                    taken += 1
                    pairs.add(pair)
    return pairs


def _ndim(image: Likeness) -> int:
    return len(image.shape)


def _similar_size(one: Likeness, other: Likeness) -> bool:
    most, share = _SIZE_DIFFERENCE
    return all(abs(a - b) <= max(most, share * max(a, b)) for a, b in zip(one.shape, other.shape, strict=True))


class _Comparison:
    """Compares pairs; the structures of the last images are kept."""

    def __init__(self, images: Sequence[Likeness | None]) -> None:
        self._images = images
        self._structure = lru_cache(maxsize=_FFT_CACHE)(self._structure_of)

    def __call__(self, one: int, other: int) -> float:
        """Returns the correlation of the structures of two images where they lie best; 0 where grey values differ."""
        first, second = self._structure(one), self._structure(other)
        shift = _best_shift(first, second)
        if _peak(self._fine(one), self._fine(other), shift) < SAME_GREY:
            return 0.0
        return _peak(first, second, shift)

    def _fine(self, number: int) -> Grey:
        image = self._images[number]
        return np.zeros(0) if image is None else image.fine.astype(np.float32)

    def _structure_of(self, number: int) -> Grey:
        fine = self._fine(number)
        sharp, blurred = (ndimage.gaussian_filter(fine, sigma, mode="nearest") for sigma in _STRUCTURE)
        return np.asarray(sharp - blurred)


def _best_shift(one: Grey, other: Grey) -> tuple[int, ...]:
    """Returns how far ``other`` lies inside of ``one``, in cells, at most an eighth of their size."""
    reach = [max(2, round(_SHIFT_SHARE * max(a, b))) for a, b in zip(one.shape, other.shape, strict=True)]
    lengths = zip(one.shape, other.shape, reach, strict=True)
    shape = [fft.next_fast_len(max(a, b) + most, real=True) for a, b, most in lengths]
    alike = fft.irfftn(fft.rfftn(one, shape) * np.conj(fft.rfftn(other, shape)), shape)
    for axis, most in enumerate(reach):
        alike = np.concatenate([alike.take(range(most + 1), axis), alike.take(range(-most, 0), axis)], axis)
    best = np.unravel_index(int(alike.argmax()), alike.shape)
    return tuple(int(at) if at <= most else int(at) - 2 * most - 1 for at, most in zip(best, reach, strict=True))


def _peak(one: Grey, other: Grey, shift: tuple[int, ...]) -> float:
    """Returns the correlation at a shift, and of the peak beside it that a parabola along each axis shows."""
    centre = _correlation(one, other, shift)
    gain = 0.0
    for axis in range(len(shift)):
        low, high = (
            _correlation(one, other, tuple(s + step * (axis == at) for at, s in enumerate(shift))) for step in (-1, 1)
        )
        bend = 2.0 * centre - low - high
        if bend > 0 and low <= centre >= high:
            gain += (high - low) ** 2 / (8.0 * bend)
    return min(1.0, centre + gain)


def _correlation(one: Grey, other: Grey, shift: tuple[int, ...]) -> float:
    """Returns Pearson's correlation of ``one[x + shift]`` and ``other[x]`` where both exist; 0 of too small a part."""
    first: list[slice] = []
    second: list[slice] = []
    for a, b, step in zip(one.shape, other.shape, shift, strict=True):
        length = min(a - max(step, 0), b - max(-step, 0))
        if length < min(_OVERLAP, a, b):
            return 0.0
        first.append(slice(max(step, 0), max(step, 0) + length))
        second.append(slice(max(-step, 0), max(-step, 0) + length))
    x, y = one[tuple(first)].ravel(), other[tuple(second)].ravel()
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / scale if scale > 0 else 0.0
