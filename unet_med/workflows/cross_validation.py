"""What a cross-validation leaves: each case scored by the model that had not seen it, and the folds as one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from unet_med import __version__
from unet_med.bundle import BundleInfo, labels_of, read_bundle_info, save_ensemble
from unet_med.config import PipelineConfig
from unet_med.inference.objects import MAPS, MapArchive
from unet_med.inference.quality import assessment, intended, outliers
from unet_med.metrics import summarise
from unet_med.training.flavour import write_flavour
from unet_med.training.postprocessing import Choice, MaskPairs, choose_postprocess
from unet_med.training.tracking import Tracker
from unet_med.workflows.evaluate import score_table
from unet_med.workflows.last_look import joined_looks, show_scores
from unet_med.workflows.objects import META_KEY as OBJECTS
from unet_med.workflows.objects import changes_of, object_table, tuned
from unet_med.workflows.record import case_rows, final_metrics, told_results
from unet_med.workflows.session import FoldOutcome

MASKS = "out_of_fold"
"""Folder of a run for the masks of held-out cases, until post-processing is chosen."""


def combine_folds(
    out: Path, outcomes: Mapping[str, FoldOutcome], parent: Tracker, registers: bool
) -> tuple[dict[str, Any], list[str]]:
    """Makes the ensemble of the folds in ``out / "model"``, and sums up their scores.

    Args:
        out: Run folder; the model of each fold is in ``out / NAME / "model"``.
        outcomes: What each fold left behind, by name.
        parent: The run above the folds.
        registers: Whether the ensemble becomes a version of a registered model.

    Returns:
        The content of ``metrics.json``, and lines for the terminal.

    Raises:
        MachineError: when the disk is full.
    """
    result = summarise([case for outcome in outcomes.values() for case in outcome.scored])
    result["folds"] = {name: outcome.metrics["mean"] for name, outcome in outcomes.items()}
    result |= joined_looks([outcome.metrics for outcome in outcomes.values()])
    members = {name: read_bundle_info(out / name) for name in outcomes}
    first = next(iter(members.values()))
    choice = _choice(out / MASKS, first.config, {case["id"] for case in result["cases"]})
    config = first.config
    meta = _meta(tuple(members.values()), result)
    if choice is not None:
        config = config.replacing({"postprocess": choice.settings.model_dump(mode="json")})
        result["postprocessing"] = meta["postprocessing"] = choice.as_dict(first.config.postprocess)
        meta["reasons"] |= choice.reasons
    if labels_of(config).objects and config.instances.tune:
        tuning = tuned([MapArchive(out / name / MAPS) for name in outcomes], first.config.instances)
        config = config.replacing(changes_of(tuning.settings))
        result[OBJECTS] = meta[OBJECTS] = tuning.as_dict()
        meta["reasons"]["instances"] = tuning.reason
    meta |= _knowledge(outcomes, tuple(members.values()), meta["training"]["n_cases"])
    result["model_sha256"] = save_ensemble(
        out / "model", {name: info.folder for name, info in members.items()}, config, meta
    )
    final = final_metrics(result)
    parent.epoch(1, {f"cv/{kind}": value for kind, value in result["mean"].items() if isinstance(value, float)})
    parent.cases(case_rows(result))
    show_scores(parent, result)
    dress = partial(write_flavour, out / "model") if registers else None
    version = parent.bundle(out / "model", config.name if registers else None, final, dress)
    MaskPairs(out / MASKS).remove()
    return result, _lines(result, choice, meta, len(members), out, version)


def _choice(masks: Path, config: PipelineConfig, scored: set[str]) -> Choice | None:
    """Chooses post-processing where that is wanted, and the masks of all cases are there."""
    if not config.postprocess.choose or not scored or not scored <= set(MaskPairs(masks).names()):
        return None
    return choose_postprocess(MaskPairs(masks, scored), labels_of(config), config.postprocess)


def _meta(members: Sequence[BundleInfo], result: Mapping[str, Any]) -> dict[str, Any]:
    """Where the ensemble comes from; what all members share is the first one's."""
    first = members[0].meta
    trainings = [member.meta["training"] for member in members]
    return {
        "tool_version": __version__,
        "torch_version": first.get("torch_version"),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": first.get("device"),
        "training": {
            "case_sha256": list(dict.fromkeys(case for training in trainings for case in training["case_sha256"])),
            "data_digest": trainings[0].get("data_digest"),
            "modality": trainings[0].get("modality"),
            "n_cases": len({case for training in trainings for case in training["case_sha256"]}),
            "fold": "cv",
            "held_out": 0,
            "steps": sum(training["steps"] for training in trainings),
            "minutes": round(sum(training["minutes"] for training in trainings), 2),
            "seed": trainings[0].get("seed"),
        },
        intended.META_KEY: intended.joined_intended_meta([member.meta for member in members]),
        "fingerprint": first.get("fingerprint", {}),
        "reasons": dict(first.get("reasons", {})),
        "results": {"out_of_fold": told_results(result)},
    }


def _knowledge(outcomes: Mapping[str, FoldOutcome], members: Sequence[BundleInfo], cases: int) -> dict[str, Any]:
    """What the ensemble knows of its own failures: calibrated on all cases, each by the model that had not seen it."""
    scored = [case for outcome in outcomes.values() for case in outcome.scored]
    typical = outliers.joined_typical_meta([member.meta for member in members], cases)
    found: dict[str, Any] = {assessment.META_KEY: assessment.quality_meta(scored)}
    return found if typical is None else found | {outliers.META_KEY: typical}


def _lines(
    result: Mapping[str, Any],
    choice: Choice | None,
    meta: Mapping[str, Any],
    members: int,
    out: Path,
    version: str | None,
) -> list[str]:
    folds = ", ".join(
        f"{name} {mean['dice']:.4f}" for name, mean in result["folds"].items() if mean.get("dice") is not None
    )
    lines = [
        f"out of fold, {result['n_cases']} cases, each by the model that had not seen it ({out / 'metrics.json'}):",
        *score_table(result),
        *object_table(result),
        f"Dice of the folds: {folds or '-'}",
    ]
    if choice is not None:
        lines += [f"{key}: {reason}" for key, reason in choice.reasons.items()]
        if choice.after != choice.before:
            dice = ", ".join(f"{name} {value:.4f}" for name, value in choice.after.items())
            lines.append(f"Dice with what was chosen on these masks: {dice}")
    if OBJECTS in result:
        lines.append(f"instances: {meta['reasons']['instances']}")
    lines.append(f"ensemble of {members}: {out / 'model'} (sha256 {result['model_sha256'][:12]})")
    lines += assessment.quality_lines(meta)
    if version:
        lines.append(f"registered: {version}")
    return lines
