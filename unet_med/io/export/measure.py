"""Size and centre of every label of a mask, in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.geometry import Geometry
from unet_med.volume import slabs

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LabelMeasure:
    """One label of a mask.

    Attributes:
        voxels: How many voxels it has, at least one.
        index: Mean voxel index (d,).
        centroid_mm: Where that is, RAS+ mm (index units when uncalibrated).
    """

    voxels: int
    index: FloatArray
    centroid_mm: FloatArray


def count_labels(labels: npt.NDArray[np.integer[Any]], highest: int = 0) -> npt.NDArray[np.int64]:
    """Returns how many voxels have the value 0, 1, 2, ... in labels of any shape and strides.

    ``numpy.bincount`` of a whole mask would hold 8 bytes for each voxel; here it is that of one slab.

    Args:
        labels: Whole numbers from 0 up.
        highest: The result reaches this value even where the labels do not.
    """
    counts = np.zeros(highest + 1, dtype=np.int64)
    for region in slabs(labels):
        found = np.bincount(labels[region].ravel(order="K"), minlength=len(counts))
        found[: len(counts)] += counts
        counts = found
    return counts


def label_centroids(labels: npt.NDArray[Any]) -> dict[int, FloatArray]:
    """Returns the mean voxel index (d,) of each label above 0 of an integer array of d axes."""
    return {value: sums / count for value, (count, sums) in _moments(labels).items()}


def measure_labels(labels: npt.NDArray[Any], geometry: Geometry) -> dict[int, LabelMeasure]:
    """Returns the size and centre of each label above 0 of integers (I, J[, K]) on a grid."""
    found: dict[int, LabelMeasure] = {}
    for value, (count, sums) in _moments(labels).items():
        index = sums / count
        found[value] = LabelMeasure(count, index, geometry.to_world(index))
    return found


def _moments(labels: npt.NDArray[Any]) -> dict[int, tuple[int, FloatArray]]:
    """Returns for each label above 0 the number of its voxels and the sum of their indices (d,)."""
    order = sorted(range(labels.ndim), key=lambda axis: abs(labels.strides[axis]))  # slowest axis last
    turned = labels.transpose(order)
    counts = np.zeros(1)
    sums = np.zeros((labels.ndim, 1))
    for last in range(turned.shape[-1]):
        slab = turned[..., last]
        if not slab.any():
            continue
        where = np.nonzero(slab.T)[::-1]  # read in the order of memory
        values = slab[where].astype(np.intp)
        size = max(len(counts), int(values.max()) + 1)
        counts = np.pad(counts, (0, size - len(counts))) + np.bincount(values, minlength=size)
        sums = np.pad(sums, ((0, 0), (0, size - sums.shape[1])))
        for axis, index in zip(order, (*where, np.full(values.shape, last)), strict=True):
            sums[axis] += np.bincount(values, weights=index, minlength=size)
    return {int(value): (int(counts[value]), sums[:, value]) for value in np.flatnonzero(counts)}
