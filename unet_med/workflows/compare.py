"""``unet-med compare``: whether one run is better than another, case by case."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unet_med.errors import NothingUsableError, UsageError
from unet_med.review.paired import PairedDifference, paired_difference
from unet_med.workflows.outcome import Outcome

METRICS = "metrics.json"
MEAN = "mean"
KINDS = ("dice", "iou", "nsd", "hd95_mm")
"""Scores that are compared; all but the last are better when higher."""
_SHOWN_CASES = 5
_SMALLEST_P = 0.001

Scores = Mapping[str, Mapping[str, Mapping[str, float | None]]]
"""Case id -> kind of score -> label -> score."""


def compare(run_a: Path, run_b: Path, seed: int = 0) -> Outcome:
    """Compares two runs on the cases that both were scored on.

    Args:
        run_a: Run folder, folder of an evaluation, or a ``metrics.json``.
        run_b: The same of the other run; differences are B less A.
        seed: Of the bootstrap.

    Returns:
        ``{"cases", "only_a", "only_b", "differences": {kind: {label: {...}}}, "changes"}``.

    Raises:
        UsageError: if there are no scores in a folder.
        NothingUsableError: if no case was scored in both runs.
    """
    a, b = read_scores(run_a), read_scores(run_b)
    shared = [case for case in a if case in b]
    if not shared:
        raise NothingUsableError(
            "no case was scored in both runs",
            f"{run_a.name} and {run_b.name}",
            "compare runs on the same fold or split",
        )
    differences = compared(a, b, shared, seed)
    changes = _changes(a, b, shared)
    result = {
        "cases": len(shared),
        "only_a": len(a) - len(shared),
        "only_b": len(b) - len(shared),
        "differences": {
            k: {n: asdict(d) | {"shown": d.is_shown} for n, d in v.items()} for k, v in differences.items()
        },
        "changes": [{"id": case, "dice": change} for case, change in changes],
    }
    return Outcome(result, _lines(result, differences, changes, (run_a.name, run_b.name)))


def read_scores(run: Path) -> Scores:
    """Returns the scores of each case of a run.

    Raises:
        UsageError: if there are none.
    """
    path = run / METRICS if run.is_dir() else run
    try:
        cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
        return {str(case["id"]): {kind: case.get(kind) or {} for kind in KINDS} for case in cases}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            "there are no scores", run.name, f"give a run, or a folder of `unet-med evaluate`, with a {METRICS}"
        ) from error


def compared(a: Scores, b: Scores, cases: Sequence[str], seed: int) -> dict[str, dict[str, PairedDifference]]:
    """Returns the differences by kind of score and label; ``mean`` is over the labels of each case."""
    found: dict[str, dict[str, PairedDifference]] = {}
    for kind in KINDS:
        labels = list(dict.fromkeys(label for case in cases for label in a[case][kind]))
        pairs = {label: _pairs(a, b, cases, kind, (label,)) for label in labels}
        if len(labels) > 1:
            pairs[MEAN] = _pairs(a, b, cases, kind, labels)
        found[kind] = {label: _difference(rows, seed) for label, rows in pairs.items() if rows}
    return {kind: rows for kind, rows in found.items() if rows}


def _difference(pairs: Sequence[tuple[float, float]], seed: int) -> PairedDifference:
    first, second = zip(*pairs, strict=True)
    return paired_difference(first, second, seed)


def _pairs(a: Scores, b: Scores, cases: Sequence[str], kind: str, labels: Sequence[str]) -> list[tuple[float, float]]:
    """Scores of both runs for each case, averaged over the labels that both have a score of."""
    rows: list[tuple[float, float]] = []
    for case in cases:
        known = [
            (x, y)
            for n in labels
            if (x := a[case][kind].get(n)) is not None and (y := b[case][kind].get(n)) is not None
        ]
        if known:
            one, other = zip(*known, strict=True)
            rows.append((sum(one) / len(known), sum(other) / len(known)))
    return rows


def _changes(a: Scores, b: Scores, cases: Sequence[str]) -> list[tuple[str, float]]:
    """Cases by their change in mean Dice, the worst first."""
    changes: list[tuple[str, float]] = []
    for case in cases:
        pair = _pairs(a, b, (case,), "dice", list(a[case]["dice"]))
        if pair:
            changes.append((case, pair[0][1] - pair[0][0]))
    return sorted(changes, key=lambda change: change[1])


def _lines(
    result: Mapping[str, Any],
    differences: Mapping[str, Mapping[str, PairedDifference]],
    changes: Sequence[tuple[str, float]],
    names: tuple[str, str],
) -> list[str]:
    lines = [f"A: {names[0]}, B: {names[1]}, {result['cases']} cases in both"]
    for side in ("a", "b"):
        if result[f"only_{side}"]:
            lines.append(f"  {result[f'only_{side}']} cases only in {side.upper()} are left out")
    for kind, rows in differences.items():
        lines.append(f"{kind:<20} {'A':>8} {'B':>8} {'B - A':>8}   {'95 % interval':<20} {'p':>6} {'effect':>6}")
        lines += [_row(label, row) for label, row in rows.items()]
    worse = [change for change in changes if change[1] < 0][:_SHOWN_CASES]
    if worse:
        lines.append("largest losses of Dice: " + ", ".join(f"{case} {change:+.4f}" for case, change in worse))
    return lines


def _p(value: float) -> str:
    return "<0.001" if value < _SMALLEST_P else f"{value:.3f}"


def _row(label: str, row: PairedDifference) -> str:
    interval = "too few cases" if row.low is None else f"{row.low:+.4f} to {row.high:+.4f}"
    verdict = "" if row.is_shown else "  no difference shown"
    return (
        f"  {label:<18} {row.first:>8.4f} {row.second:>8.4f} {row.mean:>+8.4f}   {interval:<20} "
        f"{_p(row.p):>6} {row.effect:>+6.2f}{verdict}"
    )
