"""Which objects of two label images lie on each other, and in how many voxels: a sparse table, made in one pass.

Everything that compares objects (matching, tracking, membranes) is computed from this table and never looks at voxels
again. Voxels are first joined to runs of equal pairs along the memory, so that sorting is by runs and not by voxels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.errors import InputRefusedError
from unet_med.volume import slabs

IntArray = npt.NDArray[np.integer[Any]]
FloatArray = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

_BLOCK_VOXELS = 2**24
_COUNTED_UP_TO = 2**22
"""Numbers below this (and those no larger than the array is long) are counted instead of sorted."""


@dataclass(frozen=True, eq=False)
class Overlap:
    """The objects of a mask and of a truth, and what they share; 0 is background and no object.

    Attributes:
        mask_ids: (n,) numbers of the predicted objects, ascending.
        label_ids: (m,) numbers of the true objects, ascending.
        mask_voxels: (n,) sizes of the predicted objects.
        label_voxels: (m,) sizes of the true objects.
        rows: (p,) position in ``mask_ids`` of the predicted object of each pair that shares a voxel.
        columns: (p,) position in ``label_ids`` of the true one.
        shared: (p,) voxels that the two have in common.
    """

    mask_ids: Index
    label_ids: Index
    mask_voxels: Index
    label_voxels: Index
    rows: Index
    columns: Index
    shared: Index

    @property
    def union(self) -> Index:
        """(p,) voxels that belong to either object of a pair."""
        return self.mask_voxels[self.rows] + self.label_voxels[self.columns] - self.shared

    @property
    def iou(self) -> FloatArray:
        """(p,) intersection over union of each pair, above 0 and up to 1."""
        return self.shared / self.union

    def only(self, masks: npt.NDArray[np.bool_], labels: npt.NDArray[np.bool_]) -> Overlap:
        """Returns the table of some of the predicted (n,) and some of the true (m,) objects."""
        kept = masks[self.rows] & labels[self.columns]
        return Overlap(
            self.mask_ids[masks],
            self.label_ids[labels],
            self.mask_voxels[masks],
            self.label_voxels[labels],
            (np.cumsum(masks) - 1)[self.rows[kept]],
            (np.cumsum(labels) - 1)[self.columns[kept]],
            self.shared[kept],
        )


def overlap_table(mask: IntArray, label: IntArray) -> Overlap:
    """Returns which objects of two label images overlap.

    Args:
        mask: Numbers of predicted objects, 0 is background, any shape.
        label: Numbers of true objects of the same shape.

    Raises:
        InputRefusedError: if the shapes differ.
    """
    same_shape(mask, label)
    return overlap_of_blocks((mask[region], label[region]) for region in slabs(mask, _BLOCK_VOXELS))


def overlap_of_blocks(blocks: Iterable[tuple[IntArray, IntArray]]) -> Overlap:
    """Returns the same of images that are too large for the memory, from blocks that cover each voxel once.

    Args:
        blocks: The same region of the mask and of the truth, of equal shape; objects may lie in several blocks.
    """
    nothing = np.zeros(0, dtype=np.int64)
    counted = [(nothing, nothing, nothing), *(_pairs(mask, label) for mask, label in blocks)]
    ours, theirs, voxels = _joined(*(np.concatenate(column) for column in zip(*counted, strict=True)))
    mask_ids, mask_voxels, rows = _objects(ours, voxels)
    label_ids, label_voxels, columns = _objects(theirs, voxels)
    both = (ours != 0) & (theirs != 0)
    return Overlap(mask_ids, label_ids, mask_voxels, label_voxels, rows[both], columns[both], voxels[both])


def same_shape(mask: npt.NDArray[Any], label: npt.NDArray[Any]) -> None:
    """Checks that a mask and its truth can be compared.

    Raises:
        InputRefusedError: if the shapes differ.
    """
    if mask.shape != label.shape:
        raise InputRefusedError(
            f"a mask of {mask.shape} voxels cannot be compared with a truth of {label.shape}",
            remedy="give both on the same grid",
        )


def _pairs(mask: IntArray, label: IntArray) -> tuple[Index, Index, Index]:
    """Returns the pairs of values that occur, background too, and the voxels of each."""
    same_shape(mask, label)
    order: Any = "F" if mask.flags.f_contiguous else "C"
    ours, theirs = mask.ravel(order), label.ravel(order)
    changes = np.flatnonzero((ours[1:] != ours[:-1]) | (theirs[1:] != theirs[:-1])) + 1
    starts = np.concatenate(([0] if ours.size else [], changes)).astype(np.int64)
    lengths = np.diff(starts, append=ours.size)
    return _joined(ours[starts].astype(np.int64), theirs[starts].astype(np.int64), lengths)


def _joined(ours: Index, theirs: Index, voxels: Index) -> tuple[Index, Index, Index]:
    """Returns each pair of values once, with the sum of its voxels."""
    our_values, row = distinct(ours)
    their_values, column = distinct(theirs)
    codes, which = distinct(row * len(their_values) + column)
    width = max(1, len(their_values))
    return our_values[codes // width], their_values[codes % width], _sums(which, voxels, len(codes))


def _objects(ids: Index, voxels: Index) -> tuple[Index, Index, Index]:
    """Returns the objects, their sizes, and the position of the object of each pair (useless for background)."""
    values, which = distinct(ids)
    objects = values != 0
    return values[objects], _sums(which, voxels, len(values))[objects], (np.cumsum(objects) - 1)[which]


def _sums(which: Index, voxels: Index, length: int) -> Index:
    """Returns the sum of the voxels of each group; exact, for floating point holds whole numbers up to 2**53."""
    return np.bincount(which, weights=voxels, minlength=length).astype(np.int64)


def distinct(values: Index) -> tuple[Index, Index]:
    """Returns the values that occur, ascending, and for each element the position of its value among them."""
    if values.size and values.min() >= 0 and values.max() <= max(_COUNTED_UP_TO, values.size):
        seen = np.bincount(values) > 0
        return np.flatnonzero(seen), (np.cumsum(seen) - 1)[values]
    found, position = np.unique(values, return_inverse=True)
    return found, position.ravel()
