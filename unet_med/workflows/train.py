"""``unet-med train``: from a manifest to a model, with everything on the way recorded."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from unet_med import __version__
from unet_med.bundle import Bundle, load_bundle
from unet_med.config import PipelineConfig, load_config
from unet_med.doctoring import quick_findings
from unet_med.errors import UsageError
from unet_med.inference.device import choose_device
from unet_med.inference.objects import MAPS
from unet_med.io.atomic import write_json
from unet_med.manifest import Manifest, load_manifest
from unet_med.training.distributed import Team, open_team, own_device
from unet_med.training.fine_tuning import started_from
from unet_med.training.past_run import PastRun, read_past_run
from unet_med.training.revision import code_revision
from unet_med.training.tracking import NullTracker, Tracker, review_lines
from unet_med.workflows.cards import cards_for, train_on_cards
from unet_med.workflows.cascade import FOLDER as CASCADE
from unet_med.workflows.cross_validation import MASKS, combine_folds
from unet_med.workflows.fold import train_fold
from unet_med.workflows.outcome import SOME_REFUSED, Outcome
from unet_med.workflows.progress import track
from unet_med.workflows.record import describe_run, ending, open_run, shareable
from unet_med.workflows.session import JOURNAL, FoldCases, FoldOutcome, Session
from unet_med.workflows.teaching import Teacher, with_teacher

logger = logging.getLogger(__name__)

_SHOWN = 10
_LEFT_OUT = ("constant", "image_not_finite", "refused")
"""Faults of single cases, which training leaves out one by one."""


def train(
    pipeline: Path | None,
    data: Path,
    out: Path,
    fold: str | None = None,
    max_minutes: float | None = None,
    resume: bool = False,
    device: str = "auto",
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    memory_gb: float | None = None,
    start_from: str | None = None,
    from_run: str | None = None,
    teacher: str | None = None,
) -> Outcome:
    """Trains one fold, all folds, or on all cases; the processes that ``torchrun`` started do it together.

    Where the machine has several cards, and one process was started, each trains a fold of its own.

    Args:
        pipeline: Pipeline YAML; ``None``: that of ``from_run``.
        data: Manifest.
        out: Run folder: ``model/`` (the bundle; after a cross-validation the ensemble of the folds), ``model_best/``,
            ``checkpoint/``, ``metrics.json``, ``plan.json``; of a cross-validation, the folds lie in ``fold_N/``.
        fold: Number of the fold to hold out, ``cv`` for each in turn, ``all`` to hold out none; default fold 0.
        max_minutes: Wall-clock budget of a fold; replaces the number of epochs.
        resume: Go on where an interrupted run stopped.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        overrides: ``a.b=c`` changes of the pipeline.
        overwrite: Replace what an earlier run left in ``out``.
        memory_gb: Memory that the plan may use.
        start_from: A model to begin with, as for ``predict``; its grid, normalisation and network are kept.
        from_run: Id of a run in MLflow: its pipeline as it was resolved is trained again, on the same data and fold.
        teacher: A model, often an ensemble, that one model is to stand for: it learns from its chances beside the truth
            (``loss.teacher_weight``), and what it costs in its place is measured. Its network may be another.

    Raises:
        UsageError: for a fold that does not exist, a folder that holds another run, a run in MLflow that is not there
            or was trained on other data.
        ConfigError: for a pipeline that needs a teacher without one, or that no teacher is for.
        ModelError: if there is no model to start from or to learn from, or it does not fit.
        MachineError: if another process of this training ended.
    """
    started = time.monotonic()
    processor = own_device(choose_device(device))
    past = None if from_run is None else read_past_run(from_run, overrides)
    config = _pipeline(pipeline, past, overrides)
    if max_minutes is not None:
        config = config.replacing({"training.max_minutes": max_minutes})
    manifest = load_manifest(data)
    manifest.require_clean()
    start = None if start_from is None else load_bundle(start_from)
    if past is not None:
        past.require_same(manifest.digest, None if start is None else start.sha256)
        fold = fold or past.fold
    if start is not None:
        _refuse_cascade(config, start)
        config = started_from(config, manifest, start)
    heard = None if teacher is None else Teacher.of(teacher)
    config = with_teacher(config, heard)
    folds = _folds(manifest, fold)
    if heard is not None and len(folds) > 1:
        raise UsageError("several folds do not become one model", "--fold", "use all, or hold out one fold")
    with open_team(processor) as team:
        told = _examined(manifest) if team.leads and (overwrite or not (out / JOURNAL).exists()) else []
        job = _job(config, manifest, folds, start, heard, memory_gb)
        journal = team.share(_open_run(out, job, resume, overwrite) if team.leads else {})
        if journal.get("finished"):
            lines = ["this run is finished already", *journal["lines"]]
            return Outcome(journal["result"], lines if team.leads else [])
        crosses = len(folds) > 1
        parent: Tracker = NullTracker()
        if crosses and team.leads:
            parent = _open_parent(config, manifest, journal, processor.type, start)
        session = Session(
            out,
            journal,
            processor,
            memory_gb,
            started,
            parent.run_id,
            team,
            start,
            out / MASKS if crosses else None,
            heard,
        )
        try:
            outcomes = _train_folds(config, manifest, folds, session, start_from)
            result, lines = _finish(config, out, outcomes, parent, team)
        except BaseException as error:
            parent.finish(ending(error))
            raise
        parent.finish("FINISHED")
        if team.leads:
            told += [] if past is None else past.remarks(code_revision(), __version__)
            lines = [*told, *(line for outcome in outcomes.values() for line in outcome.lines), *lines]
            journal |= {"finished": True, "result": result, "lines": lines}
            write_json(out / JOURNAL, journal, JOURNAL)
            shutil.rmtree(out / "cache", ignore_errors=True)
        if not team.leads:  # the exit code is the leader's to give: at the first but 0 torchrun ends all others
            return Outcome(result)
        refused = any(outcome.refused for outcome in outcomes.values())
        return Outcome(result, lines, SOME_REFUSED if refused else 0)


def _examined(manifest: Manifest) -> list[str]:
    """Looks at the data set for some seconds; an error stops the training, warnings are returned as lines."""
    findings = [found for found in quick_findings(manifest, track) if found.kind not in _LEFT_OUT]
    replace(manifest, findings=tuple(findings)).require_clean()
    more = len(findings) - _SHOWN
    return [*map(str, findings[:_SHOWN]), *([f"{more} more findings: see `unet-med check`"] if more > 0 else [])]


def _train_folds(
    config: PipelineConfig,
    manifest: Manifest,
    folds: Sequence[FoldCases],
    session: Session,
    start_from: str | None,
) -> dict[str, FoldOutcome]:
    """Trains the folds that are not finished; each is noted in the journal when it is."""
    journal, team = session.journal, session.team

    def note(name: str, outcome: dict[str, Any]) -> None:
        journal["folds"][name] = outcome
        if team.leads:
            write_json(session.out / JOURNAL, journal, JOURNAL)

    left = [cases for cases in folds if cases.name not in journal["folds"]]
    cards = 1 if team.world > 1 else cards_for(session.device, len(left))
    if cards > 1:
        for name, outcome in train_on_cards(config, manifest, left, session, start_from, cards):
            note(name, outcome)
        left = []
    for cases in left:
        folder = session.out if len(folds) == 1 else session.out / cases.name
        done = train_fold(config, manifest, cases, folder, session)
        note(cases.name, team.share(asdict(done)))
        session = replace(session, started=time.monotonic())
    return {cases.name: FoldOutcome(**journal["folds"][cases.name]) for cases in folds}


def _finish(
    config: PipelineConfig, out: Path, outcomes: Mapping[str, FoldOutcome], parent: Tracker, team: Team
) -> tuple[dict[str, Any], list[str]]:
    """Sums up the folds; one process writes and speaks, the others wait for it."""
    result: dict[str, Any] = {}
    lines: list[str] = []
    if len(outcomes) == 1:
        result = next(iter(outcomes.values())).metrics
    elif team.leads:
        result, lines = combine_folds(out, outcomes, parent, config.tracking.register_model)
        lines += review_lines(config.tracking, parent)
    if team.leads:
        write_json(out / "metrics.json", result, "metrics.json")
    team.gather("finished")
    return result, lines


def _open_parent(
    config: PipelineConfig, manifest: Manifest, journal: dict[str, Any], device: str, start: Bundle | None
) -> Tracker:
    """The run above the folds of a cross-validation."""
    parent = open_run(config, config.name + "-cv", journal, "parent")
    counts = {"training_cases": len(manifest.training)}
    origin = {} if start is None else {"started_from": start.sha256}
    describe_run(parent, shareable(config), manifest, "cv", counts, {}, {"device": device, **origin})
    return parent


# ---- what is asked for ----------------------------------------------------------------------------------------------


def _pipeline(pipeline: Path | None, past: PastRun | None, overrides: Sequence[str]) -> PipelineConfig:
    if (pipeline is None) is (past is None):
        raise UsageError(
            "there is no pipeline" if past is None else "there are two pipelines",
            "PIPELINE.yaml and --from-run",
            "give a pipeline file, or the id of a run that is trained again",
        )
    return past.config if pipeline is None and past is not None else load_config(pipeline or Path(), overrides)


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


def _refuse_cascade(config: PipelineConfig, start: Bundle) -> None:
    """The weights of one network are no start for two stages, nor the other way round."""
    if config.cascade.spacing_mm is not None or start.low:
        raise UsageError(
            "a cascade starts from fresh weights" if not start.low else "the model to start from is a cascade",
            "--start-from",
            "leave --start-from out, or start a single network from a single one (cascade.spacing_mm: null)",
        )


def _job(
    config: PipelineConfig,
    manifest: Manifest,
    folds: Sequence[FoldCases],
    start: Bundle | None,
    teacher: Teacher | None,
    memory_gb: float | None,
) -> str:
    content: list[Any] = [config.model_dump(mode="json"), manifest.digest, [cases.name for cases in folds]]
    if start is not None:
        content.append(start.sha256)
    if teacher is not None:
        content.append({"teacher": teacher.info.sha256})
    if memory_gb is not None:
        content.append(memory_gb)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _open_run(out: Path, job: str, resume: bool, overwrite: bool) -> dict[str, Any]:
    """Claims the run folder and returns its journal."""
    journal = out / JOURNAL
    if overwrite and journal.exists():
        for name in ("cache", "checkpoint", CASCADE, "model", "model_best", MASKS, MAPS):
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
