"""`unet-med plan-diff`: in what two plans differ, and why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unet_med.bundle import read_bundle_info
from unet_med.config import PipelineConfig, load_config, parse_config
from unet_med.errors import UsageError
from unet_med.workflows.outcome import Outcome
from unet_med.workflows.plan import shown, wrapped

PIPELINE = "pipeline.yaml"
REASONS = "plan.json"
_MEASURED = ("cases", "shape_median", "spacing_mm_median", "nonzero_kept_share")
"""What of the training set explains a plan best."""

_OPEN = "resolved when it is planned"


@dataclass(frozen=True)
class Planned:
    """A plan, wherever it was found.

    Attributes:
        name: Of the file or folder, or the address.
        config: The pipeline, resolved or not.
        reasons: Dotted key -> reason; empty for a pipeline file.
        fingerprint: What its training set is like; empty for a pipeline file.
    """

    name: str
    config: PipelineConfig
    reasons: Mapping[str, str]
    fingerprint: Mapping[str, Any]

    def values(self) -> dict[str, Any]:
        """Returns all values by dotted key, those of the data first."""
        measured = {f"data.{key}": self.fingerprint[key] for key in _MEASURED if key in self.fingerprint}
        return measured | _flat(self.config.model_dump(mode="json"), type(self.config).model_fields)

    def reason(self, key: str, value: Any) -> str:
        """Returns why a key has its value; empty where nothing is known."""
        return _OPEN if value == "auto" else self.reasons.get(key, "")


def plan_diff(a: str, b: str) -> Outcome:
    """Compares two plans.

    Args:
        a: A pipeline file, what ``plan --json`` wrote, a run folder, or a model (bundle folder or MLflow address).
        b: The other one.

    Returns:
        ``{"a", "b", "differences": [{"key", "a", "b", "a_reason", "b_reason"}]}``; a key that one side does not know is
        null there.

    Raises:
        UsageError: when the file of a plan cannot be read.
        ConfigError: when a pipeline file is none.
        ModelError: when there is no model, or it is damaged.
    """
    sides = read_plan(a), read_plan(b)
    values = [side.values() for side in sides]
    differences: list[dict[str, Any]] = []
    for key in dict.fromkeys([*values[0], *values[1]]):
        found = [value.get(key) for value in values]
        if key.startswith("data.") and not all(side.fingerprint for side in sides):
            continue
        if found[0] != found[1]:
            why = [side.reason(key, value) for side, value in zip(sides, found, strict=True)]
            differences.append({"key": key, "a": found[0], "b": found[1], "a_reason": why[0], "b_reason": why[1]})
    names = [side.name for side in sides]
    return Outcome({"a": names[0], "b": names[1], "differences": differences}, _lines(names, differences))


def read_plan(place: str) -> Planned:
    """Reads a plan from wherever it lies; arguments and errors as :func:`plan_diff`."""
    path = Path(place)
    if path.is_file() and path.suffix == ".json":
        config, reasons, fingerprint = _parts(path, "config", "reasons", "fingerprint")
        return Planned(path.name, parse_config(config, path.name), reasons, fingerprint)
    if path.is_file():
        return Planned(path.name, load_config(path), *_beside(path))
    if (path / PIPELINE).is_file() and (path / REASONS).is_file():
        return Planned(path.name, load_config(path / PIPELINE), *_beside(path / PIPELINE))
    info = read_bundle_info(place)
    meta = [info.meta.get(part) for part in ("reasons", "fingerprint")]
    reasons, fingerprint = (dict(part) if isinstance(part, Mapping) else {} for part in meta)
    return Planned(path.name or place, info.config, reasons, fingerprint)


def _beside(pipeline: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reasons and fingerprint that training wrote beside its resolved pipeline; empty for any other pipeline file."""
    file = pipeline.parent / REASONS
    if pipeline.name != PIPELINE or not file.is_file():
        return {}, {}
    reasons, fingerprint = _parts(file, "reasons", "fingerprint")
    return reasons, fingerprint


def _parts(file: Path, *keys: str) -> list[dict[str, Any]]:
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        return [dict(known[key]) for key in keys]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            "the file of the plan cannot be read", file.name, "give a pipeline file, a run or a model, or plan again"
        ) from error


def _flat(data: Mapping[str, Any], fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key; a section is taken apart, a mapping that is a value (labels, regions) is not."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        section = getattr(fields[key].annotation, "model_fields", None)
        if section is None:
            flat[prefix + key] = value
        else:
            flat |= _flat(value, section, f"{prefix}{key}.")
    return flat


def _lines(names: list[str], differences: list[dict[str, Any]]) -> list[str]:
    if not differences:
        return [f"{names[0]} and {names[1]}: no difference"]
    lines = [f"A  {names[0]}", f"B  {names[1]}"]
    for one in differences:
        lines += ["", one["key"]]
        for side in ("a", "b"):
            lines += wrapped(shown(one[side]) or "none", 5, f"  {side.upper()}")
            lines += wrapped(one[f"{side}_reason"], 7)
    return lines
