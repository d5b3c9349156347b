"""``unet-med compare``: whether one run is better than another, case by case."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unet_med.bundle import read_bundle_info
from unet_med.errors import NothingUsableError, UnetMedError, UsageError
from unet_med.review.comparison import (
    Change,
    Differences,
    Scores,
    Verdict,
    case_scores,
    changes_of,
    compared,
    other_truth,
    p_text,
    verdict_of,
)
from unet_med.review.paired import PairedDifference
from unet_med.workflows.outcome import Outcome
from unet_med.workflows.plan import shown
from unet_med.workflows.plan_diff import plan_diff

METRICS = "metrics.json"
RESULT = "comparison.json"
PAGE = "comparison.html"
_SHOWN_CASES = 5
_NOT_COMPARED = ("name", "tracking.")
"""Settings that change nothing of a model, and may hold the place of a store."""


def compare(
    run_a: Path,
    run_b: Path,
    seed: int = 0,
    out: Path | None = None,
    data: Path | None = None,
    store: str | None = None,
    device: str = "auto",
) -> Outcome:
    """Compares two runs on the cases that both were scored on.

    Args:
        run_a: Run folder, folder of an evaluation, or a ``metrics.json``.
        run_b: The same of the other run; differences are B less A.
        seed: Of the bootstrap.
        out: Folder for ``comparison.json`` and ``comparison.html``, which are also recorded in MLflow.
        data: Manifest of the cases: the page then shows those that changed most.
        store: The MLflow store; ``None``: that of run B, where it was recorded.
        device: Computes masks that nobody kept.

    Returns:
        ``{"a", "b", "cases", "only_a", "only_b", "other_truth", "verdict", "differences": {kind: {label: {...}}},
        "changes", "settings"}``.

    Raises:
        UsageError: if there are no scores in a folder, pictures are wanted but no page, or ``store`` cannot be opened.
        NothingUsableError: if no case was scored in both runs.
        MachineError: if the page cannot be written.
    """
    if out is None and (data is not None or store is not None):
        raise UsageError("there is no page to show pictures on or to record", "--out", "give --out DIR, too")
    entries = read_entries(run_a), read_entries(run_b)
    a, b = (_scores(one) for one in entries)
    shared = [case for case in a if case in b]
    differences = compared(a, b, shared, seed)
    if not differences:
        raise NothingUsableError(
            "no case was scored in both runs",
            f"{run_a.name} and {run_b.name}",
            "compare runs on the same fold or split",
        )
    verdict = verdict_of(differences)
    changes = changes_of(a, b, shared, verdict)
    result = {
        "a": _called(run_a),
        "b": _called(run_b),
        "cases": len(shared),
        "only_a": len(a) - len(shared),
        "only_b": len(b) - len(shared),
        "other_truth": other_truth(*entries),
        "verdict": _told(verdict),
        "differences": {
            k: {n: asdict(d) | {"shown": d.is_shown} for n, d in v.items()} for k, v in differences.items()
        },
        "changes": [{"id": one.case, "a": one.a, "b": one.b, "gain": one.gain} for one in changes],
        "settings": _settings(run_a, run_b),
    }
    lines = _lines(result, differences, verdict, changes, (run_a.name, run_b.name))
    if out is not None:
        from unet_med.workflows.compare_page import write_comparison

        lines += write_comparison(out, result, (run_a, run_b), data, store, device)
    return Outcome(result, lines)


def read_entries(run: Path) -> dict[str, Mapping[str, Any]]:
    """Returns what ``metrics.json`` of a run says of each case, by its id.

    Raises:
        UsageError: if there is none.
    """
    try:
        return {str(entry["id"]): entry for entry in _metrics(run)["cases"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            "there are no scores", run.name, f"give a run, or a folder of `unet-med evaluate`, with a {METRICS}"
        ) from error


def _metrics(run: Path) -> Any:
    return json.loads((run / METRICS if run.is_dir() else run).read_text(encoding="utf-8"))


def _called(run: Path) -> str:
    """Returns what a page calls a run: its pipeline and model. Folders may be called by what is nobody's business."""
    with suppress(UnetMedError):
        info = read_bundle_info(str(run))
        return f"{info.config.name}, model {info.sha256[:12]}"
    sha256 = _metrics(run).get("model_sha256")
    return f"model {str(sha256)[:12]}" if sha256 else "scores of masks"


def read_scores(run: Path) -> Scores:
    """Returns the scores of each case of a run.

    Raises:
        UsageError: if there are none.
    """
    return _scores(read_entries(run))


def _scores(entries: Mapping[str, Mapping[str, Any]]) -> Scores:
    return {case: case_scores(entry) for case, entry in entries.items()}


def _told(verdict: Verdict) -> dict[str, Any]:
    return {
        "score": verdict.kind,
        "label": verdict.label,
        "title": verdict.title,
        "better": verdict.better,
        "headline": verdict.headline,
        "evidence": verdict.evidence,
    }


def _settings(run_a: Path, run_b: Path) -> list[dict[str, str]]:
    """Returns in what the pipelines of two runs differ; nothing where one of them is not there."""
    with suppress(UnetMedError):
        found: list[dict[str, Any]] = plan_diff(str(run_a), str(run_b)).result["differences"]
        kept = [one for one in found if not one["key"].startswith(_NOT_COMPARED)]
        return [{"key": one["key"], "a": shown(one["a"]), "b": shown(one["b"])} for one in kept]
    return []


def _lines(
    result: Mapping[str, Any],
    differences: Differences,
    verdict: Verdict,
    changes: Sequence[Change],
    names: tuple[str, str],
) -> list[str]:
    lines = [f"A: {names[0]}, B: {names[1]}, {result['cases']} cases in both"]
    for side in ("a", "b"):
        if result[f"only_{side}"]:
            lines.append(f"  {result[f'only_{side}']} cases only in {side.upper()} are left out")
    if result["other_truth"]:
        lines.append(f"WARNING: {len(result['other_truth'])} cases were scored against other true labels")
    lines.append(f"{verdict.headline}: {verdict.evidence}")
    for kind, rows in differences.items():
        lines.append(f"{kind:<20} {'A':>8} {'B':>8} {'B - A':>8}   {'95 % interval':<20} {'p':>6} {'effect':>6}")
        lines += [_row(label, row) for label, row in rows.items()]
    worse = [change for change in changes if change.gain < 0][:_SHOWN_CASES]
    if worse:
        told = ", ".join(f"{change.case} {change.b - change.a:+.4f}" for change in worse)
        lines.append(f"largest losses of {verdict.title}: {told}")
    return lines


def _row(label: str, row: PairedDifference) -> str:
    interval = "too few cases" if row.low is None else f"{row.low:+.4f} to {row.high:+.4f}"
    verdict = "" if row.is_shown else "  no difference shown"
    return (
        f"  {label:<18} {row.first:>8.4f} {row.second:>8.4f} {row.mean:>+8.4f}   {interval:<20} "
        f"{p_text(row.p):>6} {row.effect:>+6.2f}{verdict}"
    )
