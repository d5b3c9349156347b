"""What a model that learnt from others costs in their place: the Dice that is lost, the seconds that are saved."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy.typing as npt

from unet_med.bundle import load_bundles
from unet_med.errors import InputRefusedError, ModelError
from unet_med.identity import case_tag
from unet_med.inference.case_scores import true_labels
from unet_med.inference.predictor import Predictor
from unet_med.manifest import Manifest, ManifestCase
from unet_med.metrics import confusion_counts, dice_iou
from unet_med.review.paired import paired_difference
from unet_med.volume import Volume
from unet_med.workflows.opinions import Models, unaware_of
from unet_med.workflows.teaching import Teacher

logger = logging.getLogger(__name__)

META_KEY = "distillation"
"""Where a bundle's ``meta`` and ``metrics.json`` say what the student costs."""
MEAN = "mean"

Dice = Mapping[str, float | None]


@dataclass(frozen=True)
class _Compared:
    """Student and teacher on one case.

    Attributes:
        unseen: Dice of the members that were not trained on it, and of the student; ``None``: there are none.
        agreement: Dice of the student's mask and that of the whole teacher.
        teacher_seconds, student_seconds: From the image in memory to its mask.
    """

    unseen: tuple[Dice, Dice] | None
    agreement: Dice
    teacher_seconds: float
    student_seconds: float


def measured_cost(
    teacher: Teacher,
    student: Path,
    manifest: Manifest,
    held_out: Sequence[ManifestCase],
    device: str,
    progress: Callable[[Iterable[Any], str], Iterable[Any]],
) -> dict[str, Any]:
    """Labels cases that the student was not trained on by both.

    These are the labelled test cases of the manifest where it has some, else the held-out ones. Dice is compared with
    that of the members which were not trained on a case; of a held-out case that is often one, while all the others
    have told the student of what they learnt from it: the test cases alone are new to everybody.

    Args:
        teacher: What the student learnt from.
        student: Its bundle.
        manifest: The data set.
        held_out: Labelled cases that the student was not trained on.
        device: Where to predict.
        progress: Wraps the cases to show how far it is.

    Returns:
        ``{"teacher": {"sha256", "name", "members"}, "on": "test" or "held out", "cases", "unseen_cases", "dice":
        {label: {"first", "second", "mean", "low", "high", ...}}, "agreement": {label: Dice}, "seconds_per_case":
        {"teacher", "student"}}``. ``dice`` is the student's (second) less its teacher's (first), over the cases that
        some member had not seen; ``agreement`` is the mean Dice of the student's mask and that of the whole teacher;
        seconds are medians, reading and writing left out.
    """
    test = [case for case in manifest.test if case.case.label is not None]
    both = _Both(teacher, student, device)
    compared: list[_Compared] = []
    for case in progress(test or list(held_out), "comparing with the teacher"):
        try:
            compared.append(both.on(case))
        except (InputRefusedError, ModelError) as error:
            logger.warning("%s is not compared: %s", case_tag(case.id), error.what)
    return {"teacher": teacher.origin(), "on": "test" if test else "held out", **_summary(compared)}


def cost_lines(cost: Mapping[str, Any]) -> list[str]:
    """Returns what :func:`measured_cost` found, for people."""
    members = cost["teacher"]["members"]
    name = "one model" if members == 1 else f"an ensemble of {members}"
    lines = [f"learnt from {name} (sha256 {cost['teacher']['sha256'][:12]})"]
    if not cost["cases"]:
        return [*lines, "  what that costs is not measured: no labelled case is left (see --fold)"]
    if cost["dice"]:
        whom = "what was not trained on them" if cost["on"] == "held out" else "all of it"
        lines.append(f"  Dice on {cost['unseen_cases']} {cost['on']} cases, the teacher's by {whom}:")
        lines += [_row(label, row) for label, row in cost["dice"].items()]
    agreement = [value for value in cost["agreement"].values() if value is not None]
    if agreement:
        lines.append(f"  agreement with the whole teacher: Dice {fmean(agreement):.4f}")
    seconds = cost["seconds_per_case"]
    return [*lines, f"  seconds a case: {seconds['student']:.3f}, the whole teacher {seconds['teacher']:.3f}"]


def _row(label: str, row: Mapping[str, Any]) -> str:
    interval = "too few cases" if row["low"] is None else f"{row['low']:+.4f} to {row['high']:+.4f}"
    verdict = "" if row["shown"] else ": no difference shown"
    return f"    {label}: {row['second']:.4f}, teacher {row['first']:.4f}, {row['mean']:+.4f} ({interval}){verdict}"


class _Both:
    """Student and teacher, loaded."""

    def __init__(self, teacher: Teacher, student: Path, device: str) -> None:
        bundles = load_bundles(teacher.info.folder)
        self._members = teacher.members
        self._bundles = dict(zip(self._members, bundles, strict=True))
        self._device = device
        self._student = Predictor(load_bundles(student), device)
        self._predictors = {self._members: Predictor(bundles, device)}

    def on(self, case: ManifestCase) -> _Compared:
        """Compares both on a case.

        Raises:
            InputRefusedError: when it cannot be read or prepared.
            ModelError: when its channels are others.
        """
        labels, frame = self._student.labels, case.case.frames[0]
        volume, truth = case.case.read(frame), true_labels(case, labels, frame)
        whole, teacher_seconds = _timed(self._predictors[self._members], volume)
        mask, student_seconds = _timed(self._student, volume)

        def dice(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> Dice:
            return {name: value for name, (value, _) in dice_iou(confusion_counts(one, other, labels)).items()}

        unseen = unaware_of(case, self._members)
        pair: tuple[Dice, Dice] | None = None
        if unseen:
            theirs = whole if unseen == self._members else self._predictor(unseen).predict(volume).labels
            pair = dice(theirs, truth), dice(mask, truth)
        return _Compared(pair, dice(mask, whole), teacher_seconds, student_seconds)

    def _predictor(self, members: Models) -> Predictor:
        if members not in self._predictors:
            self._predictors[members] = Predictor([self._bundles[member] for member in members], self._device)
        return self._predictors[members]


def _timed(predictor: Predictor, volume: Volume) -> tuple[npt.NDArray[Any], float]:
    started = time.perf_counter()
    labels = predictor.predict(volume).labels
    return labels, time.perf_counter() - started


def _summary(compared: Sequence[_Compared]) -> dict[str, Any]:
    pairs = [one.unseen for one in compared if one.unseen is not None]
    names = list(compared[0].agreement) if compared else []
    rows = {name: _known(pairs, [name]) for name in names}
    if len(names) > 1:
        rows[MEAN] = _known(pairs, names)
    differences = {
        name: paired_difference([first for first, _ in known], [second for _, second in known])
        for name, known in rows.items()
        if known
    }
    agreement = {name: [value for one in compared if (value := one.agreement[name]) is not None] for name in names}
    return {
        "cases": len(compared),
        "unseen_cases": len(pairs),
        "dice": {name: asdict(found) | {"shown": found.is_shown} for name, found in differences.items()},
        "agreement": {name: fmean(values) if values else None for name, values in agreement.items()},
        "seconds_per_case": {
            "teacher": round(median(one.teacher_seconds for one in compared), 4) if compared else None,
            "student": round(median(one.student_seconds for one in compared), 4) if compared else None,
        },
    }


def _known(pairs: Sequence[tuple[Dice, Dice]], names: Sequence[str]) -> list[tuple[float, float]]:
    """Dice of teacher and student for each case, averaged over the labels of which both have one."""
    rows: list[tuple[float, float]] = []
    for first, second in pairs:
        both = [(x, y) for name in names if (x := first[name]) is not None and (y := second[name]) is not None]
        if both:
            rows.append((fmean(x for x, _ in both), fmean(y for _, y in both)))
    return rows
