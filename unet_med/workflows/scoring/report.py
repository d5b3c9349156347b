"""Scores as lines that people read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from unet_med.workflows.scoring.scorers import SHOWN


def lines(result: Mapping[str, Any]) -> list[str]:
    """Returns what is printed of the result of ``unet-med score``."""
    found = _labels(result) if result["per_label"] else [f"{result['n_cases']} cases"]
    for task, told in _TOLD.items():
        if task in result:
            found += told(result[task])
    found += [f"refused: {entry['id']}: {entry['reason']}" for entry in result["refused"][:SHOWN]]
    for side, partner in (("references", "mask"), ("predictions", "reference")):
        names = result["unpaired"][side]
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            found.append(f"{len(names)} {side} without a {partner}: {', '.join(names[:SHOWN])}{more}")
    return found + [f"note: {note}" for note in result["notes"][:SHOWN]]


def _labels(result: Mapping[str, Any]) -> list[str]:
    unit = "px" if "hd95_px" in result["mean"] else "mm"
    columns = ("dice", "iou", f"hd95_{unit}", "nsd")
    found = [
        f"{result['n_cases']} cases, surface Dice (NSD) at {result['tolerance_mm']:g} {unit}",
        f"{'':>16} {'Dice':>7} {'IoU':>7} {f'HD95 {unit}':>8} {'NSD':>7} {'empty':>6}",
    ]
    for name, row in {**result["per_label"], "mean": result["mean"]}.items():
        dice, iou, hd95, nsd = (_number(row.get(column)) for column in columns)
        found.append(f"{name:>16} {dice:>7} {iou:>7} {hd95:>8} {nsd:>7} {row.get('n_empty', ''):>6}")
    return found


def _objects(scores: Mapping[str, Any]) -> list[str]:
    found = [
        f"{scores['n_label']} true objects, {scores['n_mask']} predicted; AP is TP / (TP + FP + FN), as in DSB2018"
    ]
    classes = scores.get("classes", {})
    for title, own, end in (
        ("of all objects", scores, ""),
        ("mean of images", scores, "_per_image"),
        *((f"{name}, {one['n_label']} true, {one['n_mask']} predicted", one, "") for name, one in classes.items()),
    ):
        ap, f1 = own[f"ap{end}"], own[f"f1{end}"]
        chosen = [f"AP@{iou} {_number(ap[iou])}" for iou in ("0.50", "0.75", "0.90")]
        others = [f"{name} {_number(own[kind + end])}" for kind, name in _OBJECT_SCORES]
        found.append(f"{title}: " + ", ".join([*chosen, f"F1@0.50 {_number(f1['0.50'])}", *others]))
    return found


_OBJECT_SCORES = (("ap_mean", "mean AP"), ("pq", "PQ"), ("aji", "AJI"), ("aji_plus", "AJI+"))


def _membranes(scores: Mapping[str, Any], cut: str = "threshold") -> list[str]:
    return [
        f"{name} {_number(scores[kind])} (split {_number(scores[kind + '_split'])}, merge"
        f" {_number(scores[kind + '_merge'])}) at {cut} {scores[kind + '_threshold'] or '-'}"
        for kind, name in (("v_rand", "V_rand"), ("v_info", "V_info"))
    ]


def _floods(scores: Mapping[str, Any]) -> list[str]:
    return [f"by watershed: {line}" for line in _membranes(scores, "depth")]


def _tracks(scores: Mapping[str, Any]) -> list[str]:
    divisions, corrections = scores["divisions"], scores["corrections"]
    counts = ", ".join(f"{kind.upper()} {count}" for kind, count in corrections.items())
    return [
        ", ".join(f"{kind.upper()} {_number(scores[kind])}" for kind in ("seg", "det", "tra", "lnk")),
        f"{scores['n_frames']} frames, {scores['n_label']} objects, {scores['n_mask']} computed; corrections: {counts}",
        f"divisions: {divisions['found']} of {divisions['n_label']} found, {divisions['n_mask']} computed, "
        f"BC(1) {_number(divisions['bc'])}",
    ]


_TOLD: Mapping[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "instance": _objects,
    "membrane": _membranes,
    "membrane_watershed": _floods,
    "tracking": _tracks,
}


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
