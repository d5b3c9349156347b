"""Maps as a perfect or a noisy network would give them, made from true objects."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from unet_med.instances.maps import ObjectMaps

IntArray = npt.NDArray[np.integer[Any]]


def balls(
    shape: tuple[int, ...], count: int, radius: tuple[float, float], seed: int, overlap: float = 0.2
) -> npt.NDArray[np.uint32]:
    """Returns balls that touch: each may reach into others by a share of its radius; what is there first stays."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, dtype=np.uint32)
    centres: list[npt.NDArray[np.float64]] = []
    radii: list[float] = []
    for _ in range(200 * count):
        if len(centres) == count:
            break
        r = float(rng.uniform(*radius))
        centre = rng.uniform(0, shape)
        if any(
            np.linalg.norm(centre - other) < (r + size) - overlap * min(r, size)
            for other, size in zip(centres, radii, strict=True)
        ):
            continue
        box = tuple(slice(max(int(c - r), 0), int(c + r) + 2) for c in centre)
        grid = np.meshgrid(
            *(np.arange(s.start, min(s.stop, n)) for s, n in zip(box, shape, strict=True)), indexing="ij"
        )
        inside = sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True)) <= r * r
        part = labels[box]
        part[inside & (part == 0)] = len(centres) + 1
        centres.append(centre)
        radii.append(r)
    return labels


def maps_of(
    labels: IntArray,
    classes: dict[int, int] | None = None,
    noise: float = 0.0,
    blur: float = 0.0,
    seed: int = 0,
) -> ObjectMaps:
    """Returns the maps of objects: their class, a border one voxel wide, the distance to it divided by its largest.

    Args:
        labels: Objects by number.
        classes: Class of each object from 1; ``None``: all 1.
        noise: Standard deviation of smooth noise on all maps.
        blur: Standard deviation of the blur of all maps, in voxels.
        seed: Of the noise.
    """
    kinds = 1 if not classes else max(classes.values())
    chances = np.zeros((kinds + 1, *labels.shape), dtype=np.float32)
    border = np.zeros(labels.shape, dtype=np.float32)
    distance = np.zeros(labels.shape, dtype=np.float32)
    for number, box in enumerate(ndimage.find_objects(labels.astype(np.int64)), start=1):
        if box is None:
            continue
        wide = tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in box)
        mask = labels[wide] == number
        depth = ndimage.distance_transform_edt(np.pad(mask, 1))[(slice(1, -1),) * labels.ndim]
        distance[wide][mask] = (depth / depth.max())[mask]
        border[wide][mask & (depth < 1.5)] = 1.0
        chances[(classes or {}).get(number, 1)][wide][mask] = 1.0
    chances[0] = 1 - chances[1:].sum(axis=0)
    rng = np.random.default_rng(seed)

    def spoilt(one: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if blur:
            one = ndimage.gaussian_filter(one, blur)
        if noise:
            rough = ndimage.gaussian_filter(rng.standard_normal(one.shape), 1.0)
            one = one + np.float32(noise) * (rough / rough.std()).astype(np.float32)
        return np.clip(one, 0, 1).astype(np.float32)

    chances = np.stack([spoilt(one) for one in chances]) + np.float32(1e-6)
    return ObjectMaps(chances / chances.sum(axis=0), spoilt(border), spoilt(distance))


def count_matches(found: IntArray, truth: IntArray, iou: float) -> int:
    """Returns how many pairs of objects have an IoU above 0.5 or more, pair by pair."""
    matches = 0
    for number in np.unique(truth[truth > 0]):
        mask = truth == number
        for other in np.unique(found[mask & (found > 0)]):
            mine = found == other
            matches += bool((mine & mask).sum() / (mine | mask).sum() >= iou)
    return matches
