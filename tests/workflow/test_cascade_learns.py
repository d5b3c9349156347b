"""What a small patch cannot see, a first stage at low resolution shows it, in the same number of steps."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

from unet_med.io.source import IntakeOptions
from unet_med.workflows.manifest import make_manifest
from unet_med.workflows.train import train

SIZE, PATCH = 28, 8
PIPELINE = {
    "name": "far",
    "dims": 3,
    "preprocess": {
        "spacing_mm": [1.0, 1.0, 1.0],
        "normalisation": [{"scheme": "zscore"}],
        "crop_to_nonzero": False,
    },
    "network": {"features": [8, 16], "strides": [[1] * 3, [2] * 3], "kernels": [[3] * 3] * 2},
    "sampling": {"patch_voxels": [PATCH] * 3, "batch_size": 4, "foreground_share": 0.67},
    "training": {
        "epochs": 18,
        "steps_per_epoch": 24,
        "precision": "fp32",
        "learning_rate": 0.01,
        "workers": 0,
        "validation_every_epochs": 50,
    },
    "augment": {
        "mirror_axes": [],
        "rotation_probability": 0,
        "scaling_probability": 0,
        "low_resolution_probability": 0,
        "blur_probability": 0,
    },
    "tracking": {"enabled": False},
}


def far_image(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two equal balls at the bottom; the one below the mark at the top, more than a patch away, is label 2."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(SIZE)] * 3, indexing="ij"), -1)
    label, image = np.zeros((SIZE,) * 3, np.uint8), np.zeros((SIZE,) * 3)
    marked = (seed + 1) % 2
    for number, x in enumerate((7, 20)):
        ball = ((grid - np.array([x, 14, 5]) - rng.uniform(-1, 1, 3)) ** 2).sum(-1) < 3.5**2
        image[ball], label[ball] = 100, 2 if number == marked else 1
    mark = ((grid - np.array([(7, 20)[marked], 14, 23]) - rng.uniform(-1, 1, 3)) ** 2).sum(-1) < 4**2
    image[mark] = 200
    assert np.argwhere(mark)[:, 2].min() - np.argwhere(label)[:, 2].max() >= PATCH
    return (image + rng.normal(0, 8, image.shape)).astype(np.float32), label


@pytest.mark.slow
def test_two_stages_learn_what_one_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    for number in range(12):
        for folder, array in zip(("imagesTr", "labelsTr"), far_image(number), strict=True):
            (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "data" / folder / f"far_{number:02d}.nii.gz")
    make_manifest(tmp_path / "data", tmp_path / "M.json", folds=3, intake=IntakeOptions())
    (tmp_path / "far.yaml").write_text(yaml.safe_dump(PIPELINE), encoding="utf-8")
    dice = {}
    for name, low in (("one", "null"), ("two", "[3.5, 3.5, 3.5]")):
        change = [f"cascade.spacing_mm={low}"]
        outcome = train(
            tmp_path / "far.yaml", tmp_path / "M.json", tmp_path / name, fold="0", device="cpu", overrides=change
        )
        dice[name] = outcome.result["mean"]["dice"]
    assert dice["one"] < 0.55  # which ball is which is a guess
    assert dice["two"] > dice["one"] + 0.15
