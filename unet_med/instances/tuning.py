"""Thresholds and the smallest size of objects: chosen on images that the network had not seen.

The landscape of an image is cut into basins once for each foreground threshold, and its basins are laid over the true
objects once; joining basins to objects and removing small ones is then arithmetic on these tables, so that hundreds of
settings are tried in seconds. Two objects match where their IoU is above 0.5; at most one of each can (Kirillov et al.,
CVPR 2019), so that no assignment has to be solved.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.config import Instances
from unet_med.instances.basins import Relief, basins_of, foreground_of, grouped, landscape
from unet_med.instances.maps import ObjectMaps

IntArray = npt.NDArray[np.integer[Any]]
BoolArray = npt.NDArray[np.bool_]

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""IoU from which an object counts as found, as in the 2018 Data Science Bowl."""
FOREGROUND_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
SEED_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
SEED_DEPTHS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
_SIZE_SHARES = (0.25, 0.5, 0.75, 1.0)
"""Smallest sizes that are tried, as a share of the size of the smallest true objects."""
_SMALLEST = 0.02
"""The share of all true objects that are the smallest."""
_ROUNDING = 1e-9
KEYS = ("foreground_threshold", "seed_threshold", "seed_depth", "minimum_voxels")
"""What is chosen, of the section ``instances``."""


@dataclass(frozen=True)
class Tuning:
    """Settings and what they do to the images that they were chosen on.

    Attributes:
        settings: What was given, with what is better.
        before: Mean AP over IoU 0.5 to 0.95, pooled over all objects, with what was given.
        after: The same with ``settings``.
        images: How many images it was chosen on.
        objects: How many true objects are in them.
    """

    settings: Instances
    before: float
    after: float
    images: int
    objects: int

    def as_dict(self) -> dict[str, Any]:
        """Returns what a bundle keeps of it, JSON-able."""
        return {
            "chosen": {key: getattr(self.settings, key) for key in KEYS},
            "mean_ap_before": self.before,
            "mean_ap_after": self.after,
            "images": self.images,
            "objects": self.objects,
        }

    @property
    def reason(self) -> str:
        """One sentence: what was chosen and why."""
        chosen = ", ".join(f"{key} {getattr(self.settings, key):g}" for key in KEYS)
        gain = f"mean AP (IoU .5 to .95) {self.before:.4f} -> {self.after:.4f}"
        return f"{chosen}: {gain} on {self.images} held-out images with {self.objects} objects"


@dataclass(frozen=True, eq=False)
class _Table:
    """The basins of an image over its true objects."""

    relief: Relief
    sizes: npt.NDArray[np.int64]
    basins: IntArray
    truths: IntArray
    counts: npt.NDArray[np.int64]
    true_sizes: npt.NDArray[np.int64]
    left_out: npt.NDArray[np.int64]


def tune_objects(cases: Iterable[tuple[ObjectMaps, IntArray, BoolArray | None]], given: Instances) -> Tuning:
    """Chooses thresholds, the depth of saddles and the smallest size by the mean AP over IoU 0.5 to 0.95.

    Args:
        cases: Maps, true objects (0 for background, else any numbers) and where nobody labelled (``None``: nowhere)
            of each image; gone through once.
        given: What the pipeline says; kept where nothing is better, or there is no object.
    """
    thresholds = sorted({*FOREGROUND_THRESHOLDS, given.foreground_threshold})
    tables: dict[float, list[_Table]] = {threshold: [] for threshold in thresholds}
    for maps, truth, unknown in cases:
        for threshold, table in zip(thresholds, _tables(maps, truth, unknown, thresholds), strict=True):
            tables[threshold].append(table)
    images = tables[given.foreground_threshold]
    true_sizes = np.concatenate([np.zeros(0, np.int64), *(table.true_sizes for table in images)])
    if not true_sizes.size:
        return Tuning(given, 0.0, 0.0, len(images), 0)
    smallest = float(np.quantile(true_sizes, _SMALLEST))
    sizes = sorted({0, given.minimum_voxels, *(int(share * smallest) for share in _SIZE_SHARES)})
    best, before = given, -1.0
    scores: dict[Instances, float] = {}
    for threshold in thresholds:
        for seed in sorted({*SEED_THRESHOLDS, given.seed_threshold}):
            for depth in sorted({*SEED_DEPTHS, given.seed_depth}):
                found = _mean_ap(tables[threshold], seed, depth, sizes)
                for size, score in zip(sizes, found.tolist(), strict=True):
                    scores[_with(given, threshold, seed, depth, size)] = score
    before = scores[given]
    best = max(scores, key=lambda settings: (round(scores[settings] / _ROUNDING), settings == given))
    return Tuning(best, before, scores[best], len(images), len(true_sizes))


def _with(given: Instances, threshold: float, seed: float, depth: float, size: int) -> Instances:
    return given.model_copy(update=dict(zip(KEYS, (threshold, seed, depth, size), strict=True)))


def _tables(
    maps: ObjectMaps, truth: IntArray, unknown: BoolArray | None, thresholds: Sequence[float]
) -> Iterable[_Table]:
    foreground, height = foreground_of(maps), landscape(maps)
    known = truth if unknown is None else np.where(unknown, 0, truth)
    values, flat = np.unique(known, return_inverse=True)
    true_numbers = flat.reshape(-1) if values[0] == 0 else flat.reshape(-1) + 1
    true_sizes = np.bincount(true_numbers, minlength=int(true_numbers.max()) + 1)[1:]
    for threshold in thresholds:
        basins = basins_of(height, foreground >= threshold)
        number = len(basins.summits)
        over = true_numbers[basins.places]
        pairs, counts = np.unique(basins.members.astype(np.int64) * (len(true_sizes) + 1) + over, return_counts=True)
        hit = pairs % (len(true_sizes) + 1) > 0
        left_out = np.zeros(number, dtype=np.int64)
        if unknown is not None:
            left_out = np.bincount(basins.members, unknown.ravel()[basins.places], number).astype(np.int64)
        yield _Table(
            basins.relief,
            np.bincount(basins.members, minlength=number),
            pairs[hit] // (len(true_sizes) + 1),
            pairs[hit] % (len(true_sizes) + 1) - 1,
            counts[hit],
            true_sizes,
            left_out,
        )


def _mean_ap(tables: Sequence[_Table], seed: float, depth: float, sizes: Sequence[int]) -> npt.NDArray[np.float64]:
    """Returns the AP, pooled over images and averaged over IoU thresholds, for each smallest size."""
    smallest = np.array(sizes)
    found = np.zeros((len(IOU_THRESHOLDS), len(sizes)))
    predicted, true = np.zeros(len(sizes)), 0
    for table in tables:
        groups = grouped(table.relief, seed, depth)
        ious, matched, objects = _ious(table, groups)
        found += np.stack([_at_least(matched[ious >= iou], smallest) for iou in IOU_THRESHOLDS])
        predicted += _at_least(objects, smallest)
        true += len(table.true_sizes)
    mean: npt.NDArray[np.float64] = (found / np.maximum(predicted + true - found, 1)).mean(axis=0)
    return mean


def _at_least(values: IntArray, sizes: IntArray) -> IntArray:
    counts: IntArray = len(values) - np.searchsorted(np.sort(values), sizes)
    return counts


def _ious(
    table: _Table, groups: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns the IoU of all pairs above 0.5 and the size of the object in each; the sizes of all objects.

    Objects that lie mostly where nobody labelled are none; of the others what lies there does not count.
    """
    number = len(groups)
    sizes = np.bincount(groups + 1, table.sizes, number + 1)[1:].astype(np.int64)
    outside = np.bincount(groups + 1, table.left_out, number + 1)[1:].astype(np.int64)
    known = sizes - outside
    are_objects = (sizes > 0) & (known >= outside)
    keys = groups[table.basins].astype(np.int64) * len(table.true_sizes) + table.truths
    chosen = (groups[table.basins] >= 0) & are_objects[groups[table.basins]]
    pairs, place = np.unique(keys[chosen], return_inverse=True)
    shared = np.bincount(place.reshape(-1), table.counts[chosen], len(pairs))
    owner, truth = pairs // max(len(table.true_sizes), 1), pairs % max(len(table.true_sizes), 1)
    ious = shared / (known[owner] + table.true_sizes[truth] - shared)
    good = ious >= IOU_THRESHOLDS[0]
    return ious[good], sizes[owner[good]], sizes[are_objects]
