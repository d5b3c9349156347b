"""``unet-med score``: scores masks made by anything against true labels; nothing is written."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.errors import InputRefusedError, NothingUsableError, UsageError
from unet_med.identity import safe_name, stem_of
from unet_med.io.cases import Case
from unet_med.io.discover import discover
from unet_med.io.source import SourceRef
from unet_med.labels import Label, LabelMap, label_colour
from unet_med.metrics import case_metrics, match_objects, summarise, without_ignored
from unet_med.workflows.outcome import DONE, SOME_REFUSED, Outcome
from unet_med.workflows.progress import track

Array = npt.NDArray[Any]

TASKS = ("semantic", "instance")
_BINARY = {1, 255}
_PICTURES = ("png", "jpeg")
_SHOWN = 20
_MOST_LABELS = 1000


def score(
    predictions: Path,
    references: Path,
    task: str | None = None,
    tolerance_mm: float = 1.0,
    ignore_label: int | None = None,
) -> Outcome:
    """Scores a folder of masks against a folder of true labels; files are paired by stem.

    Labels are the values found in the references; their names come from the sidecar JSON beside a mask or truth,
    else they are called ``label_N``. Masks of one value, 1 or 255, agree with references of the other one.

    Args:
        predictions: Folder (or file) of masks in any format that is read.
        references: Folder (or file) of true labels.
        task: ``semantic`` (default) or ``instance``: values are numbers of objects.
        tolerance_mm: Tolerance of the surface Dice (NSD), in mm; in pixels for uncalibrated images.
        ignore_label: Value in the references of voxels that are not scored.

    Returns:
        The content of ``metrics.json``, with ``task``, ``tolerance_mm``, ``refused`` (id, status, reason),
        ``unpaired`` (stems in ``predictions`` and in ``references`` without partner) and ``notes``. Exit code 3 when a
        pair is refused, for example because its two grids differ.

    Raises:
        NothingUsableError: if no mask has the stem of a reference.
        UsageError: if ``task`` is unknown.
    """
    task = task or "semantic"
    if task not in TASKS:
        raise UsageError(f"unknown task {task!r}", "--task", f"use one of {', '.join(TASKS)}")
    masks, truths = _by_stem(predictions), _by_stem(references)
    pairs = [_Pair(name, masks[name], truths[name]) for name in truths if name in masks]
    if not pairs:
        raise NothingUsableError(
            f"none of {len(masks)} masks has the name of one of {len(truths)} references",
            remedy="files are paired by their names without the suffix, as case7.nii.gz with case7.tif",
        )
    scorer: _Scorer = (_InstanceScorer if task == "instance" else _SemanticScorer)(tolerance_mm, ignore_label)
    scorer.prepare(pairs)
    for pair in track(pairs, "scoring"):
        scorer.score(pair)
    result = summarise(scorer.cases) | {
        "task": task,
        "tolerance_mm": tolerance_mm,
        "refused": [
            {"id": name, "status": "refused", "reason": reason} for name, reason in sorted(scorer.refused.items())
        ],
        "unpaired": {
            "predictions": sorted(masks.keys() - truths.keys()),
            "references": sorted(truths.keys() - masks.keys()),
        },
        "notes": scorer.notes,
    }
    return Outcome(result, _lines(result), SOME_REFUSED if scorer.refused else DONE)


# ---- pairs ----------------------------------------------------------------------------------------------------------


def _by_stem(root: Path) -> dict[str, list[SourceRef]]:
    """Returns the images below a folder by the stem of their file; pictures count only where nothing else has it.

    Pictures (PNG, JPEG) beside a mask of the same stem are previews.
    """
    found: dict[str, list[SourceRef]] = {}
    for ref in discover(root, progress=track).sources:
        name = ref.id if ref.kind == "dicom" else safe_name(stem_of(ref.files[0]))
        found.setdefault(name, []).append(ref)
    return {name: [ref for ref in refs if ref.kind not in _PICTURES] or refs for name, refs in found.items()}


@dataclass(frozen=True)
class _Pair:
    """The masks and the truths of one stem; there should be one of each."""

    id: str
    masks: Sequence[SourceRef]
    truths: Sequence[SourceRef]

    def frames(self) -> list[tuple[str, int]]:
        """Returns the id and number of every frame; the pages of a stack are cases of their own.

        Raises:
            InputRefusedError: if the files cannot be compared.
        """
        for what, refs in (("mask", self.masks), ("reference", self.truths)):
            if len(refs) > 1:
                raise InputRefusedError(
                    f"{len(refs)} files have this name, and which is the {what} is unknown",
                    self.id,
                    f"give a folder with one {what} for each case",
                )
            if not refs[0].usable:
                raise InputRefusedError(f"the {what} cannot be used: {refs[0].reason}", self.id)
        mask, truth = self.masks[0], self.truths[0]
        if mask.frames != truth.frames:
            raise InputRefusedError(
                f"the mask has {mask.frames} frames and the reference {truth.frames}",
                self.id,
                "give both with the same pages",
            )
        numbers = range(truth.frames)
        return [(self.id if truth.frames == 1 else f"{self.id}-f{number:03d}", number) for number in numbers]

    def read_truth(self, frame: int) -> Array:
        """Returns the true labels (I, J[, K])."""
        return Case(self.id, (self.truths[0],), self.truths[0]).read_label(frame)

    def read_mask(self, frame: int) -> Array:
        """Returns the mask (I, J[, K]) on the grid of the truth, turned where it lies there in another axis order.

        Raises:
            InputRefusedError: if it lies elsewhere.
        """
        return Case(self.id, (self.truths[0],), self.masks[0]).read_label(frame)

    def spacing_mm(self) -> tuple[float, ...] | None:
        """Returns the voxel size of the truth, else of the mask (pictures often carry none)."""
        grids = [ref.geometry for ref in (self.truths[0], self.masks[0]) if ref.geometry is not None]
        return next((grid.spacing_mm for grid in grids if grid.is_calibrated), None)

    def names(self) -> dict[int, str]:
        """Returns the names of label values from the sidecar JSON of the truth or the mask."""
        names: dict[int, str] = {}
        for ref in (*self.masks, *self.truths):
            names |= _sidecar_names(ref.files[0])
        return names


def _sidecar_names(image: Path) -> dict[int, str]:
    try:
        content = json.loads(image.with_name(f"{stem_of(image)}.json").read_text(encoding="utf-8"))
        return {int(entry["value"]): str(entry["name"]) for entry in content["labels"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # none, or one that says nothing of labels


# ---- scoring --------------------------------------------------------------------------------------------------------


class _Scorer(ABC):
    """Collects scored cases, and refusals with their reasons."""

    def __init__(self, tolerance_mm: float, ignored: int | None) -> None:
        self.tolerance_mm = tolerance_mm
        self.ignored = ignored
        self.cases: list[dict[str, Any]] = []
        self.refused: dict[str, str] = {}
        self.notes: list[str] = []

    def prepare(self, pairs: Sequence[_Pair]) -> None:  # noqa: B027 - objects need no preparation
        """Looks at the references before anything is scored."""

    def score(self, pair: _Pair) -> None:
        """Scores all frames of a pair, or notes why it is refused."""
        if pair.id in self.refused:
            return
        try:
            cases = [
                {"id": name} | self.compare(pair, pair.read_mask(frame), pair.read_truth(frame))
                for name, frame in pair.frames()
            ]
        except InputRefusedError as error:
            self.refuse(pair, error)
        else:
            self.cases += cases

    def refuse(self, pair: _Pair, error: InputRefusedError) -> None:
        """Notes why a pair is not scored."""
        self.refused[pair.id] = f"{error.what}: {error.remedy}" if error.remedy else error.what

    @abstractmethod
    def compare(self, pair: _Pair, mask: Array, truth: Array) -> dict[str, Any]:
        """Returns what :func:`unet_med.metrics.summarise` takes of one frame."""


class _SemanticScorer(_Scorer):
    """Values are labels: those that any reference holds."""

    def __init__(self, tolerance_mm: float, ignored: int | None) -> None:
        super().__init__(tolerance_mm, ignored)
        self.labels = LabelMap(())

    def prepare(self, pairs: Sequence[_Pair]) -> None:
        """Finds the values of all references and their names."""
        values: set[int] = set()
        names: dict[int, str] = {}
        for pair in track(pairs, "reading references"):
            try:
                for _, frame in pair.frames():
                    values |= {int(value) for value in np.unique(pair.read_truth(frame))} - {0, self.ignored}
            except InputRefusedError as error:
                self.refuse(pair, error)
            else:
                names |= pair.names()
        if len(values) > _MOST_LABELS:
            raise UsageError(
                f"the references hold {len(values)} different values", "--task", "score objects with --task instance"
            )
        self.labels = LabelMap(
            tuple(Label(value, names.get(value, f"label_{value}"), label_colour(value)) for value in sorted(values)),
            ignored=self.ignored,
        )

    def compare(self, pair: _Pair, mask: Array, truth: Array) -> dict[str, Any]:
        """Scores every label."""
        known = {label.index for label in self.labels.labels}
        mask, truth = without_ignored(mask, truth, self.labels)
        own = {int(value) for value in np.unique(mask)} - {0}
        if len(known) == len(own) == 1 and known | own == _BINARY:
            mask = np.where(mask != 0, known.pop(), 0)
        elif own - known:
            self.notes.append(f"{pair.id}: values that no reference has are not scored: {sorted(own - known)[:_SHOWN]}")
        return {"labels": case_metrics(mask, truth, pair.spacing_mm(), self.labels, self.tolerance_mm)}


class _InstanceScorer(_Scorer):
    """Values are numbers of objects; the foreground as a whole is scored besides."""

    labels = LabelMap.from_names({"object": 1})

    def compare(self, pair: _Pair, mask: Array, truth: Array) -> dict[str, Any]:
        """Matches objects, and compares what is object at all."""
        mask, truth = without_ignored(mask, truth, LabelMap((), ignored=self.ignored))
        inside, true_inside = (mask != 0).astype(np.uint8), (truth != 0).astype(np.uint8)
        return {
            "labels": case_metrics(inside, true_inside, pair.spacing_mm(), self.labels, self.tolerance_mm),
            "instance": match_objects(mask, truth),
        }


# ---- for people -----------------------------------------------------------------------------------------------------


def _lines(result: Mapping[str, Any]) -> list[str]:
    unit = "px" if "hd95_px" in result["mean"] else "mm"
    columns = ("dice", "iou", f"hd95_{unit}", "nsd")
    lines = [
        f"{result['n_cases']} cases, surface Dice (NSD) at {result['tolerance_mm']:g} {unit}",
        f"{'':>16} {'Dice':>7} {'IoU':>7} {f'HD95 {unit}':>8} {'NSD':>7} {'empty':>6}",
    ]
    for name, row in {**result["per_label"], "mean": result["mean"]}.items():
        dice, iou, hd95, nsd = (_number(row.get(column)) for column in columns)
        lines.append(f"{name:>16} {dice:>7} {iou:>7} {hd95:>8} {nsd:>7} {row.get('n_empty', ''):>6}")
    if "instance" in result:
        ap = result["instance"]["ap"]
        lines.append("objects: " + ", ".join(f"AP@{iou} {_number(ap[iou])}" for iou in ("0.50", "0.75", "0.90")))
        lines.append(
            f"objects: PQ {_number(result['instance']['pq'])}, mean AP {_number(result['instance']['ap_mean'])}"
        )
    lines += [f"refused: {entry['id']}: {entry['reason']}" for entry in result["refused"][:_SHOWN]]
    for side, partner in (("references", "mask"), ("predictions", "reference")):
        names = result["unpaired"][side]
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            lines.append(f"{len(names)} {side} without a {partner}: {', '.join(names[:_SHOWN])}{more}")
    return lines + [f"note: {note}" for note in result["notes"][:_SHOWN]]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
