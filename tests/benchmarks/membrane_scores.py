"""V_rand and V_info of membranes on held-out sections, beside plain thresholds of the picture.

    python tests/benchmarks/membrane_scores.py membrane.json --split test --model RUN
    python tests/benchmarks/membrane_scores.py membrane.json --fold 0

The measures of the ISBI 2012 challenge: the boundary map is cut at a threshold, its membrane thinned to one pixel by a
watershed; the best threshold for the mean of all sections counts. "Watershed" cuts the map itself along its crests; the
number is then the best depth of its valleys. The plain map is the darkness of the smoothed
picture between its 1st and 99th percentile; the best width of the smoothing is taken.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import markdown
from scipy import ndimage
from skimage.filters import threshold_otsu

from unet_med.bundle import load_bundles
from unet_med.data import read_target
from unet_med.inference.predictor import Predictor
from unet_med.labels import LabelMap
from unet_med.manifest import ManifestCase, load_manifest
from unet_med.metrics import (
    MEMBRANE_SCORES,
    cells_beside,
    mask_curve,
    membrane_curve,
    summarise_membranes,
    watershed_curve,
)

MEMBRANE = 1
SIGMAS = (1.0, 2.0, 3.0)

Curves = list[dict[str, Any]]


def darkness(image: np.ndarray, sigma: float) -> np.ndarray:
    """Dark is 1, bright 0."""
    smooth = ndimage.gaussian_filter(image.astype(np.float64), sigma)
    low, high = np.percentile(smooth, (1, 99))
    return 1 - np.clip((smooth - low) / max(high - low, 1e-9), 0, 1)


def sections(cases: Sequence[ManifestCase], labels: LabelMap) -> Iterator[tuple[ManifestCase, np.ndarray, np.ndarray]]:
    """Yields each case, its picture and its true cells."""
    for case in cases:
        yield case, case.case.read().array[0], cells_beside(read_target(case, labels) == MEMBRANE)


def plain(cases: Sequence[ManifestCase], labels: LabelMap) -> dict[str, Curves]:
    """Thresholds of the picture."""
    rows: dict[str, Curves] = defaultdict(list)
    for _, image, true_cells in sections(cases, labels):
        smooth = ndimage.gaussian_filter(image.astype(np.float64), 1.0)
        rows["Otsu"].append(mask_curve(cells_beside(smooth < threshold_otsu(smooth)), true_cells))
        for sigma in SIGMAS:
            rows[f"darkness, sigma {sigma:g}"].append(membrane_curve(darkness(image, sigma), true_cells))
            rows[f"darkness, sigma {sigma:g}, watershed"].append(watershed_curve(darkness(image, sigma), true_cells))
    return rows


def learnt(cases: Sequence[ManifestCase], labels: LabelMap, model: Path, device: str) -> dict[str, Curves]:
    """What a model says: its probabilities, and its masks."""
    predictor = Predictor(load_bundles(model), device)
    rows: dict[str, Curves] = defaultdict(list)
    for case, _, true_cells in sections(cases, labels):
        prediction = predictor.predict(case.case.read(), probabilities=True)
        assert prediction.probabilities is not None
        chances = prediction.probabilities[MEMBRANE - 1]
        rows["model, best threshold"].append(membrane_curve(chances, true_cells))
        rows["model, watershed"].append(watershed_curve(chances, true_cells))
        rows["model, mask"].append(mask_curve(cells_beside(prediction.labels == MEMBRANE), true_cells))
    return rows


def main() -> None:
    """Prints the table and the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--fold", type=int)
    parser.add_argument("--split", choices=["test"])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    manifest = load_manifest(options.manifest)
    labels = LabelMap.from_names(manifest.labels)
    cases = [c for c in manifest.training if c.fold == options.fold] if options.split is None else manifest.test
    rows = plain(cases, labels)
    if options.model is not None:
        rows |= learnt(cases, labels, options.model, options.device)
    scores = {name: summarise_membranes(curves) for name, curves in rows.items()}
    columns = (*MEMBRANE_SCORES, "v_rand_threshold", "v_info_threshold")
    table = [[name, *(_cell(one[column]) for column in columns)] for name, one in scores.items()]
    print(f"{len(cases)} sections\n\n{markdown(['', *columns], table)}\n")
    print(json.dumps({name: {column: one[column] for column in columns} for name, one in scores.items()}))


def _cell(value: float | str | None) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value or "-")


if __name__ == "__main__":
    main()
