"""What is looked at of an image that is too large to be held: every n-th voxel, read part by part."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, prod
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.geometry import Geometry
from unet_med.io.cases import Case
from unet_med.volume import Region, Volume

LOOKED_VOXELS = 2**24
"""So many voxels of a large image are looked at, about."""

_PART_VOXELS = 2**22


def step_of(case: Case) -> int:
    """Returns which voxels of a case are looked at along each axis: every one of most images, every n-th of large ones.

    Args:
        case: A case; one whose files cannot be read in parts is held as a whole anyway.
    """
    shape = case.geometry.shape
    return max(1, ceil((prod(shape) / LOOKED_VOXELS) ** (1 / len(shape)))) if case.is_large else 1


def thinned(volume: Volume, step: int) -> Volume:
    """Returns every ``step``-th voxel of a volume, in memory.

    Args:
        volume: (C, I, J[, K]), perhaps not in memory.
        step: 1 for all of it.
    """
    if step == 1:
        return Volume(np.asarray(volume.array), volume.geometry)
    every: tuple[Any, ...] = (..., *(slice(None, None, step) for _ in volume.geometry.shape))
    kept = [part[every].copy() for part in parts(volume.array, step)]  # a view would hold its part
    return Volume(np.concatenate(kept, axis=-1), _coarser(volume.geometry, step))


def parts(array: npt.NDArray[Any], step: int = 1) -> Iterator[npt.NDArray[Any]]:
    """Yields all of an image (C, I, J[, K]) in runs along its last axis, each but the last a multiple of ``step`` long.

    Args:
        array: Perhaps not in memory.
        step: Runs may be cut at every ``step``-th voxel.
    """
    length = step * max(1, _PART_VOXELS // (step * max(1, prod(array.shape[1:-1]))))
    for start in range(0, array.shape[-1], length):
        yield np.asarray(array[..., start : start + length])


def middle(geometry: Geometry) -> Region:
    """Returns a region of about :data:`LOOKED_VOXELS` in the middle of a grid: to look at neighbours."""
    share = min(1.0, LOOKED_VOXELS / prod(geometry.shape)) ** (1 / geometry.ndim)
    sides = [max(1, int(size * share)) for size in geometry.shape]
    return tuple(
        slice((size - side) // 2, (size - side) // 2 + side) for size, side in zip(geometry.shape, sides, strict=True)
    )


def _coarser(geometry: Geometry, step: int) -> Geometry:
    """Returns the grid of every ``step``-th voxel."""
    shape = tuple(-(-size // step) for size in geometry.shape)
    if geometry.affine is None:
        return Geometry(shape)
    affine = geometry.affine.copy()
    affine[:-1, :-1] *= step
    return Geometry(shape, affine)
