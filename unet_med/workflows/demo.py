"""``unet-med demo``: the whole way on invented data with exact truth, by the same workflows as on a real folder."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unet_med.errors import UsageError
from unet_med.io.atomic import write_json
from unet_med.io.cases import Case
from unet_med.io.discover import discover
from unet_med.io.source import IntakeOptions
from unet_med.labels import LabelMap
from unet_med.manifest import load_manifest
from unet_med.metrics import case_metrics, summarise
from unet_med.phantoms import PhantomSet, best_threshold_dice
from unet_med.version import __version__
from unet_med.workflows.check import check
from unet_med.workflows.demo_recipes import RECIPES, Kind
from unet_med.workflows.evaluate import evaluate
from unet_med.workflows.manifest import make_manifest
from unet_med.workflows.outcome import SOME_REFUSED, Outcome
from unet_med.workflows.plan import plan
from unet_med.workflows.predict import predict
from unet_med.workflows.scan import scan
from unet_med.workflows.score import score
from unet_med.workflows.track import track
from unet_med.workflows.train import train

_MARK = "demo.json"
_OURS = ("data", "truth", "truth_tracks", "run", "evaluation", "masks", "tracks")
_HELD_OUT = 0
_SEED = 0
_REVIEW = "Review the experiment"
_SCORES = ("n_cases", "mean", "per_label", "instance")


@dataclass(frozen=True)
class _Places:
    """Where everything of a demo lies."""

    out: Path

    @property
    def data(self) -> Path:
        return self.out / "data"

    @property
    def manifest(self) -> Path:
        return self.out / "manifest.json"

    @property
    def pipeline(self) -> Path:
        return self.out / "pipeline.yaml"

    @property
    def run(self) -> Path:
        return self.out / "run"

    @property
    def masks(self) -> Path:
        return self.out / "masks"

    @property
    def tracks(self) -> Path:
        return self.out / "tracks"


def demo(kind: Kind, out: Path, max_minutes: float | None = None, overwrite: bool = False) -> Outcome:
    """Makes a phantom data set, trains on it, scores the held-out cases and segments the unlabelled ones.

    Movies are tracked, too, and their tracks scored. A second start of the same demo goes on where the first was
    stopped.

    Args:
        kind: ``3d``: CT-like DICOM series with two organs; ``2d``: OME-TIFF pictures of touching nuclei; ``cells``:
            OME-TIFF movies of cells that divide.
        out: Output folder.
        max_minutes: Training time; default: a fixed number of steps, one to two minutes on two cores.
        overwrite: Replace an earlier demo in ``out``.

    Raises:
        UsageError: when ``out`` holds something else.
    """
    started = time.monotonic()
    places = _Places(out)
    _claim(out, kind, max_minutes, overwrite)
    phantoms = _write_data(places, kind)
    places.pipeline.write_text(RECIPES[kind].pipeline, encoding="utf-8")
    trained = _learn(places, kind, max_minutes)
    _announce(f"unet-med evaluate {places.run} --data {places.manifest} --fold {_HELD_OUT} --out {out / 'evaluation'}")
    scored = evaluate(str(places.run), places.manifest, fold=_HELD_OUT, out=out / "evaluation")
    _announce(f"unet-med predict {places.run} {places.data / 'unlabelled'} {places.masks}")
    predicted = predict(str(places.run), places.data / "unlabelled", places.masks)
    if kind == "cells":
        quality = _follow(places, phantoms)
    else:
        quality = {
            "unlabelled": _score_unlabelled(phantoms, places.masks),
            "best_threshold_dice": _threshold_dice(places, phantoms),
        }
    result = {
        "kind": kind,
        "held_out": {key: scored.result[key] for key in _SCORES if key in scored.result},
        **quality,
        "seconds": round(time.monotonic() - started, 1),
    }
    codes = {trained.exit_code, scored.exit_code, predicted.exit_code}
    return Outcome(result, _lines(places, result, trained), SOME_REFUSED if codes != {0} else 0)


def _learn(places: _Places, kind: Kind, max_minutes: float | None) -> Outcome:
    """From the folder to the trained model."""
    _announce(f"unet-med scan {places.data}")
    _show(scan(places.data, IntakeOptions()))
    recipe = RECIPES[kind]
    if not places.manifest.exists():
        grouped = f" --group-by '{recipe.group_by}'" if recipe.group_by else ""
        _announce(
            f"unet-med manifest {places.data} --out {places.manifest} --folds {recipe.folds} --task {recipe.task} "
            f"--label-names {recipe.label_names}{grouped}"
        )
        _show(
            make_manifest(
                places.data,
                places.manifest,
                folds=recipe.folds,
                group_by=recipe.group_by or None,
                task=recipe.task,
                label_names=recipe.label_names,
            )
        )
    _announce(f"unet-med check {places.manifest}")
    _show(check(places.manifest, None))
    _announce(f"unet-med plan {places.pipeline} --data {places.manifest}")
    _show(plan(places.pipeline, places.manifest, None, explain=False, overrides=()))
    minutes = "" if max_minutes is None else f" --max-minutes {max_minutes:g}"
    _announce(
        f"unet-med train {places.pipeline} --data {places.manifest} --out {places.run} --fold {_HELD_OUT}{minutes}"
    )
    trained = train(
        places.pipeline,
        places.manifest,
        places.run,
        fold=str(_HELD_OUT),
        max_minutes=max_minutes,
        resume=(places.run / "run.json").exists(),
    )
    _show(Outcome({}, _split_review(trained.lines)[0]))
    return trained


def _claim(out: Path, kind: Kind, max_minutes: float | None, overwrite: bool) -> None:
    """Makes sure that ``out`` is empty, or holds this demo."""
    mark = out / _MARK
    job = {"tool": "unet-med demo", "version": __version__, "kind": kind, "max_minutes": max_minutes, "seed": _SEED}
    if out.exists() and not out.is_dir():
        raise UsageError("the output folder is a file", "--out", "give a folder")
    if mark.exists():
        if overwrite:
            for name in _OURS:
                shutil.rmtree(out / name, ignore_errors=True)
            for file in (mark, _Places(out).manifest, _Places(out).pipeline):
                file.unlink(missing_ok=True)
        elif json.loads(mark.read_text(encoding="utf-8")) != job:
            raise UsageError("the folder holds another demo", "--out", "use another folder, or --overwrite")
    elif out.exists() and any(out.iterdir()):
        raise UsageError("the folder is not empty and holds no demo", "--out", "use another folder")
    out.mkdir(parents=True, exist_ok=True)
    write_json(mark, job, _MARK)


def _write_data(places: _Places, kind: Kind) -> PhantomSet:
    recipe = RECIPES[kind]
    _announce(f"making {recipe.what} in {places.data}", command=False)
    return recipe.write(places.data, cases=recipe.cases, seed=_SEED, truth=places.out / "truth")


# ---- how good it is --------------------------------------------------------------------------------------------------


def _score_unlabelled(phantoms: PhantomSet, masks: Path) -> dict[str, Any]:
    """Scores the masks of the unlabelled cases against the truth that the model never saw."""
    labels = LabelMap.from_names(phantoms.label_names)
    cases = []
    for image, truth in zip(phantoms.unlabelled, phantoms.truth, strict=True):
        source = discover(image).usable[0]
        found = [file for file in (masks / f"{source.id}.nii.gz", masks / f"{source.id}.tif") if file.exists()]
        if not found:
            continue
        mask, true = (_labels_on(source, file, phantoms) for file in (found[0], truth))
        spacing = source.geometry.spacing_mm if source.geometry is not None else None
        cases.append({"id": source.id, "labels": case_metrics(mask, true, spacing, labels)})
    summary = summarise(cases)
    return {key: summary[key] for key in ("n_cases", "mean", "per_label")}


def _labels_on(source: Any, file: Path, phantoms: PhantomSet) -> np.ndarray[Any, Any]:
    """Reads a label file on the grid of a source; object numbers become kinds of things."""
    label = Case(source.id, (source,), label=discover(file).usable[0]).read_label()
    return np.minimum(label, max(phantoms.label_names.values()))


def _threshold_dice(places: _Places, phantoms: PhantomSet) -> dict[str, float]:
    """Returns for each label the Dice of the best global intensity window on the held-out cases."""
    held_out = [case.case for case in load_manifest(places.manifest).training if case.fold == _HELD_OUT]
    values = {name: value for name, value in phantoms.label_names.items() if value}
    highest = max(values.values())
    images = [case.read().array[0] for case in held_out]
    labels = [np.minimum(case.read_label(), highest) for case in held_out]
    dice = best_threshold_dice(images, labels, tuple(values.values()))
    named = {name: dice[value] for name, value in values.items()}
    return named if len(named) == 1 else {"any organ": dice[0], **named}


def _follow(places: _Places, phantoms: PhantomSet) -> dict[str, Any]:
    """Tracks the masks of the unlabelled movie, and scores the tracks against the truth that the model never saw."""
    movie = phantoms.unlabelled[0]
    masks = places.masks / phantoms.truth[0].name
    _announce(f"unet-med track {masks} {places.tracks} --images {movie}")
    tracked = track(masks, places.tracks, movie)
    _show(tracked)
    _announce(f"unet-med score {places.tracks} {phantoms.tracks[0]} --task tracking")
    scored = score(places.tracks, phantoms.tracks[0], task="tracking")
    return {"tracks": tracked.result["totals"], "tracking": scored.result["tracking"]}


# ---- what is said ----------------------------------------------------------------------------------------------------


def _lines(places: _Places, result: dict[str, Any], trained: Outcome) -> list[str]:
    quality = _tracking_lines(result) if "tracking" in result else _dice_lines(result)
    lines = [
        "",
        *quality,
        "",
        f"data    {places.data}",
        f"model   {places.run / 'model'}",
        f"scores  {places.out / 'evaluation' / 'metrics.json'}",
        f"masks   {places.masks}",
        *([f"tracks  {places.tracks}"] if "tracking" in result else []),
        f"the whole way took {result['seconds'] / 60:.1f} minutes",
        "",
    ]
    return lines + _split_review(trained.lines)[1]


def _dice_lines(result: dict[str, Any]) -> list[str]:
    held_out, unlabelled = result["held_out"]["per_label"], result["unlabelled"]["per_label"]
    lines = [f"Dice{'':12}{'best threshold':>16}{'model, held out':>18}{'model, unlabelled':>20}"]
    for name, threshold in result["best_threshold_dice"].items():
        ours = (_number(scores.get(name, {}).get("dice")) for scores in (held_out, unlabelled))
        lines.append("  {:14}{:16.3f}{:>18}{:>20}".format(name, threshold, *ours))
    return [
        *lines,
        f"(the threshold is the best of all, chosen with the truth in hand; {result['held_out']['n_cases']} held-out "
        f"and {result['unlabelled']['n_cases']} unlabelled cases)",
    ]


def _tracking_lines(result: dict[str, Any]) -> list[str]:
    scores = result["tracking"]
    divisions = scores["divisions"]
    lines = []
    if "instance" in result["held_out"]:
        ap = result["held_out"]["instance"]["ap"]
        found = ", ".join(f"AP@{iou} {_number(ap[iou])}" for iou in ("0.50", "0.75"))
        lines.append(f"objects of the held-out movie: {found}")
    kinds = ", ".join(f"{kind.upper()} {_number(scores[kind])}" for kind in ("seg", "det", "tra", "lnk"))
    return [
        *lines,
        f"tracks of the unlabelled movie: {kinds}",
        f"divisions: {divisions['found']} of {divisions['n_label']} found, {divisions['n_mask']} claimed",
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _split_review(lines: list[str]) -> tuple[list[str], list[str]]:
    """Splits the lines of ``train`` before those that tell how to review, which belong to the end."""
    for position, line in enumerate(lines):
        if line.startswith(_REVIEW):
            return lines[:position], lines[position:]
    return lines, []


def _announce(text: str, command: bool = True) -> None:
    sys.stderr.write(f"\n{'$ ' if command else ''}{text}\n")
    sys.stderr.flush()


def _show(outcome: Outcome, most: int = 12) -> None:
    """Shows the first lines of a step while the demo goes on."""
    shown: Iterable[str] = outcome.lines[:most]
    for line in shown:
        sys.stderr.write(f"  {line}\n")
    if len(outcome.lines) > most:
        sys.stderr.write(f"  ... {len(outcome.lines) - most} more lines\n")
    sys.stderr.flush()
