"""Two sets of scores of the same cases: how far apart they are, and which cases changed most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from unet_med.review.paired import PairedDifference, paired_difference

MEAN = "mean"
OBJECTS = "objects"
AP_MEAN = "AP mean"
_OF_VOXELS = {"dice": "Dice", "iou": "IoU", "nsd": "NSD", "hd95_mm": "HD95 mm", "hd95_px": "HD95 px"}
TITLES: Mapping[str, str] = {OBJECTS: "objects", **_OF_VOXELS}
"""Kinds of scores that are compared, and what people call them."""
LOWER_IS_BETTER = frozenset({"hd95_mm", "hd95_px"})

_SMALLEST_P = 0.001

Scores = Mapping[str, Mapping[str, Mapping[str, float | None]]]
"""Case id -> kind of score -> label -> score."""
Differences = Mapping[str, Mapping[str, PairedDifference]]
"""Kind of score -> label -> difference."""


def case_scores(entry: Mapping[str, Any]) -> dict[str, Mapping[str, float | None]]:
    """Returns the scores of one case of ``metrics.json`` by kind and label."""
    return {OBJECTS: _of_objects(entry.get("instance") or {}), **{kind: entry.get(kind) or {} for kind in _OF_VOXELS}}


def _of_objects(instance: Mapping[str, Any]) -> dict[str, float | None]:
    if not instance:
        return {}
    ap = {f"AP@{key}": instance["ap"][key] for key in ("0.50", "0.75")}
    return {AP_MEAN: instance["ap_mean"], **ap, "PQ": instance["pq"], "AJI": instance["aji"]}


def compared(a: Scores, b: Scores, cases: Sequence[str], seed: int) -> dict[str, dict[str, PairedDifference]]:
    """Returns the differences by kind of score and label; ``mean`` is over the labels of each case.

    Args:
        a: Scores of the first model.
        b: Scores of the second; differences are B less A.
        cases: Those that both were scored on.
        seed: Of the bootstrap.
    """
    found: dict[str, dict[str, PairedDifference]] = {}
    for kind in TITLES:
        labels = list(dict.fromkeys(label for case in cases for label in a[case].get(kind, {})))
        pairs = {label: _pairs(a, b, cases, kind, (label,)) for label in labels}
        if len(labels) > 1 and kind != OBJECTS:
            pairs[MEAN] = _pairs(a, b, cases, kind, labels)
        rows = {label: _difference(list(own.values()), seed) for label, own in pairs.items() if own}
        if rows:
            found[kind] = rows
    return found


def _difference(pairs: Sequence[tuple[float, float]], seed: int) -> PairedDifference:
    first, second = zip(*pairs, strict=True)
    return paired_difference(first, second, seed)


def _pairs(
    a: Scores, b: Scores, cases: Sequence[str], kind: str, labels: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """Scores of both for each case, averaged over the labels that both have a score of."""
    rows: dict[str, tuple[float, float]] = {}
    for case in cases:
        known = [
            (x, y)
            for label in labels
            if (x := a[case].get(kind, {}).get(label)) is not None
            and (y := b[case].get(kind, {}).get(label)) is not None
        ]
        if known:
            one, other = zip(*known, strict=True)
            rows[case] = sum(one) / len(known), sum(other) / len(known)
    return rows


# ---- the answer -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """The answer to the question which of two is better.

    Attributes:
        kind: The score that decides: AP mean of objects, else mean Dice, else the first that there is.
        label: Its label, or ``mean``.
        difference: Of this score.
    """

    kind: str
    label: str
    difference: PairedDifference

    @property
    def title(self) -> str:
        """The score as people call it, for example ``Dice mean``."""
        return self.label if self.kind == OBJECTS else f"{TITLES[self.kind]} {self.label}"

    @property
    def gain(self) -> int:
        """1 where a higher score is better, else -1."""
        return -1 if self.kind in LOWER_IS_BETTER else 1

    @property
    def better(self) -> Literal["A", "B"] | None:
        """Which one is better; ``None``: no difference shown."""
        if not self.difference.is_shown:
            return None
        return "B" if self.gain * self.difference.mean > 0 else "A"

    @property
    def headline(self) -> str:
        """The answer in a few words."""
        return f"{self.better} is better" if self.better else "No difference shown"

    @property
    def evidence(self) -> str:
        """What the answer rests on, in one sentence."""
        row = self.difference
        if row.low is None or row.high is None:
            return f"{self.title} {row.mean:+.4f} (B less A) over {row.cases} cases: too few to tell."
        found = f"{self.title} {row.mean:+.4f} (B less A), 95 % interval {row.low:+.4f} to {row.high:+.4f}"
        told = f"{found}, {row.cases} cases, p {p_text(row.p)}, effect {row.effect:+.2f}"
        if self.better:
            return f"{told}."
        if row.low > 0 or row.high < 0:
            return f"{told}; the interval leaves out 0, but the test does not agree."
        return f"{told}; more than {max(abs(row.low), abs(row.high)):.4f} either way is unlikely."


def verdict_of(differences: Differences) -> Verdict:
    """Returns the answer that differences give; there must be one at least."""
    kind = next(name for name in (OBJECTS, "dice", *TITLES) if name in differences)
    rows = differences[kind]
    label = next((name for name in (AP_MEAN, MEAN) if name in rows), next(iter(rows)))
    return Verdict(kind, label, rows[label])


def p_text(value: float) -> str:
    """Returns a p value as it is printed."""
    return f"<{_SMALLEST_P}" if value < _SMALLEST_P else f"{value:.3f}"


# ---- single cases ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """What became of one case.

    Attributes:
        case: Its id.
        a: Score of the first model.
        b: Score of the second.
        gain: By how much the second is better; negative: a loss.
    """

    case: str
    a: float
    b: float
    gain: float


def changes_of(a: Scores, b: Scores, cases: Sequence[str], verdict: Verdict) -> list[Change]:
    """Returns what became of each case by the score that decides, the largest loss first."""
    mean = verdict.label == MEAN
    labels = list(dict.fromkeys(label for case in cases for label in a[case].get(verdict.kind, {})))
    pairs = _pairs(a, b, cases, verdict.kind, labels if mean else (verdict.label,))
    found = [Change(case, one, other, verdict.gain * (other - one)) for case, (one, other) in pairs.items()]
    return sorted(found, key=lambda change: change.gain)


def other_truth(a: Mapping[str, Mapping[str, Any]], b: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns the cases whose true labels have not the same sizes in both: their scores cannot be compared.

    Args:
        a: Case id -> entry of ``metrics.json``.
        b: The same of the other; cases that are in one only are left out.
    """
    return [case for case in a if case in b and _truth_of(a[case], b[case]) != _truth_of(b[case], a[case])]


def _truth_of(entry: Mapping[str, Any], other: Mapping[str, Any]) -> list[Any]:
    """Sizes of the true labels that both entries tell, and how many true objects there are."""
    own, theirs = entry.get("label_voxels") or {}, other.get("label_voxels") or {}
    counts = [one.get("instance") or {} for one in (entry, other)]
    objects = counts[0].get("n_label") if all("n_label" in one for one in counts) else None
    return [[own[label] for label in sorted(own) if label in theirs], objects]
