"""`unet-med plan`: every value of a pipeline, resolved from the data, with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unet_med.config import load_config
from unet_med.manifest import Manifest, load_manifest
from unet_med.planning import Plan, make_plan
from unet_med.workflows.outcome import Outcome
from unet_med.workflows.progress import track


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
        memory_gb: Memory that training may take.
        explain: One readable page with the reasons instead of the YAML.
        overrides: ``a.b=c`` assignments.
        device: ``cpu``, or anything else for a GPU.

    Returns:
        ``{"config", "reasons", "fingerprint"}``; the lines are the resolved YAML, or the page.
    """
    config = load_config(pipeline, overrides)
    manifest = load_manifest(data)
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
    seen = resolved.fingerprint
    spacing = seen["spacing_mm_median"]
    size = " x ".join(map(str, seen["shape_median"]))
    place = "pixel size unknown" if spacing is None else " x ".join(f"{value:g}" for value in spacing) + " mm"
    lines = [
        f"pipeline {resolved.config.name} on {manifest.name}: {seen['cases']} images of about {size} voxels, {place}",
        f"smallest {' x '.join(map(str, seen['shape_min']))}, largest {' x '.join(map(str, seen['shape_max']))}",
    ]
    total = sum(seen["label_voxels"]) or 1
    for name, value in manifest.labels.items():
        if value < len(seen["label_voxels"]):
            lines.append(f"  {name}: {seen['label_voxels'][value] / total:.2%} of the voxels")
    section = None
    for key, reason in resolved.reasons.items():
        head, _, last = key.rpartition(".")
        if head != section:
            lines += ["", head or "task"]
            section = head
        lines.append(f"  {last} = {_shown(_value(resolved, key))}")
        lines.append(f"      {reason}")
    return lines


def _value(resolved: Plan, key: str) -> object:
    value: Any = resolved.config.model_dump(mode="json")
    for part in key.split("."):
        value = value[part]
    return value


def _shown(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_shown(item) for item in value) + "]"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items() if item is not None)
    if value is None:
        return "null"
    return f"{value:g}" if isinstance(value, float) else str(value)
