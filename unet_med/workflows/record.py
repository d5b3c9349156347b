"""What training tells the tracker: what is trained on what, each epoch, the scores of the finished model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from unet_med import __version__
from unet_med.config import PipelineConfig, Tracking
from unet_med.data import CachedCase
from unet_med.identity import case_tag
from unet_med.labels import LabelMap
from unet_med.manifest import Manifest
from unet_med.overlays import outline_preview
from unet_med.review.failures import failures, intervals
from unet_med.training.machine_load import MachineLoad
from unet_med.training.revision import code_revision
from unet_med.training.tracking import Tracker, open_tracker
from unet_med.training.trainer import Trainer
from unet_med.workflows.last_look import CALIBRATION, CONFUSION


class Recorder:
    """Takes each epoch to the tracker, with outlines of the same cases every time.

    Args:
        tracker: Where it goes.
        drawn: The cases.
        labels: What the values of their masks mean.
        draws_validation: Whether they are validated, so that their masks come with the epochs.
        trainer: Predicts them otherwise.
    """

    def __init__(
        self,
        tracker: Tracker,
        drawn: Sequence[CachedCase],
        labels: LabelMap,
        *,
        draws_validation: bool,
        trainer: Trainer,
    ) -> None:
        self._tracker = tracker
        self._drawn = drawn
        self._labels = labels
        self._draws_validation = draws_validation
        self._trainer = trainer
        self._load = MachineLoad(trainer.device)
        self._told = 0

    def draw_truth(self) -> None:
        """Step 0 of each series of pictures: what it should become."""
        for number, case in enumerate(self._drawn):
            self._draw(number, case, np.zeros(case.shape, dtype=np.uint8), 0)

    def __call__(self, epoch: int, metrics: Mapping[str, float], masks: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Records a finished epoch; see :class:`unet_med.training.loop.EpochRecord`."""
        self.catch_up(epoch - 1)
        self._tracker.epoch(epoch, {**metrics, **self._load.read()})
        self._told = epoch
        validated = any(name.startswith("val/") for name in metrics)
        due = validated if self._draws_validation else epoch % 10 == 0
        if not due:
            return
        for number, case in enumerate(self._drawn):
            mask = masks.get(case.id)
            if mask is None:
                with self._trainer.evaluating() as network:
                    mask = self._trainer.predict(network, case)
            self._draw(number, case, mask, epoch)

    def catch_up(self, epoch: int) -> None:
        """Records epochs of earlier starts, up to this one, that the store does not hold.

        They waited for a server that was away when the run was interrupted.
        """
        for earlier, metrics in enumerate(self._trainer.history[self._told : epoch], start=self._told + 1):
            self._tracker.epoch(earlier, metrics)
        self._told = max(self._told, epoch)

    def _draw(self, number: int, case: CachedCase, mask: np.ndarray[Any, Any], step: int) -> None:
        image, truth = np.asarray(case.image()[0]), np.asarray(case.label())
        picture = outline_preview(image, mask, case.spacing_mm, self._labels, truth=truth)
        self._tracker.overlay(f"overlay/{number}_{case_tag(case.id)}", picture, step)


def describe_run(
    tracker: Tracker,
    config: PipelineConfig,
    manifest: Manifest,
    fold: str,
    counts: Mapping[str, int],
    reasons: Mapping[str, str],
    machine: Mapping[str, str],
) -> None:
    """Tells the tracker what is trained, on what, and why so."""
    tracker.start(
        config.to_yaml(),
        _flat(config.model_dump(mode="json")),
        reasons,
        {"digest": manifest.digest, **counts},
        {
            "task": config.task,
            "dims": str(config.dims),
            "fold": fold,
            "seed": str(config.seed),
            "data_digest": manifest.digest,
            "tool_version": __version__,
            "git_revision": code_revision(),
            **machine,
        },
    )


def open_run(
    config: PipelineConfig, name: str, journal: dict[str, Any], key: str, parent_run: str | None = None
) -> Tracker:
    """Opens the tracker of a fold (or of the run above the folds), the same one again after an interruption."""
    tracker = open_tracker(
        config.tracking,
        config.tracking.experiment or config.name,
        name,
        journal["mlflow_runs"].get(key),
        parent_run,
    )
    journal["mlflow_runs"][key] = tracker.run_id
    return tracker


def ending(error: BaseException) -> Literal["FAILED", "KILLED"]:
    """How a run ended that raised: by a fault, or because it was asked to stop."""
    return "FAILED" if isinstance(error, Exception) else "KILLED"


def shareable(config: PipelineConfig) -> PipelineConfig:
    """Returns the pipeline without the address of the user's store, which may hold a path or a password."""
    return config.replacing({"tracking.store": Tracking().store})


def case_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns a row of scores for each case of ``metrics.json``, named by its safe tag."""
    rows = []
    for case in metrics["cases"]:
        row: dict[str, Any] = {"case": case_tag(case["id"])}
        for kind, values in case.items():
            if kind == "instance":
                row |= {f"objects/{name}": value for name, value in _object_scores(values).items()}
            elif isinstance(values, Mapping):
                row |= {f"{kind}/{label}": value for label, value in values.items()}
        rows.append(row)
    return rows


def told_results(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a bundle keeps of ``metrics.json``: no single case, but how sure the means are, and the failures."""
    told = {key: value for key, value in metrics.items() if key not in ("cases", CONFUSION, CALIBRATION)}
    told |= {"intervals": intervals(metrics["cases"]), "failures": failures(metrics["cases"])}
    if CALIBRATION in metrics:
        told["calibration_error"] = {name: entry["error"] for name, entry in metrics[CALIBRATION].items()}
    return told


def final_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Returns the means of ``metrics.json`` under the names that the tracker shows."""
    final = {f"final/{k}/mean": v for k, v in metrics["mean"].items() if v is not None}
    for label, values in metrics["per_label"].items():
        final |= {
            f"final/{k}/{label}": v
            for k, v in values.items()
            if k in ("dice", "iou", "hd95_mm", "nsd") and v is not None
        }
    instance = metrics.get("instance") or {}
    return final | {f"final/objects/{k}": v for k, v in _object_scores(instance).items() if v is not None}


def _object_scores(instance: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the scores of objects, one number for each name: AP at each IoU, all others, those of each class."""
    scores: dict[str, Any] = {}
    for name, value in instance.items():
        if isinstance(value, Mapping):
            scores |= {f"{name}/{key}": one for key, one in _object_scores(value).items()}
        else:
            scores[name] = value
    return scores


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
