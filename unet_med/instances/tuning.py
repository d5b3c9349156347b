"""Thresholds and the smallest size of objects: chosen on images that the network had not seen.

The landscape of an image is cut into basins once for each foreground threshold, and its basins are laid over the true
objects once; joining basins to objects and removing small ones is then arithmetic on these tables, so that hundreds of
settings are tried in seconds. Two objects match where their IoU is above 0.5; at most one of each can (Kirillov et al.,
CVPR 2019), so that no assignment has to be solved. Where objects have classes, those of a pair must be the same: the
objects of all classes are counted together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.config import Instances
from unet_med.instances.basins import Basins, Relief, basins_of, foreground_of, grouped, landscape
from unet_med.instances.maps import ObjectMaps

IntArray = npt.NDArray[np.integer[Any]]
BoolArray = npt.NDArray[np.bool_]

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""IoU from which an object counts as found, as in the 2018 Data Science Bowl."""
FOREGROUND_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
SEED_THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
SEED_DEPTHS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
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
        before: AP at each of :data:`IOU_THRESHOLDS`, pooled over all objects, with what was given.
        after: The same with ``settings``.
        unseen: The same where the settings for each group of images were chosen on the others; ``None``: one group.
        images: How many images it was chosen on.
        objects: How many true objects are in them.
    """

    settings: Instances
    before: tuple[float, ...]
    after: tuple[float, ...]
    unseen: tuple[float, ...] | None
    images: int
    objects: int

    def as_dict(self) -> dict[str, Any]:
        """Returns what a bundle keeps of it, JSON-able."""
        told = {"before": self.before, "after": self.after, "chosen_on_others": self.unseen}
        return {
            "chosen": {key: getattr(self.settings, key) for key in KEYS},
            "images": self.images,
            "objects": self.objects,
            **{f"ap_{name}": None if aps is None else _by_threshold(aps) for name, aps in told.items()},
            **{f"ap_mean_{name}": None if aps is None else _mean(aps) for name, aps in told.items()},
        }

    @property
    def reason(self) -> str:
        """One sentence: what was chosen and why."""
        chosen = ", ".join(f"{key} {getattr(self.settings, key):g}" for key in KEYS)
        gain = f"mean AP (IoU .5 to .95) {_mean(self.before):.4f} -> {_mean(self.after):.4f}"
        fair = "" if self.unseen is None else f" ({_mean(self.unseen):.4f} where they are chosen on other images)"
        return f"{chosen}: {gain}{fair} on {self.images} held-out images with {self.objects} objects"


def _by_threshold(aps: Sequence[float]) -> dict[str, float]:
    return {f"{iou:.2f}": ap for iou, ap in zip(IOU_THRESHOLDS, aps, strict=True)}


def _mean(aps: Sequence[float]) -> float:
    return sum(aps) / max(1, len(aps))


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
    kinds: _Kinds | None


@dataclass(frozen=True, eq=False)
class _Kinds:
    """Of what class basins and true objects are.

    Attributes:
        weights: (classes, basins) sum of the probability of each class over the voxels of each basin.
        true: (true objects,) from 0.
    """

    weights: npt.NDArray[np.float64]
    true: npt.NDArray[np.int64]

    def agree(self, groups: IntArray, owner: IntArray, truth: IntArray) -> BoolArray:
        """Returns whether the objects ``owner`` of basins joined to ``groups`` are of the class of ``truth``."""
        sums = np.stack([np.bincount(groups + 1, row, len(groups) + 1)[1:] for row in self.weights])
        same: BoolArray = sums.argmax(axis=0)[owner] == self.true[truth]
        return same


class ObjectTuner:
    """Tries settings on images whose objects are known.

    Args:
        given: What the pipeline says; kept where nothing is better, or there is no object.
    """

    def __init__(self, given: Instances) -> None:
        self._given = given
        self._axes = (
            tuple(sorted({*FOREGROUND_THRESHOLDS, given.foreground_threshold})),
            tuple(sorted({*SEED_THRESHOLDS, given.seed_threshold})),
            tuple(sorted({*SEED_DEPTHS, given.seed_depth})),
        )
        self._images: list[list[_Table]] = []
        self._groups: list[int] = []

    def add(
        self,
        maps: ObjectMaps,
        truth: IntArray,
        unknown: BoolArray | None = None,
        kinds: Mapping[int, int] | None = None,
        group: int = 0,
    ) -> None:
        """Takes an image; its maps are not kept.

        Args:
            maps: What a network says that had not seen it.
            truth: True objects: 0 for background, else any numbers.
            unknown: Where nobody labelled; ``None``: nowhere.
            kinds: Class of each true object by its number, from 1; ``None``: all are of one.
            group: Images of one group are scored by what is chosen on the others.
        """
        several = kinds if len(maps.classes) > 2 else None
        self._images.append(list(_tables(maps, truth, unknown, several, self._axes[0])))
        self._groups.append(group)

    def choose(self) -> Tuning:
        """Chooses thresholds, the depth of saddles and the smallest size by the mean AP over IoU 0.5 to 0.95."""
        true = np.array([len(image[0].true_sizes) for image in self._images], dtype=np.int64)
        if not true.sum():
            nothing = (0.0,) * len(IOU_THRESHOLDS)
            return Tuning(self._given, nothing, nothing, None, len(true), 0)
        sizes = self._smallest_sizes()
        tried = [self._tried(image, sizes) for image in self._images]
        found, predicted = (np.stack(part) for part in zip(*tried, strict=True))
        settings = [
            self._given.model_copy(update=dict(zip(KEYS, values, strict=True)))
            for values in product(*self._axes, sizes)
        ]
        first = settings.index(self._given)

        def best(images: BoolArray) -> int:
            means = np.round(_ap(found, predicted, true, images).mean(axis=1) / _ROUNDING)
            return first if means[first] == means.max() else int(means.argmax())

        everything = np.ones(len(true), dtype=bool)
        aps, chosen = _ap(found, predicted, true, everything), best(everything)
        groups, unseen = np.array(self._groups), None
        if len(np.unique(groups)) > 1:
            own = np.array([best(groups != group) for group in groups])
            rows = np.arange(len(true))
            unseen = _ap(found[rows, own][:, None], predicted[rows, own][:, None], true, everything)[0]
        return Tuning(
            settings[chosen],
            tuple(aps[first].tolist()),
            tuple(aps[chosen].tolist()),
            None if unseen is None else tuple(unseen.tolist()),
            len(true),
            int(true.sum()),
        )

    def _smallest_sizes(self) -> list[int]:
        true_sizes = np.concatenate([image[0].true_sizes for image in self._images])
        smallest = float(np.quantile(true_sizes, _SMALLEST))
        return sorted({0, self._given.minimum_voxels, *(int(share * smallest) for share in _SIZE_SHARES)})

    def _tried(self, image: Sequence[_Table], sizes: Sequence[int]) -> tuple[IntArray, IntArray]:
        """Returns the objects found at each IoU, (settings, IoU thresholds), and all that were predicted."""
        _, seeds, depths = self._axes
        counted = [
            _counted(table, grouped(table.relief, seed, depth), sizes)
            for table, seed, depth in product(image, seeds, depths)
        ]
        return np.concatenate([hits for hits, _ in counted]), np.concatenate([all_of for _, all_of in counted])


def _ap(found: IntArray, predicted: IntArray, true: IntArray, images: BoolArray) -> npt.NDArray[np.float64]:
    """Returns the AP of each setting at each IoU, pooled over some images."""
    hits = found[images].sum(axis=0)
    both = predicted[images].sum(axis=0) + true[images].sum()
    aps: npt.NDArray[np.float64] = hits / np.maximum(both[:, None] - hits, 1)
    return aps


def _tables(
    maps: ObjectMaps,
    truth: IntArray,
    unknown: BoolArray | None,
    kinds: Mapping[int, int] | None,
    thresholds: Sequence[float],
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
            None if kinds is None else _kinds(maps, basins, [kinds[n] for n in values.tolist() if n]),
        )


def _kinds(maps: ObjectMaps, basins: Basins, true: Sequence[int]) -> _Kinds:
    number = len(basins.summits)
    rows = (one.ravel()[basins.places] for one in maps.classes[1:])
    weights = np.stack([np.bincount(basins.members, row, number).astype(np.float64) for row in rows])
    return _Kinds(weights, np.array(true, dtype=np.int64) - 1)


def _counted(table: _Table, groups: npt.NDArray[np.int32], sizes: Sequence[int]) -> tuple[IntArray, IntArray]:
    """Returns for each smallest size the objects found at each IoU, (sizes, IoU thresholds), and all predicted ones."""
    smallest = np.array(sizes)
    ious, matched, objects = _ious(table, groups)
    hits = np.stack([_at_least(matched[ious >= iou], smallest) for iou in IOU_THRESHOLDS], axis=1)
    return hits.astype(np.int32), _at_least(objects, smallest).astype(np.int32)


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
    if table.kinds is not None:
        good &= table.kinds.agree(groups, owner, truth)
    return ious[good], sizes[owner[good]], sizes[are_objects]
