"""Seconds for resampling a volume, beside ``scipy.ndimage.zoom`` of the same order, and how far the two differ.

``python tests/benchmarks/bench_resample.py [--size 400] [--repeats 3] [--threads 2] [--json FILE]`` resamples size^3
float32 voxels 2x up and 0.5x down at orders 3 and 1, both sides by turns, and prints a table of medians (scipy uses
one thread; that is how it is shipped). ``--quick`` checks at 100^3 that the script runs. 400^3 takes about 4 GB and
ten minutes, nearly all of it in scipy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import processor
from scipy import ndimage

from unet_med.transforms.resample import GridChange

CASES = ((3, 2.0), (1, 2.0), (3, 0.5), (1, 0.5))


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def measured(image: np.ndarray, order: int, factor: float, repeats: int) -> dict[str, Any]:
    target = tuple(round(size * factor) for size in image.shape)
    change = GridChange(image.shape, target, order)
    source = torch.from_numpy(image)[None]
    peer, ours, error = [], [], 0.0
    for _ in range(repeats):
        spent, expected = seconds(lambda: ndimage.zoom(image, factor, order=order, mode="nearest", grid_mode=True))
        peer.append(spent)
        spent, result = seconds(lambda: change.whole(source))
        ours.append(spent)
        error = max(float(np.abs(a - b).max()) for a, b in zip(result[0].numpy(), expected, strict=True))
        spread = float(expected.max() - expected.min())
    return {
        "order": order,
        "factor": factor,
        "scipy_seconds": peer,
        "seconds": ours,
        "ratio": statistics.median(peer) / statistics.median(ours),
        "error_of_range": error / spread,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="100^3, to see that the script runs")
    options = parser.parse_args()
    size = 100 if options.quick else options.size
    torch.set_num_threads(options.threads)
    image = np.random.default_rng(0).normal(0, 300, (size,) * 3).astype(np.float32)
    cpu = processor()
    print(f"{size}^3 float32, medians of {options.repeats}, {options.threads} threads, {cpu}\n")
    print("| order | factor | scipy (s) | ours (s) | ratio | error / range |\n|--:|--:|--:|--:|--:|--:|")
    rows = []
    for order, factor in CASES:
        row = measured(image, order, factor, options.repeats)
        rows.append(row)
        peer, ours = statistics.median(row["scipy_seconds"]), statistics.median(row["seconds"])
        print(f"| {order} | {factor} | {peer:.2f} | {ours:.3f} | {row['ratio']:.0f}x | {row['error_of_range']:.1e} |")
    if options.json:
        report = {"size": size, "threads": options.threads, "cpu": cpu, "rows": rows}
        options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
