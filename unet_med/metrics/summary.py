"""The scores of all cases together: what ``metrics.json`` says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from unet_med.metrics.membranes import summarise_membranes
from unet_med.metrics.objects import average, summarise_objects
from unet_med.metrics.tracking import summarise_tracks
from unet_med.metrics.voxels import Scores

SCORES = ("dice", "iou", "hd95_mm", "nsd")
"""The scores of ``metrics.json`` that are averaged."""

_TOGETHER: Mapping[str, Callable[[Sequence[Any]], dict[str, Any]]] = {
    "instance": summarise_objects,
    "tracking": summarise_tracks,
    "membrane": summarise_membranes,
    "membrane_watershed": summarise_membranes,
}
"""How what a kind of task says of each case becomes what it says of all."""


def summarise(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Builds the content of ``metrics.json``.

    Args:
        cases: One mapping for each case: ``id``, ``labels`` (the result of :func:`case_metrics`) and, for tasks that
            have it, ``instance`` (the result of :func:`match_objects`), ``tracking`` (of :func:`track_scores`) or
            ``membrane`` (of :func:`membrane_curve`; ``membrane_watershed`` of :func:`watershed_curve`). Other keys are
            carried into the case's entry.

    Returns:
        ``n_cases``, ``mean``, ``per_label`` (means over cases, with ``n_empty`` and ``n_hd95_undefined``), ``cases``
        (each score by label), and ``instance``, ``tracking`` or ``membrane`` if any case has it. The mean is over the
        cases of each label first, then over labels. JSON-serialisable, never NaN.
    """
    names = list(dict.fromkeys(name for case in cases for name in case.get("labels", {})))
    rows = {name: [case["labels"][name] for case in cases if name in case.get("labels", {})] for name in names}
    kinds = (*SCORES, "hd95_px") if any("hd95_px" in row for name in names for row in rows[name]) else SCORES
    per_label = {name: _label_summary(rows[name], kinds) for name in names}
    result: dict[str, Any] = {
        "n_cases": len(cases),
        "mean": {kind: average(summary[kind] for summary in per_label.values()) for kind in kinds},
        "per_label": per_label,
    }
    for task, together in _TOGETHER.items():
        if any(task in case for case in cases):
            result[task] = together([case[task] for case in cases if task in case])
    result["cases"] = [_case_entry(case) for case in cases]
    return result


def _label_summary(rows: Sequence[Scores], kinds: Iterable[str]) -> dict[str, float | int | None]:
    summary: dict[str, float | int | None] = {kind: average(row.get(kind) for row in rows) for kind in kinds}
    errors = [row["volume_error_ml"] for row in rows]
    summary["volume_error_ml"] = average(errors)
    summary["absolute_volume_error_ml"] = average(None if error is None else abs(error) for error in errors)
    empty = [not row["mask_voxels"] and not row["label_voxels"] for row in rows]
    one_empty = [not (row["mask_voxels"] and row["label_voxels"]) for row in rows]
    summary["n_empty"] = sum(empty)
    summary["n_hd95_undefined"] = sum(one_empty) - sum(empty)
    return summary


def _case_entry(case: Mapping[str, Any]) -> dict[str, Any]:
    """Turns label -> score into score -> label."""
    entry: dict[str, Any] = {key: value for key, value in case.items() if key not in ("labels", *_TOGETHER)}
    for name, scores in case.get("labels", {}).items():
        for kind, value in scores.items():
            entry.setdefault(kind, {})[name] = value
    return entry | {task: together([case[task]]) for task, together in _TOGETHER.items() if task in case}
