"""A comparison in MLflow: a run of its own beside the two that it compares, under tags in place of case ids."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unet_med.config import PipelineConfig, Tracking, load_config
from unet_med.errors import UnetMedError
from unet_med.identity import case_tag
from unet_med.review.comparison_page import Figure, page
from unet_med.training.store import connect, resolve_store
from unet_med.training.tracking import open_tracker
from unet_med.workflows.compare import PAGE, RESULT

EXPERIMENT = "comparisons"
"""Where comparisons go that belong to no experiment."""
_JOURNAL, _PIPELINE = "run.json", "pipeline.yaml"
_NOT_IN_KEYS = re.compile(r"[^A-Za-z0-9_\-./ ]")


@dataclass(frozen=True)
class _Recorded:
    """Where a run was recorded: its id in MLflow, and its pipeline."""

    run_id: str
    config: PipelineConfig


def record_comparison(
    result: Mapping[str, Any], figures: Mapping[str, Figure], runs: tuple[Path, Path], store: str | None
) -> list[str]:
    """Records a comparison in MLflow.

    Args:
        result: What :func:`unet_med.workflows.compare.compare` returns.
        figures: Pictures of cases by their ids.
        runs: The two run folders.
        store: Which store; ``None``: that of the second run. Where this one was not recorded, or its store is not
            where it was, nothing is.

    Returns:
        Lines for the terminal.

    Raises:
        UsageError: if ``store`` was given and cannot be opened.
    """
    sides = [_recorded(run) for run in runs]
    place = store or _store_of(sides[1])
    if place is None:
        return ["not recorded in MLflow: the store of run B is not here (--store names one)"]
    experiment = EXPERIMENT
    if sides[1] is not None:
        experiment = sides[1].config.tracking.experiment or sides[1].config.name
    try:
        return _record(result, figures, sides, Tracking(store=place), experiment)
    except UnetMedError as error:
        if store is not None:
            raise
        return [f"not recorded in MLflow: {error.what}"]


def _record(
    result: Mapping[str, Any],
    figures: Mapping[str, Figure],
    sides: list[_Recorded | None],
    tracking: Tracking,
    experiment: str,
) -> list[str]:
    verdict = result["verdict"]
    ids = ["?" if side is None else side.run_id for side in sides]
    tracker = open_tracker(tracking, experiment, f"comparison: {verdict['headline'].lower()}")
    client, failures = connect(resolve_store(tracking.store))
    private = {**result, "changes": [{**one, "id": case_tag(one["id"])} for one in result["changes"]]}
    private["other_truth"] = [case_tag(case) for case in result["other_truth"]]
    tags = {
        "comparison.a": ids[0],
        "comparison.b": ids[1],
        "comparison.better": verdict["better"] or "no difference shown",
        "mlflow.note.content": f"**{verdict['headline']}.** {verdict['evidence']}\n\nA: {result['a']}, run "
        f"`{ids[0]}`; B: {result['b']}, run `{ids[1]}`. *Artifacts* has `{PAGE}` with the pictures and `{RESULT}`.",
    }
    try:
        client.log_batch(tracker.run_id, metrics=_metrics(result["differences"]), tags=_tags(tags))
        client.log_text(tracker.run_id, json.dumps(private, indent=1), RESULT)
        client.log_text(tracker.run_id, page(result, figures, case_tag), PAGE)
    except failures:
        tracker.finish("FAILED")
        return ["not recorded in MLflow: the store went away"]
    tracker.finish("FINISHED")
    return [f"recorded in MLflow as run {tracker.run_id}"]


def _metrics(differences: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[Any]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [
        Metric(_NOT_IN_KEYS.sub("_", f"difference/{kind}/{label}/{what}"), float(row[what]), now, 0)
        for kind, labels in differences.items()
        for label, row in labels.items()
        for what in ("mean", "low", "high", "p", "effect")
        if row[what] is not None
    ]


def _tags(tags: Mapping[str, str]) -> list[Any]:
    from mlflow.entities import RunTag

    return [RunTag(key, value) for key, value in tags.items()]


def _store_of(run: _Recorded | None) -> str | None:
    """Returns the store of a run; ``None``: it was not recorded, or its store is not where it was."""
    if run is None or not run.config.tracking.enabled:
        return None
    database = resolve_store(run.config.tracking.store).database
    return None if database is not None and not database.is_file() else run.config.tracking.store


def _recorded(run: Path) -> _Recorded | None:
    """Returns where a run was recorded; ``None``: it is no run, or was not."""
    try:
        runs = json.loads((run / _JOURNAL).read_text(encoding="utf-8"))["mlflow_runs"]
        run_id = runs.get("parent") or next(iter(runs.values()))
        pipeline = next(path for path in (run / _PIPELINE, *sorted(run.glob(f"fold_*/{_PIPELINE}"))) if path.exists())
        return _Recorded(str(run_id), load_config(pipeline))
    except (OSError, ValueError, KeyError, TypeError, StopIteration, UnetMedError):
        return None
