"""``unet-med info``: what a model is, what it was made from, and what it is not good for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unet_med.bundle import BundleInfo, read_bundle_info
from unet_med.inference.quality.assessment import quality_lines
from unet_med.model_card import model_card
from unet_med.workflows.outcome import Outcome

_PLAN = (
    *("preprocess.spacing_mm", "preprocess.normalisation", "preprocess.crop_to_nonzero"),
    *("network.style", "network.features", "network.strides", "network.kernels"),
    *("sampling.patch_voxels", "sampling.batch_size", "augment.mirror_axes"),
    *("loss.kind", "loss.class_weights", "training.optimizer", "training.learning_rate"),
)


def info(model: str) -> Outcome:
    """Describes a model.

    Args:
        model: Bundle folder, run folder, or an MLflow address.

    Raises:
        ModelError: when it is damaged or of a newer version.
    """
    bundle = read_bundle_info(model)
    card = model_card(bundle.config, bundle.meta)
    training = {k: v for k, v in _section(bundle, "training").items() if k != "case_sha256"}
    result = {
        "name": bundle.config.name,
        "sha256": bundle.sha256,
        "dims": bundle.config.dims,
        "labels": {"background": 0} | {label.name: label.index for label in bundle.labels.labels},
        "regions": {name: list(members) for name, members in bundle.labels.regions},
        "channels": list(bundle.channels),
        "tool_version": bundle.meta.get("tool_version"),
        "torch_version": bundle.meta.get("torch_version"),
        "created": bundle.meta.get("created"),
        "training": training,
        "fingerprint": _section(bundle, "fingerprint"),
        "plan": bundle.config.model_dump(mode="json"),
        "reasons": _section(bundle, "reasons"),
        "receptive_field": _section(bundle, "receptive_field") or None,
        "results": _section(bundle, "results"),
        "first_stage": [{"name": low.folder.name, "sha256": low.sha256} for low in bundle.low],
        "members": [_member(member) for member in bundle.members],
        "postprocessing": _section(bundle, "postprocessing") or None,
        "empty_windows": _section(bundle, "empty_windows") or None,
        "knows": quality_lines(bundle.meta),
        "card": card,
        "limits": card["limits"],
    }
    return Outcome(result, _lines(bundle, result))


def _lines(bundle: BundleInfo, result: Mapping[str, Any]) -> list[str]:
    lines = [
        f"model     {result['name']}, {_kind(bundle)}, sha256 {bundle.sha256[:16]}",
        f"made      {result['created'] or 'unknown'} by unet-med {result['tool_version'] or '?'}, "
        f"torch {result['torch_version'] or '?'}",
        f"labels    {', '.join(f'{index} {name}' for name, index in result['labels'].items())}",
        f"channels  {', '.join(result['channels'])}",
    ]
    if result["regions"]:
        lines.append(f"regions   {', '.join(f'{name} = {members}' for name, members in result['regions'].items())}")
    if bundle.members:
        lines += [
            "",
            f"ensemble of {len(bundle.members)}: their logits are averaged",
            *map(_member_line, result["members"]),
        ]
    for title in ("intended use", "images"):
        lines += ["", title, *(f"  {sentence}" for sentence in result["card"][title])]
    lines += ["", "training data"] + [
        f"  {_words(key)}: {_short(value)}" for key, value in result["training"].items() if value not in (None, "", [])
    ]
    lines += ["", "plan", *_plan_lines(result)]
    if result["receptive_field"]:
        seen, used = (_short(result["receptive_field"].get(f"{kind}_voxels")) for kind in ("theoretical", "effective"))
        lines.append(f"  receptive field: {seen} voxels, of which {used} hold 95 % of what counts")
    if result["postprocessing"]:
        lines += [f"  {key}: {reason}" for key, reason in result["postprocessing"].get("reasons", {}).items()]
    if "instances" in result["reasons"]:
        lines.append(f"  objects: {result['reasons']['instances']}")
    if result["empty_windows"]:
        lines.append(f"  empty windows: {result['empty_windows'].get('reason')}")
    for title in ("results", "failures seen"):
        lines += ["", title, *(f"  {sentence}" for sentence in result["card"][title])]
    lines += ["", "knowing when it fails"]
    lines += [f"  {line}" for line in result["knows"]] or ["  nothing was learnt of it"]
    lines += ["", "limits"] + [f"  {text}" for text in result["limits"]]
    return lines


def _kind(bundle: BundleInfo) -> str:
    name = "U-Net" if bundle.config.network.kind == "unet" else f"{bundle.config.network.kind} network"
    low = bundle.config.cascade.spacing_mm
    cascade = "" if low is None else f", a cascade (first stage at {_short(low)} mm)"
    return f"{bundle.config.dims}-D {name}{cascade}"


def _member(info: BundleInfo) -> dict[str, Any]:
    results = _section(info, "results").get("held_out") or {}
    training = _section(info, "training")
    return {
        "name": info.folder.name,
        "sha256": info.sha256,
        "n_cases": training.get("n_cases"),
        "held_out": training.get("held_out"),
        "dice": (results.get("mean") or {}).get("dice"),
    }


def _member_line(member: Mapping[str, Any]) -> str:
    cases, held_out, dice = (_short(member[key]) for key in ("n_cases", "held_out", "dice"))
    return f"  {member['name']}: {cases} cases, held out {held_out}, Dice {dice}"


def _plan_lines(result: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    for key in _PLAN:
        value: Any = result["plan"]
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        reason = result["reasons"].get(key)
        lines.append(f"  {key}: {_short(value)}" + (f"  ({reason})" if reason else ""))
    return lines


def _section(bundle: BundleInfo, name: str) -> dict[str, Any]:
    section = bundle.meta.get(name)
    return dict(section) if isinstance(section, Mapping) else {}


def _words(key: object) -> str:
    return str(key).replace("_", " ")


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_short(entry)}" for key, entry in value.items() if entry is not None)
    if isinstance(value, list | tuple):
        nested = any(isinstance(entry, list | tuple | Mapping) for entry in value)
        return ("; " if nested else ", ").join(map(_short, value))
    return "-" if value is None else str(value)
