"""A small data set of two balls, one beside the other, and a pipeline that learns it in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (24, 28, 20)
SPACING = (1.0, 1.0, 1.5)

PIPELINE = {
    "name": "toy",
    "dims": 3,
    "preprocess": {
        "spacing_mm": list(SPACING),
        "normalisation": [{"scheme": "zscore"}],
        "crop_to_nonzero": False,
    },
    "network": {
        "features": [8, 16],
        "strides": [[1, 1, 1], [2, 2, 2]],
        "kernels": [[3, 3, 3], [3, 3, 3]],
    },
    "sampling": {"patch_voxels": [32, 32, 24], "batch_size": 2},
    "training": {
        "epochs": 3,
        "steps_per_epoch": 40,
        "learning_rate": 0.01,
        "workers": 0,
        "validation_every_epochs": 1,
    },
    "augment": {"low_resolution_probability": 0, "blur_probability": 0},
}


def toy_image(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A large dim ball and a small bright one to the right of and above it; no symmetry maps one case to itself."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    large = np.array([9.0, 11.0, 8.0]) + rng.uniform(-1, 1, 3)
    small = large + np.array([7.0, 3.0, 5.0]) + rng.uniform(-0.5, 0.5, 3)
    label = np.zeros(SHAPE, dtype=np.uint8)
    label[((grid - large) ** 2).sum(-1) < 5.5**2] = 1
    label[((grid - small) ** 2).sum(-1) < 3.2**2] = 2
    image = np.choose(label, (0.0, 60.0, 140.0)) + rng.normal(0, 8, SHAPE)
    return image.astype(np.float32), label


def write_toy_set(folder: Path, cases: int = 6) -> Path:
    affine = np.diag([*SPACING, 1.0])
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for number in range(cases):
        image, label = toy_image(number)
        nib.save(nib.Nifti1Image(image, affine), folder / "imagesTr" / f"toy_{number:02d}.nii.gz")
        nib.save(nib.Nifti1Image(label, affine), folder / "labelsTr" / f"toy_{number:02d}.nii.gz")
    return folder


@dataclass(frozen=True)
class Trained:
    """Where the shared training lies."""

    work: Path
    data: Path
    manifest: Path
    pipeline: Path
    run: Path
