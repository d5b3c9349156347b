"""Our metrics against MONAI's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou, compute_surface_dice
from scipy import ndimage

from unet_med.labels import LabelMap
from unet_med.metrics import case_metrics

LABELS = LabelMap.from_names({"a": 1, "b": 2})


def blobs(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Smooth shapes that touch the image border here and there."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2.5, mode="wrap")
    return np.digitize(noise, np.quantile(noise, (0.6, 0.85))).astype(np.uint8)


def one_hot(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack([array == value for value in range(3)]).astype(np.float32))[None]


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((40, 50), (1.0, 1.0)), ((31, 44), (0.5, 1.7)), ((18, 22, 15), (1.0, 1.0, 1.0)), ((20, 17, 9), (0.7, 1.1, 3.0))],
)
@pytest.mark.parametrize("tolerance", [0.0, 1.0, 2.2])
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI calls its own old option
def test_equal_to_monai(shape: tuple[int, ...], spacing: tuple[float, ...], tolerance: float) -> None:
    mask, truth = blobs(shape, 1), blobs(shape, 2)
    truth = np.where(np.random.default_rng(3).random(shape) < 0.9, mask, truth).astype(np.uint8)
    ours = case_metrics(mask, truth, spacing, LABELS, tolerance)
    pred, ref = one_hot(mask), one_hot(truth)
    dice = compute_dice(pred, ref, include_background=False)[0]
    iou = compute_iou(pred, ref, include_background=False)[0]
    hd95 = compute_hausdorff_distance(pred, ref, percentile=95, spacing=list(spacing))[0]
    nsd = compute_surface_dice(pred, ref, class_thresholds=[tolerance] * 2, spacing=list(spacing))[0]
    for position, name in enumerate(("a", "b")):
        scores = ours[name]
        assert scores["dice"] == pytest.approx(float(dice[position]), rel=1e-5)
        assert scores["iou"] == pytest.approx(float(iou[position]), rel=1e-5)
        assert scores["hd95_mm"] == pytest.approx(float(hd95[position]), rel=1e-4)
        assert scores["nsd"] == pytest.approx(float(nsd[position]), rel=1e-5)
        assert scores["hd95_mm"] > 0
