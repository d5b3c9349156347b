"""What is looked at before a network is trained and after it was: the data, what it sees of them, where it is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.config import PipelineConfig
from unet_med.data import CachedCase
from unet_med.identity import case_tag
from unet_med.labels import LabelMap
from unet_med.manifest import ManifestCase
from unet_med.metrics.voxels import confusion_table
from unet_med.patches import PatchDataset
from unet_med.planning import Plan
from unet_med.review.reliability import Reliability
from unet_med.training.tracking import Tracker
from unet_med.training.trainer import Trainer

_SAMPLES = 8
CONFUSION = "confusion"
CALIBRATION = "calibration"


def show_data(
    tracker: Tracker, plan: Plan, labels: LabelMap, training: Sequence[ManifestCase], held_out: Sequence[ManifestCase]
) -> None:
    """Records what the data set is like."""
    if tracker.run_id is None:
        return
    from unet_med.review.charts import fingerprint_chart  # matplotlib takes a second

    grids = [[case.case.geometry for case in cases] for cases in (training, held_out)]
    names = ["background", *labels.names]
    tracker.picture("data/fingerprint", fingerprint_chart(grids[0], grids[1], plan.fingerprint, names))


def show_samples(tracker: Tracker, cases: Sequence[CachedCase], config: PipelineConfig, labels: LabelMap) -> None:
    """Records the first patches as the network really sees them, augmented and normalised."""
    if tracker.run_id is None:
        return
    from unet_med.review.sheets import Shown, sheet_of

    dataset = PatchDataset(cases, config)
    shown = []
    for number in range(_SAMPLES):
        sample = dataset[number]
        image, label = sample["image"].numpy(), sample["label"].numpy()
        within = (
            slice(None),
            *(slice(border, border + size) for border, size in zip(dataset.context, label.shape, strict=True)),
        )
        shown.append(Shown(_middle_slices(image, config)[within], label))
    tracker.picture("data/augmentation", sheet_of(shown, labels))


def _middle_slices(image: npt.NDArray[np.float32], config: PipelineConfig) -> npt.NDArray[np.float32]:
    """Returns the channels of an image (C', *s) without neighbouring slices and the labels of a first stage."""
    slices = config.network.slices
    own = image[: len(config.channels) * slices]
    return own.reshape(-1, slices, *own.shape[1:])[:, slices // 2]


def look_back(
    tracker: Tracker, trainer: Trainer, cases: Sequence[CachedCase], metrics: Mapping[str, Any]
) -> dict[str, Any]:
    """Predicts the held-out cases once more, on the grid of the network, to see where it is wrong.

    Args:
        tracker: Receives the cases that it is worst at, at most ``training.overlay_cases`` of them.
        trainer: Holds the network.
        cases: Held-out cases.
        metrics: Their scores, as in ``metrics.json``.

    Returns:
        What ``metrics.json`` says beside: ``confusion`` (voxels by true and by predicted label) and ``calibration`` of
        the voxels' probabilities; nothing without cases.
    """
    if not cases:
        return {}
    from unet_med.review.sheets import Shown, sheet_of

    labels = trainer.labels
    scores = dict(worst_cases(metrics)[: trainer.config.training.overlay_cases])
    shown: dict[str, Shown] = {}
    kinds = len(labels.labels) + 1
    confusion = np.zeros((kinds, kinds), dtype=np.int64)
    reliability = Reliability(_structures(labels))
    with trainer.evaluating() as network:
        for case in cases:
            mask, truth = np.zeros(case.shape, dtype=labels.dtype), np.asarray(case.label())
            for rows, logits in trainer.logits(network, case):
                labels.from_outputs(logits, out=mask[rows])
                reliability.add(*_said_and_true(logits, truth[rows], labels))
            confusion += confusion_table(mask, truth, labels)
            if case.id in scores:
                caption = f"{case_tag(case.id)} {scores[case.id]:.3f}"
                shown[case.id] = Shown(case.image(), mask, truth, case.spacing_mm, caption)
    if shown and tracker.run_id is not None:
        tracker.picture("worst_cases", sheet_of([shown[name] for name in scores if name in shown], labels))
    return {
        CONFUSION: {"labels": ["background", *labels.names], "table": confusion.tolist()},
        CALIBRATION: reliability.to_json(),
    }


def worst_cases(metrics: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Returns the cases of ``metrics.json`` with their mean Dice over labels (AP of objects), the lowest first."""
    found = []
    for case in metrics["cases"]:
        ap = (case.get("instance") or {}).get("ap_mean")
        values = [ap] if "instance" in case else list((case.get("dice") or {}).values())
        known = [value for value in values if value is not None]
        if known:
            found.append((str(case["id"]), sum(known) / len(known)))
    return sorted(found, key=lambda pair: pair[1])


def show_scores(tracker: Tracker, metrics: Mapping[str, Any]) -> None:
    """Records charts of what ``metrics.json`` says: confusion, calibration, size of a structure and its Dice."""
    if tracker.run_id is None:
        return
    from unet_med.review.charts import calibration_chart, confusion_chart, size_chart

    if CONFUSION in metrics:
        table = np.asarray(metrics[CONFUSION]["table"])
        tracker.picture("scores/confusion", confusion_chart(table, metrics[CONFUSION]["labels"]))
    if CALIBRATION in metrics:
        tracker.picture("scores/calibration", calibration_chart(Reliability.from_json(metrics[CALIBRATION])))
    sizes = size_chart(metrics["cases"])
    if sizes is not None:
        tracker.picture("scores/size_and_dice", sizes)


def joined_looks(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns what :func:`look_back` said of each fold, of all folds together; nothing where one has not looked."""
    if not parts or any(CONFUSION not in part or CALIBRATION not in part for part in parts):
        return {}
    tables = sum(np.asarray(part[CONFUSION]["table"]) for part in parts)
    together = Reliability.from_json(parts[0][CALIBRATION])
    for part in parts[1:]:
        together = together.joined(Reliability.from_json(part[CALIBRATION]))
    return {
        CONFUSION: {"labels": parts[0][CONFUSION]["labels"], "table": np.asarray(tables).tolist()},
        CALIBRATION: together.to_json(),
    }


def _structures(labels: LabelMap) -> tuple[str, ...]:
    """Names of what the network says probabilities of: labels, or overlapping regions."""
    return tuple(name for name, _ in labels.regions) or labels.names


def _said_and_true(
    logits: Any, truth: npt.NDArray[np.integer[Any]], labels: LabelMap
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Returns the probability of each structure, and where it is, (structures, n), of the voxels that have a label."""
    own = logits[: labels.class_outputs].flatten(1)
    chances = own.sigmoid() if labels.regions else own.softmax(0)[1:]
    flat = truth.ravel()
    members = [values for _, values in labels.regions] or [(label.index,) for label in labels.labels]
    known = np.ones(flat.shape, dtype=bool) if labels.ignored is None else flat != labels.ignored
    return chances.float().cpu().numpy()[:, known], np.stack([np.isin(flat[known], values) for values in members])
