"""Pictures of touching discs, brightest in their middle, and a model that finds them without any training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from object_maps import balls, maps_of

from unet_med.bundle import load_bundle, save_bundle


def disc_picture(seed: int, shape: tuple[int, ...] = (72, 64), count: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Returns a picture uint8 and its objects uint16, both (I, J[, K])."""
    truth = balls(shape, count, (6, 10) if len(shape) == 2 else (4, 6), seed)
    depth = maps_of(truth).distance
    return np.where(truth > 0, 60 + 140 * depth, 10).astype(np.uint8), truth.astype(np.uint16)


def write_disc_set(folder: Path, cases: int = 4) -> Path:
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for number in range(cases):
        picture, truth = disc_picture(number)
        for name, array in (("images", picture), ("labels", truth)):
            tifffile.imwrite(folder / name / f"discs_{number}.tif", np.ascontiguousarray(array.T), imagej=True)
    return folder


def disc_bundle(tiny_bundle: Callable[..., Path], name: str = "model", **changes: Any) -> Path:
    """Returns a model of ``tiny_bundle`` whose class and distance rise with the brightness; it sees no border."""
    folder = tiny_bundle(
        name,
        dims=changes.pop("dims", 2),
        task="instance",
        labels={"background": 0, "disc": 1},
        training__precision="fp32",
        **changes,
    )
    bundle = load_bundle(folder)
    state = dict(bundle.state)
    weight, bias = state["heads.0.weight"].zero_(), state["heads.0.bias"].zero_()
    weight[1, 0], weight[3, 0] = 20.0, 3.0
    bias[1], bias[2], bias[3] = -2.0, -10.0, -4.0
    save_bundle(folder, bundle.config, state, bundle.meta)
    return folder


def found_objects(mask: np.ndarray, truth: np.ndarray, iou: float = 0.6) -> tuple[int, int]:
    """Returns how many true objects were found, and how many there are."""
    from object_maps import count_matches

    return count_matches(mask, truth, iou), len(np.unique(truth)) - 1


__all__: Sequence[str] = ("disc_bundle", "disc_picture", "found_objects", "write_disc_set")
