"""The sides of ``bench_predict.py``, each in a process and, if need be, an interpreter of its own.

``predict_sides.py time SIDE FOLDER`` predicts the volume in FOLDER once for every line on its standard input and
answers with a line of JSON; ``predict_sides.py nnunet-model FOLDER`` makes a model folder of nnU-Net.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from nnunet_plan import plain_unet

Run = Callable[[], dict[str, Any]]

MODEL = "setting.json"
VOLUME = "volume.npy"


def nnunet(folder: Path, _: argparse.Namespace) -> Run:
    """nnU-Net's predictor: windows, Gaussian, logits of the whole volume; it computes in fp32 on a CPU."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(tile_step_size=0.5, use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder / "nnunet"), (0,))
    volume = torch.from_numpy(np.load(folder / VOLUME))

    def run() -> dict[str, Any]:
        predictor.predict_sliding_window_return_logits(volume)
        return {"engine": "torch fp32"}

    return run


def monai(folder: Path, options: argparse.Namespace) -> Run:
    """MONAI's sliding window over its DynUNet, as one would write it, with autocast if asked for."""
    import torch
    from monai.inferers import sliding_window_inference
    from monai.networks.nets import DynUNet

    setting = json.loads((folder / MODEL).read_text())
    levels = len(setting["features"])
    strides = [1, *[2] * (levels - 1)]
    network = DynUNet(3, 1, setting["classes"], [3] * levels, strides, strides[1:], filters=setting["features"]).eval()
    volume = torch.from_numpy(np.load(folder / VOLUME))[None]
    window = (setting["window"],) * 3
    half = options.precision == "auto"

    def run() -> dict[str, Any]:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            sliding_window_inference(volume, window, 1, network, overlap=0.5, mode="gaussian")
        return {"engine": "torch bf16" if half else "torch fp32"}

    return run


def ours(folder: Path, options: argparse.Namespace) -> Run:
    """Our predictor: windows, Gaussian, labels; normalising the volume is included."""
    from dataclasses import replace

    from unet_med.bundle import load_bundle
    from unet_med.geometry import Geometry
    from unet_med.inference.predictor import Predictor
    from unet_med.volume import Volume

    bundle = load_bundle(folder / "bundle")
    precision = {"training.precision": options.precision, "inference.engine": options.engine}
    predictor = Predictor([replace(bundle, config=bundle.config.replacing(precision))], "cpu")
    array = np.load(folder / VOLUME)
    volume = Volume(array, Geometry(array.shape[1:], np.eye(4)))

    def run() -> dict[str, Any]:
        prediction = predictor.predict(volume)
        return {"engine": prediction.engine, "why": prediction.engine_why}

    return run


def answer(run: Run, answers: TextIO) -> None:
    """Serves until standard input ends."""
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        told = run()
        print(json.dumps({"seconds": time.perf_counter() - start, **told}), file=answers, flush=True)


def make_nnunet_model(folder: Path) -> None:
    """Writes what a training of nnU-Net leaves behind, with random weights of the architecture in ``setting.json``."""
    import torch
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    setting = json.loads((folder / MODEL).read_text())
    architecture = plain_unet(setting["features"])
    network_class = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
    imported = ["conv_op", "norm_op", "dropout_op", "nonlin"]
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "bench_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [setting["window"]] * 3,
        "median_image_size_in_voxels": setting["shape"],
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": resampling | {"is_seg": True, "order": 1},
        "resampling_fn_probabilities_kwargs": resampling | {"order": 1},
        "architecture": {
            "network_class_name": network_class,
            "arch_kwargs": architecture,
            "_kw_requires_import": imported,
        },
        "batch_dice": False,
    }
    plans = {
        "dataset_name": "Dataset001_bench",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": setting["shape"],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": 0.0, "std": 1.0, "percentile_00_5": -3.0, "percentile_99_5": 3.0}
        },
    }
    labels = {"background": 0} | {f"label{value}": value for value in range(1, setting["classes"])}
    dataset = {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    network = get_network_from_plans(
        network_class, architecture, imported, 1, setting["classes"], allow_init=True, deep_supervision=False
    )
    model = folder / "nnunet"
    (model / "fold_0").mkdir(parents=True)
    (model / "plans.json").write_text(json.dumps(plans))
    (model / "dataset.json").write_text(json.dumps(dataset))
    checkpoint = {
        "network_weights": network.state_dict(),
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": "3d_fullres"},
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    torch.save(checkpoint, model / "fold_0" / "checkpoint_final.pth")


def main() -> None:
    sides = {"nnunet": nnunet, "monai": monai, "ours": ours}
    parser = argparse.ArgumentParser()
    tasks = parser.add_subparsers(dest="task", required=True)
    timing = tasks.add_parser("time")
    timing.add_argument("side", choices=list(sides))
    timing.add_argument("folder", type=Path)
    timing.add_argument("--precision", default="auto")
    timing.add_argument("--engine", default="auto")
    timing.add_argument("--threads", type=int, default=2)
    model = tasks.add_parser("nnunet-model")
    model.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if arguments.task == "nnunet-model":
        make_nnunet_model(arguments.folder)
        return
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to standard error
    import torch

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    answer(sides[arguments.side](arguments.folder, arguments), answers)


if __name__ == "__main__":
    main()
