"""Scores of a validation, under the names that are recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from unet_med.inference.maps_store import MapStore
from unet_med.instances.maps import ObjectMaps
from unet_med.metrics import summarise_objects
from unet_med.volume import Region

DICE = "val/dice"
OBJECTS = "val/objects"

Overlaps = Mapping[str, tuple[float | None, float | None]]
"""Dice and IoU of each structure of a case; ``None`` where neither mask nor truth has it."""

_SHOWN_IOUS = ("0.50", "0.75")


def keep_part(maps: MapStore, part: Region, rows: Region, logits: Tensor) -> None:
    """Keeps the maps of a part of an image, as far as some rows hold it.

    Args:
        maps: Of the part.
        part: Where it lies in the image.
        rows: Where the rows lie.
        logits: (outputs, *s) of the rows.
    """
    both = [slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(part, rows, strict=True)]
    if any(side.start >= side.stop for side in both):
        return
    here, there = (
        tuple(slice(side.start - own.start, side.stop - own.start) for side, own in zip(both, outer, strict=True))
        for outer in (rows, part)
    )
    maps.write(there, ObjectMaps.from_logits(logits[(slice(None), *here)]))


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
