"""AP of nuclei on held-out pictures: plain thresholds, models, and what others have published.

    python tests/benchmarks/nuclei_scores.py nuclei.json --fold 0 [--metrics EVALUATION/metrics.json ...]

Plain: Otsu's threshold of the smoothed picture (of the side that is the smaller part), its distance map cut by a
watershed; smoothing and smallest distance of two nuclei are those of the best mean AP on the other folds. AP is
TP / (TP + FP + FN), pooled over all objects and averaged over pictures. The published numbers (Data Science Bowl 2018,
fluorescence; Schmidt et al. 2018) are of 447 training and 50 test pictures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from machine import markdown
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.filters import threshold_otsu
from skimage.segmentation import watershed

from unet_med.manifest import ManifestCase, load_manifest
from unet_med.metrics import match_objects, summarise_objects

IOU = ("0.50", "0.70", "0.75", "0.90")
ENDS = {"pooled": "", "mean of pictures": "_per_image"}
SIGMAS, DISTANCES = (1.0, 2.0), (3, 5, 8, 12)
PUBLISHED = {
    "StarDist (published)": (0.864, 0.685, 0.586, 0.119),
    "U-Net with border class (published)": (0.806, 0.654, 0.578, 0.226),
    "Mask R-CNN (published)": (0.832, 0.684, 0.597, 0.189),
}


def cut(image: np.ndarray, sigma: float, distance: int) -> np.ndarray:
    """Returns numbers of nuclei."""
    smooth = ndimage.gaussian_filter(image.astype(np.float64), sigma)
    inside = smooth > threshold_otsu(smooth)
    inside = inside if inside.mean() <= 0.5 else ~inside
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(inside), 1.0)
    peaks = peak_local_max(depth, min_distance=distance, labels=ndimage.label(inside)[0], exclude_border=False)
    seeds = np.zeros(image.shape, dtype=np.int32)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    return watershed(-depth, seeds, mask=inside)


def matches(cases: Sequence[ManifestCase]) -> dict[tuple[float, int], list[dict[str, Any]]]:
    """Returns the matched objects of each case for each choice."""
    found: dict[tuple[float, int], list[dict[str, Any]]] = {choice: [] for choice in product(SIGMAS, DISTANCES)}
    for case in cases:
        image, truth = case.case.read().array.mean(axis=0), case.case.read_label()
        for choice, rows in found.items():
            rows.append(match_objects(cut(image, *choice), truth))
    return found


def row(scores: dict[str, Any], end: str) -> list[str]:
    return [f"{scores['ap' + end][key]:.3f}" for key in IOU]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--fold", type=int, required=True)
    parser.add_argument("--metrics", type=Path, nargs="*", default=[], help="of `unet-med evaluate`, on the same fold")
    options = parser.parse_args()
    training = load_manifest(options.manifest).training
    learnt = matches([case for case in training if case.fold != options.fold])
    best = max(learnt, key=lambda choice: summarise_objects(learnt[choice])["ap_mean"])
    held_out = [case for case in training if case.fold == options.fold]
    scored = {f"Otsu, watershed (sigma {best[0]:g}, {best[1]} px)": summarise_objects(matches(held_out)[best])}
    for path in options.metrics:
        scored[path.parent.name] = json.loads(path.read_text(encoding="utf-8"))["instance"]
    table = [[f"{name}, {how}", *row(one, end)] for name, one in scored.items() for how, end in ENDS.items()]
    table += [[name, *(f"{value:.3f}" for value in values)] for name, values in PUBLISHED.items()]
    print(f"fold {options.fold}: {len(held_out)} pictures\n\n{markdown(['', *(f'AP@{key}' for key in IOU)], table)}")


if __name__ == "__main__":
    main()
