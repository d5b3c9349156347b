"""Seconds for predicting a volume, beside nnU-Net and MONAI, on a CPU.

``python tests/benchmarks/bench_predict.py [--peer-python PYTHON] [--json FILE]`` measures the same architecture with
random weights, the same volume, the same overlap and the same threads on all sides, by turns, and prints medians:

1. the network: a 160x192x192 volume, 3 classes, 128^3 windows, 6 levels of 32 to 320 channels, steps of half a
   window, no mirroring; nnU-Net's ``predict_sliding_window_return_logits``, MONAI's ``sliding_window_inference`` over
   its DynUNet, and our predictor, each as it chooses and in fp32. Models are loaded before, one run is not counted.
2. whole commands: ``--cases`` such volumes from NIfTI to mask files, ``nnUNetv2_predict_from_modelfolder`` against
   ``unet-med predict``, process starts included. Our first command, which fills the engine cache, is listed apart.

``--peer-python`` names an interpreter that has nnunetv2, if this one has not. ``--quick`` checks with a small network
that the script runs. The whole takes about an hour on two cores, nearly all of it on the other sides;
``--only network`` and ``--only commands`` do a part.
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
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from machine import markdown, processor
from predict_sides import MODEL, VOLUME
from scipy import ndimage

from unet_med.bundle import labels_of, save_bundle
from unet_med.config import parse_config
from unet_med.networks import build_network

SIDES = Path(__file__).with_name("predict_sides.py")
COMMAND = (
    "from nnunetv2.inference.predict_from_raw_data import predict_entry_point_modelfolder as run; import sys;"
    "sys.argv[0] = 'nnUNetv2_predict_from_modelfolder'; run()"
)

FULL = {"features": [32, 64, 128, 256, 320, 320], "window": 128, "classes": 3, "shape": [160, 192, 192]}
QUICK = {"features": [8, 16, 32], "window": 32, "classes": 3, "shape": [40, 48, 48]}


def make_volume(shape: list[int], seed: int) -> np.ndarray:
    """A smooth random image, so that masks are not mere noise; float32, normalised."""
    noise = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    smooth = ndimage.gaussian_filter(noise, 3)
    return (smooth - smooth.mean()) / smooth.std()


def make_bundle(folder: Path, setting: dict[str, Any]) -> None:
    """The same architecture as nnU-Net's, in a bundle, with random weights."""
    levels = len(setting["features"])
    config = parse_config(
        {
            "name": "bench",
            "dims": 3,
            "channels": ["MR"],
            "labels": {"background": 0} | {f"label{value}": value for value in range(1, setting["classes"])},
            "preprocess": {
                "spacing_mm": [1.0, 1.0, 1.0],
                "normalisation": [{"scheme": "zscore"}],
                "crop_to_nonzero": False,
            },
            "network": {
                "features": setting["features"],
                "strides": [[1] * 3, *[[2] * 3] * (levels - 1)],
                "kernels": [[3] * 3] * levels,
            },
            "loss": {"class_weights": None},
            "augment": {"rotation_degrees": [-30, 30], "mirror_axes": []},
            "sampling": {"patch_voxels": [setting["window"]] * 3, "batch_size": 2},
            "training": {"learning_rate": 1e-3, "steps_per_epoch": 1, "workers": 0, "validation_every_epochs": 1},
        },
        "benchmark",
    )
    torch.manual_seed(0)
    network = build_network(config.network, 3, 1, labels_of(config).outputs)
    save_bundle(folder, config, network.state_dict(), {"training": {"n_cases": 0, "fold": "", "case_sha256": []}})


class Side:
    """A process that predicts the volume whenever asked."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        self.name = name
        self.seconds: list[float] = []
        self.told: dict[str, Any] = {}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self._line()

    def run(self, counts: bool) -> None:
        """Predicts once."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        told = json.loads(self._line())
        if counts:
            self.seconds.append(told.pop("seconds"))
            self.told = told

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()

    def result(self) -> dict[str, Any]:
        """What is stored."""
        return {"side": self.name, "median_s": statistics.median(self.seconds), "runs_s": self.seconds, **self.told}

    def _line(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name}: the process ended with {self._process.wait()}")
        return line


def network_time(folder: Path, peer: str | None, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Part 1: by turns, all sides loaded."""
    asked = {
        "nnU-Net, fp32 as it ships": [peer, "nnunet"],
        "MONAI, fp32": [sys.executable, "monai", "--precision", "fp32"],
        "MONAI, bf16 autocast": [sys.executable, "monai", "--precision", "auto"],
        "ours, as it chooses": [sys.executable, "ours"],
        "ours, fp32": [sys.executable, "ours", "--precision", "fp32"],
        "ours, torch": [sys.executable, "ours", "--engine", "torch"],
        "ours, torch fp32": [sys.executable, "ours", "--engine", "torch", "--precision", "fp32"],
    }
    sides = []
    for name, (python, side, *options) in asked.items():
        if python is not None:
            command = [python, str(SIDES), "time", side, str(folder), "--threads", str(arguments.threads), *options]
            sides.append(Side(name, command, surroundings(folder, arguments.threads)))
    for number in range(arguments.repeats + 1):
        for side in sides:
            side.run(counts=number > 0)
            print(f"{side.name}: {'warm-up' if not number else f'{side.seconds[-1]:.1f} s'}", file=sys.stderr)
    for side in sides:
        side.close()
    return [side.result() for side in sides]


def whole_commands(folder: Path, peer: str | None, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Part 2: by turns, from files to files."""
    images = folder / "images"
    images.mkdir()
    for number in range(arguments.cases):
        image = nibabel.Nifti1Image((make_volume(arguments.shape, number) * 100 + 500).astype(np.int16), np.eye(4))
        image.header.set_xyzt_units("mm")
        nibabel.save(image, images / f"case{number:02d}_0000.nii.gz")
    options = ["-f", "0", "-device", "cpu", "--disable_tta", "--disable_progress_bar"]
    ours = [sys.executable, "-m", "unet_med", "predict", str(folder / "bundle"), str(images)]
    commands = {"ours": ours}
    if peer is not None:
        theirs = [peer, "-c", COMMAND, "-i", str(images), "-m", str(folder / "nnunet"), *options, "-o"]
        commands = {"nnU-Net": theirs, "ours": ours}
    environment = surroundings(folder, arguments.threads)
    first = command_seconds([*ours, str(folder / "first")], environment)
    runs: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(arguments.command_repeats):
        for name, command in commands.items():
            runs[name].append(command_seconds([*command, str(folder / f"{name}-{number}")], environment))
            print(f"{name}: {runs[name][-1]:.1f} s", file=sys.stderr)
    rows: list[dict[str, Any]] = []
    for name, seconds in runs.items():
        masks = len(list((folder / f"{name}-0").rglob("*.nii.gz")))
        rows.append({"side": name, "median_s": statistics.median(seconds), "runs_s": seconds, "masks": masks})
    reported = json.loads((folder / "ours-0" / "report.json").read_text())["cases"][-1]
    rows[-1] |= {"engine": reported.get("engine"), "why": reported.get("engine_why")}
    return [*rows, {"side": "ours, with an empty engine cache", "median_s": first, "runs_s": [first]}]


def command_seconds(command: list[str], environment: dict[str, str]) -> float:
    """Wall time of a command, which must succeed."""
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"a command ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return time.perf_counter() - start


def surroundings(folder: Path, threads: int) -> dict[str, str]:
    """An engine cache of our own, and the same threads for all; nnU-Net's folders are not used but asked for."""
    unused = {name: str(folder) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    return os.environ | unused | {"XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": str(threads)}


def table(rows: list[dict[str, Any]]) -> str:
    """The first row is the peer that the others are compared with."""
    base = rows[0]["median_s"]
    lines = [
        [row["side"], f"{row['median_s']:.1f} s", f"{base / row['median_s']:.1f}x", row.get("engine") or ""]
        for row in rows
    ]
    return markdown(["", "median", "faster", "engine"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", help="interpreter with nnunetv2; default: this one, if it has it")
    parser.add_argument("--shape", type=int, nargs=3, metavar=("I", "J", "K"))
    parser.add_argument("--cases", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--command-repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=["network", "commands"])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    peer = arguments.peer_python or (sys.executable if find_spec("nnunetv2") else None)
    setting = dict(QUICK if arguments.quick else FULL)
    arguments.shape = setting["shape"] = arguments.shape or setting["shape"]
    if arguments.quick:
        arguments.cases, arguments.repeats, arguments.command_repeats = 2, 1, 1
    results: dict[str, Any] = {"processor": processor(), "threads": arguments.threads, "setting": setting}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / MODEL).write_text(json.dumps(setting))
        np.save(folder / VOLUME, make_volume(setting["shape"], 0)[None])
        make_bundle(folder / "bundle", setting)
        if peer is None:
            print("nnunetv2 is not installed: see --peer-python", file=sys.stderr)
        else:
            command = [peer, str(SIDES), "nnunet-model", str(folder)]
            subprocess.run(command, check=True, env=surroundings(folder, arguments.threads), stdout=sys.stderr)
        print(f"{results['processor']}, {arguments.threads} threads; {setting}\n")
        if arguments.only != "commands":
            results["network"] = network_time(folder, peer, arguments)
            print(table(results["network"]), end="\n\n")
        if arguments.only != "network":
            results["commands"] = whole_commands(folder, peer, arguments)
            print(table(results["commands"]))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
