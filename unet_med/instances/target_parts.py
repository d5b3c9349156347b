"""Targets of the objects of a label image larger than memory, a block and the objects that begin in it at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.instances.targets import ObjectTargets, border_reach, object_targets
from unet_med.io.mapped import let_go
from unet_med.io.objects.boxes import block_labels, boxes_of, whole_objects


def write_targets(
    objects: npt.NDArray[np.integer[Any]],
    out: ObjectTargets,
    spacing: tuple[float, ...] | None = None,
    border_voxels: float = 1.0,
    side: int | None = None,
) -> None:
    """Writes the targets that :func:`unet_med.instances.targets.object_targets` returns of a whole image.

    Args:
        objects: (I, J[, K]), 0 is background, each object has its own number; perhaps in a file.
        out: Zeros, perhaps in files, that receive border and distance.
        spacing: Of the grid; ``None``: voxels are as long as wide.
        border_voxels: Voxels of an object that are not deeper than this are its border.
        side: Voxels of a block along each axis.
    """
    reach = border_reach(objects.ndim, spacing, border_voxels)
    boxes = boxes_of(objects, side)
    for region, wanted, _ in whole_objects(objects, boxes, side):
        around = tuple(
            slice(max(0, part.start - n), min(part.stop + n, size))
            for part, n, size in zip(region, reach, objects.shape, strict=True)
        )
        inner = tuple(
            slice(part.start - outer.start, part.stop - outer.start) for part, outer in zip(region, around, strict=True)
        )
        found = object_targets(block_labels(objects, around), spacing, border_voxels)
        own = wanted > 0
        for target, values in ((out.border, found.border), (out.distance, found.distance)):
            target[region][own] = values[inner][own]
            let_go(target)
