"""What became of a mask that somebody corrected: of labels by voxels, of objects one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.metrics.overlap import Overlap, overlap_table

LabelArray = npt.NDArray[np.integer[Any]]

SAME_OBJECT_IOU = 0.5
"""An object that shares more than this with one before is that one, changed; no two can share so much with one."""


@dataclass(frozen=True)
class LabelChange:
    """What became of one label.

    Attributes:
        label: Its name.
        before, after: Voxels.
        added, removed: Voxels that have it now and had not, and the other way round.
    """

    label: str
    before: int
    after: int
    added: int
    removed: int

    @property
    def dice(self) -> float | None:
        """Dice of after and before; ``None``: it was and is empty."""
        both = self.before + self.after
        return 2 * (self.after - self.added) / both if both else None


def label_changes(before: LabelArray, after: LabelArray, names: Mapping[str, int]) -> list[LabelChange]:
    """Returns what became of each label; the background is none.

    Args:
        before: (I, J[, K]) values.
        after: The same, corrected.
        names: Name of each label -> its value.
    """
    found = []
    for name, value in names.items():
        if value:
            was, now = before == value, after == value
            both = int(np.count_nonzero(was & now))
            sizes = int(np.count_nonzero(was)), int(np.count_nonzero(now))
            found.append(LabelChange(name, *sizes, added=sizes[1] - both, removed=sizes[0] - both))
    return found


@dataclass(frozen=True, eq=False)
class ObjectChanges:
    """What became of objects.

    Attributes:
        kept: Objects that are voxel for voxel as they were.
        changed: Objects that share more than half with one that was there.
        added: Objects that were not there.
        removed: Objects that are there no more.
        numbers: Number of each object after -> number of the same object before.
        aligned: (I, J[, K]) the objects after: those that were kept have the number that they had, all others one
            that none had before.
    """

    kept: int
    changed: int
    added: int
    removed: int
    numbers: Mapping[int, int]
    aligned: LabelArray


def object_changes(before: LabelArray, after: LabelArray) -> ObjectChanges:
    """Returns what became of objects.

    Args:
        before: (I, J[, K]) numbers of objects, 0 for background.
        after: The same, corrected; its numbers need not be those before.
    """
    table = overlap_table(after, before)
    pairs, kept = _pairs(table, table.iou > SAME_OBJECT_IOU), _pairs(table, table.iou == 1)
    present, inverse = np.unique(after, return_inverse=True)
    beyond = int(before.max(initial=0))
    new = np.array([kept.get(int(one), beyond + int(one) if one else 0) for one in present], dtype=np.int64)
    return ObjectChanges(
        kept=len(kept),
        changed=len(pairs) - len(kept),
        added=len(table.mask_ids) - len(pairs),
        removed=len(table.label_ids) - len(pairs),
        numbers=pairs,
        aligned=np.asarray(new[inverse].reshape(after.shape)),
    )


def _pairs(table: Overlap, chosen: npt.NDArray[np.bool_]) -> dict[int, int]:
    """Number after -> number before of the chosen pairs."""
    rows, columns = table.mask_ids[table.rows[chosen]], table.label_ids[table.columns[chosen]]
    return dict(zip(rows.tolist(), columns.tolist(), strict=True))
