"""Which post-processing helps: chosen on the masks of cases that the model which made them had not seen.

Each step is tried on all cases and compared case by case. It is taken where the mean Dice rises, more cases gain than
lose, and the mean Dice of no label and no region falls; what was tried is kept in words.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from unet_med.config import Postprocess
from unet_med.io.atomic import whole_file
from unet_med.labels import LabelMap
from unet_med.metrics import confusion_counts, dice_iou
from unet_med.transforms.postprocess import postprocess_labels

IntArray = npt.NDArray[np.integer[Any]]
Dice = dict[str, npt.NDArray[np.float64]]
"""For each structure the Dice of every case; 1 where mask and truth are both empty."""

MINIMUM_VOXELS = (10, 30, 100, 300, 1000, 3000)
"""Sizes that are tried, in voxels of the image."""
LEAST_GAIN = 1e-4
"""Mean Dice that a step must add."""
FEWEST_GAINING = 2
"""Cases that must gain, so that one odd case decides nothing."""
_ROUNDING = 1e-12
_SHOWN = 8
_SLAB_VOXELS = 2**22


class MaskPairs:
    """Masks and true labels on disk, cropped to what is labelled.

    Args:
        folder: Where they lie.
        chosen: Names of those that are meant; left out: all.
    """

    def __init__(self, folder: Path, chosen: Iterable[str] | None = None) -> None:
        self.folder = folder
        self._chosen = None if chosen is None else sorted(chosen)

    def keep(self, name: str, mask: IntArray, truth: IntArray) -> None:
        """Writes a pair (I, J[, K]) under a name; one of that name before is replaced.

        Raises:
            MachineError: The disk is full.
        """
        box = _labelled(mask, truth)
        with whole_file(self.folder / f"{name}.npz", "the masks of held-out cases") as part:
            np.savez_compressed(part, mask=mask[box], truth=truth[box])

    def names(self) -> list[str]:
        """Returns the names of the pairs, in order."""
        if self._chosen is not None:
            return self._chosen
        return sorted(path.stem for path in self.folder.glob("[!.]*.npz"))

    def __iter__(self) -> Iterator[tuple[IntArray, IntArray]]:
        for name in self.names():
            with np.load(self.folder / f"{name}.npz", allow_pickle=False) as pair:
                yield pair["mask"], pair["truth"]

    def remove(self) -> None:
        """Removes them all."""
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True)
class Choice:
    """Post-processing and what it does to the cases it was chosen on.

    Attributes:
        settings: What was given, and what helps.
        reasons: Dotted key -> what was tried, and what came of it.
        before: Mean Dice of each structure without what was chosen.
        after: The same with it.
    """

    settings: Postprocess
    reasons: dict[str, str]
    before: dict[str, float]
    after: dict[str, float]

    def as_dict(self, given: Postprocess) -> dict[str, Any]:
        """Returns what a bundle keeps: JSON-able; empty lists where nothing was added to what was ``given``."""
        changed = {key: value for key, value in self.settings.model_dump(mode="json").items() if key != "choose"}
        old = given.model_dump(mode="json")
        return {
            "chosen": {key: value for key, value in changed.items() if value != old[key]},
            "reasons": self.reasons,
            "dice_before": self.before,
            "dice_after": self.after,
        }


def choose_postprocess(pairs: Iterable[tuple[IntArray, IntArray]], labels: LabelMap, given: Postprocess) -> Choice:
    """Adds to given post-processing what helps masks of unseen cases and harms no label.

    The largest component, the smallest size and holes are tried one after the other, each beside what was chosen
    before. Labels are tried at once and judged one by one: components of one label do not change the Dice of another.

    Args:
        pairs: Mask and true labels of each case, at least one; gone through for each trial. ``given`` is applied
            already.
        labels: What the values mean.
        given: What the pipeline asks for.
    """
    trials = _Trials(pairs, labels, given)
    trials.try_labels("keep_largest", "keeping only the largest component")
    trials.try_sizes()
    trials.try_labels("fill_holes", "filling holes")
    return Choice(trials.settings, trials.reasons, _means(trials.before), _means(trials.now))


class _Trials:
    """What was chosen so far, and the Dice of the cases with it."""

    def __init__(self, pairs: Iterable[tuple[IntArray, IntArray]], labels: LabelMap, given: Postprocess) -> None:
        self._pairs = pairs
        self._labels = labels
        self.settings = given
        self.before = self.now = self._dice(given)
        self.reasons: dict[str, str] = {}

    def try_labels(self, key: str, verb: str) -> None:
        """Tries a step for each label that does not have it yet."""
        has: tuple[str, ...] = getattr(self.settings, key)
        others = tuple(name for name in self._labels.names if name not in has)
        if not others:
            return
        every = self._with(key, (*has, *others))
        scores = self._dice(every)
        helped = tuple(name for name in others if _helps(scores[name] - self.now[name]))
        left = [name for name in others if name not in helped]
        words = [f"{verb} is not taken for {_told(left, self.now, scores)}"] if left else []
        if helped:
            settings = self._with(key, (*has, *helped))
            chosen = scores if len(helped) == len(others) else self._dice(settings)
            if self._harms_none(chosen):
                words.insert(0, f"{verb} helps {_told(helped, self.now, chosen)}")
                self.settings, self.now = settings, chosen
            else:
                words.insert(0, f"{verb} of {', '.join(helped)} harms another structure")
        self.reasons[f"postprocess.{key}"] = "; ".join(words)

    def try_sizes(self) -> None:
        """Tries to remove small components, of more and more voxels as long as that is better."""
        best: tuple[int, Dice] | None = None
        for size in MINIMUM_VOXELS:
            if size <= self.settings.minimum_voxels:
                continue
            scores = self._dice(self._with("minimum_voxels", size))
            gain = _overall(scores) - _overall(self.now if best is None else best[1])
            if best is not None and gain.mean() <= 0:
                break
            if _helps(_overall(scores) - _overall(self.now)) and self._harms_none(scores):
                best = size, scores
        if best is None:
            words = f"removing components of fewer than {MINIMUM_VOXELS[0]} to {MINIMUM_VOXELS[-1]} voxels is not taken"
        else:
            size, scores = best
            words = f"removing components of fewer than {size} voxels: {_change(_overall(self.now), _overall(scores))}"
            self.settings, self.now = self._with("minimum_voxels", size), scores
        self.reasons["postprocess.minimum_voxels"] = words

    def _with(self, key: str, value: object) -> Postprocess:
        return self.settings.model_copy(update={key: value})

    def _harms_none(self, scores: Dice) -> bool:
        return all(scores[name].mean() >= self.now[name].mean() - _ROUNDING for name in scores)

    def _dice(self, settings: Postprocess) -> Dice:
        rows: list[dict[str, float]] = []
        for mask, truth in self._pairs:
            cleaned = postprocess_labels(mask, settings, self._labels)
            scores = dice_iou(_counts(cleaned, truth, self._labels))
            rows.append({name: 1.0 if dice is None else dice for name, (dice, _) in scores.items()})
        return {name: np.array([row[name] for row in rows]) for name in (rows[0] if rows else ())}


def _counts(mask: IntArray, truth: IntArray, labels: LabelMap) -> dict[str, tuple[int, int, int]]:
    """The same as :func:`confusion_counts`, some planes at a time: it takes many bytes for each voxel."""
    planes = max(1, _SLAB_VOXELS // max(1, mask[0].size))
    total: dict[str, tuple[int, int, int]] = {}
    for start in range(0, len(mask), planes):
        part = confusion_counts(mask[start : start + planes], truth[start : start + planes], labels)
        for name, (hits, wrong, missed) in part.items():
            before = total.get(name, (0, 0, 0))
            total[name] = before[0] + hits, before[1] + wrong, before[2] + missed
    return total


def _helps(gain: npt.NDArray[np.float64]) -> bool:
    """Whether gains of Dice, one for each case, are worth a step."""
    gaining, losing = int((gain > _ROUNDING).sum()), int((gain < -_ROUNDING).sum())
    return bool(gain.mean() >= LEAST_GAIN) and gaining >= FEWEST_GAINING and gaining > losing


def _told(names: Sequence[str], before: Dice, after: Dice) -> str:
    same = [name for name in names if np.array_equal(before[name], after[name])]
    changed = [name for name in names if name not in same]
    told = [f"{name}: {_change(before[name], after[name])}" for name in changed[:_SHOWN]]
    told += [f"{len(changed) - _SHOWN} others"] if len(changed) > _SHOWN else []
    told += [f"{', '.join(same[:_SHOWN])}{', ...' if len(same) > _SHOWN else ''}: no case changes"] if same else []
    return "; ".join(told)


def _change(before: npt.NDArray[np.float64], after: npt.NDArray[np.float64]) -> str:
    gain = after - before
    gaining, losing = int((gain > _ROUNDING).sum()), int((gain < -_ROUNDING).sum())
    return f"Dice {before.mean():.4f} -> {after.mean():.4f} ({gaining} of {len(gain)} cases better, {losing} worse)"


def _overall(scores: Mapping[str, npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """Mean Dice over structures of each case."""
    return np.asarray(np.mean(list(scores.values()), axis=0))


def _means(scores: Dice) -> dict[str, float]:
    return {name: float(values.mean()) for name, values in scores.items()}


def _labelled(mask: IntArray, truth: IntArray) -> tuple[slice, ...]:
    """The box around all that is labelled, with a voxel around it where there is one; a thick axis stays thick."""
    boxes = [box for box in ndimage.find_objects(((mask > 0) | (truth > 0)).view(np.uint8)) if box is not None]
    if not boxes:
        return tuple(slice(0, min(size, 2)) for size in mask.shape)
    return tuple(
        slice(max(part.start - 1, 0), min(part.stop + 1, size)) for part, size in zip(boxes[0], mask.shape, strict=True)
    )
