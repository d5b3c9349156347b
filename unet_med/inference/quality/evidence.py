"""How sure models are of a case, measured row by row while it is predicted; no voxel passes a network once more.

Of each structure:

* ``expected_dice``: 2 sum_M p / (sum p + |M|) of its mask M and its probabilities p: about the Dice that the mask has
  if the truth is what the probabilities say (Soft Dice Confidence, Borges et al. 2024, arXiv:2402.10665).
* ``edge_doubt``: how unlikely the voxels on both sides of a face of the mask are what they were labelled, on average
  over all faces: 0 where edges are sharp, one half and more where the network wavers.
* ``mirror_dice``: Dice between the labels of windows without and with mirroring, where they are mirrored (and logits
  are blended, not the features before them).

Several models are measured one by one, because each is calibrated on cases that it has not seen. What they say
against each other cannot be calibrated so (all but one have learnt from each case); it is told as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unet_med.inference.chances import label_chances
from unet_med.inference.quality.outliers import traits
from unet_med.labels import LabelMap
from unet_med.metrics import structures
from unet_med.transforms.preprocess import Prepared

Features = dict[str, float | None]
"""``expected_dice``, ``edge_doubt`` and ``mirror_dice`` of a structure, as far as there are any."""

Labels = npt.NDArray[np.integer[Any]]
_Floats = npt.NDArray[np.float64]

_SLAB_VALUES = 2**22
"""Probabilities that are looked at together, where a row has fewer."""
_CACHED_VALUES = 2**18
"""Probabilities that are made at once: what passes over them hold stays in the processor's cache."""


class CaseEvidence:
    """What is seen of a case while it is predicted.

    Args:
        labels: Of the models.

    Attributes:
        traits: What the image is like (:func:`unet_med.inference.quality.outliers.traits`).
    """

    def __init__(self, labels: LabelMap) -> None:
        self.traits: dict[str, float] = {}
        self._labels = labels
        self._along = 0
        self._models: list[_ModelEvidence] = []

    def look(self, image: Prepared) -> None:
        """Looks at the image as the first model sees it; one that is not in memory is read in the order of its file."""
        axis = image.slowest or 0
        shape = (image.geometry.shape[axis], *(n for other, n in enumerate(image.geometry.shape) if other != axis))
        self.traits = traits(
            image.reference, shape, lambda row: image.slab(axis, row, row + 1).select(axis + 1, 0).numpy()
        )

    def begin(self, along: int, models: int) -> None:
        """A prediction begins, perhaps once more: what was seen of rows before is forgotten.

        Args:
            along: Spatial axis of the rows that follow.
            models: How many models predict.
        """
        self._along = along
        self._models = [_ModelEvidence(self._labels) for _ in range(models)]

    def mirrored(self, model: int) -> Callable[[Tensor, Tensor], None]:
        """Returns what takes a batch's outputs (N, outputs, *window) without and with mirroring."""
        return self._models[model].add_mirrored

    def add(self, model: int, logits: Tensor) -> None:
        """Takes the next rows of one model: logits (outputs, *s), final, in order."""
        own = np.moveaxis(self._labels.from_outputs(logits), self._along, 0)
        self._models[model].add(logits.movedim(self._along + 1, 1), own)

    def join(self, labels: Labels) -> None:
        """Takes the labels (*s) that all models together give to the rows that were just added."""
        if len(self._models) > 1:
            for model in self._models:
                model.join(np.moveaxis(labels, self._along, 0))

    def features(self) -> list[dict[str, Features]]:
        """Returns for each model the features of each structure."""
        return [model.features() for model in self._models]

    def agreement(self) -> dict[str, float]:
        """Returns for each structure the mean Dice between the models' own labels and the common ones.

        There is none for a single model, and none where nothing was labelled.
        """
        if len(self._models) < 2:
            return {}
        rows = [model.agreement() for model in self._models]
        found = {name: [dice for row in rows if (dice := row[name]) is not None] for name in rows[0]}
        return {name: float(np.mean(values)) for name, values in found.items() if values}


class _ModelEvidence:
    """What is seen of one model; tables are indexed by two label values."""

    def __init__(self, labels: LabelMap) -> None:
        self._labels = labels
        self._structures = structures(labels)
        values, names = len(labels.labels) + 1, len(self._structures)
        self._size = np.zeros(values)
        self._mass, self._inside = np.zeros(names), np.zeros(names)
        self._faces, self._doubt = np.zeros((values, values)), np.zeros((values, values))
        self._mirrored, self._common = np.zeros((values, values)), np.zeros((values, values))
        self._before: tuple[Labels, npt.NDArray[np.float32]] | None = None
        self._own: Labels = np.zeros(0, dtype=np.uint8)

    def add_mirrored(self, plain: Tensor, mirrored: Tensor) -> None:
        self._mirrored += self._pairs(*(self._labels.from_outputs(batch.movedim(1, 0)) for batch in (plain, mirrored)))

    def add(self, logits: Tensor, own: Labels) -> None:
        """Takes logits (outputs, rows, *rest) and their labels (rows, *rest)."""
        step = max(1, _SLAB_VALUES // max(1, logits[:, :1].numel()))
        for start in range(0, len(own), step):
            values = np.ascontiguousarray(own[start : start + step])
            mass, inside, doubt = _chances(logits[:, start : start + step], values, self._labels)
            self._mass += mass
            self._inside += inside
            self._size += np.bincount(values.ravel(), minlength=len(self._size))
            self._add_faces(values, doubt)
        self._own = own

    def join(self, labels: Labels) -> None:
        self._common += self._pairs(self._own, labels)

    def features(self) -> dict[str, Features]:
        found: dict[str, Features] = {}
        for place, (name, inner) in enumerate(self._members()):
            size = float(self._size[inner].sum())
            faces, doubt = (_across(table, inner) for table in (self._faces, self._doubt))
            found[name] = {
                "expected_dice": 2.0 * float(self._inside[place] / (self._mass[place] + size)) if size else None,
                "edge_doubt": (doubt / faces if faces else 0.0) if size else None,
                "mirror_dice": _dice(self._mirrored, inner),
            }
        return found

    def agreement(self) -> dict[str, float | None]:
        return {name: _dice(self._common, inner) for name, inner in self._members()}

    def _members(self) -> list[tuple[str, npt.NDArray[np.bool_]]]:
        """Of each structure, which label values belong to it."""
        return [(name, np.isin(np.arange(len(self._size)), values)) for name, values in self._structures.items()]

    def _pairs(self, first: Labels, second: Labels, weights: npt.NDArray[Any] | None = None) -> _Floats:
        count = len(self._size)
        joint = first.ravel().astype(np.int64) * count + second.ravel()
        return np.bincount(joint, weights, minlength=count * count).reshape(count, count).astype(np.float64)

    def _add_faces(self, values: Labels, doubt: npt.NDArray[np.float32]) -> None:
        if self._before is not None:
            self._add_pairs(self._before[0], values[0], self._before[1], doubt[0])
        for axis in range(values.ndim):
            low, high = ((slice(None),) * axis + (part,) for part in (slice(None, -1), slice(1, None)))
            self._add_pairs(values[low], values[high], doubt[low], doubt[high])
        self._before = values[-1].copy(), doubt[-1].copy()

    def _add_pairs(
        self, first: Labels, second: Labels, doubt: npt.NDArray[np.float32], other: npt.NDArray[np.float32]
    ) -> None:
        """Counts neighbours with different labels, and their doubt."""
        face = first != second
        if face.any():
            self._faces += self._pairs(first[face], second[face])
            self._doubt += self._pairs(first[face], second[face], (doubt[face] + other[face]) / 2.0)


def _chances(logits: Tensor, values: Labels, labels: LabelMap) -> tuple[_Floats, _Floats, npt.NDArray[np.float32]]:
    """Sums up probabilities over some voxels.

    Args:
        logits: (outputs, *s).
        values: (*s) labels of these logits.
        labels: What they mean.

    Returns:
        For each structure the sum of its probability, and the sum within its mask; and (*s) how unlikely it is that a
        voxel is what it was labelled.
    """
    if not labels.regions:
        mass, likely = _softmax_sums(logits[: labels.class_outputs])
        inside = np.bincount(values.ravel(), likely.ravel(), minlength=len(mass)).astype(np.float64)
        return mass[1:], inside[1:], np.asarray(1.0 - likely)
    regions = logits.sigmoid().cpu().numpy()
    by_name = dict(zip(labels.names, label_chances(logits, labels), strict=True))
    by_name |= {name: chances for (name, _), chances in zip(labels.regions, regions, strict=True)}
    members = structures(labels)
    within = [chances[np.isin(values, members[name])].sum() for name, chances in by_name.items()]
    whole = [chances.sum() for chances in by_name.values()]
    doubt = np.asarray(0.5 - np.abs(regions - 0.5)).max(axis=0)
    return np.array(whole, dtype=np.float64), np.array(within, dtype=np.float64), doubt


def _softmax_sums(logits: Tensor) -> tuple[_Floats, npt.NDArray[np.float32]]:
    """Returns each output's probability summed over all voxels (outputs), and the largest one of each voxel (*s)."""
    flat = logits.flatten(1)
    outputs, voxels = flat.shape
    step = max(1, _CACHED_VALUES // outputs if logits.device.type == "cpu" else voxels)
    mass, likely = np.zeros(outputs), torch.empty(voxels, device=logits.device)
    for start in range(0, voxels, step):
        part, largest = flat[:, start : start + step], likely[start : start + step]
        powers = (part - part.amax(dim=0)).exp_()
        torch.reciprocal(powers.sum(dim=0), out=largest)
        mass += torch.mv(powers, largest).cpu().numpy()
    return mass, likely.view(logits.shape[1:]).cpu().numpy()


def _across(table: _Floats, inner: npt.NDArray[np.bool_]) -> float:
    """Sum over pairs of which one label belongs to a structure and the other does not."""
    return float(table[np.ix_(inner, ~inner)].sum() + table[np.ix_(~inner, inner)].sum())


def _dice(table: _Floats, inner: npt.NDArray[np.bool_]) -> float | None:
    total = float(table[inner].sum() + table[:, inner].sum())
    return 2.0 * float(table[np.ix_(inner, inner)].sum()) / total if total else None
