"""A small network that learns to find a disc, shared by the tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from unet_med.config import PipelineConfig, parse_config
from unet_med.data import CachedCase, write_case
from unet_med.labels import LabelMap
from unet_med.training.distributed import Team
from unet_med.training.loop import FitResult, fit
from unet_med.training.trainer import Trainer

LABELS = LabelMap.from_names({"background": 0, "disc": 1})


def toy_config(**changes: Any) -> PipelineConfig:
    base = {
        "name": "toy",
        "dims": 2,
        "channels": ["grey"],
        "labels": {"background": 0, "disc": 1},
        "preprocess": {"spacing_mm": None, "normalisation": [{"scheme": "zscore"}], "crop_to_nonzero": False},
        "network": {"features": [4, 8], "strides": [[1, 1], [2, 2]], "kernels": [[3, 3], [3, 3]], "dropout": 0.1},
        "loss": {"class_weights": None},
        "augment": {"rotation_degrees": [-180, 180], "mirror_axes": [0, 1], "elastic_probability": 0.2},
        "sampling": {"patch_voxels": [24, 24], "batch_size": 4},
        "training": {
            "learning_rate": 1e-2,
            "epochs": 4,
            "steps_per_epoch": 5,
            "validation_every_epochs": 2,
            "workers": 0,
            "ema_decay": 0.9,
            "checkpoint_minutes": 1e-6,
        },
    }
    return parse_config(base, "toy").replacing(changes)


def toy_cases(folder: Path, count: int = 4, size: int = 32) -> list[CachedCase]:
    cases = []
    for number in range(count):
        rng = np.random.default_rng(number)
        i, j = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
        centre = rng.uniform(10, size - 10, 2)
        label = (((i - centre[0]) ** 2 + (j - centre[1]) ** 2) < 49).astype(np.uint8)
        image = (label * 2.0 + rng.normal(size=label.shape)).astype(np.float32)[None]
        path = folder / f"case{number}"
        if not path.exists():
            write_case(path, image - image.mean(), label, None, None)
        cases.append(CachedCase(f"case{number}", path, label.shape, None))
    return cases


def train_toy(
    folder: Path,
    config: PipelineConfig,
    resume: bool = False,
    seconds: float | None = None,
    record: Any = None,
    team: Team | None = None,
    count: int = 4,
) -> FitResult:
    torch.set_num_threads(1)
    cases = toy_cases(folder / "cases", count)
    trainer = Trainer(config, LABELS, 1, torch.device("cpu"), team)
    return fit(
        trainer,
        cases[:3],
        cases[3:],
        folder / "checkpoint",
        resume=resume,
        max_seconds=seconds,
        record=record or (lambda epoch, metrics, masks: None),
        overlay_ids=["case3"],
    )
