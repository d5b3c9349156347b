"""Seconds per training step of the Hippocampus plan, augmentation running, beside nnU-Net, on a CPU.

``python tests/benchmarks/bench_training_step.py [--peer-python PYTHON] [--json FILE]`` trains the same architecture
(features 32 to 256 on 4 levels, deep supervision) with the same batch of 9 patches of 40x56x40 voxels, SGD, Dice and
cross-entropy, on the same synthetic cases with the same threads: nnU-Net's ``nnUNetTrainer`` as it ships, with its
loaders (``--peer-workers`` processes augment) and its augmentation, and our trainer with ours, as it chooses and in
fp32. The sides take groups of steps by turns; the others are stopped meanwhile, with their loaders, so that each goes
on from where it was. Printed are medians over all counted steps; the first group of each side is not counted.

``--peer-python`` names an interpreter that has nnunetv2, if this one has not. ``--quick`` checks with a small plan
that the script runs. The whole takes about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from machine import markdown, processor
from training_sides import CASES, PREPROCESSED, SETTING

SIDES = Path(__file__).with_name("training_sides.py")
FULL = {"features": [32, 64, 128, 256], "patch": [40, 56, 40], "batch": 9, "cases": 24}
QUICK = {"features": [8, 16, 32], "patch": [16, 24, 16], "batch": 2, "cases": 4}


def write_cases(folder: Path, setting: dict[str, Any]) -> None:
    """Noise with two touching ellipsoids, of about the size of the patch, as the cases of that data set are."""
    rng = np.random.default_rng(0)
    (folder / CASES).mkdir()
    for number in range(setting["cases"]):
        shape = tuple(int(rng.integers(round(0.7 * size), size + 1)) for size in setting["patch"])
        grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij"))
        label = np.zeros(shape, dtype=np.uint8)
        for value, place in ((1, -0.25), (2, 0.25)):
            centre = rng.uniform(-0.2, 0.2, 3) + np.array([0, place, 0])
            label[(((grid - centre.reshape(3, 1, 1, 1)) / [[[[0.5]]], [[[0.3]]], [[[0.4]]]]) ** 2).sum(0) < 1] = value
        image = rng.standard_normal(shape).astype(np.float32) + label
        np.savez(folder / CASES / f"case_{number:02d}.npz", image=image, label=label)


class Side:
    """A process that takes training steps when asked, and stands still otherwise."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.name = name
        self.groups: list[list[float]] = []
        self._log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
            )
        self._line()
        self._signal(signal.SIGSTOP)

    def take(self, steps: int, counts: bool) -> float:
        """Takes a group of steps and returns their median in seconds."""
        self._signal(signal.SIGCONT)
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        seconds = json.loads(self._line())
        self._signal(signal.SIGSTOP)
        if counts:
            self.groups.append(seconds)
        return statistics.median(seconds)

    def close(self) -> None:
        """Ends the process and its loaders."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def result(self) -> dict[str, Any]:
        """What is stored."""
        every = [seconds for group in self.groups for seconds in group]
        return {"side": self.name, "median_s": statistics.median(every), "groups_s": self.groups}

    def _signal(self, number: int) -> None:
        os.killpg(self._process.pid, number)

    def _line(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended:\n{self._log.read_text()[-2000:]}")
        return line


def surroundings(folder: Path, arguments: argparse.Namespace) -> dict[str, str]:
    """nnU-Net's folders, and the same threads for all."""
    places = {name: str(folder / name) for name in ("nnUNet_raw", PREPROCESSED, "nnUNet_results")}
    threads = {"OMP_NUM_THREADS": str(arguments.threads), "nnUNet_n_proc_DA": str(arguments.peer_workers)}
    return os.environ | places | threads


def measure(folder: Path, peer: str | None, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Groups of steps of all sides by turns."""
    environment = surroundings(folder, arguments)
    common = [str(folder), "--threads", str(arguments.threads), "--optimizer", arguments.optimizer]
    our_options = [*common, "--loss", arguments.loss, "--workers", str(arguments.workers)]
    asked = {
        "nnU-Net's trainer, fp32 as it ships": [peer, str(SIDES), "nnunet", *common],
        "ours, as it chooses": [sys.executable, str(SIDES), "ours", *our_options],
        "ours, fp32": [sys.executable, str(SIDES), "ours", *our_options, "--precision", "fp32"],
    }
    sides: list[Side] = []
    try:
        for number, (name, command) in enumerate(asked.items()):
            if command[0] is not None:
                sides.append(Side(name, [str(part) for part in command], environment, folder / f"side{number}.log"))
        for number in range(arguments.groups + 1):
            for side in sides:
                median = side.take(arguments.steps, counts=number > 0)
                print(f"{side.name}: {median:.2f} s{'' if number else ' (warm-up)'}", file=sys.stderr)
    finally:
        for side in sides:
            side.close()
    return [side.result() for side in sides]


def table(rows: list[dict[str, Any]]) -> str:
    """The first row is what the others are compared with."""
    base = rows[0]["median_s"]
    lines = [[row["side"], f"{row['median_s']:.3f} s", f"{base / row['median_s']:.2f}x"] for row in rows]
    return markdown(["training step", "median", "faster"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", help="interpreter with nnunetv2; default: this one, if it has it")
    parser.add_argument("--peer-workers", type=int, default=2, help="processes that augment for nnU-Net")
    parser.add_argument("--workers", type=int, default=0, help="processes that augment for us")
    parser.add_argument("--groups", type=int, default=3, help="counted groups of steps of each side")
    parser.add_argument("--steps", type=int, default=4, help="steps of a group")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--optimizer", choices=["sgd", "adamw"], default="sgd", help="ours; nnU-Net's is SGD")
    parser.add_argument("--loss", choices=["dice_ce", "dice_focal"], default="dice_ce", help="ours")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    peer = arguments.peer_python or (sys.executable if find_spec("nnunetv2") else None)
    setting = QUICK if arguments.quick else FULL
    if arguments.quick:
        arguments.groups, arguments.steps = 1, 2
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / SETTING).write_text(json.dumps(setting))
        write_cases(folder, setting)
        if peer is None:
            print("nnunetv2 is not installed: see --peer-python", file=sys.stderr)
        else:
            command = [peer, str(SIDES), "nnunet-data", str(folder)]
            subprocess.run(command, check=True, env=surroundings(folder, arguments), stdout=sys.stderr)
        rows = measure(folder, peer, arguments)
    results = {"processor": processor(), "threads": arguments.threads, "setting": setting, "sides": rows}
    print(f"{results['processor']}, {arguments.threads} threads; {setting}\n")
    print(table(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
