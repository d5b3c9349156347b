"""The model card: what a model is for, what it learnt from, how good it was, where it failed.

Everything in it is taken from the description of a bundle, so that an older bundle has a card, too, with less in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from unet_med.config import PipelineConfig

Card = dict[str, list[str]]
"""Title of each section and its sentences."""

RESEARCH_ONLY = "Research use only: not a medical device, not for diagnosis or treatment"
_FEW_CASES = 50
_KINDS = {"held_out": "held-out cases", "out_of_fold": "cases, each scored by the model that had not seen it"}


def model_card(config: PipelineConfig, meta: Mapping[str, Any]) -> Card:
    """Returns the card of a model.

    Args:
        config: Its resolved pipeline.
        meta: Where it comes from, as a bundle keeps it; what is missing is left out or said to be unknown.
    """
    return {
        "intended use": _intended_use(config, meta),
        "training data": _training_data(meta),
        "images": _images(config, meta),
        "results": list(_results(meta)) or ["none recorded"],
        "failures seen": _failures(meta),
        "limits": _limits(meta),
    }


def card_text(name: str, card: Card) -> str:
    """Returns a card as Markdown."""
    lines = [f"# {name}", ""]
    for title, sentences in card.items():
        lines += [f"## {title.capitalize()}", "", *(f"- {sentence}" for sentence in sentences), ""]
    return "\n".join(lines)


def _intended_use(config: PipelineConfig, meta: Mapping[str, Any]) -> list[str]:
    labels = [] if config.labels == "auto" else [name for name in config.labels if name != "background"]
    names = ", ".join(labels) or "its labels"
    what = f"Counts and outlines objects ({names})" if config.task == "instance" else f"Outlines {names}"
    kind = f"{config.dims}-D images" if config.dims != "auto" else "images"
    modalities = _modalities(meta)
    parts = _unique(_part(meta, "intended").get("body_parts"))
    of = f" ({', '.join(modalities)})" if modalities else ""
    where = f" of the {' and '.join(part.lower() for part in parts)}" if parts else ""
    return [f"{what} in {kind}{where}{of} like those it learnt from", RESEARCH_ONLY]


def _training_data(meta: Mapping[str, Any]) -> list[str]:
    training = _part(meta, "training")
    lines = [f"{training['n_cases']} cases"] if training.get("n_cases") is not None else ["not recorded"]
    if training.get("held_out"):
        lines.append(f"{training['held_out']} others were held out ({training['fold']})")
    if training.get("data_digest"):
        lines.append(f"digest of the data set {str(training['data_digest'])[:16]}")
    voxels = _part(meta, "fingerprint").get("label_voxels")
    if isinstance(voxels, Sequence) and sum(voxels) > 0:
        lines.append(f"{100 * (1 - voxels[0] / sum(voxels)):.3g} % of the voxels are labelled")
    origin = training.get("started_from")
    if isinstance(origin, Mapping):
        lines.append(f"started from the model {str(origin.get('sha256', ''))[:16]}")
    return lines


def _images(config: PipelineConfig, meta: Mapping[str, Any]) -> list[str]:
    intended, fingerprint = _part(meta, "intended"), _part(meta, "fingerprint")
    names = config.channels if isinstance(config.channels, tuple) else ()
    modalities, parts = _modalities(meta), _unique(intended.get("body_parts"))
    lines = [f"channels: {', '.join(names)}"] if names else []
    lines.append(f"modality: {', '.join(modalities) if modalities else 'not told by the files'}")
    lines.append(f"part of the body: {', '.join(parts).lower() if parts else 'not told by the files'}")
    median = _median(meta)
    if isinstance(intended.get("spacing_mm"), Sequence):
        ranges = [f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}" for low, high in intended["spacing_mm"]]
        lines.append(f"voxels of {' x '.join(ranges)} mm (towards R, A, S)")
    elif median:
        lines.append(f"voxels of {' x '.join(f'{size:.3g}' for size in median)} mm (median)")
    channels = fingerprint.get("channels")
    if isinstance(channels, Sequence):
        for name, one in zip(names, channels, strict=False):
            low, high = one.get("percentile_00_5"), one.get("percentile_99_5")
            if low is not None and high is not None:
                lines.append(f"intensities of {name} in labelled voxels: {low:.4g} to {high:.4g} (99 % of them)")
    return lines


def _results(meta: Mapping[str, Any]) -> Iterator[str]:
    for kind, results in _scored(meta).items():
        intervals = results.get("intervals") or {}
        count, labels = results.get("n_cases"), results.get("per_label") or {}
        yield f"{count if count is not None else 'an unknown number of'} {_KINDS.get(kind, kind)}"
        mean = (results.get("mean") or {}).get("dice")
        if mean is not None and len(labels) != 1:
            yield f"mean Dice {mean:.3f}"
        for label, row in labels.items():
            if row.get("dice") is not None:
                yield f"{label}: Dice {row['dice']:.3f}{_interval(intervals.get(label))}{_others(row)}"
        objects = results.get("instance")
        if isinstance(objects, Mapping) and objects.get("ap_mean") is not None:
            found = (objects.get("ap") or {}).get("0.50")
            half = "" if found is None else f", at IoU .5 {found:.3f}"
            yield f"objects: mean AP {objects['ap_mean']:.3f}{_interval(intervals.get('objects'))}{half}"


def _interval(ends: object) -> str:
    if not isinstance(ends, Sequence) or len(ends) != 2 or None in ends:
        return ""
    return f" (95 % interval {ends[0]:.3f} to {ends[1]:.3f})"


def _others(row: Mapping[str, Any]) -> str:
    units = (("iou", "IoU {:.3f}"), ("hd95_mm", "HD95 {:.3g} mm"), ("hd95_px", "HD95 {:.3g} px"), ("nsd", "NSD {:.3f}"))
    return "".join(f", {text.format(row[key])}" for key, text in units if row.get(key) is not None)


def _failures(meta: Mapping[str, Any]) -> list[str]:
    known = [results["failures"] for results in _scored(meta).values() if results.get("failures") is not None]
    if not known:
        return ["not recorded"]
    return [str(sentence) for sentences in known for sentence in sentences] or ["none on these cases"]


def _limits(meta: Mapping[str, Any]) -> list[str]:
    limits = [RESEARCH_ONLY]
    count = _part(meta, "training").get("n_cases")
    if isinstance(count, int):
        few = " only" if count < _FEW_CASES else ""
        limits.append(f"it has seen {count} cases{few}; other scanners and patients may differ")
    modalities = _modalities(meta)
    if modalities:
        limits.append(f"made for {' and '.join(modalities)} images; others are refused where their files tell")
    median = _median(meta)
    if median:
        limits.append(f"spacing in training (median): {', '.join(f'{size:.4g}' for size in median)} mm")
    if not _scored(meta):
        limits.append("no score on held-out cases is recorded")
    return limits


def _modalities(meta: Mapping[str, Any]) -> list[str]:
    return _unique(_part(meta, "intended").get("modalities")) or _unique([_part(meta, "training").get("modality")])


def _median(meta: Mapping[str, Any]) -> Sequence[float] | None:
    fingerprint = _part(meta, "fingerprint")
    found: Sequence[float] | None = fingerprint.get("spacing_mm_median") or fingerprint.get("spacing_mm")
    return found


def _scored(meta: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Returns the results on some cases, by which cases they were."""
    parts = _part(meta, "results")
    return {kind: one for kind, one in parts.items() if isinstance(one, Mapping) and one.get("n_cases") != 0}


def _part(meta: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = meta.get(name)
    return part if isinstance(part, Mapping) else {}


def _unique(values: object) -> list[str]:
    if not isinstance(values, Sequence) or isinstance(values, str):
        return []
    return list(dict.fromkeys(str(value) for value in values if value))
