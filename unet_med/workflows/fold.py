"""One fold from its cases to its model: plan, prepare, train, score, record."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from unet_med import __version__
from unet_med.bundle import change_bundle, labels_of, load_bundle, save_bundle
from unet_med.config import PipelineConfig, parse_config
from unet_med.data import CachedCase, PreparedCases, prepare_cases
from unet_med.errors import InputRefusedError, MachineError, NothingUsableError, UnetMedError
from unet_med.identity import case_tag
from unet_med.inference.device import precision_name
from unet_med.inference.objects import MAPS, MapArchive
from unet_med.inference.predictor import is_out_of_memory
from unet_med.inference.quality import assessment, intended, outliers
from unet_med.inference.quality.intended import Intended
from unet_med.io.atomic import whole_file, write_json
from unet_med.labels import LabelMap
from unet_med.manifest import Manifest, ManifestCase, verified
from unet_med.metrics import summarise
from unet_med.networks.receptive import described_field
from unet_med.planning import Plan, make_plan
from unet_med.training.distributed import Team
from unet_med.training.emptiness import learn_emptiness, proven_emptiness
from unet_med.training.fine_tuning import cases_of, initial_weights, origin, seen_before, with_kept_reasons
from unet_med.training.flavour import write_flavour
from unet_med.training.loop import FitResult, fit
from unet_med.training.postprocessing import MaskPairs
from unet_med.training.tracking import NullTracker, Tracker, review_lines
from unet_med.training.trainer import Trainer, pieces_of_batch
from unet_med.workflows.cascade import FOLDER as CASCADE
from unet_med.workflows.cascade import (
    FirstStage,
    Priors,
    first_stage_dice,
    honest_halves,
    second_stage,
    train_first_stage,
)
from unet_med.workflows.distillation import META_KEY as DISTILLATION
from unet_med.workflows.distillation import cost_lines, measured_cost
from unet_med.workflows.evaluate import score_cases
from unet_med.workflows.last_look import look_back, show_data, show_samples, show_scores
from unet_med.workflows.objects import META_KEY as OBJECTS
from unet_med.workflows.objects import ScoredObjects, changes_of, keep_maps, object_table, score_kept
from unet_med.workflows.opinions import Opinions
from unet_med.workflows.progress import track
from unet_med.workflows.record import (
    Recorder,
    case_rows,
    describe_run,
    ending,
    final_metrics,
    open_run,
    shareable,
    told_results,
)
from unet_med.workflows.session import JOURNAL, FoldCases, FoldOutcome, Session

logger = logging.getLogger(__name__)

_METRICS = "metrics.json"


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
        tracker = open_run(plan.config, f"{config.name}-{cases.name}", session.journal, cases.name, session.parent_run)
        write_json(session.out / JOURNAL, session.journal, JOURNAL)
    stage: FirstStage | None = None
    try:
        if plan.config.prior_channels:
            began = time.monotonic()
            stage = _first_stage(config, plan.config, manifest, cases, usable, folder, tracker, session)
            session = replace(session, started=session.started + time.monotonic() - began)
            priors = Priors(stage, plan.config, cache / "priors", str(session.device), team, _progress(team))
            training, validation = priors.of(training, usable), priors.of(validation, held_out)
        if session.teacher is not None:
            opinions = Opinions(cache / "teacher", team, _progress(team))
            training = session.teacher.taught(training, usable, plan.config, opinions, str(session.device))
        outcome = _fit_and_score(
            plan, labels, manifest, cases, training, validation, held_out, folder, tracker, session, stage
        )
    except BaseException as error:
        tracker.finish(ending(error))
        if is_out_of_memory(error):
            raise MachineError(
                "out of memory while training",
                f"batch of {plan.config.sampling.batch_size}, patch {plan.config.sampling.patch_voxels}",
                "give a smaller sampling.batch_size or sampling.patch_voxels with --set",
            ) from error
        raise
    tracker.finish("FINISHED")
    everything = (*refused, *training.refused, *validation.refused)
    lines = [f"left out {case_id}: {error}" for case_id, error in everything] + outcome.lines
    if session.masks is None:  # of a cross-validation, the run above the folds is shown
        lines += review_lines(config.tracking, tracker)
    return FoldOutcome(outcome.metrics, outcome.scored, len(everything), lines)


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
        if session.start is not None:
            plan = replace(plan, reasons=with_kept_reasons(plan.reasons))
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


def _first_stage(
    config: PipelineConfig,
    resolved: PipelineConfig,
    manifest: Manifest,
    cases: FoldCases,
    usable: Sequence[ManifestCase],
    folder: Path,
    tracker: Tracker,
    session: Session,
) -> FirstStage:
    """Trains the models of a cascade at low resolution, each as a fold of its own that holds out nothing."""

    def train(low: PipelineConfig, name: str, half: tuple[ManifestCase, ...], place: Path) -> None:
        done = session.team.share((place / _METRICS).exists())  # the last that a fold writes
        if not done:
            own = replace(session, started=time.monotonic(), parent_run=tracker.run_id, start=None, masks=None)
            train_fold(low, manifest, FoldCases(f"{cases.name}-{name}", half, ()), place, own)
        session.team.gather("written")

    halves = honest_halves(cases.training, usable, config.seed)
    return train_first_stage(config, resolved, halves, folder / CASCADE, train)


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
    stage: FirstStage | None,
) -> FoldOutcome:
    config = shareable(plan.config)
    team, start = session.team, session.start
    low = () if stage is None else stage.folders
    initial: dict[str, torch.Tensor] | None = None
    changes: list[str] = []
    if start is not None:
        initial, changes = initial_weights(start, config, labels)
    trainer = Trainer(second_stage(config), labels, len(config.channels), session.device, team, initial)
    counts = {"training_cases": len(training.cases), "held_out_cases": len(validation.cases)}
    machine = {"device": session.device.type, "precision": precision_name(trainer.precision)}
    if start is not None:
        machine["started_from"] = start.sha256
    describe_run(tracker, config, manifest, cases.name, counts, plan.reasons, machine)
    show_data(tracker, plan, labels, _used(cases.training, training), _used(held_out, validation))
    show_samples(tracker, training.cases, trainer.config, labels)
    drawn = (validation.cases or training.cases)[: config.training.overlay_cases]
    recorder = Recorder(tracker, drawn, labels, draws_validation=bool(validation.cases), trainer=trainer)
    if team.leads:
        recorder.draw_truth()
    budget = trainer.config.training.max_minutes
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
    recorder.catch_up(len(result.history))
    learnt_from = _used(cases.training, training)
    teacher = session.teacher
    known = [*(() if start is None else cases_of(start)), *([] if stage is None else stage.case_sha256)]
    known += () if teacher is None else teacher.case_sha256
    meta = _meta(plan, manifest, cases, learnt_from, known, result, session)
    if team.leads:
        with trainer.evaluating() as network:
            meta["receptive_field"] = described_field(config.network, network, trainer.patch)
        save_bundle(folder / "model", config, result.last, meta, low)
    found: ScoredObjects | None = None
    if labels.objects:
        found, unscored = _objects(folder, held_out, config, labels, session)
        scored = [] if found is None else found.scored
    else:
        scored, unscored = _scored(folder / "model", held_out, session)
    if not team.leads:
        return FoldOutcome({}, [], 0, [])
    metrics = summarise(scored) | {"refused": unscored}
    metrics |= look_back(tracker, trainer, validation.cases, metrics)
    if found is not None and found.tuning is not None:
        config = config.replacing(changes_of(found.tuning.settings))
        metrics[OBJECTS] = meta[OBJECTS] = found.tuning.as_dict()
        meta["reasons"] = {**plan.reasons, "instances": found.tuning.reason}
    meta["results"] = {"held_out": told_results(metrics)}
    meta |= _knowledge(scored, training.cases, learnt_from)
    learnt = None if low else learn_emptiness(training.cases, config)  # such a rule knows the image alone
    prepared = (*validation.cases, *training.cases)
    readers = {case.id: case.case.read for case in (*held_out, *learnt_from)}

    def save_skipping(name: str, state: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> str:
        sha256 = save_bundle(folder / name, config, state, meta, low)
        if learnt is None:
            return sha256
        model, seconds = load_bundle(folder / name), result.seconds / 10
        rule = proven_emptiness(learnt, model, prepared, readers, session.device.type, seconds)
        return save_bundle(folder / name, config, state, {**meta, "empty_windows": rule})

    sha256 = save_skipping("model", result.last, meta)
    if teacher is not None:
        cost = measured_cost(teacher, folder / "model", manifest, held_out, str(session.device), _progress(team))
        metrics[DISTILLATION] = cost
        sha256 = change_bundle(folder / "model", {}, {DISTILLATION: cost})
    if result.best is not None:
        save_skipping("model_best", result.best, {**meta, f"validation_{_best_by(labels)}": result.best_score})
    write_json(folder / _METRICS, metrics, _METRICS)
    if metrics.get("cases"):
        tracker.cases(case_rows(metrics))
        show_scores(tracker, metrics)
        tracker.epoch(len(result.history) + 1, final_metrics(metrics))
    registers = config.tracking.register_model and session.masks is None  # of a cross-validation, the ensemble is
    dress = partial(write_flavour, folder / "model") if registers else None
    version = tracker.bundle(folder / "model", config.name if registers else None, final_metrics(metrics), dress)
    notes = [*changes, *_stage_lines(stage, training, config), *(() if start is None else seen_before(start, held_out))]
    lines = _fold_lines(cases, len(learnt_from), result, metrics, trainer, sha256, folder, version)
    lines += [] if teacher is None else cost_lines(metrics[DISTILLATION])
    return FoldOutcome(metrics, scored, 0, [*notes, *lines])


def _used(cases: Iterable[ManifestCase], prepared: PreparedCases) -> list[ManifestCase]:
    """Returns the cases that could be prepared."""
    ids = {case.id for case in prepared.cases}
    return [case for case in cases if case.id in ids]


def _stage_lines(stage: FirstStage | None, training: PreparedCases, config: PipelineConfig) -> list[str]:
    if stage is None:
        return []
    dice = first_stage_dice(training.cases, config)
    found = "" if dice is None else f": Dice {dice:.4f} on the training cases, each by the model that had not seen it"
    return [f"first stage at low resolution{found}", *stage.notes]


def _knowledge(
    scored: Sequence[Mapping[str, Any]], training: Sequence[CachedCase], learnt_from: Sequence[ManifestCase]
) -> dict[str, Any]:
    """What a bundle knows of its own failures: how good held-out masks were, and what images of training are like."""
    grids = {case.id: case.case.geometry for case in learnt_from}
    return {
        assessment.META_KEY: assessment.quality_meta(scored),
        outliers.META_KEY: outliers.typical_meta((grids[case.id], case.image()) for case in training),
    }


def _scored(
    model: Path, held_out: Sequence[ManifestCase], session: Session
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Scores the held-out cases, dealt out to the processes; returns them all, and the refused ones."""
    team = session.team
    team.gather("saved")
    mine = team.deal(held_out)
    kept = None if session.masks is None else MaskPairs(session.masks)
    own = score_cases([model], mine, str(session.device), _progress(team), kept) if mine else ([], [])
    order = {case.id: number for number, case in enumerate(held_out)}
    scored, refused = (
        sorted(chain(*part), key=lambda entry: order[entry["id"]]) for part in zip(*team.gather(own), strict=True)
    )
    return scored, refused


def _objects(
    folder: Path, held_out: Sequence[ManifestCase], config: PipelineConfig, labels: LabelMap, session: Session
) -> tuple[ScoredObjects | None, list[dict[str, Any]]]:
    """Keeps the maps of the held-out cases, dealt out to the processes; the first chooses thresholds and scores."""
    team, archive = session.team, MapArchive(folder / MAPS)
    team.gather("saved")
    mine = team.deal(held_out)
    refused = keep_maps(folder / "model", mine, archive, str(session.device), _progress(team)) if mine else []
    refused = list(chain(*team.gather(refused)))
    if not team.leads:
        return None, refused
    return score_kept(archive, config.instances, labels), refused


def _meta(
    plan: Plan,
    manifest: Manifest,
    cases: FoldCases,
    learnt_from: Sequence[ManifestCase],
    known: Sequence[str],
    result: FitResult,
    session: Session,
) -> dict[str, Any]:
    """Where a bundle comes from; ``known`` are the images that other models learnt from which are part of it."""
    start = session.start
    return {
        "tool_version": __version__,
        "torch_version": torch.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": session.device.type,
        "training": {
            "case_sha256": list(dict.fromkeys([*(case.sha256["image"] for case in learnt_from), *known])),
            "data_digest": manifest.digest,
            "modality": manifest.modality,
            "n_cases": len(learnt_from),
            "fold": cases.name,
            "held_out": len(cases.held_out),
            "steps": result.steps,
            "minutes": round(result.seconds / 60, 2),
            "seconds_per_step": round(result.seconds_per_step, 4),
            "seed": plan.config.seed,
            f"best_validation_{_best_by(labels_of(plan.config))}": result.best_score,
            "notes": result.notes,
            **({} if start is None else {"started_from": origin(start)}),
            **({} if session.teacher is None else {"learnt_from": session.teacher.origin()}),
        },
        intended.META_KEY: Intended.of((case.case for case in learnt_from), manifest.modality).to_json(),
        "fingerprint": plan.fingerprint,
        "reasons": plan.reasons,
        "results": {},
    }


def _best_by(labels: LabelMap) -> str:
    """By what the best weights are known, in the words of a bundle; see :attr:`Trainer.best_by`."""
    return "ap" if labels.objects else "dice"


def _write_plan(folder: Path, plan: Plan) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / "pipeline.yaml", "pipeline.yaml") as part:
        part.write_text(plan.config.to_yaml(), encoding="utf-8")
    write_json(folder / "plan.json", {"reasons": plan.reasons, "fingerprint": plan.fingerprint}, "plan.json")


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
    lines += [f"  {line}" for line in object_table(metrics)]
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
