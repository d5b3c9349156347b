"""Windows of air left out of a CT-like scan: how many, seconds with and without, voxels of the mask that change.

``python tests/benchmarks/bench_skip.py [--quick] [--json FILE]`` learns the rule from five scans of a body phantom in
air, then predicts another one both ways in turn with the same engine. The network is large enough to take nearly all
of the time, and knows the organ by its density; its output does not depend on the rule, so no voxel may change.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import processor

from unet_med.bundle import Bundle, labels_of
from unet_med.config import PipelineConfig, parse_config
from unet_med.data import CachedCase, write_case
from unet_med.geometry import Geometry
from unet_med.inference.predictor import Prediction, Predictor
from unet_med.networks import build_network
from unet_med.training.emptiness import learn_emptiness
from unet_med.transforms.preprocess import Preprocessor
from unet_med.volume import Volume

WIDTH = 32
_LOW, _HIGH, _MEAN, _SD = -160.0, 240.0, 60.0, 40.0


def phantom(shape: tuple[int, ...], seed: int) -> tuple[Volume, np.ndarray]:
    """An elliptic body of 380 x 260 mm in a field of view of 500 mm, a table below it and an organ in it."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n, dtype=np.float32) for n in shape], indexing="ij", sparse=True)
    dx, dy = rng.uniform(-0.04, 0.04, 2)
    body = ((x - dx) / 0.76) ** 2 + ((y - dy) / 0.52) ** 2 < 1
    organ = ((x - dx - 0.3) / 0.25) ** 2 + ((y - dy) / 0.25) ** 2 + (z / 0.5) ** 2 < 1
    hu = np.where(organ, 120.0, np.where(body, 20.0, -1000.0)).astype(np.float32)
    hu[:, int(0.88 * shape[1]) : int(0.9 * shape[1])] = -600.0
    hu += rng.normal(0, 15, shape).astype(np.float32)
    spacing = (500 / shape[0], 500 / shape[1], 500 / shape[0])
    return Volume(hu[None], Geometry.from_spacing(shape, spacing)), organ.astype(np.uint8)


def pipeline(window: tuple[int, ...]) -> PipelineConfig:
    ct = {"scheme": "ct", "window": [_LOW, _HIGH], "mean": _MEAN, "sd": _SD}
    return parse_config(
        {
            "name": "skip",
            "dims": 3,
            "channels": ["CT"],
            "labels": {"background": 0, "organ": 1},
            "preprocess": {"spacing_mm": None, "normalisation": [ct], "crop_to_nonzero": False},
            "network": {
                "features": [WIDTH // 2, WIDTH, 2 * WIDTH],
                "strides": [[1] * 3, [2] * 3, [2] * 3],
                "kernels": [[3] * 3] * 3,
                "norm": "none",
            },
            "loss": {"class_weights": None},
            "augment": {"rotation_degrees": [-30, 30], "mirror_axes": []},
            "sampling": {"patch_voxels": list(window), "batch_size": 2},
            "training": {"learning_rate": 1e-3, "steps_per_epoch": 1, "workers": 0, "validation_every_epochs": 1},
        },
        "the benchmark",
    )


def model(config: PipelineConfig) -> Bundle:
    """All weights small and random, but for a path that carries the smoothed density to the output."""
    torch.manual_seed(0)
    network = build_network(config.network, 3, 1, 2)
    state = {name: 1e-3 * torch.randn_like(value) for name, value in network.state_dict().items()}
    state["encoder.0.0.0.weight"][0] = 1 / 27
    for name in ("encoder.0.1.0.weight", "decoder.0.0.0.weight", "decoder.0.1.0.weight"):
        state[name][0] = 0.0
        state[name][0, 0, 1, 1, 1] = 1.0
    state["heads.0.weight"][1, 0], state["heads.0.bias"][1] = 1.0, -(70 - _MEAN) / _SD
    return Bundle(config, labels_of(config), ("CT",), state, {}, "0" * 64)


def learn(config: PipelineConfig, shape: tuple[int, ...], folder: Path) -> tuple[dict[str, Any], float]:
    """Returns the bundle's entry and the seconds that learning took."""
    preprocessor, cases = Preprocessor(config), []
    for seed in range(5):
        volume, label = phantom(shape, seed)
        write_case(folder / str(seed), preprocessor.prepare(volume).array, label, None, None)
        cases.append(CachedCase(str(seed), folder / str(seed), label.shape, None))
    start = time.perf_counter()
    learnt = learn_emptiness(cases, config)
    seconds = time.perf_counter() - start
    return {"rule": learnt.rule and learnt.rule.to_json(), "reason": learnt.reason}, seconds


def timed(predictor: Predictor, volume: Volume) -> tuple[Prediction, float]:
    start = time.perf_counter()
    prediction = predictor.predict(volume)
    return prediction, time.perf_counter() - start


def measure(shape: tuple[int, ...], window: tuple[int, ...], repeats: int) -> dict[str, Any]:
    config = pipeline(window)
    with tempfile.TemporaryDirectory() as folder:
        entry, learning = learn(config, shape, Path(folder))
    bundle = model(config)
    volume, organ = phantom(shape, 99)
    skipping = Predictor([replace(bundle, meta={"empty_windows": entry})], "cpu")
    first = skipping.predict(volume)
    engine = first.engine.split()[0]
    plain = Predictor([replace(bundle, config=config.replacing({"inference.engine": engine}))], "cpu")
    reference = plain.predict(volume)
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    for _ in range(repeats):
        for name, predictor in (("with", skipping), ("without", plain)):
            seconds[name].append(timed(predictor, volume)[1])
    found, truth = first.labels == 1, organ == 1
    return {
        "shape": shape,
        "window": window,
        "engine": first.engine,
        "rule": entry["reason"],
        "seconds_to_learn": learning,
        "windows": first.windows,
        "windows_skipped": first.windows_skipped,
        "seconds_without": statistics.median(seconds["without"]),
        "seconds_with": statistics.median(seconds["with"]),
        "ratio": statistics.median(seconds["without"]) / statistics.median(seconds["with"]),
        "voxels_changed": int(np.count_nonzero(first.labels != reference.labels)),
        "dice": float(2 * (found & truth).sum() / (found.sum() + truth.sum())),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a small scan, to see that it runs")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shape, window = ((64, 64, 32), (16, 16, 16)) if arguments.quick else ((256, 256, 100), (64, 64, 64))
    result = measure(shape, window, arguments.repeats) | {"cpu": processor(), "threads": arguments.threads}
    print(f"{result['cpu']}, {result['threads']} threads, {result['engine']}; {result['rule']}\n")
    print("| scan | windows | skipped | seconds without | with | ratio | voxels changed | Dice |")
    print("|---|---|---|---|---|---|---|---|")
    print(
        f"| {'x'.join(map(str, shape))} | {result['windows']} | {result['windows_skipped']} "
        f"| {result['seconds_without']:.2f} | {result['seconds_with']:.2f} | {result['ratio']:.2f} "
        f"| {result['voxels_changed']} | {result['dice']:.3f} |"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
