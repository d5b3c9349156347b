"""A folder of cases: the whole command beside the network's own time, and what doctor said beforehand.

``python tests/benchmarks/bench_folder.py [--cases 10] [--repeats 3] [--json FILE] [--quick]`` makes an untrained model
and images of noise with a body in them, then, by turns, runs ``predict`` with and without overlap of reading, computing
and writing, and predicts one image that is in memory already. The first table is the time of the whole command divided
by cases x the time of that one prediction; the second one is what ``doctor MODEL INPUT`` said divided by what the
command took, in seconds and in peak memory, for several shapes and numbers of classes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from machine import processor


@dataclass(frozen=True)
class Setting:
    """Images and the model that predicts them."""

    shape: tuple[int, int, int]
    classes: int
    window: int
    features: tuple[int, ...]
    spacing_mm: float = 1.0

    @property
    def title(self) -> str:
        size = "x".join(map(str, self.shape))
        return f"{size}, {self.classes} classes, {self.window}^3 windows, {self.features[0]}..{self.features[-1]}" + (
            f", resampled x{1 / self.spacing_mm:g}" if self.spacing_mm != 1 else ""
        )


FOLDER = Setting((128, 128, 96), 3, 64, (16, 32, 64, 128))
DOCTORED = (
    FOLDER,
    Setting((192, 192, 160), 3, 96, (16, 32, 64, 128)),
    Setting((160, 160, 128), 40, 64, (16, 32, 64)),
    Setting((128, 128, 96), 3, 64, (16, 32, 64), spacing_mm=0.8),
)
QUICK = Setting((48, 48, 40), 3, 32, (8, 16))

PREDICT = """
import sys
from dataclasses import replace
from pathlib import Path
from unet_med.workflows import predict
setup = predict._setup
predict._setup = lambda *given: replace(setup(*given), overlap=sys.argv[4] == "with")
assert predict.predict(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), device="cpu").exit_code == 0
"""

NETWORK = """
import json, sys, time
from pathlib import Path
from unet_med.bundle import load_bundle
from unet_med.inference.predictor import Predictor
from unet_med.io.grouping import group_cases
from unet_med.io.discover import discover
predictor = Predictor([load_bundle(sys.argv[1])], "cpu")
volume = group_cases(discover(Path(sys.argv[2])).usable)[0].read()
times = []
while len(times) < 3 or (sum(times) < 6 and len(times) < 40):  # long enough for the engine to be chosen
    before = time.perf_counter()
    prediction = predictor.predict(volume)
    times.append(time.perf_counter() - before)
print(json.dumps({"seconds": sorted(times[len(times) // 2:])[len(times) // 4], "engine": prediction.engine}))
"""


def make_model(folder: Path, setting: Setting) -> Path:
    import torch

    from unet_med.bundle import labels_of, save_bundle
    from unet_med.config import parse_config
    from unet_med.networks import build_network

    levels = len(setting.features)
    config = parse_config(
        {
            "name": "bench",
            "dims": 3,
            "channels": ["CT"],
            "labels": {"background": 0, **{f"l{number}": number for number in range(1, setting.classes)}},
            "preprocess": {
                "spacing_mm": [setting.spacing_mm] * 3,
                "normalisation": [{"scheme": "zscore"}],
                "crop_to_nonzero": False,
            },
            "network": {
                "features": list(setting.features),
                "strides": [[1, 1, 1]] + [[2, 2, 2]] * (levels - 1),
                "kernels": [[3, 3, 3]] * levels,
            },
            "loss": {"class_weights": None},
            "augment": {"rotation_degrees": [-30, 30], "mirror_axes": [0, 1, 2]},
            "sampling": {"patch_voxels": [setting.window] * 3, "batch_size": 2},
            "training": {"learning_rate": 1e-3, "steps_per_epoch": 2, "workers": 0, "validation_every_epochs": 1},
        },
        "the benchmark's model",
    )
    torch.manual_seed(0)
    network = build_network(config.network, 3, 1, labels_of(config).outputs)
    save_bundle(folder, config, network.state_dict(), {})
    return folder


def make_images(folder: Path, shape: tuple[int, int, int], count: int) -> Path:
    folder.mkdir()
    radius = np.sqrt(sum(((np.arange(n) - n / 2) / n).reshape([-1 if a == b else 1 for b in range(3)]) ** 2
                         for a, n in enumerate(shape)))  # fmt: skip
    for number in range(count):
        noise = np.random.default_rng(number).normal(0, 20, shape)
        stored = (np.where(radius < 0.4, 200, -800) + noise).astype(np.int16)
        nib.save(nib.Nifti1Image(stored, np.eye(4)), folder / f"case{number:02d}.nii.gz")
    return folder


def run(*arguments: str) -> tuple[float, str]:
    before = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - before, done.stdout


def network_seconds(model: Path, images: Path) -> dict[str, Any]:
    return dict(json.loads(run("-c", NETWORK, str(model), str(images))[1].splitlines()[-1]))


def predict_seconds(model: Path, images: Path, out: Path, overlap: str) -> tuple[float, float]:
    seconds, _ = run("-c", PREDICT, str(model), str(images), str(out), overlap)
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return seconds, max(case["peak_memory_mb"] for case in report["cases"])


def folder_benchmark(work: Path, setting: Setting, cases: int, repeats: int) -> dict[str, Any]:
    model, images = make_model(work / "model", setting), make_images(work / "images", setting.shape, cases)
    alone: list[float] = []
    engine = ""
    commands: dict[str, list[float]] = {"with": [], "without": []}
    peaks: dict[str, float] = {}
    for turn in range(repeats):
        found = network_seconds(model, images)
        alone.append(found["seconds"])
        engine = found["engine"]
        for overlap, seconds in commands.items():
            taken, peaks[overlap] = predict_seconds(model, images, work / f"out-{overlap}-{turn}", overlap)
            seconds.append(taken)
    network = statistics.median(alone) * cases
    return {
        "setting": setting.title,
        "cases": cases,
        "engine": engine,
        "network_seconds": round(network, 2),
        **{f"{name}_overlap_seconds": round(statistics.median(times), 2) for name, times in commands.items()},
        **{f"{name}_overlap_ratio": round(statistics.median(times) / network, 3) for name, times in commands.items()},
        "peak_memory_mb": peaks,
    }


def doctor_benchmark(work: Path, setting: Setting, cases: int, repeats: int) -> dict[str, Any]:
    model, images = make_model(work / "model", setting), make_images(work / "images", setting.shape, cases)
    predict_seconds(model, images, work / "warm", "with")
    said: list[tuple[float, float]] = []
    taken: list[tuple[float, float]] = []
    for turn in range(repeats):
        answer = work / f"doctor{turn}.json"
        run("-m", "unet_med", "doctor", str(model), str(images), "--json", str(answer))
        totals = json.loads(answer.read_text(encoding="utf-8"))["totals"]
        said.append((totals["seconds"], totals["peak_memory_mb"]))
        taken.append(predict_seconds(model, images, work / f"out{turn}", "with"))
    result: dict[str, Any] = {"setting": setting.title, "cases": cases}
    for place, name in enumerate(("seconds", "peak_memory_mb")):
        estimate, measured = (statistics.median(pair[place] for pair in pairs) for pairs in (said, taken))
        result |= {f"said_{name}": estimate, f"took_{name}": round(measured, 2)}
        result[f"{name}_ratio"] = round(estimate / measured, 3)
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="Toy sizes, once: whether it runs at all.")
    options = parser.parse_args()
    cases, repeats = (3, 1) if options.quick else (options.cases, options.repeats)
    folder_setting, doctored = (QUICK, (QUICK,)) if options.quick else (FOLDER, DOCTORED)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        (folder / "folder").mkdir()
        result: dict[str, Any] = {"cpu": processor()}
        result["folder"] = folder_benchmark(folder / "folder", folder_setting, cases, repeats)
        result["doctor"] = []
        for number, setting in enumerate(doctored):
            (folder / f"doctor{number}").mkdir()
            result["doctor"].append(doctor_benchmark(folder / f"doctor{number}", setting, min(cases, 4), repeats))
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1), encoding="utf-8")


def show(result: dict[str, Any]) -> None:
    found = result["folder"]
    print(f"{result['cpu']}\n\n{found['setting']}, {found['engine']}\n")
    print(f"| {found['cases']} cases | seconds | ratio |\n|---|---|---|")
    print(f"| network alone, {found['cases']} times | {found['network_seconds']:.1f} | 1 |")
    for name in ("with", "without"):
        ratio = found[f"{name}_overlap_ratio"]
        print(f"| whole command {name} overlap | {found[f'{name}_overlap_seconds']:.1f} | {ratio:.2f} |")
    print("\n| doctor | said s | took s | ratio | said MB | took MB | ratio |\n|---|---|---|---|---|---|---|")
    for one in result["doctor"]:
        print(
            f"| {one['cases']} x {one['setting']} | {one['said_seconds']:.1f} | {one['took_seconds']:.1f} "
            f"| {one['seconds_ratio']:.2f} | {one['said_peak_memory_mb']:.0f} | {one['took_peak_memory_mb']:.0f} "
            f"| {one['peak_memory_mb_ratio']:.2f} |"
        )


if __name__ == "__main__":
    main()
