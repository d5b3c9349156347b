"""``unet-med train``: from a manifest to a model, with everything on the way recorded."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unet_med import __version__
from unet_med.bundle import save_bundle
from unet_med.config import PipelineConfig, load_config
from unet_med.data import CachedCase, PreparedCases, prepare_cases
from unet_med.errors import InputRefusedError, MachineError, UnetMedError, UsageError
from unet_med.identity import case_tag
from unet_med.inference.device import choose_device, precision_name
from unet_med.io.atomic import whole_file, write_json
from unet_med.labels import LabelMap
from unet_med.manifest import Manifest, ManifestCase, load_manifest, verify
from unet_med.metrics import summarise
from unet_med.overlays import outline_preview
from unet_med.planning import Plan, make_plan
from unet_med.training.loop import FitResult, Trainer, fit
from unet_med.training.tracking import Tracker, open_tracker, review_lines
from unet_med.workflows.evaluate import score_cases
from unet_med.workflows.outcome import SOME_REFUSED, Outcome
from unet_med.workflows.progress import track

logger = logging.getLogger(__name__)

_JOURNAL = "run.json"


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


def train(
    pipeline: Path,
    data: Path,
    out: Path,
    fold: str | None = None,
    max_minutes: float | None = None,
    resume: bool = False,
    device: str = "auto",
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    memory_gb: float | None = None,
) -> Outcome:
    """Trains one fold, all folds, or on all cases.

    Args:
        pipeline: Pipeline YAML.
        data: Manifest.
        out: Run folder: ``model/`` (the bundle), ``model_best/``, ``checkpoint/``, ``metrics.json``, ``plan.json``.
        fold: Number of the fold to hold out, ``cv`` for each in turn, ``all`` to hold out none; default fold 0.
        max_minutes: Wall-clock budget of a fold; replaces the number of epochs.
        resume: Go on where an interrupted run stopped.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        overrides: ``a.b=c`` changes of the pipeline.
        overwrite: Replace what an earlier run left in ``out``.
        memory_gb: Memory that the plan may use.

    Raises:
        UsageError: for a fold that does not exist, or a folder that holds another run.
    """
    started = time.monotonic()
    processor = choose_device(device)
    config = load_config(pipeline, overrides)
    if max_minutes is not None:
        config = config.replacing({"training.max_minutes": max_minutes})
    manifest = load_manifest(data)
    manifest.require_clean()
    folds = _folds(manifest, fold)
    journal = _open_run(out, _job(config, manifest, folds), resume, overwrite)
    if journal.get("finished"):
        return Outcome(journal["result"], ["this run is finished already", *journal["lines"]])
    single = len(folds) == 1
    parent = None if single else _open_tracker(config, config.name + "-cv", journal, "parent", None)
    outcomes: dict[str, FoldOutcome] = {}
    for cases in folds:
        if cases.name not in journal["folds"]:
            folder = out if single else out / cases.name
            session = _Session(out, journal, processor, memory_gb, started, parent)
            journal["folds"][cases.name] = asdict(_train_fold(config, manifest, cases, folder, session))
            write_json(out / _JOURNAL, journal, _JOURNAL)
        outcomes[cases.name] = FoldOutcome(**journal["folds"][cases.name])
        started = time.monotonic()
    result, lines = _summary(outcomes, out)
    if parent is not None:
        parent.epoch(1, {f"cv/{k}": v for k, v in result["mean"].items() if isinstance(v, float)})
        parent.finish("FINISHED")
    write_json(out / "metrics.json", result, "metrics.json")
    journal |= {"finished": True, "result": result, "lines": lines}
    write_json(out / _JOURNAL, journal, _JOURNAL)
    shutil.rmtree(out / "cache", ignore_errors=True)
    refused = any(outcome.refused for outcome in outcomes.values())
    return Outcome(result, lines, SOME_REFUSED if refused else 0)


@dataclass(frozen=True)
class _Session:
    """What all folds of one command share."""

    out: Path
    journal: dict[str, Any]
    device: torch.device
    memory_gb: float | None
    started: float
    parent: Tracker | None


def _train_fold(
    config: PipelineConfig, manifest: Manifest, cases: FoldCases, folder: Path, session: _Session
) -> FoldOutcome:
    usable, refused = _verified(cases.training)
    held_out, changed = _verified(cases.held_out)
    plan, unreadable = _plan(config, manifest, usable, session)
    refused = (*refused, *unreadable)
    labels = LabelMap.from_names(_labels(plan.config), plan.config.regions)
    _write_plan(folder, plan)
    cache = session.out / "cache"
    bad = {case_id for case_id, _ in refused}
    training = prepare_cases([case for case in usable if case.id not in bad], plan.config, labels, cache, track)
    validation = prepare_cases(held_out, plan.config, labels, cache, track)
    tracker = _open_tracker(plan.config, f"{config.name}-{cases.name}", session.journal, cases.name, session.parent)
    write_json(session.out / _JOURNAL, session.journal, _JOURNAL)
    try:
        outcome = _fit_and_score(
            plan, labels, manifest, cases, training, validation, held_out, folder, tracker, session
        )
    except BaseException as error:
        tracker.finish("KILLED" if not isinstance(error, Exception) else "FAILED")
        if _is_out_of_memory(error):
            raise MachineError(
                "out of memory while training",
                f"batch of {plan.config.sampling.batch_size}, patch {plan.config.sampling.patch_voxels}",
                "give a smaller sampling.batch_size or sampling.patch_voxels with --set",
            ) from error
        raise
    tracker.finish("FINISHED")
    everything = (*refused, *changed, *training.refused, *validation.refused)
    lines = [f"left out {case_id}: {error}" for case_id, error in everything] + outcome.lines
    return FoldOutcome(
        outcome.metrics, outcome.scored, len(everything), [*lines, *review_lines(config.tracking, tracker)]
    )


def _plan(
    config: PipelineConfig, manifest: Manifest, cases: Sequence[ManifestCase], session: _Session
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
    session: _Session,
) -> FoldOutcome:
    config = plan.config
    channels = len(config.channels)
    trainer = Trainer(config, labels, channels, session.device)
    tracker.start(
        config.to_yaml(),
        _flat(config.model_dump(mode="json")),
        plan.reasons,
        {
            "digest": manifest.digest,
            "training_cases": len(training.cases),
            "held_out_cases": len(validation.cases),
        },
        {
            "task": config.task,
            "dims": str(config.dims),
            "fold": cases.name,
            "seed": str(config.seed),
            "data_digest": manifest.digest,
            "tool_version": __version__,
            "device": session.device.type,
            "precision": precision_name(trainer.precision),
        },
    )
    drawn = (validation.cases or training.cases)[: config.training.overlay_cases]
    recorder = _Recorder(tracker, drawn, labels, draws_validation=bool(validation.cases), trainer=trainer)
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
        progress=track,
    )
    used = {case.id for case in training.cases}
    learnt_from = [case for case in cases.training if case.id in used]
    meta = _meta(plan, manifest, cases, learnt_from, result, session.device)
    save_bundle(folder / "model", config, result.last, meta)
    scored, unscored = score_cases([folder / "model"], held_out, session.device.type, track) if held_out else ([], [])
    metrics = summarise(scored) | {"refused": unscored}
    meta["results"] = {"held_out": {k: v for k, v in metrics.items() if k != "cases"}}
    sha256 = save_bundle(folder / "model", config, result.last, meta)
    if result.best is not None:
        save_bundle(folder / "model_best", config, result.best, {**meta, "validation_dice": result.best_dice})
    write_json(folder / "metrics.json", metrics, "metrics.json")
    if metrics.get("cases"):
        tracker.cases(_case_rows(metrics))
        tracker.epoch(len(result.history) + 1, _final_metrics(metrics))
    version = tracker.bundle(
        folder / "model", config.name if config.tracking.register_model else None, _final_metrics(metrics)
    )
    lines = _fold_lines(cases, len(learnt_from), result, metrics, trainer, sha256, folder, version)
    return FoldOutcome(metrics, scored, 0, lines)


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
            picture = outline_preview(
                np.asarray(case.image()[0]), mask, case.spacing_mm, self._labels, truth=np.asarray(case.label())
            )
            self._tracker.overlay(f"overlay_{number}_{case_tag(case.id)}", picture, epoch)


# ---- what is written ------------------------------------------------------------------------------------------------


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
        f"{result.seconds / 60:.1f} min ({result.seconds_per_step:.3f} s a step, {precision_name(trainer.precision)})",
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


def _summary(outcomes: Mapping[str, FoldOutcome], out: Path) -> tuple[dict[str, Any], list[str]]:
    lines = [line for outcome in outcomes.values() for line in outcome.lines]
    if len(outcomes) == 1:
        return next(iter(outcomes.values())).metrics, lines
    result = summarise([case for outcome in outcomes.values() for case in outcome.scored])
    result["folds"] = {name: outcome.metrics["mean"] for name, outcome in outcomes.items()}
    lines.append(f"out of fold, {result['n_cases']} cases: Dice {result['mean']['dice']} ({out / 'metrics.json'})")
    return result, lines


# ---- what is asked for ----------------------------------------------------------------------------------------------


def _folds(manifest: Manifest, fold: str | None) -> list[FoldCases]:
    if fold == "all":
        return [FoldCases("all", manifest.training, ())]
    numbers = sorted({case.fold for case in manifest.training if case.fold is not None})
    if not numbers:
        raise UsageError("the manifest has no folds", "--fold", "use --fold all, or write it again with --folds 5")
    if fold is None:
        wanted = numbers[:1]
    elif fold == "cv":
        wanted = numbers
    elif fold.isdecimal() and int(fold) in numbers:
        wanted = [int(fold)]
    else:
        raise UsageError(f"there is no fold {fold!r}", "--fold", f"use one of {numbers}, cv or all")
    chosen = [
        FoldCases(
            f"fold_{number}",
            tuple(case for case in manifest.training if case.fold != number),
            tuple(case for case in manifest.training if case.fold == number),
        )
        for number in wanted
    ]
    for cases in chosen:
        if not cases.training:
            raise UsageError(f"{cases.name} leaves no case to train on", "--fold", "use --fold all, or fewer folds")
    return chosen


def _verified(
    cases: Sequence[ManifestCase],
) -> tuple[list[ManifestCase], tuple[tuple[str, UnetMedError], ...]]:
    """Leaves out cases whose files are no longer those that the manifest was made from."""
    good: list[ManifestCase] = []
    bad: list[tuple[str, UnetMedError]] = []
    for case in track(cases, "checking files"):
        try:
            verify(case)
        except InputRefusedError as error:
            logger.warning("%s is left out: %s", case_tag(case.id), error.what)
            bad.append((case.id, error))
        else:
            good.append(case)
    return good, tuple(bad)


def _labels(config: PipelineConfig) -> dict[str, int]:
    if config.labels == "auto":
        raise UsageError("the labels are not resolved", "labels", "resolve the pipeline with `unet-med plan`")
    return config.labels


def _job(config: PipelineConfig, manifest: Manifest, folds: Sequence[FoldCases]) -> str:
    content = [config.model_dump(mode="json"), manifest.digest, [cases.name for cases in folds]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _open_run(out: Path, job: str, resume: bool, overwrite: bool) -> dict[str, Any]:
    """Claims the run folder and returns its journal."""
    journal = out / _JOURNAL
    if overwrite and journal.exists():
        for name in ("cache", "checkpoint", "model", "model_best"):
            shutil.rmtree(out / name, ignore_errors=True)
        for folder in out.glob("fold_*"):
            shutil.rmtree(folder, ignore_errors=True)
        journal.unlink()
    if journal.exists():
        known: dict[str, Any] = json.loads(journal.read_text(encoding="utf-8"))
        if known["job"] != job:
            raise UsageError(
                "the folder holds a run with another pipeline, data set or fold", "--out", "use another, or --overwrite"
            )
        if not resume:
            raise UsageError("the folder holds this run already", "--out", "use --resume to go on, or --overwrite")
        return known
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise UsageError("the folder is not empty and holds no run", "--out", "use another folder, or --overwrite")
    out.mkdir(parents=True, exist_ok=True)
    fresh: dict[str, Any] = {"job": job, "mlflow_runs": {}, "folds": {}, "finished": False}
    write_json(journal, fresh, _JOURNAL)
    return fresh


def _open_tracker(
    config: PipelineConfig, name: str, journal: dict[str, Any], key: str, parent: Tracker | None
) -> Tracker:
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
