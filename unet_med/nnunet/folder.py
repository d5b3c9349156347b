"""A folder that nnU-Net v2 trained into: ``plans.json``, ``dataset.json`` and checkpoints, one for each fold.

A checkpoint is a pickle. It is read by torch's restricted unpickler, which makes tensors, numbers and containers and
runs nothing else; NumPy's scalars, in which nnU-Net logs its losses, are the one addition.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from unet_med.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

PLANS = "plans.json"
DATASET = "dataset.json"
_AGAIN = "give the folder of one trainer: nnUNet_results/DatasetXXX_NAME/TRAINER__PLANS__CONFIGURATION"
_PREFIXES = ("_orig_mod.", "module.")


@dataclass(frozen=True)
class TrainedFolder:
    """What a folder holds beside the weights.

    Attributes:
        path: The folder of one trainer.
        plans: ``plans.json``.
        dataset: ``dataset.json``.
        folds: Folds that have a checkpoint of the wanted kind, ``0`` to ``4`` and ``all``.
        which: The kind of checkpoint.
    """

    path: Path
    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]
    folds: tuple[str, ...]
    which: str


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """One fold.

    Attributes:
        weights: nnU-Net's parameters by name, float32.
        configuration: ``2d``, ``3d_fullres``, ...
        trainer: Name of the trainer's class.
        mirror_axes: Axes of the network that prediction may mirror.
        epochs: Epochs it was trained for; ``None`` if it does not say.
    """

    weights: dict[str, Tensor]
    configuration: str
    trainer: str
    mirror_axes: tuple[int, ...]
    epochs: int | None


def open_folder(path: Path, which: Literal["final", "best"] = "final") -> TrainedFolder:
    """Reads the descriptions of a trained folder.

    Args:
        path: The folder of a trainer, or one that holds a single such folder.
        which: The checkpoint of the last epoch, or the one nnU-Net thought best.

    Raises:
        ModelError: if it is none, or no fold is trained to its end.
    """
    folder = _trainer_folder(path)
    plans, dataset = _json(folder / PLANS), _json(folder / DATASET)
    found = sorted(file.parent.name.removeprefix("fold_") for file in folder.glob(f"fold_*/checkpoint_{which}.pth"))
    if not found:
        other = "best" if which == "final" else "final"
        raise ModelError(
            f"no fold has a checkpoint_{which}.pth", folder.name, f"train to the end, or take --checkpoint {other}"
        )
    return TrainedFolder(folder, plans, dataset, tuple(found), which)


def load_checkpoint(folder: TrainedFolder, fold: str) -> Checkpoint:
    """Loads the weights of one fold; nothing in the file is executed.

    Raises:
        ModelError: if the fold is not there, damaged, or its checkpoint holds more than tensors and numbers.
    """
    if fold not in folder.folds:
        raise ModelError(f"fold {fold} has no checkpoint", folder.path.name, f"choose one of {', '.join(folder.folds)}")
    where = f"fold_{fold}/checkpoint_{folder.which}.pth"
    content = _tensors_and_numbers(folder.path / where, where)
    weights = content.get("network_weights")
    if not isinstance(weights, Mapping) or not weights:
        raise ModelError("the checkpoint holds no network_weights", where, "give a folder that nnU-Net v2 trained")
    arguments = content.get("init_args") or {}
    epoch = content.get("current_epoch")
    return Checkpoint(
        weights={_plain(name): tensor.float() for name, tensor in weights.items()},
        configuration=str(arguments.get("configuration") or folder.path.name.split("__")[-1]),
        trainer=str(content.get("trainer_name") or folder.path.name.split("__")[0]),
        mirror_axes=tuple(int(axis) for axis in content.get("inference_allowed_mirroring_axes") or ()),
        epochs=int(epoch) if isinstance(epoch, int) else None,
    )


def validation_results(folder: TrainedFolder, fold: str, names: Mapping[int, str]) -> dict[str, Any]:
    """Returns what nnU-Net's own validation of a fold measured, in the form of our results; empty if it has none.

    Args:
        folder: The folder.
        fold: One of its folds.
        names: Label value -> name.
    """
    path = folder.path / f"fold_{fold}" / "validation" / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        dice = {str(key): float(value["Dice"]) for key, value in summary["mean"].items()}
        mean, count = float(summary["foreground_mean"]["Dice"]), len(summary["metric_per_case"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    per_label = {names.get(int(key), key) if key.isdecimal() else key: {"dice": dice[key]} for key in dice}
    return {"n_cases": count, "mean": {"dice": mean}, "per_label": per_label}


def _trainer_folder(path: Path) -> Path:
    if (path / PLANS).is_file():
        return path
    if not path.is_dir():
        raise ModelError("there is no such folder", path.name, _AGAIN)
    inner = sorted(file.parent for file in path.glob(f"*/{PLANS}"))
    if len(inner) > 1:
        names = ", ".join(folder.name for folder in inner)
        raise ModelError(f"the folder holds {len(inner)} trained models: {names}", path.name, "give one of them")
    if not inner:
        raise ModelError(f"the folder has no {PLANS}: nnU-Net v2 did not train into it", path.name, _AGAIN)
    return inner[0]


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError("the file is missing or no JSON", path.name, _AGAIN) from error
    if not isinstance(data, dict):
        raise ModelError("the file holds no entries", path.name, _AGAIN)
    return data


def _tensors_and_numbers(path: Path, where: str) -> Mapping[str, Any]:
    import torch
    from torch.serialization import safe_globals

    try:
        with safe_globals(_numpy_scalars()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            "the checkpoint holds more than tensors and numbers, and loading it would run code",
            where,
            "where you trust it, save its network_weights, init_args and trainer_name alone with torch.save",
        ) from error
    except (OSError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise ModelError("the checkpoint is damaged or cut short", where, "copy it again") from error
    if not isinstance(content, Mapping):
        raise ModelError("the checkpoint holds no network_weights", where, "give a folder that nnU-Net v2 trained")
    return content


def _numpy_scalars() -> list[Any]:
    """What a pickled NumPy number is made of, under the names of NumPy 1 and 2."""
    make = np.float64(0).__reduce__()[0]
    kinds: Sequence[str] = ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
    names = [(make, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [*names, np.dtype, *dict.fromkeys(type(np.dtype(kind)) for kind in kinds)]


def _plain(name: str) -> str:
    """The name of a parameter without what compiling and training on several cards put before it."""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name
