"""``unet-med train``: from a manifest to a model, with everything on the way recorded."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unet_med.config import PipelineConfig, load_config
from unet_med.errors import UsageError
from unet_med.inference.device import choose_device
from unet_med.io.atomic import write_json
from unet_med.manifest import Manifest, load_manifest
from unet_med.metrics import summarise
from unet_med.training.distributed import open_team, own_device
from unet_med.training.tracking import Tracker
from unet_med.workflows.fold import (
    JOURNAL,
    FoldCases,
    FoldOutcome,
    Session,
    describe_run,
    ending,
    open_run,
    shareable,
    train_fold,
)
from unet_med.workflows.outcome import SOME_REFUSED, Outcome

logger = logging.getLogger(__name__)


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
    """Trains one fold, all folds, or on all cases; the processes that ``torchrun`` started do it together.

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
        MachineError: if another process of this training ended.
    """
    started = time.monotonic()
    processor = own_device(choose_device(device))
    config = load_config(pipeline, overrides)
    if max_minutes is not None:
        config = config.replacing({"training.max_minutes": max_minutes})
    manifest = load_manifest(data)
    manifest.require_clean()
    folds = _folds(manifest, fold)
    with open_team(processor) as team:
        journal = team.share(_open_run(out, _job(config, manifest, folds), resume, overwrite) if team.leads else {})
        if journal.get("finished"):
            lines = ["this run is finished already", *journal["lines"]]
            return Outcome(journal["result"], lines if team.leads else [])
        single = len(folds) == 1
        parent = None if single or not team.leads else _open_parent(config, manifest, journal, processor.type)
        outcomes: dict[str, FoldOutcome] = {}
        try:
            for cases in folds:
                if cases.name not in journal["folds"]:
                    folder = out if single else out / cases.name
                    session = Session(out, journal, processor, memory_gb, started, parent, team)
                    outcome = train_fold(config, manifest, cases, folder, session)
                    journal["folds"][cases.name] = team.share(asdict(outcome))
                    if team.leads:
                        write_json(out / JOURNAL, journal, JOURNAL)
                outcomes[cases.name] = FoldOutcome(**journal["folds"][cases.name])
                started = time.monotonic()
        except BaseException as error:
            if parent is not None:
                parent.finish(ending(error))
            raise
        return _finish(out, journal, outcomes, parent, team.leads)


def _finish(
    out: Path, journal: dict[str, Any], outcomes: Mapping[str, FoldOutcome], parent: Tracker | None, leads: bool
) -> Outcome:
    """Sums up the folds; one process writes and speaks."""
    result, lines = _summary(outcomes, out)
    if parent is not None:
        parent.epoch(1, {f"cv/{k}": v for k, v in result["mean"].items() if isinstance(v, float)})
        parent.finish("FINISHED")
    if leads:
        write_json(out / "metrics.json", result, "metrics.json")
        journal |= {"finished": True, "result": result, "lines": lines}
        write_json(out / JOURNAL, journal, JOURNAL)
        shutil.rmtree(out / "cache", ignore_errors=True)
    refused = any(outcome.refused for outcome in outcomes.values())
    return Outcome(result, lines if leads else [], SOME_REFUSED if refused else 0)


def _open_parent(config: PipelineConfig, manifest: Manifest, journal: dict[str, Any], device: str) -> Tracker:
    """The run above the folds of a cross-validation."""
    parent = open_run(config, config.name + "-cv", journal, "parent", None)
    counts = {"training_cases": len(manifest.training)}
    describe_run(parent, shareable(config), manifest, "cv", counts, {}, {"device": device})
    return parent


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


def _job(config: PipelineConfig, manifest: Manifest, folds: Sequence[FoldCases]) -> str:
    content = [config.model_dump(mode="json"), manifest.digest, [cases.name for cases in folds]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _open_run(out: Path, job: str, resume: bool, overwrite: bool) -> dict[str, Any]:
    """Claims the run folder and returns its journal."""
    journal = out / JOURNAL
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
    write_json(journal, fresh, JOURNAL)
    return fresh
