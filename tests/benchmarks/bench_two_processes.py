"""Samples per second of training in two processes, beside one process with the whole batch, on the same cores.

``python tests/benchmarks/bench_two_processes.py [--threads 2] [--json FILE]`` trains the Hippocampus architecture
(features 32 to 256 on 4 levels, deep supervision) with 8 patches of 40x56x40 voxels a step, augmentation running, on
the same synthetic cases: one process with all threads, and two with half of them each, connected by gloo as
``torchrun`` connects them. The sides take groups of steps by turns; the other is stopped meanwhile. Printed are medians
over all counted steps; the first group of each side is not counted. ``--quick`` checks with a small plan that the
script runs; the whole takes about five minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bench_training_step import FULL, QUICK, Side, write_cases
from machine import markdown, processor
from training_sides import SETTING, ours

from unet_med.training.distributed import open_team, own_device

BATCH = 8
RANK, ALONE = "RANK", "one process"


def take_steps(folder: Path, options: argparse.Namespace) -> None:
    """One process of a side: a group of steps for each line that the first one reads."""
    with open_team(own_device(torch.device("cpu"))) as team:
        step = ours(folder, options, team)
        answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        if team.leads:
            print("ready", file=answers, flush=True)
        while count := team.share(int(sys.stdin.readline() or 0) if team.leads else 0):
            seconds = []
            for _ in range(count):
                start = time.perf_counter()
                step()
                seconds.append(time.perf_counter() - start)
            if team.leads:
                print(json.dumps(seconds), file=answers, flush=True)


def lead_side(folder: Path, options: argparse.Namespace) -> None:
    """The first process of a side, in a process group with the second, so that both are stopped together."""
    os.setpgrp()
    if options.processes > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        world = str(options.processes)
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        for rank in range(1, options.processes):
            own = os.environ | {RANK: str(rank), "LOCAL_RANK": str(rank)}
            subprocess.Popen([sys.executable, *sys.argv], env=own, stdin=subprocess.DEVNULL)
        os.environ |= {RANK: "0", "LOCAL_RANK": "0"}
    take_steps(folder, options)


def measure(folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Groups of steps of both sides by turns."""
    sides = []
    try:
        for processes in (1, arguments.processes):
            threads = max(1, arguments.threads // processes)
            name = ALONE if processes == 1 else f"{processes} processes"
            common = ["--folder", str(folder), "--processes", str(processes), "--precision", arguments.precision]
            environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
            environment.pop(RANK, None)
            log = folder / f"side{processes}.log"
            sides.append(Side(f"{name}, {threads} threads each", [sys.executable, __file__, *common], environment, log))
        for number in range(arguments.groups + 1):
            for side in sides:
                median = side.take(arguments.steps, counts=number > 0)
                print(f"{side.name}: {median:.2f} s a step{'' if number else ' (warm-up)'}", file=sys.stderr)
    finally:
        for side in sides:
            side.close()
    return [side.result() | {"samples_per_s": BATCH / side.result()["median_s"]} for side in sides]


def table(rows: list[dict[str, Any]]) -> str:
    """The first row is what the others are compared with."""
    base = rows[0]["samples_per_s"]
    lines = [
        [row["side"], f"{row['median_s']:.3f} s", f"{row['samples_per_s']:.2f}", f"{row['samples_per_s'] / base:.2f}x"]
        for row in rows
    ]
    return markdown([f"training, batch {BATCH}", "step, median", "samples per second", "faster"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="of each side, all its processes together")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--groups", type=int, default=3, help="counted groups of steps of each side")
    parser.add_argument("--steps", type=int, default=4, help="steps of a group")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.set_defaults(loss="dice_ce", optimizer="sgd", workers=0)
    arguments = parser.parse_args()
    if arguments.folder is not None:
        (take_steps if RANK in os.environ else lead_side)(arguments.folder, arguments)
        return
    setting = (QUICK if arguments.quick else FULL) | {"batch": BATCH}
    if arguments.quick:
        arguments.groups, arguments.steps = 1, 2
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / SETTING).write_text(json.dumps(setting))
        write_cases(folder, setting)
        rows = measure(folder, arguments)
    results = {"processor": processor(), "threads": arguments.threads, "setting": setting, "sides": rows}
    results["ratio"] = rows[1]["samples_per_s"] / rows[0]["samples_per_s"]
    print(f"{results['processor']}, {arguments.threads} threads; {setting}\n")
    print(table(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
