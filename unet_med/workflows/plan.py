"""`unet-med plan`: every value of a pipeline, resolved from the data, with its reason."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unet_med.config import load_config
from unet_med.manifest import Manifest, load_manifest
from unet_med.planning import Plan, make_plan
from unet_med.workflows.outcome import Outcome
from unet_med.workflows.progress import track

PAGE = 110
"""Characters in a line of the page."""

_LONGEST_NAME = 30


def plan(
    pipeline: Path,
    data: Path,
    memory_gb: float | None = None,
    explain: bool = False,
    overrides: Sequence[str] = (),
    device: str = "cpu",
) -> Outcome:
    """Resolves a pipeline for a data set.

    Args:
        pipeline: A pipeline file.
        data: A manifest.
        memory_gb: Memory that training may take; default: 8 on a GPU, 3 on a CPU, or what ``network.size`` is made for.
        explain: One readable page with the reasons instead of the YAML.
        overrides: ``a.b=c`` assignments.
        device: ``cpu``, ``auto`` for what this machine has, or anything else for a GPU, which need not be here.

    Returns:
        ``{"config", "reasons", "fingerprint"}``; the lines are the resolved YAML, or the page.
    """
    config = load_config(pipeline, overrides)
    manifest = load_manifest(data)
    if device == "auto":
        from unet_med.inference.device import choose_device

        device = choose_device().type
    resolved = make_plan(config, manifest, memory_gb, device, progress=track)
    result: dict[str, Any] = {
        "config": resolved.config.model_dump(mode="json"),
        "reasons": resolved.reasons,
        "fingerprint": resolved.fingerprint,
    }
    lines = explained(resolved, manifest) if explain else resolved.config.to_yaml().rstrip().splitlines()
    return Outcome(result, lines)


def explained(resolved: Plan, manifest: Manifest) -> list[str]:
    """Returns the plan as a page: what the data is like, then each value with its reason."""
    values = resolved.config.model_dump(mode="json")
    groups: dict[str, list[tuple[str, str, str]]] = {}
    for key, reason in resolved.reasons.items():
        head, _, last = key.rpartition(".")
        groups.setdefault(head or "task", []).append((last, shown(_value(values, key)), reason))
    lines = [f"{resolved.config.name} on {manifest.name}: {resolved.fingerprint['cases']} images"]
    groups = {"data": _data_rows(resolved.fingerprint, manifest), **groups}
    width = max(len(name) for rows in groups.values() for name, _, _ in rows)
    for head, rows in groups.items():
        lines += ["", head, *_rows(rows, width)]
    return lines


def shown(value: Any) -> str:
    """Returns a value on one line; the sizes of levels as ``1x1x1, 2x2x2``."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {shown(item)}" for key, item in value.items() if item is not None)
    if isinstance(value, list):
        if value and all(isinstance(item, list) for item in value):
            return ", ".join("x".join(map(shown, item)) for item in value)
        return "[" + ", ".join(map(shown, value)) + "]"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _data_rows(seen: Mapping[str, Any], manifest: Manifest) -> list[tuple[str, str, str]]:
    sizes = [" x ".join(map(str, seen[f"shape_{which}"])) for which in ("median", "min", "max")]
    spacing = seen["spacing_mm_median"]
    place = "unknown" if spacing is None else " x ".join(f"{value:g}" for value in spacing) + " mm"
    rows = [("size", f"{sizes[0]} voxels", f"median; from {sizes[1]} to {sizes[2]}"), ("spacing", place, "median")]
    total = sum(seen["label_voxels"]) or 1
    counted = {name: value for name, value in manifest.labels.items() if value < len(seen["label_voxels"])}
    return rows + [
        (_short(name), f"{seen['label_voxels'][value] / total:.2%}", "of the voxels") for name, value in counted.items()
    ]


def wrapped(text: str, indent: int, start: str = "") -> list[str]:
    """Returns lines of the page: the first after ``start``, all indented."""
    margin = " " * indent
    return textwrap.wrap(
        text, PAGE, initial_indent=f"{start:<{indent}}", subsequent_indent=margin, break_on_hyphens=False
    )


def _rows(rows: Sequence[tuple[str, str, str]], width: int) -> list[str]:
    """Aligned rows of name, value and reason; what is long goes on below."""
    column = min(max(len(value) for _, value, _ in rows), PAGE // 3)
    lines: list[str] = []
    for name, value, reason in rows:
        start = f"  {name:<{width}}  "
        whole = f"{start}{value:<{column}}  {reason}"
        if len(value) <= column and len(whole) <= PAGE:
            lines.append(whole)
        else:
            lines += wrapped(value, len(start), start) + wrapped(reason, len(start) + 2)
    return lines


def _value(values: Mapping[str, Any], key: str) -> Any:
    value: Any = values
    for part in key.split("."):
        value = value[part]
    return value


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 3] + "..."
