"""What the blocks of a label image say of its objects, and how that becomes what the whole image says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.instances.convexity import Lines, Whole, hull_voxels
from unet_med.io.objects.boxes import LabelImage, block_labels, sorted_runs
from unet_med.volume import Region

Floats = npt.NDArray[np.float64]

_HALO = 2
"""Voxels beyond a block that decide what its outlines are."""


def _length_of_kind() -> Floats:
    lengths = np.zeros(50)
    lengths[[5, 7, 15, 17, 25, 27]] = 1.0
    lengths[[21, 33]] = math.sqrt(2)
    lengths[[13, 23]] = (1 + math.sqrt(2)) / 2
    return lengths


_LENGTH_OF_KIND = _length_of_kind()
"""What a pixel adds to a perimeter: by 1, 2 for each neighbour beside and 10 for each across a corner."""


@dataclass(frozen=True, eq=False)
class ObjectSums:
    """What one block says of the objects in it.

    Attributes:
        numbers: (n,) ascending.
        voxels: (n,).
        low: (n, d) first voxel of the box.
        high: (n, d) the voxel after the last.
        mean: (n, d) mean index.
        scatter: (n, d, d) sum of the products of distances from the mean index.
        perimeter: (n,) in pixels, as far as it lies in the block; NaN for volumes.
        hull: (n,) voxels of the convex hull; 0 where the object is not whole in the block.
        lines: Of objects that are not whole.
        values: (4, n, channels) mean, sum of squared differences from it, smallest and largest intensity.
    """

    numbers: Whole
    voxels: Whole
    low: Whole
    high: Whole
    mean: Floats
    scatter: Floats
    perimeter: Floats
    hull: Whole
    lines: Lines
    values: Floats


# ---- one block ------------------------------------------------------------------------------------------------------


def sums_of_block(labels: LabelImage, image: Any, region: Region) -> ObjectSums:
    """Returns the sums of one block.

    Args:
        labels: (I, J[, K]) numbers of objects.
        image: (C, I, J[, K]) intensities, or ``None``.
        region: The block.
    """
    values = block_labels(labels, region)
    origin = np.array([part.start for part in region])
    places, firsts, numbers = _by_object(values)
    voxels = np.diff(np.r_[firsts, len(places)])
    low, high = _reduced(np.minimum, places, firsts), _reduced(np.maximum, places, firsts) + 1
    mean = _reduced(np.add, places, firsts) / voxels[:, np.newaxis]
    away = places - np.repeat(mean, voxels, axis=0)
    scatter = _reduced(np.add, away[:, :, np.newaxis] * away[:, np.newaxis, :], firsts)
    lines = _lines(np.repeat(numbers, voxels), places)
    inner = (
        np.array([part.start > 0 for part in region]),
        np.array([part.stop < n for part, n in zip(region, labels.shape, strict=True)]),
    )
    whole = ~(((low == 0) & inner[0]) | ((high == values.shape) & inner[1])).any(axis=1)
    hull = np.zeros(len(numbers), dtype=np.int64)
    hull[whole] = hull_voxels(lines.of(numbers[whole]))[1]
    return ObjectSums(
        numbers,
        voxels,
        low + origin,
        high + origin,
        mean + origin,
        scatter,
        _perimeter(labels, region, numbers) if values.ndim == 2 else np.full(len(numbers), np.nan),
        hull,
        lines.of(numbers[~whole]).moved(origin),
        _block_intensities(image, region, places, firsts, voxels),
    )


def _by_object(
    values: npt.NDArray[np.integer[Any]],
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Whole]:
    """Returns the voxels (n, d) of a block by object, where those of each object begin, and the objects' numbers."""
    places = np.stack(np.nonzero(values), axis=1)
    order, firsts = sorted_runs(values[tuple(places.T)])
    places = places[order]
    return places, firsts, values[tuple(places[firsts].T)].astype(np.int64)


def _reduced(how: np.ufunc, values: npt.NDArray[Any], firsts: npt.NDArray[np.intp]) -> npt.NDArray[Any]:
    """Returns ``how`` over runs of rows."""
    reduced: npt.NDArray[Any] = how.reduceat(values, firsts, axis=0) if len(firsts) else values
    return reduced


def _lines(numbers: Whole, places: npt.NDArray[np.intp]) -> Lines:
    """Returns the lines of all objects of a block; voxels are sorted by number, then by place."""
    lead = places[:, :-1]
    changed = (lead[1:] != lead[:-1]).any(axis=1) | (numbers[1:] != numbers[:-1])
    begins = np.flatnonzero(np.r_[True, changed]) if len(places) else np.empty(0, dtype=np.intp)
    ends = np.r_[begins[1:], len(places)] - 1 if len(places) else begins
    along = places[:, -1]
    return Lines(numbers[begins], lead[begins], along[begins], along[ends])


def _perimeter(labels: LabelImage, region: Region, numbers: Whole) -> Floats:
    """Returns the length of the line through the outermost pixels of each object, as far as it lies in a block.

    A pixel counts 1, the root of 2 or their mean by how its neighbours on the line lie.
    """
    wide = tuple(
        slice(max(part.start - _HALO, 0), min(part.stop + _HALO, n))
        for part, n in zip(region, labels.shape, strict=True)
    )
    values = block_labels(labels, wide)
    margins = [
        (_HALO - (part.start - w.start), _HALO - (w.stop - part.stop)) for part, w in zip(region, wide, strict=True)
    ]
    values = np.pad(values, margins)
    centre = values[1:-1, 1:-1]
    on_edge = np.zeros(centre.shape, dtype=np.bool_)
    for i, j in ((0, 1), (2, 1), (1, 0), (1, 2)):
        on_edge |= values[i : i + centre.shape[0], j : j + centre.shape[1]] != centre
    line = np.where(on_edge, centre, 0)
    at = np.nonzero(line[1:-1, 1:-1])
    own = line[1:-1, 1:-1][at]
    kind = np.ones(len(own), dtype=np.int64)
    for i in range(3):
        for j in range(3):
            if (i, j) != (1, 1):
                kind += (2 if 1 in (i, j) else 10) * (line[at[0] + i, at[1] + j] == own)
    lengths = np.bincount(
        np.searchsorted(numbers, own.astype(np.int64)), weights=_LENGTH_OF_KIND[kind], minlength=len(numbers)
    )
    return np.asarray(lengths, dtype=np.float64)


def _block_intensities(
    image: Any, region: Region, places: npt.NDArray[np.intp], firsts: npt.NDArray[np.intp], voxels: Whole
) -> Floats:
    if image is None:
        return np.empty((4, len(voxels), 0))
    found = np.asarray(image[(slice(None), *region)])[(slice(None), *places.T)].T.astype(np.float64)
    mean = _reduced(np.add, found, firsts) / voxels[:, np.newaxis]
    spread = _reduced(np.add, (found - np.repeat(mean, voxels, axis=0)) ** 2, firsts)
    return np.stack([mean, spread, _reduced(np.minimum, found, firsts), _reduced(np.maximum, found, firsts)])


# ---- all blocks -----------------------------------------------------------------------------------------------------


def sums_of_image(labels: LabelImage, image: Any, regions: Sequence[Region]) -> ObjectSums:
    """Returns what a whole image says of its objects.

    Args:
        labels: (I, J[, K]) numbers of objects.
        image: (C, I, J[, K]) intensities, or ``None``.
        regions: Blocks that cover it.
    """
    parts = [sums_of_block(labels, image, region) for region in regions]
    if len(parts) == 1:
        return parts[0]
    lines = [part.lines for part in parts]
    torn = _torn(parts)
    if len(torn):
        lines += [_lines_of(labels, region, torn) for region in regions]
    return _merged(parts, Lines.joined(lines))


def _torn(parts: Sequence[ObjectSums]) -> Whole:
    """Returns the objects of which a piece looks whole in one block while another lies in another block."""
    every = np.concatenate([part.numbers for part in parts])
    numbers, counts = np.unique(every, return_counts=True)
    looks_whole = every[np.concatenate([part.hull for part in parts]) > 0]
    return np.intersect1d(numbers[counts > 1], looks_whole)


def _lines_of(labels: LabelImage, region: Region, numbers: Whole) -> Lines:
    places, firsts, own = _by_object(block_labels(labels, region))
    lines = _lines(np.repeat(own, np.diff(np.r_[firsts, len(places)])), places)
    return lines.of(numbers).moved(np.array([part.start for part in region]))


def _merged(parts: Sequence[ObjectSums], lines: Lines) -> ObjectSums:
    """Returns the objects of an image from what its blocks say of them, and the lines of those that no block holds."""
    every = np.concatenate([part.numbers for part in parts])
    order, firsts = sorted_runs(every)
    numbers = every[order][firsts]

    def column(name: str, axis: int = 0) -> npt.NDArray[Any]:
        return np.concatenate([getattr(part, name) for part in parts], axis=axis).take(order, axis=axis)

    voxels = column("voxels")
    total = _reduced(np.add, voxels, firsts)
    counts = np.diff(np.r_[firsts, len(every)])
    mean, away = _joined_means(column("mean"), voxels, firsts, total, counts)
    between = voxels[:, np.newaxis, np.newaxis] * away[:, :, np.newaxis] * away[:, np.newaxis, :]
    hull = _reduced(np.add, column("hull"), firsts)
    late, areas = hull_voxels(lines)
    hull[np.searchsorted(numbers, late)] = areas
    values = column("values", axis=1)
    value, off = _joined_means(values[0], voxels, firsts, total, counts)
    spread = values[1] + voxels[:, np.newaxis] * off**2
    return ObjectSums(
        numbers,
        total,
        _reduced(np.minimum, column("low"), firsts),
        _reduced(np.maximum, column("high"), firsts),
        mean,
        _reduced(np.add, column("scatter") + between, firsts),
        _reduced(np.add, column("perimeter"), firsts),
        hull,
        lines,
        np.stack(
            [
                value,
                _reduced(np.add, spread, firsts),
                _reduced(np.minimum, values[2], firsts),
                _reduced(np.maximum, values[3], firsts),
            ]
        ),
    )


def _joined_means(
    means: Floats, voxels: Whole, firsts: npt.NDArray[np.intp], total: Whole, counts: npt.NDArray[np.intp]
) -> tuple[Floats, Floats]:
    """Returns the means of whole objects, and how far that of each part is from it."""
    whole = _reduced(np.add, means * voxels[:, np.newaxis], firsts) / total[:, np.newaxis]
    return whole, means - np.repeat(whole, counts, axis=0)
