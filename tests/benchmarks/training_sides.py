"""The sides of ``bench_training_step.py``, each in a process and, if need be, an interpreter of its own.

``training_sides.py SIDE FOLDER`` takes a group of training steps for every line on its standard input and answers with
a line of JSON; ``training_sides.py nnunet-data FOLDER`` writes the cases in FOLDER as nnU-Net preprocesses them. A
side is the leader of a process group, so that it can be stopped with its loaders while another one is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from nnunet_plan import plain_unet

Step = Callable[[], object]

TO_THE_END = ExitStack()

SETTING = "setting.json"
CASES = "cases"
PREPROCESSED = "nnUNet_preprocessed"
"""As nnU-Net calls it in the environment."""
DATASET = "Dataset001_Bench"
IDENTIFIER = "nnUNetPlans_3d_fullres"


def read_cases(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Image (I, J, K) float32 and label (I, J, K) uint8 of each case."""
    found = {}
    for path in sorted((folder / CASES).glob("*.npz")):
        with np.load(path) as arrays:
            found[path.stem] = arrays["image"], arrays["label"]
    return found


def ours(folder: Path, options: argparse.Namespace, team: Any = None) -> Step:
    """Our trainer with its loader and augmentation; with a team, this process's share of each step."""
    import torch

    from unet_med.bundle import labels_of
    from unet_med.config import parse_config
    from unet_med.data import CachedCase, write_case
    from unet_med.inference.allocator import freed_memory_kept
    from unet_med.patches import PatchDataset, patch_loader
    from unet_med.training.trainer import Trainer

    setting = json.loads((folder / SETTING).read_text())
    levels = len(setting["features"])
    config = parse_config(
        {
            "name": "bench",
            "dims": 3,
            "channels": ["MR"],
            "labels": {"background": 0, "anterior": 1, "posterior": 2},
            "preprocess": {
                "spacing_mm": [1.0, 1.0, 1.0],
                "normalisation": [{"scheme": "zscore"}],
                "crop_to_nonzero": False,
            },
            "network": {
                "features": setting["features"],
                "strides": [[1] * 3, *[[2] * 3] * (levels - 1)],
                "kernels": [[3] * 3] * levels,
                "deep_supervision": True,
            },
            "loss": {"kind": options.loss, "class_weights": None},
            "augment": {"rotation_degrees": [-30, 30], "mirror_axes": [0, 1, 2]},
            "sampling": {"patch_voxels": setting["patch"], "batch_size": setting["batch"]},
            "training": {
                "optimizer": options.optimizer,
                "learning_rate": 1e-3,
                "steps_per_epoch": 1,
                "workers": options.workers,
                "validation_every_epochs": 1,
                "precision": options.precision,
            },
        },
        "benchmark",
    )
    cases = []
    for name, (image, label) in read_cases(folder).items():
        place = folder / f"ours-{os.getpid()}" / name
        write_case(place, image[None], label, None, (1.0, 1.0, 1.0))
        cases.append(CachedCase(name, place, label.shape, (1.0, 1.0, 1.0)))
    trainer = Trainer(config, labels_of(config), 1, torch.device("cpu"), team)
    share = trainer.team.rank, trainer.team.world
    batches = patch_loader(PatchDataset(cases, config), trainer.batch_size, 0, 10**6, options.workers, *share)
    TO_THE_END.enter_context(freed_memory_kept())  # as the training loop does
    return lambda: trainer.train_step(next(batches), 1e-3)


def nnunet(folder: Path, options: argparse.Namespace) -> Step:
    """nnU-Net's trainer as it ships, with its loaders, augmentation and loss; on a CPU it computes in fp32."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    torch.set_num_threads(options.threads)
    base = folder / PREPROCESSED / DATASET
    plans, dataset = (json.loads((base / name).read_text()) for name in ("plans.json", "dataset.json"))
    plans["continue_training"] = False
    trainer = nnUNetTrainer(plans, "3d_fullres", "all", dataset, torch.device("cpu"))
    trainer.initialize()
    batches, _ = trainer.get_dataloaders()
    trainer.network.train()
    return lambda: trainer.train_step(next(batches))


def write_nnunet_data(folder: Path) -> None:
    """Writes plans, dataset.json and the preprocessed cases of nnU-Net for the plan in ``setting.json``."""
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

    setting = json.loads((folder / SETTING).read_text())
    base = folder / PREPROCESSED / DATASET
    (base / IDENTIFIER).mkdir(parents=True)
    resampling: dict[str, Any] = {
        f"resampling_fn_{what}{suffix}": value
        for what in ("data", "seg", "probabilities")
        for suffix, value in (
            ("", "resample_data_or_seg_to_shape"),
            ("_kwargs", {"is_seg": what == "seg", "order": 1, "order_z": 0, "force_separate_z": None}),
        )
    }
    shapes = [label.shape for _, label in read_cases(folder).values()]
    configuration = {
        "data_identifier": IDENTIFIER,
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": setting["batch"],
        "patch_size": setting["patch"],
        "median_image_size_in_voxels": np.median(shapes, axis=0).tolist(),
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": True,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": plain_unet(setting["features"]),
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        **resampling,
    }
    plans = {
        "dataset_name": DATASET,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": setting["patch"],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {},
    }
    dataset = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "anterior": 1, "posterior": 2},
        "numTraining": len(shapes),
        "file_ending": ".nii.gz",
    }
    (base / "plans.json").write_text(json.dumps(plans))
    (base / "dataset.json").write_text(json.dumps(dataset))
    for name, (image, label) in read_cases(folder).items():
        shape = (1, *label.shape)
        blocks, chunks = comp_blosc2_params(shape, tuple(setting["patch"]))
        places = {value: np.argwhere(label[None] == value) for value in (1, 2)}
        nnUNetDatasetBlosc2.save_case(
            image[None],
            label[None].astype(np.int8),
            {"class_locations": places, "spacing": [1.0, 1.0, 1.0]},
            str(base / IDENTIFIER / name),
            chunks=chunks,
            blocks=blocks,
        )


def answer(make: Callable[[], Step]) -> None:
    """Serves until standard input ends; a line holds the number of steps. What libraries print is logged."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    step = make()
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        answers.write(json.dumps(seconds) + "\n")
        answers.flush()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=["ours", "nnunet", "nnunet-data"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--optimizer", default="sgd")
    parser.add_argument("--loss", default="dice_ce")
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    if options.side == "nnunet-data":
        write_nnunet_data(options.folder)
        return
    os.setpgrp()
    side = ours if options.side == "ours" else nnunet
    answer(lambda: side(options.folder, options))


if __name__ == "__main__":
    main()
