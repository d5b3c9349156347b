"""One fold from its cases to its model: plan, prepare, train, score, record."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from unet_med import __version__
from unet_med.bundle import labels_of, load_bundle, save_bundle
from unet_med.config import PipelineConfig, Tracking, parse_config
from unet_med.data import CachedCase, PreparedCases, prepare_cases
from unet_med.errors import InputRefusedError, MachineError, NothingUsableError, UnetMedError
from unet_med.identity import case_tag
from unet_med.inference.device import precision_name
from unet_med.io.atomic import whole_file, write_json
from unet_med.labels import LabelMap
from unet_med.manifest import Manifest, ManifestCase, verified
from unet_med.metrics import summarise
from unet_med.overlays import outline_preview
from unet_med.planning import Plan, make_plan
from unet_med.training.distributed import Team
from unet_med.training.emptiness import learn_emptiness, proven_emptiness
from unet_med.training.loop import FitResult, fit
from unet_med.training.tracking import NullTracker, Tracker, open_tracker, review_lines
from unet_med.training.trainer import Trainer, pieces_of_batch
from unet_med.workflows.evaluate import score_cases
from unet_med.workflows.progress import track

logger = logging.getLogger(__name__)

JOURNAL = "run.json"


@dataclass(frozen=True)
class FoldCases:
    """Which cases a fold learns from and which it holds out."""

    name: str
    training: tuple[ManifestCase, ...]
    held_out: tuple[ManifestCase, ...]


@dataclass(frozen=True)
class FoldOutcome:
    """What one fold left behind; kept in the journal, so that a finished fold is not trained again.

    Attributes:
        metrics: Scores of the last model on the held-out cases (``metrics.json``).
        scored: The scores of each of these cases, for a summary over folds.
        refused: Number of cases left out.
        lines: For the terminal.
    """

    metrics: dict[str, Any]
    scored: list[dict[str, Any]]
    refused: int
    lines: list[str]


@dataclass(frozen=True)
class Session:
    """What all folds of one command share."""

    out: Path
    journal: dict[str, Any]
    device: torch.device
    memory_gb: float | None
    started: float
    parent: Tracker | None
    team: Team = field(default_factory=Team)


def train_fold(
    config: PipelineConfig, manifest: Manifest, cases: FoldCases, folder: Path, session: Session
) -> FoldOutcome:
    """Trains one fold into ``folder``; an interrupted one goes on from its checkpoint.

    Of several processes the first plans, records and writes; preparing and scoring are dealt out.

    Args:
        config: The pipeline as it was given; what is ``auto`` is resolved from the training cases alone.
        manifest: The data set.
        cases: Which cases are learnt from and which are held out.
        folder: Receives ``model/``, ``model_best/``, ``checkpoint/``, ``metrics.json`` and the resolved plan.
        session: What the folds share.

    Returns:
        What became of it; nothing in the processes that do not lead.

    Raises:
        ConfigError: if a batch cannot be dealt out evenly.
        MachineError: if memory or disk is full, or another process ended.
        TrainingError: if the loss is no longer finite.
    """
    team = session.team
    plan, usable, held_out, refused = _agreed(config, manifest, cases, session)
    pieces_of_batch(plan.config, team.world)
    labels = labels_of(plan.config)
    cache = session.out / "cache"
    training = _prepared(usable, plan.config, labels, cache, team)
    validation = _prepared(held_out, plan.config, labels, cache, team)
    tracker: Tracker = NullTracker()
    if team.leads:
        _write_plan(folder, plan)
        tracker = open_run(plan.config, f"{config.name}-{cases.name}", session.journal, cases.name, session.parent)
        write_json(session.out / JOURNAL, session.journal, JOURNAL)
    try:
        outcome = _fit_and_score(
            plan, labels, manifest, cases, training, validation, held_out, folder, tracker, session
        )
    except BaseException as error:
        tracker.finish(ending(error))
        if _is_out_of_memory(error):
            raise MachineError(
                "out of memory while training",
                f"batch of {plan.config.sampling.batch_size}, patch {plan.config.sampling.patch_voxels}",
                "give a smaller sampling.batch_size or sampling.patch_voxels with --set",
            ) from error
        raise
    tracker.finish("FINISHED")
    everything = (*refused, *training.refused, *validation.refused)
    lines = [f"left out {case_id}: {error}" for case_id, error in everything] + outcome.lines
    return FoldOutcome(
        outcome.metrics, outcome.scored, len(everything), [*lines, *review_lines(config.tracking, tracker)]
    )


def _agreed(
    config: PipelineConfig, manifest: Manifest, cases: FoldCases, session: Session
) -> tuple[Plan, list[ManifestCase], list[ManifestCase], tuple[tuple[str, UnetMedError], ...]]:
    """Returns plan, usable and held-out cases, the same for all processes, and to the first what is left out."""
    refused: tuple[tuple[str, UnetMedError], ...] = ()
    told: dict[str, Any] = {}
    if session.team.leads:
        usable, refused = _unchanged(cases.training)
        held_out, changed = _unchanged(cases.held_out)
        plan, unreadable = _plan(config, manifest, usable, session)
        bad = {case_id for case_id, _ in unreadable}
        refused = (*refused, *unreadable, *changed)
        told = {
            "plan": (plan.config.model_dump(mode="json"), plan.reasons, plan.fingerprint),
            "usable": [case.id for case in usable if case.id not in bad],
            "held_out": [case.id for case in held_out],
        }
    told = session.team.share(told)
    resolved, reasons, fingerprint = told["plan"]
    plan = Plan(parse_config(resolved, "the plan"), reasons, fingerprint)
    usable = [case for case in cases.training if case.id in set(told["usable"])]
    held_out = [case for case in cases.held_out if case.id in set(told["held_out"])]
    return plan, usable, held_out, refused


def _prepared(
    cases: Sequence[ManifestCase], config: PipelineConfig, labels: LabelMap, cache: Path, team: Team
) -> PreparedCases:
    """Prepares cases; of several processes each does its share, then all find everything in the cache."""
    if team.world > 1:
        with suppress(NothingUsableError):  # said below, when nothing is usable in any share
            prepare_cases(team.deal(cases), config, labels, cache, _progress(team))
        team.gather("prepared")
    return prepare_cases(cases, config, labels, cache, _quiet if team.world > 1 else track)


def _progress(team: Team) -> Callable[[Iterable[Any], str], Iterable[Any]]:
    """One process shows how far it is."""
    return track if team.leads else _quiet


def _quiet(items: Iterable[Any], _description: str) -> Iterable[Any]:
    return items


def _plan(
    config: PipelineConfig, manifest: Manifest, cases: Sequence[ManifestCase], session: Session
) -> tuple[Plan, list[tuple[str, UnetMedError]]]:
    """Plans on the cases that can be read; the others are refused one by one."""
    refused: list[tuple[str, UnetMedError]] = []
    while True:
        bad = {case_id for case_id, _ in refused}
        left = [case for case in cases if case.id not in bad]
        try:
            plan = make_plan(
                config, manifest, memory_gb=session.memory_gb, device=session.device.type, cases=left, progress=track
            )
        except InputRefusedError as error:
            if len(left) < 2 or error.where not in {case.id for case in left}:
                raise
            logger.warning("%s is left out: %s", case_tag(error.where), error.what)
            refused.append((error.where, error))
        else:
            return plan, refused


def _fit_and_score(
    plan: Plan,
    labels: LabelMap,
    manifest: Manifest,
    cases: FoldCases,
    training: PreparedCases,
    validation: PreparedCases,
    held_out: Sequence[ManifestCase],
    folder: Path,
    tracker: Tracker,
    session: Session,
) -> FoldOutcome:
    config = shareable(plan.config)
    channels = len(config.channels)
    team = session.team
    trainer = Trainer(config, labels, channels, session.device, team)
    counts = {"training_cases": len(training.cases), "held_out_cases": len(validation.cases)}
    machine = {"device": session.device.type, "precision": precision_name(trainer.precision)}
    describe_run(tracker, config, manifest, cases.name, counts, plan.reasons, machine)
    drawn = (validation.cases or training.cases)[: config.training.overlay_cases]
    recorder = _Recorder(tracker, drawn, labels, draws_validation=bool(validation.cases), trainer=trainer)
    if team.leads:
        recorder.draw_truth()
    budget = config.training.max_minutes
    result = fit(
        trainer,
        training.cases,
        validation.cases,
        folder / "checkpoint",
        resume=True,
        max_seconds=None if budget is None else max(budget * 60 - (time.monotonic() - session.started), 1.0),
        record=recorder,
        overlay_ids=[case.id for case in drawn],
        progress=_progress(team),
    )
    used = {case.id for case in training.cases}
    learnt_from = [case for case in cases.training if case.id in used]
    meta = _meta(plan, manifest, cases, learnt_from, result, session.device)
    if team.leads:
        save_bundle(folder / "model", config, result.last, meta)
    scored, unscored = _scored(folder / "model", held_out, session.device, team)
    if not team.leads:
        return FoldOutcome({}, [], 0, [])
    metrics = summarise(scored) | {"refused": unscored}
    meta["results"] = {"held_out": {k: v for k, v in metrics.items() if k != "cases"}}
    learnt = learn_emptiness(training.cases, config)
    prepared = (*validation.cases, *training.cases)
    readers = {case.id: case.case.read for case in (*held_out, *learnt_from)}

    def save_skipping(name: str, state: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> str:
        save_bundle(folder / name, config, state, meta)
        model, seconds = load_bundle(folder / name), result.seconds / 10
        rule = proven_emptiness(learnt, model, prepared, readers, session.device.type, seconds)
        return save_bundle(folder / name, config, state, {**meta, "empty_windows": rule})

    sha256 = save_skipping("model", result.last, meta)
    if result.best is not None:
        save_skipping("model_best", result.best, {**meta, "validation_dice": result.best_dice})
    write_json(folder / "metrics.json", metrics, "metrics.json")
    if metrics.get("cases"):
        tracker.cases(_case_rows(metrics))
        tracker.epoch(len(result.history) + 1, _final_metrics(metrics))
    version = tracker.bundle(
        folder / "model", config.name if config.tracking.register_model else None, _final_metrics(metrics)
    )
    lines = _fold_lines(cases, len(learnt_from), result, metrics, trainer, sha256, folder, version)
    return FoldOutcome(metrics, scored, 0, lines)


def _scored(
    model: Path, held_out: Sequence[ManifestCase], device: torch.device, team: Team
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Scores the held-out cases, dealt out to the processes; returns them all, and the refused ones."""
    team.gather("saved")
    mine = team.deal(held_out)
    own = score_cases([model], mine, str(device), _progress(team)) if mine else ([], [])
    order = {case.id: number for number, case in enumerate(held_out)}
    scored, refused = (
        sorted(chain(*part), key=lambda entry: order[entry["id"]]) for part in zip(*team.gather(own), strict=True)
    )
    return scored, refused


class _Recorder:
    """Takes each epoch to the tracker, with outlines of the same cases every time."""

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

    def draw_truth(self) -> None:
        """Step 0 of each series of pictures: what it should become."""
        for number, case in enumerate(self._drawn):
            self._draw(number, case, np.zeros(case.shape, dtype=np.uint8), 0)

    def __call__(self, epoch: int, metrics: Mapping[str, float], masks: Mapping[str, np.ndarray[Any, Any]]) -> None:
        self._tracker.epoch(epoch, metrics)
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

    def _draw(self, number: int, case: CachedCase, mask: np.ndarray[Any, Any], step: int) -> None:
        image, truth = np.asarray(case.image()[0]), np.asarray(case.label())
        picture = outline_preview(image, mask, case.spacing_mm, self._labels, truth=truth)
        self._tracker.overlay(f"overlay/{number}_{case_tag(case.id)}", picture, step)


def _meta(
    plan: Plan,
    manifest: Manifest,
    cases: FoldCases,
    learnt_from: Sequence[ManifestCase],
    result: FitResult,
    device: torch.device,
) -> dict[str, Any]:
    return {
        "tool_version": __version__,
        "torch_version": torch.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device.type,
        "training": {
            "case_sha256": [case.sha256["image"] for case in learnt_from],
            "data_digest": manifest.digest,
            "modality": manifest.modality,
            "n_cases": len(learnt_from),
            "fold": cases.name,
            "held_out": len(cases.held_out),
            "steps": result.steps,
            "minutes": round(result.seconds / 60, 2),
            "seconds_per_step": round(result.seconds_per_step, 4),
            "seed": plan.config.seed,
            "best_validation_dice": result.best_dice,
            "notes": result.notes,
        },
        "fingerprint": plan.fingerprint,
        "reasons": plan.reasons,
        "results": {},
    }


def _write_plan(folder: Path, plan: Plan) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / "pipeline.yaml", "pipeline.yaml") as part:
        part.write_text(plan.config.to_yaml(), encoding="utf-8")
    write_json(folder / "plan.json", {"reasons": plan.reasons, "fingerprint": plan.fingerprint}, "plan.json")


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _case_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for case in metrics["cases"]:
        row: dict[str, Any] = {"case": case_tag(case["id"])}
        for kind, values in case.items():
            if isinstance(values, Mapping):
                row |= {f"{kind}/{label}": value for label, value in values.items()}
        rows.append(row)
    return rows


def _final_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    final = {f"final/{k}/mean": v for k, v in metrics["mean"].items() if v is not None}
    for label, values in metrics["per_label"].items():
        final |= {
            f"final/{k}/{label}": v
            for k, v in values.items()
            if k in ("dice", "iou", "hd95_mm", "nsd") and v is not None
        }
    return final


def _fold_lines(
    cases: FoldCases,
    n_cases: int,
    result: FitResult,
    metrics: Mapping[str, Any],
    trainer: Trainer,
    sha256: str,
    folder: Path,
    version: str | None,
) -> list[str]:
    lines = [
        f"{cases.name}: {n_cases} cases, {result.steps} steps of {trainer.batch_size} in "
        f"{result.seconds / 60:.1f} min ({result.seconds_per_step:.3f} s a step, {precision_name(trainer.precision)}"
        f"{f', {trainer.team.world} processes' if trainer.team.world > 1 else ''})",
        *result.notes,
    ]
    for label, values in metrics["per_label"].items():
        if values["dice"] is not None:
            lines.append(f"  {label}: Dice {values['dice']:.4f}, IoU {values['iou']:.4f}")
    if metrics["mean"].get("dice") is not None:
        lines.append(f"  mean over {metrics['n_cases']} held-out cases: Dice {metrics['mean']['dice']:.4f}")
    lines.append(f"  model: {folder / 'model'} (sha256 {sha256[:12]})")
    if version:
        lines.append(f"  registered: {version}")
    return lines


def _unchanged(
    cases: Sequence[ManifestCase],
) -> tuple[list[ManifestCase], tuple[tuple[str, UnetMedError], ...]]:
    """Leaves out cases whose files are no longer those that the manifest was made from, and says so."""
    usable, changed = verified(track(cases, "checking files"))
    for case, error in changed:
        logger.warning("%s is left out: %s", case_tag(case.id), error.what)
    return usable, tuple((case.id, error) for case, error in changed)


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
            **machine,
        },
    )


def ending(error: BaseException) -> Literal["FAILED", "KILLED"]:
    """How a run ended that raised: by a fault, or because it was asked to stop."""
    return "FAILED" if isinstance(error, Exception) else "KILLED"


def shareable(config: PipelineConfig) -> PipelineConfig:
    """Returns the pipeline without the address of the user's store, which may hold a path or a password."""
    return config.replacing({"tracking.store": Tracking().store})


def open_run(config: PipelineConfig, name: str, journal: dict[str, Any], key: str, parent: Tracker | None) -> Tracker:
    """Opens the tracker of a fold (or of the run above the folds), the same one again after an interruption."""
    tracker = open_tracker(
        config.tracking,
        config.tracking.experiment or config.name,
        name,
        journal["mlflow_runs"].get(key),
        parent.run_id if parent is not None else None,
    )
    journal["mlflow_runs"][key] = tracker.run_id
    return tracker


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("not enough memory" in text or "out of memory" in text)
