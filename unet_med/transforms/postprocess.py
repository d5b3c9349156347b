"""What is done to a finished label image, slab by slab: a mask is in memory once, whatever its size.

Components are numbered in every slab on its own and joined where slabs touch; the slabs that hold something to change
are then numbered again, and it is changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from unet_med.config import Postprocess
from unet_med.errors import ConfigError
from unet_med.labels import LabelMap

_SLAB_VOXELS = 2**20
_KEPT = -1

LabelArray = npt.NDArray[np.integer[Any]]
IntArray = npt.NDArray[np.int64]


def postprocess_labels(
    labels: LabelArray, settings: Postprocess, label_map: LabelMap, out: LabelArray | None = None
) -> LabelArray:
    """Returns labels with small components removed, only the largest kept of the labels named, and holes filled.

    Components are face-connected; of several that are largest the first in index order stays. Holes are filled last:
    a hole is a component of background that does not reach the border of the image and that one label alone
    surrounds. (An axis of a single voxel has no border: a picture is filled as a picture.)

    Args:
        labels: (I, J[, K]).
        settings: What to do.
        label_map: Names of the labels.
        out: Where the result goes; ``labels`` itself for work in place. ``None`` leaves ``labels`` unchanged.

    Returns:
        ``out``; without it a new array, or ``labels`` itself where nothing is asked for.

    Raises:
        ConfigError: if ``keep_largest`` or ``fill_holes`` names a label that does not exist.
    """
    index = {label.name: label.index for label in label_map.labels}
    largest = _values(settings.keep_largest, index, "keep_largest")
    filled = _values(settings.fill_holes, index, "fill_holes")
    cleaned = set(index.values()) if settings.minimum_voxels > 1 else largest
    if out is None:
        out = labels.copy(order="K") if cleaned or filled else labels
    elif out is not labels:
        out[...] = labels
    if cleaned:
        components = _Components(out, cleaned)
        components.replace(components.unwanted(settings.minimum_voxels, largest))
    if filled:
        _fill_holes(out, filled)
    return out


def _values(names: Sequence[str], index: Mapping[str, int], key: str) -> set[int]:
    unknown = [name for name in names if name not in index]
    if unknown:
        raise ConfigError(f"no label is called {unknown[0]!r}", f"postprocess.{key}", f"use one of {sorted(index)}")
    return {index[name] for name in names}


def _fill_holes(labels: LabelArray, filled: set[int]) -> None:
    """Fills the holes of some labels in place; all of them lie in the box around these labels."""
    boxes = ndimage.find_objects(labels)
    found = [boxes[value - 1] for value in filled if value <= len(boxes) and boxes[value - 1] is not None]
    if not found:
        return
    box = tuple(
        slice(min(part.start for part in axis), max(part.stop for part in axis)) for axis in zip(*found, strict=True)
    )
    components = _Components(labels[box], {0})
    components.replace(components.enclosed(filled, [size > 1 for size in labels.shape]))


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
    """The components of some labels, or of background (0), in a label image (I, J[, K])."""

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

    def unwanted(self, minimum_voxels: int, largest: set[int]) -> IntArray:
        """Returns for each whole component 0 if it is too small, or not the largest where only that stays; else -1."""
        drop = self._sizes < minimum_voxels
        for label in largest:
            own = np.flatnonzero(self._values == label)
            if len(own) > 1:
                best = own[self._sizes[own] == self._sizes[own].max()]
                drop[own[own != (best[0] if len(best) == 1 else self._first(best))]] = True
        return np.where(drop, 0, _KEPT)

    def enclosed(self, by: set[int], has_border: Sequence[bool]) -> IntArray:
        """Returns for each whole component the label that alone surrounds it, if that is one of ``by``; else -1.

        Args:
            by: Labels.
            has_border: For each axis whether what reaches its ends is open there.
        """
        lowest = np.full(len(self._sizes), np.iinfo(np.int64).max)
        highest = np.full(len(self._sizes), _KEPT, dtype=np.int64)
        for slab in self._slabs:
            for group, label in self._touched(slab, [has_border[axis] for axis in self._order]):
                np.minimum.at(lowest, group, label)
                np.maximum.at(highest, group, label)
        return np.where((lowest == highest) & np.isin(lowest, list(by)), lowest, _KEPT)

    def _touched(self, slab: _Slab, has_border: Sequence[bool]) -> Iterator[tuple[IntArray, IntArray]]:
        """Yields whole components of background in a slab with the labels beside their voxels; 0 stands for outside."""
        start, stop = max(slab.start - 1, 0), min(slab.stop + 1, len(self._labels))
        planes = self._labels[start:stop]
        own = slice(slab.start - start, slab.stop - start)
        groups = np.full(planes.shape, _KEPT, dtype=np.int64)
        groups[own] = np.concatenate([[_KEPT], self._group[slab.own]])[self._numbers(planes[own])[0]]
        for axis in range(planes.ndim):
            low, high = _neighbours(planes.ndim, axis)
            for here, there in ((low, high), (high, low)):
                beside = (groups[here] >= 0) & (planes[there] > 0)
                yield groups[here][beside], planes[there][beside].astype(np.int64)
            is_end = (axis > 0 or start == 0, axis > 0 or stop == len(self._labels))
            for end in (0, -1) if has_border[axis] else ():
                outermost = np.unique(groups.take(end, axis=axis)) if is_end[end] else np.zeros(0, dtype=np.int64)
                outermost = outermost[outermost >= 0]
                yield outermost, np.zeros_like(outermost)

    def replace(self, values: IntArray) -> None:
        """Gives the voxels of each whole component a new value; -1 leaves them as they are."""
        for slab in self._slabs:
            new = values[self._group[slab.own]]
            if (new != _KEPT).any():
                planes = self._labels[slab.start : slab.stop]
                wanted = np.concatenate([[_KEPT], new])[self._numbers(planes)[0]]
                np.copyto(planes, wanted, where=wanted != _KEPT, casting="unsafe")

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
        everywhere = (slice(None),) * planes.ndim
        for label, box in enumerate([everywhere, *ndimage.find_objects(planes)]):
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


def _neighbours(ndim: int, axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Returns where voxels lie that have a next one along an axis, and where these next ones lie."""
    before = (slice(None),) * axis
    return (*before, slice(None, -1)), (*before, slice(1, None))


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
