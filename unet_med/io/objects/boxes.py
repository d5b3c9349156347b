"""Where the objects of a label image lie, and which of them can be looked at together when it is larger than memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from unet_med.io.mapped import let_go
from unet_med.volume import Region

Whole = npt.NDArray[np.int64]

_BLOCK = {2: 1024, 3: 112}
"""Voxels along each axis that are looked at together, by the axes of the image: more than a million."""


class LabelImage(Protocol):
    """Labels that can be cut by slices: an array, a memory map, a Zarr array, ..."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        ...

    def __getitem__(self, index: Any) -> Any:
        """Returns what :func:`numpy.asarray` makes the labels of a region."""
        ...


@dataclass(frozen=True, eq=False)
class ObjectBoxes:
    """The objects of a label image, by their number.

    Attributes:
        numbers: (n,) those that occur, ascending, without 0.
        low: (n, d) first voxel of each one's smallest box.
        high: (n, d) the voxel after its last.
    """

    numbers: Whole
    low: Whole
    high: Whole

    def __len__(self) -> int:
        return len(self.numbers)

    def region(self, place: int) -> Region:
        """Returns the box of the object at this place."""
        return tuple(slice(int(a), int(b)) for a, b in zip(self.low[place], self.high[place], strict=True))


def blocks(shape: Sequence[int], side: int | None = None) -> Iterator[Region]:
    """Yields regions that cover an image."""
    step = side or _BLOCK[len(shape)]
    for starts in product(*(range(0, n, step) for n in shape)):
        yield tuple(slice(start, min(start + step, n)) for start, n in zip(starts, shape, strict=True))


def block_labels(labels: LabelImage, region: Region) -> npt.NDArray[np.integer[Any]]:
    """Returns the labels of a region; of a mapped file nothing stays in memory of what was read before."""
    if isinstance(labels, np.ndarray):
        let_go(labels)
    values: npt.NDArray[np.integer[Any]] = np.asarray(labels[region])
    return values


def boxes_of(labels: LabelImage, side: int | None = None) -> ObjectBoxes:
    """Returns the boxes of all objects of a label image of any size, block by block.

    Args:
        labels: (I, J[, K]) whole numbers, 0 for background.
        side: Voxels of a block along each axis.
    """
    found = [_block_boxes(labels, region) for region in blocks(labels.shape, side)]
    numbers, low, high = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order, firsts = sorted_runs(numbers)
    if not len(firsts):
        return ObjectBoxes(numbers, low, high)
    low, high = np.minimum.reduceat(low[order], firsts), np.maximum.reduceat(high[order], firsts)
    return ObjectBoxes(numbers[order][firsts], low, high)


def sorted_runs(numbers: npt.NDArray[np.integer[Any]]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Returns the order that sorts numbers, and where in it the run of each different one begins."""
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    firsts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(ordered) else order
    return order, firsts


def _block_boxes(labels: LabelImage, region: Region) -> tuple[Whole, Whole, Whole]:
    values = block_labels(labels, region)
    places = np.nonzero(values)
    order, firsts = sorted_runs(values[places])
    numbers = values[places][order][firsts].astype(np.int64)
    low, high = np.empty((2, len(numbers), values.ndim), dtype=np.int64)
    for axis, (along, part) in enumerate(zip(places, region, strict=True)):
        if len(numbers):
            low[:, axis] = np.minimum.reduceat(along[order], firsts) + part.start
            high[:, axis] = np.maximum.reduceat(along[order], firsts) + part.start + 1
    return numbers, low, high


def whole_objects(
    labels: LabelImage, boxes: ObjectBoxes, side: int | None = None
) -> Iterator[tuple[Region, npt.NDArray[np.integer[Any]], npt.NDArray[np.intp]]]:
    """Yields regions in which some objects are whole, the labels of these objects there, and their places in ``boxes``.

    Each object comes once. What is in memory is a block and the objects that begin in it.
    """
    step = side or _BLOCK[len(labels.shape)]
    cells = boxes.low // step
    keys = np.ravel_multi_index(tuple(cells.T), tuple(-(-n // step) for n in labels.shape))
    order, firsts = sorted_runs(keys)
    for members in np.split(order, firsts[1:]) if len(order) else ():
        low, high = boxes.low[members].min(axis=0), boxes.high[members].max(axis=0)
        region = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        values = block_labels(labels, region)
        wanted = np.sort(boxes.numbers[members])
        if len(keys) > len(members):
            values = np.where(np.isin(values, wanted), values, 0)
        yield region, values, members
