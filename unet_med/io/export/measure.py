"""Size, centre and extent of every label of a mask, in one pass and in memory that does not grow with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.geometry import Geometry
from unet_med.io.mapped import let_go
from unet_med.volume import Region, slabs

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
        let_go(labels)
    return counts


class LabelSums:
    """Voxels and sums of indices of every label above 0, gathered part by part: whole numbers, exact up to 2**53.

    Args:
        ndim: Number of axes.
    """

    def __init__(self, ndim: int) -> None:
        self._counts = np.zeros(1)
        self._sums = np.zeros((ndim, 1))

    def add(self, values: npt.NDArray[Any], region: Region) -> None:
        """Counts the labels of one part; its first voxel has the index where ``region`` starts."""
        if not np.count_nonzero(values):
            return
        box = _labelled_box(values)
        part = values[box]
        order = sorted(range(part.ndim), key=lambda axis: -abs(part.strides[axis]))  # read in the order of memory
        turned = part.transpose(order)
        flat = turned.ravel().astype(np.intp)
        counts = np.bincount(flat, minlength=len(self._counts))
        counts[0] = 0
        missing = len(counts) - len(self._counts)
        self._counts = np.pad(self._counts, (0, missing)) + counts
        self._sums = np.pad(self._sums, ((0, 0), (0, missing)))
        for place, axis in enumerate(order):
            along = np.arange(turned.shape[place], dtype=np.float64).reshape(-1, *[1] * (part.ndim - place - 1))
            sums = np.bincount(flat, weights=np.broadcast_to(along, turned.shape).ravel(), minlength=len(counts))
            self._sums[axis] += sums + (region[axis].start + box[axis].start) * counts

    def centroids(self) -> dict[int, FloatArray]:
        """Returns the mean index (d,) of each label that occurs."""
        return {value: self._sums[:, value] / self._counts[value] for value in self._labels()}

    def measures(self, geometry: Geometry) -> dict[int, LabelMeasure]:
        """Returns the size and centre of each label that occurs on a grid."""
        return {
            value: LabelMeasure(int(self._counts[value]), index, geometry.to_world(index))
            for value, index in self.centroids().items()
        }

    def _labels(self) -> list[int]:
        return [int(value) for value in np.flatnonzero(self._counts[1:]) + 1]


def label_centroids(labels: npt.NDArray[Any]) -> dict[int, FloatArray]:
    """Returns the mean voxel index (d,) of each label above 0 of an integer array of d axes."""
    return _sums(labels).centroids()


def measure_labels(labels: npt.NDArray[Any], geometry: Geometry) -> dict[int, LabelMeasure]:
    """Returns the size and centre of each label above 0 of integers (I, J[, K]) on a grid."""
    return _sums(labels).measures(geometry)


def label_boxes(labels: npt.NDArray[np.unsignedinteger[Any]]) -> dict[int, Region]:
    """Returns the smallest box that holds each label above 0 which occurs."""
    from scipy import ndimage  # a quarter of a second that most formats need not wait

    boxes: dict[int, Region] = {}
    for region in slabs(labels):
        for value, found in enumerate(ndimage.find_objects(labels[region]), start=1):
            if found is not None:
                box = tuple(
                    slice(part.start + at.start, part.stop + at.start) for part, at in zip(found, region, strict=True)
                )
                boxes[value] = _joined(boxes[value], box) if value in boxes else box
    return boxes


def _sums(labels: npt.NDArray[Any]) -> LabelSums:
    sums = LabelSums(labels.ndim)
    for region in slabs(labels):
        sums.add(labels[region], region)
    return sums


def _joined(one: Region, other: Region) -> Region:
    return tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one, other, strict=True))


def _labelled_box(values: npt.NDArray[Any]) -> Region:
    """Returns the smallest box that holds all that is not 0, of which there is some."""
    labelled = values != 0
    lines = [
        np.flatnonzero(labelled.any(axis=tuple(other for other in range(values.ndim) if other != axis)))
        for axis in range(values.ndim)
    ]
    return tuple(slice(int(line[0]), int(line[-1]) + 1) for line in lines)
