"""Objects of held-out cases: their maps are predicted once and kept, thresholds are chosen on them, objects scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unet_med.bundle import load_bundles
from unet_med.config import Instances
from unet_med.errors import InputRefusedError, ModelError
from unet_med.inference.objects import MapArchive, Truth, predict_maps, score_objects
from unet_med.inference.predictor import Predictor
from unet_med.instances.decode import objects_of
from unet_med.instances.tuning import KEYS, ObjectTuner, Tuning
from unet_med.labels import LabelMap
from unet_med.manifest import ManifestCase

Progress = Callable[[Iterable[Any], str], Iterable[Any]]

META_KEY = "objects"
"""Where a bundle's ``meta`` and ``metrics.json`` say how thresholds were chosen."""
TABLE_THRESHOLDS = ("0.50", "0.75", "0.90")


@dataclass(frozen=True)
class ScoredObjects:
    """Held-out cases whose objects were scored.

    Attributes:
        scored: As for :func:`unet_med.metrics.summarise`.
        tuning: What was chosen on them; ``None``: nothing.
    """

    scored: list[dict[str, Any]]
    tuning: Tuning | None


def keep_maps(
    model: Path, cases: Sequence[ManifestCase], archive: MapArchive, device: str, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Predicts the maps of labelled cases, and keeps them with their true objects.

    Args:
        model: Bundle folder.
        cases: Of a manifest.
        archive: Receives them under the ids of the cases.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        progress: Wraps the cases to show how far it is.

    Returns:
        The refused cases with their reasons.
    """
    predictor = Predictor(list(load_bundles(model)), device)
    refused: list[dict[str, Any]] = []
    for case in progress(cases, "scoring") if progress else cases:
        try:
            truth = Truth.of(case, predictor.labels)
            predict_maps(predictor, case.case.read(), archive.store(case.id))
        except (InputRefusedError, ModelError) as error:
            refused.append({"id": case.id, "reason": error.what})
            continue
        archive.keep_truth(case.id, truth)
    return refused


def tuned(archives: Sequence[MapArchive], given: Instances) -> Tuning:
    """Chooses thresholds on all cases that are kept.

    Args:
        archives: The cases of each fold; those of one fold alone are two groups by turns.
        given: What the pipeline says.
    """
    tuner = ObjectTuner(given)
    for fold, archive in enumerate(archives):
        for number, known in enumerate(archive):
            tuner.add(*known.middle(), group=fold if len(archives) > 1 else number % 2)
    return tuner.choose()


def changes_of(settings: Instances) -> dict[str, Any]:
    """Returns the dotted keys that are chosen, with their values."""
    return {f"instances.{key}": getattr(settings, key) for key in KEYS}


def scored_objects(archive: MapArchive, settings: Instances, labels: LabelMap) -> list[dict[str, Any]]:
    """Cuts objects out of maps that are kept, and scores them.

    Returns:
        What :func:`unet_med.metrics.summarise` takes: the scores of the classes of voxels, and matched objects.
    """
    return [
        {"id": known.name, **score_objects(objects_of(known.maps, settings), known.truth, labels)} for known in archive
    ]


def score_kept(archive: MapArchive, given: Instances, labels: LabelMap) -> ScoredObjects:
    """Chooses thresholds on maps that are kept, where that is wanted, and scores the objects that come of them."""
    tuning = tuned([archive], given) if given.tune and archive.names() else None
    settings = given if tuning is None else tuning.settings
    return ScoredObjects(scored_objects(archive, settings, labels), tuning)


def object_table(metrics: Mapping[str, Any]) -> list[str]:
    """Returns the scores of objects in ``metrics.json`` as lines: pooled over all objects, and averaged over images."""
    instance = metrics.get("instance")
    if instance is None:
        return []
    titles = [f"AP@{key.removeprefix('0').rstrip('0')}" for key in TABLE_THRESHOLDS]
    head = "".join(f" {title:>7}" for title in (*titles, "AP mean", "PQ", "AJI"))
    lines = [f"{'objects':>16}{head}  (AP = TP / (TP + FP + FN), as in the 2018 Data Science Bowl)"]
    classes = instance.get("classes", {})
    for name, scores, ending in (
        ("pooled", instance, ""),
        ("mean of images", instance, "_per_image"),
        *((name, own, "") for name, own in classes.items()),
    ):
        ap = scores[f"ap{ending}"]
        values = (*(ap[key] for key in TABLE_THRESHOLDS), *(scores[f"{k}{ending}"] for k in ("ap_mean", "pq", "aji")))
        lines.append(f"{name:>16}" + "".join(f" {'-' if v is None else f'{v:.4f}':>7}" for v in values))
    lines.append(
        f"{instance['n_mask']} objects found, {instance['n_label']} true ones in {instance['n_images']} images"
    )
    return lines
