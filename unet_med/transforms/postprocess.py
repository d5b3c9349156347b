"""What is done to a finished label image, slab by slab: a mask is in memory once, whatever its size.

Components are numbered in every slab on its own and joined where slabs touch; the slabs that hold something to remove
are then numbered again, and it is removed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from unet_med.config import Postprocess
from unet_med.errors import ConfigError
from unet_med.labels import LabelMap

_SLAB_VOXELS = 2**20

LabelArray = npt.NDArray[np.integer[Any]]
IntArray = npt.NDArray[np.int64]


def postprocess_labels(
    labels: LabelArray, settings: Postprocess, label_map: LabelMap, out: LabelArray | None = None
) -> LabelArray:
    """Returns labels with small components removed and, for the labels named, only the largest kept.

    Components are face-connected; of several that are largest the first in index order stays.

    Args:
        labels: (I, J[, K]).
        settings: What to remove.
        label_map: Names of the labels.
        out: Where the result goes; ``labels`` itself for work in place. ``None`` leaves ``labels`` unchanged.

    Returns:
        ``out``; without it a new array, or ``labels`` itself where nothing is asked for.

    Raises:
        ConfigError: if ``keep_largest`` names a label that does not exist.
    """
    index = {label.name: label.index for label in label_map.labels}
    unknown = [name for name in settings.keep_largest if name not in index]
    if unknown:
        raise ConfigError(
            f"no label is called {unknown[0]!r}", "postprocess.keep_largest", f"use one of {sorted(index)}"
        )
    largest = {index[name] for name in settings.keep_largest}
    treated = set(index.values()) if settings.minimum_voxels > 1 else largest
    if out is None:
        out = labels.copy(order="K") if treated else labels
    elif out is not labels:
        out[...] = labels
    if treated:
        components = _Components(out, treated)
        components.remove(components.unwanted(settings.minimum_voxels, largest))
    return out


@dataclass(frozen=True, eq=False)
class _Slab:
    """Some planes and their components, which are numbered through all slabs.

    Attributes:
        start, stop: The planes.
        first: Number of its first component.
        values, sizes: Label and voxels of each of its components.
    """

    start: int
    stop: int
    first: int
    values: IntArray
    sizes: IntArray

    @property
    def own(self) -> slice:
        """The numbers of its components."""
        return slice(self.first, self.first + len(self.values))


class _Components:
    """The components of some labels in a label image (I, J[, K])."""

    def __init__(self, labels: LabelArray, treated: set[int]) -> None:
        self._shape = labels.shape
        self._order = sorted(range(labels.ndim), key=lambda axis: -abs(labels.strides[axis]))
        self._labels = labels.transpose(self._order)  # planes, one after the other in memory
        self._treated = treated
        self._slabs: list[_Slab] = []
        touching = list(self._number_all())
        values = np.concatenate([slab.values for slab in self._slabs])
        self._group = _joined(touching, len(values))
        """Of each numbered component the whole one that it belongs to."""
        groups = int(self._group.max(initial=-1)) + 1
        self._sizes = np.zeros(groups, dtype=np.int64)
        np.add.at(self._sizes, self._group, np.concatenate([slab.sizes for slab in self._slabs]))
        self._values = np.zeros(groups, dtype=np.int64)
        self._values[self._group] = values

    def unwanted(self, minimum_voxels: int, largest: set[int]) -> npt.NDArray[np.bool_]:
        """Returns for each whole component whether it is too small, or not the largest where only that stays."""
        drop = self._sizes < minimum_voxels
        for label in largest:
            own = np.flatnonzero(self._values == label)
            if len(own) > 1:
                best = own[self._sizes[own] == self._sizes[own].max()]
                drop[own[own != (best[0] if len(best) == 1 else self._first(best))]] = True
        return drop

    def remove(self, drop: npt.NDArray[np.bool_]) -> None:
        """Turns the whole components that are to be dropped into background."""
        for slab in self._slabs:
            gone = drop[self._group[slab.own]]
            if gone.any():
                planes = self._labels[slab.start : slab.stop]
                planes[np.concatenate([[False], gone])[self._numbers(planes)[0]]] = 0

    def _first(self, groups: IntArray) -> int:
        """Returns which of some whole components holds the first voxel in index order."""
        steps = np.array([np.prod(self._shape[axis + 1 :], dtype=np.int64) for axis in self._order])
        firsts: list[tuple[int, int]] = []
        for slab in self._slabs:
            group = self._group[slab.own]
            if np.isin(group, groups).any():
                numbers = self._numbers(self._labels[slab.start : slab.stop])[0]
                place = np.nonzero(np.concatenate([[False], np.isin(group, groups)])[numbers])
                index = steps @ np.stack(place) + steps[0] * slab.start
                nearest = int(np.argmin(index))
                firsts.append((int(index[nearest]), int(group[numbers[place][nearest] - 1])))
        return min(firsts)[1]

    def _number_all(self) -> Iterator[IntArray]:
        """Fills the slabs; yields pairs (2, n) of components that touch across two slabs."""
        planes = max(1, _SLAB_VOXELS // max(1, int(np.prod(self._labels.shape[1:]))))
        first = 0
        before: IntArray | None = None
        for start in range(0, len(self._labels), planes):
            stop = min(start + planes, len(self._labels))
            numbers, values, sizes = self._numbers(self._labels[start:stop])
            slab = _Slab(start, stop, first, values, sizes)
            self._slabs.append(slab)
            above = _numbered(numbers[0], slab)
            if before is not None:
                same = (before >= 0) & (above >= 0) & (self._labels[start - 1] == self._labels[start])
                yield np.unique(np.stack([before[same], above[same]]), axis=1)
            before = _numbered(numbers[-1], slab)
            first += len(values)

    def _numbers(self, planes: LabelArray) -> tuple[npt.NDArray[np.int32], IntArray, IntArray]:
        """Numbers the components of some planes from 1; returns also the label and the voxels of each."""
        numbers = np.zeros(planes.shape, dtype=np.int32)
        values: list[IntArray] = [np.zeros(0, dtype=np.int64)]
        count = 0
        for label, box in enumerate(ndimage.find_objects(planes), start=1):
            if box is None or label not in self._treated:
                continue
            mask = planes[box] == label
            found, new = ndimage.label(mask)
            if count:
                found += mask * np.int32(count)
            numbers[box] += found
            values.append(np.full(new, label, dtype=np.int64))
            count += new
        return numbers, np.concatenate(values), np.bincount(numbers.ravel(), minlength=count + 1)[1:]


def _numbered(plane: npt.NDArray[np.int32], slab: _Slab) -> IntArray:
    """Returns the components of a plane numbered through all slabs, -1 for none."""
    return np.where(plane > 0, plane.astype(np.int64) + (slab.first - 1), -1)


def _joined(touching: list[IntArray], count: int) -> IntArray:
    """Returns for each of ``count`` components, of which some touch, the whole one that it belongs to."""
    pairs = np.concatenate([np.zeros((2, 0), dtype=np.int64), *touching], axis=1)
    if not pairs.size:
        return np.arange(count)
    from scipy.sparse import coo_array  # not needed where one slab holds everything
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(pairs.shape[1], dtype=bool), (pairs[0], pairs[1])), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)
