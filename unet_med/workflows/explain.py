"""``unet-med explain``: where a model takes the labels of one case from, with evidence, and where it is unsure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med import __version__
from unet_med.bundle import Bundle, BundleInfo, load_bundles, read_bundle_info
from unet_med.errors import MachineError, NothingUsableError, UsageError
from unet_med.identity import safe_name, unique_ids
from unet_med.inference.device import free_memory
from unet_med.inference.predictor import Predictor
from unet_med.io.atomic import whole_file, write_json
from unet_med.io.cases import Case
from unet_med.io.discover import discover
from unet_med.io.export.sidecars import RESEARCH_ONLY
from unet_med.io.grouping import group_cases
from unet_med.io.source import IntakeOptions
from unet_med.labels import LabelMap
from unet_med.overlays import heat_preview
from unet_med.review.explaining.explanation import LabelExplanation, explain_labels, receptive_field
from unet_med.review.explaining.files import write_map
from unet_med.review.explaining.uncertainty import (
    Uncertainty,
    entropy,
    of_dropout,
    of_members,
    of_mirrors,
    uncertainty,
    unprocessed,
)
from unet_med.review.explaining.view import prepared_for
from unet_med.volume import Volume
from unet_med.workflows.dispatch import files_of
from unet_med.workflows.explain_page import PAGE, Shown, page, verdict
from unet_med.workflows.journal import Claim, folder_key, input_state, open_job
from unet_med.workflows.outcome import Outcome
from unet_med.workflows.progress import track
from unet_med.workflows.thumbnail import may_carry_a_name

RESULT = "explain.json"
_LABELS_AT_ONCE = 4
"""Arrays of the size of the image, for each label, that are held at once."""
_MEMORY_SHARE = 0.5


@dataclass(frozen=True)
class _Asked:
    """What is to be done of a case."""

    labels: tuple[str, ...]
    block_mm: float | None
    dropout_samples: int
    device: str


def explain(
    model: str,
    case: Path,
    out: Path,
    also: Sequence[str] = (),
    labels: Sequence[str] = (),
    block_mm: float | None = None,
    dropout_samples: int = 10,
    device: str = "auto",
    intake: IntakeOptions = IntakeOptions(),  # noqa: B008
    overwrite: bool = False,
) -> Outcome:
    """Writes heat maps of each label and maps of uncertainty of one case, on its own grid, and a page with all of them.

    Args:
        model: Bundle folder, run folder, or an MLflow address. Of an ensemble the first member's heat maps are made.
        case: File, or folder that holds one case; only read. Of several frames the first one is explained.
        out: Receives ``LABEL_gradcam``, ``LABEL_occlusion``, ``uncertainty_...`` and ``disagreement_...`` (NIfTI, of
            pictures TIFF), ``explain.json`` and ``explain.html``.
        also: More models, for the disagreement of an ensemble.
        labels: Names of labels to explain; empty: all that the model finds.
        block_mm: Edge of the blocks that are hidden, in mm (voxels where the image is uncalibrated); ``None``: as small
            as about 100 of them allow.
        dropout_samples: Predictions with dropout left on, for networks that have it.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        intake: How the image is read.
        overwrite: Replace what an earlier job left in ``out``.

    Returns:
        ``explain.json``: the model, its receptive field, for each label its maps with deletion curves and randomised
        weights, and the maps of uncertainty.

    Raises:
        UsageError: for several cases, a label that the model does not have, or an ``out`` of another job.
        ModelError: when a model cannot be loaded, or does not fit the image.
        NothingUsableError: when there is no image.
        MachineError: when the maps do not fit into memory, or the disk is full.
    """
    infos = [read_bundle_info(name) for name in (model, *also)]
    asked = _Asked(tuple(labels), block_mm, dropout_samples, device)
    _check_labels(asked.labels, infos[0].labels)
    found = _the_case(case, infos[0].channels, intake)
    _check_memory(found, infos[0].labels)
    options = {key: value for key, value in asdict(asked).items() if key != "device"}
    job = {"command": "explain", "model_sha256": [info.sha256 for info in infos], "input": folder_key(case)}
    journal = open_job(out, job | {"options": options | {"intake": asdict(intake)}}, overwrite)
    if not journal.is_done(found.id, files_of(found)):
        claim = journal.claim(found.id)
        if claim is None:
            raise UsageError("another process explains this case", out.name, "wait until it is done, or stop it")
        try:
            result = _explained(infos, found, asked, claim)
            outputs = sorted(path.name for path in claim.staging.iterdir())
            record = {"id": found.id, "status": "done", "outputs": outputs, "result": result}
            record["input"] = input_state(files_of(found))
            journal.finish(claim, record, [claim.staging / name for name in outputs])
        finally:
            journal.release(claim)
    result = dict((journal.record(found.id) or {})["result"])
    return Outcome(result, [*_lines(result), f"maps, {RESULT} and {PAGE}: {out}", "Research use only"])


# ---- what is asked --------------------------------------------------------------------------------------------------


def _the_case(path: Path, channels: Sequence[str], intake: IntakeOptions) -> Case:
    if not path.exists():
        raise UsageError("the input does not exist", "CASE", "give a file, or the folder of one case")
    discovery = discover(path, intake, track)
    cases = group_cases(discovery.usable, channels)
    if not cases:
        reasons = [source.reason for source in discovery.sources]
        raise NothingUsableError(
            reasons[0] if reasons else "no image was found", "CASE", "see what `unet-med scan` says of it"
        )
    if len(cases) > 1:
        names = ", ".join(one.id for one in cases[:5])
        raise UsageError(f"{len(cases)} cases, not one ({names}, ...)", "CASE", "choose one with --series, or its file")
    return cases[0]


def _check_labels(wanted: Sequence[str], labels: LabelMap) -> None:
    for name in wanted:
        if name not in labels.names:
            raise UsageError(f"the model has no label {name!r}", "--label", f"give one of {', '.join(labels.names)}")


def _check_memory(case: Case, labels: LabelMap) -> None:
    import torch

    needed = 4 * prod(case.geometry.shape) * (case.channels + _LABELS_AT_ONCE * (len(labels.labels) + 1))
    free = free_memory(torch.device("cpu"))
    if free is not None and needed > _MEMORY_SHARE * free:
        raise MachineError(
            f"the maps need about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free",
            case.id,
            "cut the part that is to be explained out of the image",
        )


# ---- the work -------------------------------------------------------------------------------------------------------


def _explained(infos: Sequence[BundleInfo], case: Case, asked: _Asked, claim: Claim) -> dict[str, Any]:
    """Makes all files in the claim's folder; returns what is told of them."""
    bundles = [unprocessed(bundle) for info in infos for bundle in load_bundles(info.folder)]
    predictor = Predictor(bundles, asked.device)
    model, seed = predictor.models[0], bundles[0].config.seed
    volume = case.read(case.frames[0])
    prediction = predictor.predict(volume, probabilities=True)
    prepared = prepared_for(model, volume)
    names = predictor.labels.names
    places = [place for place, name in enumerate(names) if not asked.labels or name in asked.labels]
    explained = explain_labels(model, prepared, prediction.labels, places, asked.block_mm, seed, track)
    folder = _Folder(claim.staging, case, volume, predictor.labels)
    entries = [folder.label(one) for one in explained]
    named = [entry["name"] for entry in entries]
    missing = [name for name in asked.labels or names if name not in named]
    unsure = folder.uncertainty(bundles, asked, prediction.labels > 0, prediction.probabilities)
    result: dict[str, Any] = {
        "tool": "unet-med",
        "version": __version__,
        "use": RESEARCH_ONLY,
        "model_sha256": [info.sha256 for info in infos],
        "models": len(bundles),
        "id": case.id,
        "frame": case.frames[0] if len(case.frames) > 1 else None,
        "unit": "mm" if volume.geometry.is_calibrated else "voxels",
        "receptive_field": receptive_field(model, prepared.geometry.spacing_mm, seed),
        "labels": entries,
        "not_found": missing,
        "uncertainty": unsure,
    }
    write_json(claim.staging / RESULT, result, RESULT)
    with whole_file(claim.staging / PAGE, PAGE) as part:
        part.write_text(page(result, folder.shown), encoding="utf-8")
    return result


class _Folder:
    """Where the maps of a case are written, and their pictures are kept for the page."""

    def __init__(self, path: Path, case: Case, volume: Volume, labels: LabelMap) -> None:
        self.shown: list[Shown] = []
        self._names = labels.names
        self._files = unique_ids([safe_name(name) for name in labels.names])
        self._path = path
        self._volume = volume
        self._source = case.reference_source()
        self._drawn = not any(may_carry_a_name(source) for source in case.sources)

    def label(self, one: LabelExplanation) -> dict[str, Any]:
        """Writes the maps of a label; returns what is told of it."""
        name = self._names[one.place]
        maps = {}
        for kind, heat in one.maps.items():
            file = self._write(f"{self._files[one.place]}_{kind}", heat.values)
            evidence = {"deletion": heat.deletion.to_json(), "randomised": heat.randomised.to_json()}
            maps[kind] = {"file": file, "shown": heat.is_shown, **evidence}
            self._show(name, kind, heat.values, one.mask)
        return {
            "name": name,
            "confidence": one.confidence,
            "voxels": int(one.mask.sum()),
            "block": [round(edge, 3) for edge in one.block],
            "maps": maps,
        }

    def uncertainty(
        self, bundles: Sequence[Bundle], asked: _Asked, mask: npt.NDArray[np.bool_], chances: Any
    ) -> dict[str, Any]:
        """Writes the maps of uncertainty; returns for each kind what is told, or why there is none."""
        own = entropy(np.asarray(chances))
        told: dict[str, Any] = {"model": {"file": self._write("uncertainty", own), "samples": 1, **_sums(own, mask)}}
        self._show("", "uncertainty", own, mask)
        kinds = {
            "ensemble": (of_members(bundles, self._volume, asked.device), "there is one model: give more with --also"),
            "tta": (of_mirrors(bundles, self._volume, asked.device), "training mirrored no axis"),
            "dropout": (
                of_dropout(bundles, self._volume, asked.device, asked.dropout_samples),
                "the network has no dropout",
            ),
        }
        for kind, (samples, why) in kinds.items():
            found = uncertainty(track(samples, f"uncertainty: {kind}"))
            told[kind] = {"missing": why} if found is None else self._unsure(kind, found, mask)
        return told

    def _unsure(self, kind: str, found: Uncertainty, mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
        files = {
            "file": self._write(f"uncertainty_{kind}", found.entropy),
            "disagreement_file": self._write(f"disagreement_{kind}", found.disagreement),
        }
        self._show("", f"disagreement_{kind}", found.disagreement, mask)
        disagreement = {f"disagreement_{key}": value for key, value in _sums(found.disagreement, mask).items()}
        return {**files, "samples": found.samples, **_sums(found.entropy, mask), **disagreement}

    def _write(self, name: str, values: npt.NDArray[np.float32]) -> str:
        return write_map(self._path / name, values, self._source).name

    def _show(self, name: str, kind: str, values: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]) -> None:
        picture = None
        if self._drawn:
            geometry = self._volume.geometry
            place = geometry.spacing_mm, name or "what was found", geometry.orientation
            meaning = ("speaks for it", "speaks against it") if name else ("unsure", "")
            picture = heat_preview(self._volume.array, values, mask, *place, meaning)
        self.shown.append(Shown(name, kind, picture))


def _sums(values: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]) -> dict[str, float | None]:
    """Mean over what was found, and the largest value anywhere."""
    inside = float(values[mask].mean()) if mask.any() else None
    return {"mean_inside": inside, "max": float(values.max())}


# ---- words ----------------------------------------------------------------------------------------------------------


def _lines(result: Mapping[str, Any]) -> list[str]:
    lines = []
    for entry in result["labels"]:
        lines.append(f"{entry['name']}: {entry['voxels']:,} voxels, {entry['confidence']:.0%} sure on average")
        lines += [f"  {kind}: {verdict(one)}" for kind, one in entry["maps"].items()]
    lines += [f"{name}: not found, so there is nothing to explain" for name in result["not_found"]]
    for kind, one in result["uncertainty"].items():
        if "missing" in one:
            lines.append(f"no uncertainty by {kind}: {one['missing']}")
        elif one["mean_inside"] is not None:
            lines.append(f"uncertainty by {kind}: {one['mean_inside']:.3f} of 1 within what was found")
    return lines
