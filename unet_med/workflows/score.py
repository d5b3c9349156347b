"""``unet-med score``: scores masks made by anything against true labels; nothing is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unet_med.errors import InputRefusedError, NothingUsableError, UsageError
from unet_med.io.source import IntakeOptions
from unet_med.manifest.object_classes import read_class_table
from unet_med.metrics import summarise
from unet_med.workflows.outcome import DONE, SOME_REFUSED, Outcome
from unet_med.workflows.progress import track
from unet_med.workflows.scoring.membranes import MembraneScorer
from unet_med.workflows.scoring.pairs import Pair, by_stem
from unet_med.workflows.scoring.report import lines
from unet_med.workflows.scoring.scorers import ObjectScorer, Scorer, SemanticScorer
from unet_med.workflows.scoring.tracks import score_sequence, sequences

TASKS = ("semantic", "instance", "tracking", "membrane")


def score(
    predictions: Path,
    references: Path,
    task: str | None = None,
    tolerance_mm: float = 1.0,
    ignore_label: int | None = None,
    axes: str | None = None,
    membrane: int | None = None,
    classes: Path | None = None,
) -> Outcome:
    """Scores a folder of masks against a folder of true labels; files are paired by stem.

    Labels are the values found in the references; their names come from the sidecar JSON beside a mask or truth,
    else they are called ``label_N``. Masks of one value, 1 or 255, agree with references of the other one.

    Args:
        predictions: Folder (or file) of masks in any format that is read; for tracking a sequence of the Cell
            Tracking Challenge (``maskTTT.tif``, ``res_track.txt``) or a folder of such.
        references: Folder (or file) of true labels; for tracking the same with ``TRA`` and, if there is, ``SEG``.
        task: ``semantic`` (default), ``instance``: values are numbers of objects, ``tracking``, or ``membrane``: see
            :class:`~unet_med.workflows.scoring.membranes.MembraneScorer`.
        tolerance_mm: Tolerance of the surface Dice (NSD), in mm; in pixels for uncalibrated images.
        ignore_label: Value in the references of voxels that are not scored.
        axes: Meaning of the axes of TIFF stacks that do not declare them.
        membrane: Value of membranes, for that task.
        classes: CSV table of the classes of true objects (``id``, ``object``, ``class``), for objects; those of masks
            are in the tables that ``unet-med predict`` wrote to ``objects/`` beside them.

    Returns:
        The content of ``metrics.json``, with ``task``, ``tolerance_mm``, ``refused`` (id, status, reason),
        ``unpaired`` (stems in ``predictions`` and in ``references`` without partner) and ``notes``. Exit code 3 when a
        pair is refused, for example because its two grids differ.

    Raises:
        NothingUsableError: if no mask has the stem of a reference.
        UsageError: if ``task`` is unknown, or an option does not belong to it.
    """
    task = task or "semantic"
    if task not in TASKS:
        raise UsageError(f"unknown task {task!r}", "--task", f"use one of {', '.join(TASKS)}")
    if membrane is not None and task != "membrane":
        raise UsageError("only membranes have a value that is membrane", "--membrane", "give --task membrane, too")
    if classes is not None and task != "instance":
        raise UsageError("only objects have classes of their own", "--classes", "give --task instance, too")
    if task == "tracking":
        if ignore_label is not None or axes is not None:
            raise UsageError("tracks have no such option", "--ignore-label, --axes", "leave it out")
        return _score_tracks(predictions, references, tolerance_mm)
    options = IntakeOptions(axes=axes)
    masks, truths = by_stem(predictions, options), by_stem(references, options)
    scorer = _scorer(task, tolerance_mm, ignore_label, membrane, classes)
    _check_paired(masks, truths, "files are paired by their names without the suffix, as case7.nii.gz with case7.tif")
    pairs = [Pair(name, masks[name], truths[name]) for name in truths if name in masks]
    scorer.prepare(pairs)
    for pair in track(pairs, "scoring"):
        scorer.score(pair)
    return _outcome(task, tolerance_mm, scorer.cases, scorer.refused, scorer.notes, (masks, truths))


def _scorer(task: str, tolerance_mm: float, ignored: int | None, membrane: int | None, classes: Path | None) -> Scorer:
    if task == "membrane":
        return MembraneScorer(tolerance_mm, ignored, membrane)
    if task == "instance":
        return ObjectScorer(tolerance_mm, ignored, None if classes is None else read_class_table(classes))
    return SemanticScorer(tolerance_mm, ignored)


def _score_tracks(predictions: Path, references: Path, tolerance_mm: float) -> Outcome:
    results, truths = sequences(predictions), sequences(references)
    if len(results) == len(truths) == 1:
        results = dict(zip(truths, results.values(), strict=True))  # two folders given: they belong together
    _check_paired(results, truths, "sequences are paired by the names of their folders, as 01_RES with 01_GT")
    cases: list[dict[str, Any]] = []
    refused: dict[str, str] = {}
    notes: list[str] = []
    for name in sorted(results.keys() & truths.keys()):
        try:
            scores, note = score_sequence(results[name], truths[name])
        except InputRefusedError as error:
            refused[name] = str(error)
            continue
        cases.append({"id": name, "tracking": scores})
        notes += [f"{name}: {note}"] if note else []
    return _outcome("tracking", tolerance_mm, cases, refused, notes, (results, truths))


def _check_paired(masks: Mapping[str, Any], truths: Mapping[str, Any], how: str) -> None:
    if not masks.keys() & truths.keys():
        raise NothingUsableError(
            f"none of {len(masks)} masks has the name of one of {len(truths)} references", remedy=how
        )


def _outcome(
    task: str,
    tolerance_mm: float,
    cases: Sequence[Mapping[str, Any]],
    refused: Mapping[str, str],
    notes: Sequence[str],
    sides: tuple[Iterable[str], Iterable[str]],
) -> Outcome:
    ours, theirs = (set(side) for side in sides)
    result = summarise(cases) | {
        "task": task,
        "tolerance_mm": tolerance_mm,
        "refused": [{"id": name, "status": "refused", "reason": reason} for name, reason in sorted(refused.items())],
        "unpaired": {"predictions": sorted(ours - theirs), "references": sorted(theirs - ours)},
        "notes": list(notes),
    }
    return Outcome(result, lines(result), SOME_REFUSED if refused else DONE)
