"""Clean images are hardly ever unusual; spoilt ones are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from unet_med.geometry import Geometry
from unet_med.inference.quality.outliers import Typical, traits

Shared = Callable[[str], Path]
FOLDS = 5


def _traits(image: np.ndarray, spacing: tuple[float, ...] = (1.0, 1.0, 1.0)) -> dict[str, float]:
    seen = ((image - image.mean()) / image.std())[None].astype(np.float32)
    return traits(Geometry.from_spacing(image.shape, spacing), image.shape, lambda row: seen[:, row])


@pytest.fixture
def images(shared_data: Shared) -> list[np.ndarray]:
    folder = shared_data("msd_hippocampus") / "imagesTr"
    return [np.asarray(nib.load(path).dataobj, dtype=np.float32) for path in sorted(folder.glob("*.nii.gz"))]


def test_at_most_one_clean_hippocampus_in_twenty_is_unusual(images: list[np.ndarray]) -> None:
    measured = [_traits(image) for image in images]
    alarms = 0
    for fold in range(FOLDS):
        known = Typical.of([one for number, one in enumerate(measured) if number % FOLDS != fold])
        alarms += sum(bool(known.unusual(one)) for one in measured[fold::FOLDS])
    assert alarms <= 0.05 * len(images)


@pytest.mark.parametrize(
    ("change", "spacing"),
    [
        (lambda image: -image, 1.0),
        (lambda image: ndimage.gaussian_filter(image, 2.5), 1.0),
        (lambda image: image + np.random.default_rng(0).normal(0, 1.5 * image.std(), image.shape), 1.0),
        (lambda image: image, 1.5),
        (lambda image: np.tile(image, (2, 2, 2)), 1.0),
        (lambda image: image[:, :20], 1.0),
    ],
    ids=["inverted", "blurred", "noisy", "spacing", "field of view", "cut off"],
)
def test_spoilt_hippocampi_are_unusual(images: list[np.ndarray], change, spacing: float) -> None:
    known = Typical.of([_traits(image) for image in images[20:]])
    found = [bool(known.unusual(_traits(change(image), (spacing,) * 3))) for image in images[:20]]
    assert np.mean(found) >= 0.8
