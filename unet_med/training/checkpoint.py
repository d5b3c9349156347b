"""Checkpoints: everything that training needs to go on exactly where it was.

A checkpoint is two things in one safetensors file: the tensors (weights, their average, the optimizer's moments) and,
as its JSON header, the numbers (step, schedule, sums of the running epoch, best score). No pickle is involved. It is
written under a temporary name and renamed; the one before it is kept until then, and read when the newest is damaged.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from unet_med.errors import MachineError, ModelError

logger = logging.getLogger(__name__)

_KEEP = 2


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """State of a training run after ``numbers["step"]`` steps.

    Attributes:
        tensors: Named groups of tensors, for example ``{"network": {...}, "ema": {...}, "optimizer": {...}}``.
        numbers: JSON-able values.
    """

    tensors: Mapping[str, Mapping[str, torch.Tensor]]
    numbers: Mapping[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Writes a checkpoint and removes all but the newest two.

    Raises:
        MachineError: if the disk is full; the older checkpoint is still there.
    """
    path = folder / f"step_{checkpoint.numbers['step']:09d}.safetensors"
    part = path.with_suffix(".part")
    flat = {
        f"{group}/{name}": tensor.detach().cpu().contiguous().clone()
        for group, tensors in checkpoint.tensors.items()
        for name, tensor in tensors.items()
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(flat, part, metadata={"numbers": json.dumps(checkpoint.numbers)})
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise MachineError(
            "the checkpoint cannot be written", remedy="free some disk space, then start again with --resume"
        ) from error
    for old in _newest_first(folder)[_KEEP:]:
        old.unlink(missing_ok=True)
    return path


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """Returns the newest checkpoint that can be read whole, or ``None`` when there is none.

    Raises:
        ModelError: if there are checkpoints, but none can be read.
    """
    paths = _newest_first(folder)
    for path in paths:
        try:
            return _read(path)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            logger.warning("a damaged checkpoint is passed over: %s (%s)", path.name, type(error).__name__)
    if paths:
        raise ModelError("no checkpoint can be read", remedy="start again with --overwrite")
    return None


def _read(path: Path) -> Checkpoint:
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    with safe_open(path, framework="pt") as file:
        numbers = json.loads(file.metadata()["numbers"])
        for key in file.keys():  # noqa: SIM118 - not a mapping
            group, name = key.split("/", 1)
            tensors.setdefault(group, {})[name] = file.get_tensor(key)
    return Checkpoint(tensors, numbers)


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step_*.safetensors"), reverse=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Returns an optimizer's state as ``{"<parameter>.<name>": tensor}``."""
    return {
        f"{index}.{name}": value if isinstance(value, torch.Tensor) else torch.tensor(value)
        for index, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Puts back what :func:`optimizer_tensors` returned, in the memory layout of the parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        parameter = parameters[int(index)]
        if tensor.shape == parameter.shape:
            tensor = torch.empty_like(parameter).copy_(tensor)
        optimizer.state[parameter][name] = tensor
