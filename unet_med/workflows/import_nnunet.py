"""``unet-med import-nnunet``: a model that nnU-Net v2 trained becomes one of ours."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch

from unet_med import __version__
from unet_med.bundle import labels_of, read_bundle_info, save_bundle, save_ensemble
from unet_med.errors import ModelError, UsageError
from unet_med.networks import build_network, input_channels
from unet_med.nnunet import (
    Checkpoint,
    Imported,
    TrainedFolder,
    imported_pipeline,
    load_checkpoint,
    open_folder,
    translated,
    validation_results,
)
from unet_med.nnunet.weights import is_batch_normalised
from unet_med.workflows.outcome import Outcome
from unet_med.workflows.progress import track


def import_nnunet(
    folder: Path,
    out: Path,
    folds: Sequence[str] = (),
    which: Literal["final", "best"] = "final",
    name: str | None = None,
    orientation: str | None = None,
    overwrite: bool = False,
) -> Outcome:
    """Writes a trained nnU-Net v2 folder as a model of ours; nothing of nnU-Net is needed, its folder is only read.

    Args:
        folder: The folder of one trainer: ``plans.json``, ``dataset.json``, ``fold_*/checkpoint_*.pth``.
        out: Receives the model: a bundle for one fold, an ensemble for several.
        folds: ``0`` to ``4`` or ``all``; nothing for all that are there.
        which: Kind of checkpoint.
        name: Of the model; by default the data set's.
        orientation: How the training images were stored, for example ``LPS``: images of any kind are turned so.
            ``None``: every image is taken as it is stored, as nnU-Net does.
        overwrite: Replace a model in ``out``.

    Raises:
        ModelError: for what cannot be loaded safely or predicted in the same way, naming it.
        UsageError: when ``out`` holds something.
    """
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]) and not overwrite:
        raise UsageError("the output folder holds something already", "OUT", "choose another, or add --overwrite")
    trained = open_folder(folder, which)
    chosen = tuple(dict.fromkeys(folds)) or trained.folds
    if len(chosen) == 1:
        config = _written(trained, chosen[0], out, name, orientation)
    else:
        config = _written_ensemble(trained, chosen, out, name, orientation)
    info = read_bundle_info(out)
    result = {
        "name": config.config.name,
        "sha256": info.sha256,
        "folds": list(chosen),
        "configuration": info.meta["nnunet"]["configuration"],
        "labels": {label.name: label.index for label in info.labels.labels},
        "channels": list(info.channels),
        "results": info.meta.get("results", {}),
        "notes": list(info.meta["nnunet"]["notes"]),
    }
    return Outcome(result, _lines(result, out))


def _written(trained: TrainedFolder, fold: str, out: Path, name: str | None, orientation: str | None) -> Imported:
    """Writes one fold as a bundle."""
    checkpoint = load_checkpoint(trained, fold)
    imported = imported_pipeline(
        trained.plans,
        trained.dataset,
        checkpoint.configuration,
        checkpoint.mirror_axes,
        name,
        batch_norm=is_batch_normalised(checkpoint.weights),
        deep_supervision="NoDeepSupervision" not in checkpoint.trainer,
        orientation=orientation,
    )
    config = imported.config
    where = f"fold_{fold}/checkpoint_{trained.which}.pth"
    features = config.network.features
    levels = 0 if features == "auto" else len(features)
    state = translated(checkpoint.weights, levels, imported.heads, where)
    _check_fit(imported, state, where)
    save_bundle(out, config, state, _meta(trained, fold, checkpoint, imported))
    return imported


def _written_ensemble(
    trained: TrainedFolder, folds: Sequence[str], out: Path, name: str | None, orientation: str | None
) -> Imported:
    """Writes several folds as an ensemble; the members are made beside it, so that their files can be linked."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".import-", dir=out.parent) as place:
        members = {f"fold_{fold}": Path(place) / f"fold_{fold}" for fold in folds}
        made = [
            _written(trained, fold, path, name, orientation)
            for fold, path in track(list(zip(folds, members.values(), strict=True)), "importing folds")
        ]
        if any(one.config != made[0].config for one in made):
            raise ModelError("the folds are of different configurations", trained.path.name, "import them one by one")
        infos = [read_bundle_info(path) for path in members.values()]
        meta = {**infos[0].meta, "results": _mean_results([info.meta.get("results", {}) for info in infos])}
        meta["training"] = {**meta["training"], "fold": f"folds {', '.join(folds)} of nnU-Net"}
        meta["nnunet"] = {**meta["nnunet"], "fold": list(folds)}
        save_ensemble(out, members, made[0].config, meta)
    return made[0]


def _check_fit(imported: Imported, state: Mapping[str, torch.Tensor], where: str) -> None:
    """Says what the weights lack or have too much before anything is written."""
    config = imported.config
    with torch.device("meta"):
        entering = input_channels(config.network, tuple(config.channels))
        network = build_network(config.network, 2 if config.dims == 2 else 3, entering, labels_of(config).outputs)
    expected = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    found = {key: tuple(tensor.shape) for key, tensor in state.items()}
    if expected != found:
        differing = sorted(key for key in {*expected, *found} if expected.get(key) != found.get(key))
        key = differing[0]
        raise ModelError(
            f"{len(differing)} weights do not fit the plans, the first is {key}: {found.get(key, 'missing')} instead "
            f"of {expected.get(key, 'none')}",
            where,
            "give the plans.json of this very training; a trainer with a network of its own cannot be imported",
        )


def _meta(trained: TrainedFolder, fold: str, checkpoint: Checkpoint, imported: Imported) -> dict[str, Any]:
    names = {label.index: label.name for label in labels_of(imported.config).labels}
    measured = validation_results(trained, fold, names)
    plans, dataset = trained.plans, trained.dataset
    cases = dataset.get("numTraining")
    return {
        "tool_version": __version__,
        "torch_version": torch.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "training": {
            "n_cases": cases if isinstance(cases, int) else None,
            "modality": None,
            "fold": f"fold {fold} of nnU-Net",
            "notes": [f"trained by nnU-Net v2 ({checkpoint.trainer}, {checkpoint.epochs or 'unknown'} epochs)"],
        },
        "fingerprint": {"spacing_mm": plans.get("original_median_spacing_after_transp")},
        "reasons": imported.reasons,
        "results": {"held_out": measured} if measured else {},
        "nnunet": {
            "dataset": plans.get("dataset_name"),
            "plans": plans.get("plans_name"),
            "configuration": checkpoint.configuration,
            "trainer": checkpoint.trainer,
            "fold": fold,
            "notes": _notes(trained, imported),
        },
    }


def _notes(trained: TrainedFolder, imported: Imported) -> list[str]:
    notes = []
    if imported.config.preprocess.orientation == "stored":
        notes.append(
            "axes are taken as each file has them, as nnU-Net does: give images that are stored as the training images "
            "were, or say with --orientation how these were stored"
        )
    if (trained.path / "crossval_results_folds_0_1_2_3_4" / "postprocessing.pkl").is_file():
        notes.append("nnU-Net's post-processing is a pickle and was not taken over")
    return notes


def _mean_results(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the results of the folds together, weighted by their cases; empty where one has none."""
    held_out = [one.get("held_out") for one in results]
    known = [one for one in held_out if one]
    if not known or len(known) < len(held_out):
        return {}
    cases = sum(one["n_cases"] for one in known)

    def mean(values: Sequence[float]) -> float:
        return float(sum(value * one["n_cases"] for value, one in zip(values, known, strict=True)) / cases)

    labels = {
        label: {"dice": mean([one["per_label"][label]["dice"] for one in known])}
        for label in known[0]["per_label"]
        if all(label in one["per_label"] for one in known)
    }
    return {
        "held_out": {
            "n_cases": cases,
            "mean": {"dice": mean([one["mean"]["dice"] for one in known])},
            "per_label": labels,
        }
    }


def _lines(result: Mapping[str, Any], out: Path) -> list[str]:
    held_out = result["results"].get("held_out") if result["results"] else None
    lines = [
        f"{result['name']}: nnU-Net {result['configuration']}, {_counted(len(result['folds']), 'fold')}",
        f"labels    {', '.join(f'{value} {name}' for name, value in result['labels'].items())}",
        f"channels  {', '.join(result['channels'])}",
    ]
    if held_out:
        cases = _counted(held_out["n_cases"], "case")
        lines.append(f"nnU-Net's own validation: Dice {held_out['mean']['dice']:.4f} on {cases}")
    lines += [f"note: {note}" for note in result["notes"]]
    return [*lines, f"model: {out} (sha256 {result['sha256'][:12]})"]


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
