"""Memory and speed of ``predict`` on a picture that is larger than memory.

A tiled BigTIFF (uint16, deflate) is predicted by a small network, or by ``--model``; a smaller one is predicted both
ways, and the masks are compared. The bar: less than 3 GB for 40,000 x 40,000 pixels.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
import torch
from bench_memory import measured, passed
from bench_predict import surroundings
from machine import markdown, processor
from scipy import ndimage

from unet_med.bundle import labels_of, save_bundle
from unet_med.config import parse_config
from unet_med.networks import build_network

TILE = 512
BAR_BYTES = 3e9


def write_slide(path: Path, side: int) -> None:
    """Bright blobs in noise, as a few different tiles in turn; the last ones reach over the edge."""
    rng = np.random.default_rng(0)
    kinds = []
    for _ in range(13):
        blobs = ndimage.gaussian_filter((rng.random((TILE, TILE)) > 0.998).astype(np.float32), 5)
        tile = (300 + 3e5 * blobs + rng.normal(0, 20, (TILE, TILE))).clip(0, 65535).astype(np.uint16)
        kinds.append(imagecodecs.zlib_encode(tile.tobytes()))
    tiles: Iterator[bytes] = islice(cycle(kinds), (-(-side // TILE)) ** 2)
    with tifffile.TiffWriter(path, bigtiff=True, ome=True) as file:
        file.write(
            tiles,
            shape=(side, side),
            dtype=np.uint16,
            tile=(TILE, TILE),
            compression="zlib",
            photometric="minisblack",
            metadata={"axes": "YX"},
        )


def make_model(folder: Path, window: int, features: list[int]) -> None:
    """A small U-Net with random weights."""
    config = parse_config(
        {
            "name": "bench",
            "dims": 2,
            "channels": ["grey"],
            "labels": {"background": 0, "blob": 1},
            "preprocess": {
                "spacing_mm": None,
                "normalisation": [{"scheme": "zscore"}],
                "crop_to_nonzero": False,
            },
            "network": {
                "features": features,
                "strides": [[1, 1], *[[2, 2]] * (len(features) - 1)],
                "kernels": [[3, 3]] * len(features),
            },
            "loss": {"class_weights": None},
            "augment": {"rotation_degrees": [-180, 180], "mirror_axes": []},
            "sampling": {"patch_voxels": [window, window], "batch_size": 2},
            "inference": {"overlap": 0.25},
            "training": {"learning_rate": 1e-3, "steps_per_epoch": 1, "workers": 0, "validation_every_epochs": 1},
        },
        "benchmark",
    )
    torch.manual_seed(0)
    network = build_network(config.network, 2, 1, labels_of(config).outputs)
    save_bundle(folder, config, network.state_dict(), {"training": {"n_cases": 0, "fold": "", "case_sha256": []}})


def predicted(folder: Path, name: str, model: Path, image: Path, arguments: argparse.Namespace, *more: str) -> Any:
    """One whole command; returns its peak, its time and the record of the case."""
    out = folder / name
    command = [sys.executable, "-m", "unet_med", "predict", str(model), str(image), str(out), *more]
    run = measured(command, surroundings(folder, arguments.threads))
    record = json.loads((out / "report.json").read_text())["cases"][0]
    if record["status"] != "done":
        raise SystemExit(f"{name}: {record['status']}: {record['reason']}")
    return run | {"mask": out / f"{image.stem}.tif", "engine": record["engine"]}


def compare(folder: Path, model: Path, arguments: argparse.Namespace) -> float:
    """Returns the share of pixels that differ between the two ways, on a picture that fits."""
    image = folder / "small.tif"
    write_slide(image, arguments.small)
    whole = predicted(folder, "whole", model, image, arguments)
    parts = predicted(folder, "parts", model, image, arguments, "--memory-gb", "0.1")
    masks = [tifffile.imread(run["mask"]) for run in (whole, parts)]
    return float(np.mean(masks[0] != masks[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=40_000)
    parser.add_argument("--small", type=int, default=6000, help="side of the one predicted both ways")
    parser.add_argument("--memory-gb", type=float, default=1.0)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--features", type=int, nargs="+", default=[8, 16, 32], help="2 2: about a threshold")
    parser.add_argument("--model", type=Path, help="another model for pictures of one channel")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = arguments.model or folder / "model"
        if arguments.model is None:
            make_model(model, arguments.window, arguments.features)
        differing = compare(folder, model, arguments) if arguments.small else None
        image = folder / "slide.tif"
        write_slide(image, arguments.side)
        run = predicted(folder, "slide", model, image, arguments, "--memory-gb", str(arguments.memory_gb))
        megapixels = arguments.side**2 / 1e6
        result = {
            "processor": processor(),
            "side": arguments.side,
            "peak_bytes": run["peak_bytes"],
            "seconds": run["seconds"],
            "megapixels_per_second": megapixels / run["seconds"],
            "engine": run["engine"],
            "differing": differing,
        }
    row = [
        f"{arguments.side} x {arguments.side}",
        f"{run['peak_bytes'] / 1e9:.2f} GB",
        f"{run['seconds']:.0f} s",
        f"{result['megapixels_per_second']:.2f}",
        run["engine"],
    ]
    print(f"{result['processor']}, {arguments.threads} threads\n")
    print(markdown(["picture", "peak", "time", "megapixels/s", "engine"], [row]))
    print(f"\nbar {BAR_BYTES / 1e9:.0f} GB: {passed(run['peak_bytes'] < BAR_BYTES)}")
    if differing is not None:
        print(f"read in parts and as a whole: {differing:.2e} of the pixels differ")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
