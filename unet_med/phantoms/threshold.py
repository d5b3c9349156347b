"""How far a threshold gets: the upper bound that a phantom must stay clear of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

_BINS = 192


def best_threshold_dice(
    images: Sequence[npt.NDArray[Any]], labels: Sequence[npt.NDArray[np.integer[Any]]], values: Sequence[int]
) -> dict[int, float]:
    """Returns, for each label value, the mean Dice of the best intensity window; key 0 stands for any label.

    One window ``low <= image < high`` is chosen with the truth in hand for all images together, which also covers
    plain thresholds from below and from above: an upper bound of what thresholding can do.

    Args:
        images: Arrays of any shape.
        labels: Arrays of the same shapes.
        values: Label values to look at.
    """
    pooled = np.concatenate([np.asarray(image, dtype=np.float64).ravel() for image in images])
    edges = np.append(np.unique(np.quantile(pooled, np.linspace(0.0, 1.0, _BINS))), np.inf)
    total: dict[int, FloatArray] = {}
    for image, label in zip(images, labels, strict=True):
        inside = np.digitize(image, edges[:-1]) - 1
        everything = _cumulative(inside.ravel(), edges.size - 1)
        for value in (0, *values):
            wanted = (label > 0) if value == 0 else (label == value)
            hits = _cumulative(inside[wanted], edges.size - 1)
            chosen = everything[None, :] - everything[:, None]
            dice = 2.0 * (hits[None, :] - hits[:, None]) / np.maximum(chosen + hits[-1], 1)
            total[value] = total.get(value, np.zeros_like(dice)) + np.where(chosen > 0, dice, 0.0)
    return {value: float(dice.max()) / len(images) for value, dice in total.items()}


def _cumulative(bins: npt.NDArray[np.integer[Any]], count: int) -> FloatArray:
    counts = np.bincount(bins, minlength=count)
    return np.concatenate([[0.0], np.cumsum(counts, dtype=np.float64)])
