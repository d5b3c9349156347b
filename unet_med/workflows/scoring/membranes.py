"""Membranes beside the true ones: masks, numbers of cells, or maps of probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.errors import InputRefusedError
from unet_med.io.source import SourceRef
from unet_med.labels import LabelMap
from unet_med.metrics import case_metrics, cells_beside, mask_curve, membrane_curve, watershed_curve
from unet_med.workflows.scoring.pairs import Array, Pair, sidecar_names
from unet_med.workflows.scoring.scorers import Scorer

_NAME = "membrane"
_ISBI_MEMBRANE = 0
_PROBABLE = 0.5
_MOST_MEMBRANE = 0.5
_OF_A_MASK = 2


class MembraneScorer(Scorer):
    """One value is membrane, the others are cells: two values are a mask, more are numbers of cells.

    The value is the one asked for, else the one that the JSON beside the file calls ``membrane``, else 0, as in the
    ISBI challenge. Fractions are probabilities of membrane; where value 0 is asked for, of cells.
    """

    labels = LabelMap.from_names({_NAME: 1})

    def __init__(self, tolerance_mm: float, ignored: int | None, membrane: int | None) -> None:
        super().__init__(tolerance_mm, ignored)
        self.membrane = membrane

    def compare(self, pair: Pair, frame: int) -> dict[str, Any]:
        """Compares partitions into cells, and the membrane itself voxel by voxel."""
        truth, ref = pair.read_truth(frame), pair.truths[0]
        known = np.ones(truth.shape, dtype=bool) if self.ignored is None else truth != self.ignored
        value = self._value(ref)
        true_cells = cells_of(np.where(known, truth, value), value, sidecar_names(ref))
        true_membrane = (true_cells == 0) & known
        if true_membrane.mean() > _MOST_MEMBRANE:
            share = f"{true_membrane.mean():.0%} of the reference is membrane"
            self.notes.append(f"{pair.id}: {share}: check which value is (--membrane)")
        probability = pair.read_map(frame)
        if probability is None:
            cells = self._mask_cells(pair, frame)
            membrane, curves = cells == 0, {"membrane": mask_curve(cells, true_cells)}
        else:
            probability = 1 - probability if self.membrane == 0 else probability
            membrane = probability > _PROBABLE
            curves = {
                "membrane": membrane_curve(probability, true_cells),
                "membrane_watershed": watershed_curve(probability, true_cells),
            }
        ours, theirs = ((one & known).astype(np.uint8) for one in (membrane, true_membrane))
        return {"labels": case_metrics(ours, theirs, pair.spacing_mm(), self.labels, self.tolerance_mm), **curves}

    def _value(self, ref: SourceRef) -> int:
        if self.membrane is not None:
            return self.membrane
        return next((value for value, name in sidecar_names(ref).items() if name == _NAME), _ISBI_MEMBRANE)

    def _mask_cells(self, pair: Pair, frame: int) -> npt.NDArray[np.integer[Any]]:
        ref, mask = pair.masks[0], pair.read_mask(frame)
        names = sidecar_names(ref)
        if ref.dtype == "uint8" and not names and len(np.unique(mask)) > _OF_A_MASK:
            raise InputRefusedError(
                "an 8-bit mask of more than two values may hold probabilities or numbers of cells",
                pair.id,
                "store probabilities as floating point from 0 to 1, numbers of cells with 16 bits",
            )
        return cells_of(mask, self._value(ref), names)


def cells_of(values: Array, membrane: int, names: Mapping[int, str]) -> npt.NDArray[np.integer[Any]]:
    """Returns numbers of cells, 0 for the membrane.

    Args:
        values: (I, J[, K]) labels.
        membrane: Which of them is membrane.
        names: What they are called; where they have names, they are no numbers of cells.
    """
    wall = values == membrane
    if names or len(np.unique(values[~wall])) <= 1:
        return cells_beside(wall)
    return np.where(wall, 0, values.astype(np.int64) + 1)
