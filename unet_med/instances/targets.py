"""What a network learns of objects beside their class: where their borders are, and how deep inside a voxel lies.

Both are computed once for each case, and cut, turned and mirrored with the image afterwards. What lies beyond the edge
of an image is unknown: an object that is cut off there has no border at the cut, and its distance is to the border that
is seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

DISTANCE_STEPS = 255
"""Value of the deepest voxel of each object in :attr:`ObjectTargets.distance`."""


@dataclass(frozen=True, eq=False)
class ObjectTargets:
    """What is learnt of objects, on the grid of their label image.

    Attributes:
        border: (*s) uint8, 1 on the border within an object, 2 on that towards an object that touches or nearly does,
            0 elsewhere.
        distance: (*s) uint8, distance to the border divided by the largest of the object, in steps of 1/255; 0 outside
            of objects.
    """

    border: npt.NDArray[np.uint8]
    distance: npt.NDArray[np.uint8]


def object_targets(
    objects: npt.NDArray[np.integer[Any]],
    spacing: tuple[float, ...] | None = None,
    border_voxels: float = 1.0,
) -> ObjectTargets:
    """Returns border and distance of every object.

    Distances are Euclidean and exact, from the centre of a voxel to that of the nearest voxel outside of the object.
    Where voxels are longer along one axis they are measured so; the unit of the border's width is the shortest edge of
    a voxel. A voxel next to another object, be it across a corner, is always border.

    Args:
        objects: (I, J[, K]), 0 is background, each object has its own number.
        spacing: Of the grid; ``None``: voxels are as long as wide.
        border_voxels: Voxels of an object that are not deeper than this are its border.
    """
    border, distance = (np.zeros(objects.shape, dtype=np.uint8) for _ in range(2))
    edges = _edges(objects.ndim, spacing)
    reach = border_reach(objects.ndim, spacing, border_voxels)
    numbers, compact = np.unique(objects, return_inverse=True)
    compact = compact.reshape(objects.shape) + int(numbers[0] != 0)
    for number, box in enumerate(ndimage.find_objects(compact), start=1):
        if box is None:
            continue
        around = tuple(slice(max(0, s.start - n), s.stop + n) for s, n in zip(box, reach, strict=True))
        here = compact[around]
        own = here == number
        depth = _depth(own, edges)
        touching = _touching(own, (here > 0) & ~own, depth <= border_voxels, reach)
        border[around][own] = np.where(touching, 2, depth <= border_voxels)[own]
        distance[around][own] = np.rint(depth[own] * (DISTANCE_STEPS / depth[own].max()))
    return ObjectTargets(border, distance)


def border_reach(ndim: int, spacing: tuple[float, ...] | None, border_voxels: float) -> tuple[int, ...]:
    """Returns how many voxels beyond an object matter for its targets, along each axis."""
    return tuple(int(n) for n in np.ceil((border_voxels + 1) / _edges(ndim, spacing)))


def _edges(ndim: int, spacing: tuple[float, ...] | None) -> npt.NDArray[np.float64]:
    """Lengths of the edges of a voxel in units of the shortest."""
    return np.ones(ndim) if spacing is None else np.asarray(spacing) / min(spacing)


def _depth(own: npt.NDArray[np.bool_], edges: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Distance of an object's voxels to the nearest one outside; infinitely far from none, which counts as 1e6."""
    if own.all():
        return np.full(own.shape, 1e6)
    return np.asarray(ndimage.distance_transform_edt(own, sampling=edges))


def _touching(
    own: npt.NDArray[np.bool_], others: npt.NDArray[np.bool_], outer: npt.NDArray[np.bool_], reach: tuple[int, ...]
) -> npt.NDArray[np.bool_]:
    """Which voxels of an object are next to another one, or outer ones with another one within reach."""
    if not others.any():
        return np.zeros_like(own)
    seen = others.view(np.uint8)
    beside = ndimage.maximum_filter(seen, size=3, mode="constant")
    near = ndimage.maximum_filter(seen, size=tuple(2 * n + 1 for n in reach), mode="constant")
    return np.asarray(own & ((beside > 0) | (outer & (near > 0))))
