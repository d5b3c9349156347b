"""Dice and IoU of plain thresholds on held-out pictures of two classes, to print beside a network's.

    python tests/benchmarks/threshold_baseline.py M.json --fold 0
    python tests/benchmarks/threshold_baseline.py M.json --split test

Otsu's threshold is chosen for each picture; the best global one (in the picture's z-scores, either side of it) is
chosen on the training cases. Means over cases, as ``unet-med evaluate`` reports them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from skimage.filters import threshold_otsu

from unet_med.data import read_target
from unet_med.labels import LabelMap
from unet_med.manifest import ManifestCase, load_manifest

CANDIDATES = np.linspace(-2.5, 2.5, 201)


def overlap(mask: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Returns Dice and IoU."""
    both, either = int((mask & truth).sum()), int((mask | truth).sum())
    return 2 * both / max(int(mask.sum()) + int(truth.sum()), 1), both / max(either, 1)


def read(case: ManifestCase, labels: LabelMap) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first channel in z-scores, and the truth."""
    image = case.case.read().array[0].astype(np.float64)
    return (image - image.mean()) / max(image.std(), 1e-9), read_target(case, labels) == 1


def main() -> None:
    """Prints the table and the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--fold", type=int)
    parser.add_argument("--split", choices=["test"])
    options = parser.parse_args()
    manifest = load_manifest(options.manifest)
    labels = LabelMap.from_names(manifest.labels)
    held_out = [c for c in manifest.training if c.fold == options.fold] if options.split is None else manifest.test
    learnt = [c for c in manifest.training if options.split or c.fold != options.fold]
    scores = {(side, t): [] for side in (1, -1) for t in CANDIDATES}
    for case in learnt:
        image, truth = read(case, labels)
        for side, threshold in scores:
            scores[side, threshold].append(overlap(side * image > side * threshold, truth)[0])
    side, threshold = max(scores, key=lambda key: float(np.mean(scores[key])))
    rows: dict[str, list[tuple[float, float]]] = {"otsu": [], "best global threshold": []}
    for case in held_out:
        image, truth = read(case, labels)
        rows["otsu"].append(overlap(side * image > side * threshold_otsu(image), truth))
        rows["best global threshold"].append(overlap(side * image > side * threshold, truth))
    result = {
        name: dict(zip(("dice", "iou"), map(float, np.mean(row, axis=0)), strict=True)) for name, row in rows.items()
    }
    for name, row in result.items():
        print(f"{name:>22}: Dice {row['dice']:.4f}, IoU {row['iou']:.4f} ({len(held_out)} cases)")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
