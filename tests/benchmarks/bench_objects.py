"""Cutting out objects: speed, choice of thresholds, and whether it matters where tiles lie.

Without a model, maps are made from the true nuclei of a folder (noisy and blurred), and from thousands of discs. With a
model and a folder of images, every image is normalised once and predicted twice, the second time with half a window of
mirrored image before it, so that all windows lie elsewhere. Objects at the edges that were mirrored are told apart: the
second time they are seen joined to their mirror image, which is no seam. The bar: at least 200 objects a second on one
core; at most 0.5 % of objects without a match at IoU 0.7.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import processor
from object_maps import balls, maps_of

from unet_med.bundle import load_bundles
from unet_med.config import Instances
from unet_med.geometry import Geometry
from unet_med.inference.objects import find_objects
from unet_med.inference.predictor import Predictor
from unet_med.instances.decode import Tiling, objects_of
from unet_med.instances.tuning import ObjectTuner
from unet_med.io.discover import discover
from unet_med.io.grouping import group_cases
from unet_med.metrics import overlap_table
from unet_med.transforms.preprocess import Preprocessor
from unet_med.volume import Volume

IOU = 0.7
EDGE = 4
"""Voxels from an edge within which objects lie at it."""
NOISE, BLUR = 0.1, 1.2
SETTINGS = Instances(seed_threshold=0.3, seed_depth=0.3)


def unmatched(pairs: Iterator[tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]]) -> str:
    """Says how many objects of two label images have no partner, and how many of those lie at the first edges."""
    objects = alone = at_edge = 0
    for one, other in pairs:
        table = overlap_table(one, other)
        good = table.iou >= IOU
        for labels, numbers, found in (
            (one, table.mask_ids, table.mask_ids[table.rows[good]]),
            (other, table.label_ids, table.label_ids[table.columns[good]]),
        ):
            lost = np.setdiff1d(numbers, found)
            objects, alone = objects + len(numbers), alone + len(lost)
            edges = (np.take(labels, range(EDGE), axis=axis).ravel() for axis in range(labels.ndim))
            at_edge += int(np.isin(lost, np.concatenate(list(edges))).sum())
    share, inside = alone / max(1, objects), (alone - at_edge) / max(1, objects)
    return (
        f"{alone} of {objects} objects ({share:.3%}) without a match at IoU {IOU}; "
        f"{at_edge} of these at the first edges, {inside:.3%} without them"
    )


def measure_speed(labels: Path, images: int) -> None:
    """Cuts out the objects of noisy maps of true nuclei; chooses thresholds on them."""
    tuner, objects, voxels, seconds = ObjectTuner(Instances()), 0, 0, 0.0
    for number, path in enumerate(sorted(labels.glob("*.tif"))[:images]):
        truth = tifffile.imread(path).T
        maps = maps_of(truth, noise=NOISE, blur=BLUR, seed=number)
        began = time.process_time()
        objects += len(objects_of(maps, SETTINGS))
        seconds += time.process_time() - began
        voxels += truth.size
        tuner.add(maps, truth, group=number % 2)
    print(
        f"{objects} objects of {images} images: {objects / seconds:.0f} objects/s, {voxels / seconds / 1e6:.1f} Mpx/s"
    )
    began = time.process_time()
    print(f"{tuner.choose().reason}; chosen in {time.process_time() - began:.1f} s")


def tile_seams(side: int) -> Iterator[tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]]:
    """Yields discs cut out in two grids of tiles."""
    maps = maps_of(balls((side, side), side * side // 500, (5, 14), seed=0), noise=NOISE, blur=BLUR)
    grids = (Tiling(256, 32), Tiling(256, 32, 128))
    first, second = (objects_of(maps, SETTINGS, tiling=grid).labels for grid in grids)
    yield first, second


def window_seams(
    model: str, folder: Path, images: int
) -> Iterator[tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]]:
    """Yields the objects of each image, predicted with its windows in two grids."""
    (bundle,) = load_bundles(model)
    patch = bundle.config.sampling.patch_voxels
    normalised = {"preprocess.normalisation": [{"scheme": "none"}] * len(bundle.channels)}
    as_it_is = {"preprocess.spacing_mm": None, "preprocess.crop_to_nonzero": False, "preprocess.orientation": "stored"}
    predictor = Predictor([replace(bundle, config=bundle.config.replacing({**normalised, **as_it_is}))])
    preprocessor = Preprocessor(bundle.config)
    for case in group_cases(discover(folder).usable, predictor.channels)[:images]:
        array = preprocessor.prepare(case.read()).array
        before = [int(side) // 2 for side in patch] + [0] * (array.ndim - 1 - len(patch))
        shifted = np.pad(array, [(0, 0), *((n, 0) for n in before)], mode="symmetric")
        own = tuple(slice(n, None) for n in before)
        first, second = (
            find_objects(predictor, Volume(one, Geometry.from_spacing(one.shape[1:], None))).labels
            for one in (array, shifted)
        )
        yield first, second[own]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", type=Path, help="folder of label images (TIFF), for speed")
    parser.add_argument("--model", help="a model of objects, for seams of its windows")
    parser.add_argument("--images", type=Path, help="folder of images for the model")
    parser.add_argument("--count", type=int, default=24, help="images of each folder")
    parser.add_argument("--side", type=int, default=1500, help="pixels of the picture of discs")
    asked = parser.parse_args()
    torch.set_num_threads(1 if asked.model is None else torch.get_num_threads())
    print(processor())
    if asked.labels is not None:
        measure_speed(asked.labels, asked.count)
    print(f"grid of tiles shifted by half a tile: {unmatched(tile_seams(asked.side))}")
    if asked.model is not None:
        print(f"windows shifted by half a window: {unmatched(window_seams(asked.model, asked.images, asked.count))}")


if __name__ == "__main__":
    main()
