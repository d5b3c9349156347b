"""Scores of a validation, under the names that are recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unet_med.metrics import summarise_objects

DICE = "val/dice"
OBJECTS = "val/objects"

Overlaps = Mapping[str, tuple[float | None, float | None]]
"""Dice and IoU of each structure of a case; ``None`` where neither mask nor truth has it."""

_SHOWN_IOUS = ("0.50", "0.75")


def mean_scores(scores: Sequence[Overlaps], names: Sequence[str]) -> dict[str, float]:
    """Returns means over cases for each label or region, then over them; a score that does not exist is left out."""
    metrics: dict[str, float] = {}
    for position, kind in enumerate((DICE, "val/iou")):
        means = []
        for name in names:
            values = [value for score in scores if (value := score[name][position]) is not None]
            if values:
                metrics[f"{kind}/{name}"] = float(np.mean(values))
                means.append(metrics[f"{kind}/{name}"])
        if means:
            metrics[f"{kind}/mean"] = float(np.mean(means))
    return metrics


def object_scores(matches: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns AP pooled over the objects of all cases, by IoU and its mean; nothing where there is no object.

    Args:
        matches: What :func:`unet_med.inference.objects.compare_objects` returned of each case.
    """
    scores = summarise_objects(matches)
    told = {"ap_mean": scores["ap_mean"], **{f"ap/{iou}": scores["ap"][iou] for iou in _SHOWN_IOUS}}
    return {f"{OBJECTS}/{name}": value for name, value in told.items() if value is not None}
