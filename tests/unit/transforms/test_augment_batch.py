"""A batch on a device against the changes of one sample at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_med.config import Augment
from unet_med.transforms.augment import (
    IntensityChange,
    SpatialChange,
    apply_intensity,
    draw_intensity,
    draw_spatial,
    sample_patch,
)
from unet_med.transforms.augment_batch import change_intensities, plan_cuts, read_box, sample_patches

CPU = torch.device("cpu")
NOTHING = IntensityChange(None, 0, None, None, None, None, None, None)
CROP = SpatialChange(np.eye(3), None, (0, 2))


def settings_of(**changes: object) -> Augment:
    return Augment(rotation_degrees=(-30, 30), mirror_axes=(0, 1, 2), **changes)


def smooth(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """An image without noise: positions that differ in the last digit must not differ in value."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(0, 3, n) for n in shape[1:]], indexing="ij")
    return np.stack([sum(np.sin(a * rng.uniform(0.5, 2) + rng.uniform(0, 6)) for a in axes) for _ in range(shape[0])])


def cut_both(
    arrays: list[np.ndarray],
    centres: list[np.ndarray],
    changes: list[SpatialChange],
    shape: tuple[int, ...],
    **how: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    expected = [
        torch.from_numpy(sample_patch(array, centre, shape, change, **how))
        for array, centre, change in zip(arrays, centres, changes, strict=True)
    ]
    cuts = plan_cuts(centres, changes, shape)
    sources = [array if n % 2 else torch.from_numpy(array) for n, array in enumerate(arrays)]
    mirrored = how["mirrored_border"]
    boxes = [read_box(source, cut, mirrored_border=mirrored) for source, cut in zip(sources, cuts, strict=True)]
    return sample_patches(boxes, cuts, shape, nearest=how["nearest"]), torch.stack(expected)


@given(
    dims=st.sampled_from([2, 3]),
    seed=st.integers(0, 2**20),
    mirrored=st.booleans(),
    elastic=st.booleans(),
)
@settings(max_examples=15, deadline=None)
def test_patches_are_those_of_the_single_samples(dims: int, seed: int, mirrored: bool, elastic: bool) -> None:
    rng = np.random.default_rng(seed)
    augment = settings_of(
        rotation_probability=0.6, scaling_probability=0.5, elastic_probability=0.5 * elastic, elastic_sd_voxels=2.0
    )
    shape = tuple(int(n) for n in rng.integers(2, 12, dims))
    arrays = [smooth((2, *rng.integers(1, 15, dims)), seed + n).astype(np.float32) for n in range(4)]
    changes = [draw_spatial(augment, rng, dims, (1.0, 1.5, 2.0)[:dims]) for _ in arrays]
    centres = [
        np.array([round(rng.uniform(0, n)) + (p - 1) % 2 / 2 for n, p in zip(a.shape[1:], shape, strict=True)])
        for a in arrays
    ]
    ours, expected = cut_both(arrays, centres, changes, shape, nearest=False, mirrored_border=mirrored)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


def test_labels_are_the_nearest_voxels() -> None:
    rng = np.random.default_rng(3)
    labels = [rng.integers(0, 900, (1, 14, 11, 13)).astype(np.uint16) for _ in range(2)]
    changes = [draw_spatial(settings_of(rotation_probability=1), rng, 3, None), CROP]
    sources = [labels[0], torch.from_numpy(labels[1].astype(np.int32))]
    cuts = plan_cuts([np.array([6.0, 5.5, 7.0])] * 2, changes, (9, 8, 9))
    boxes = [read_box(source, cut, mirrored_border=False) for source, cut in zip(sources, cuts, strict=True)]
    ours = sample_patches(boxes, cuts, (9, 8, 9), nearest=True)
    for patch, label, cut in zip(ours, labels, cuts, strict=True):
        expected = sample_patch(label, cut.centre, (9, 8, 9), cut.change, nearest=True, mirrored_border=False)
        assert (patch.numpy() != expected).mean() < 1e-3  # a voxel half-way between two may go either way
        assert set(np.unique(patch.numpy())) <= {0, *np.unique(label)}


def test_a_patch_beside_the_case_is_empty() -> None:
    array = np.ones((1, 4, 4, 4), dtype=np.float32)
    far = SpatialChange(np.eye(3) * 1.1, None, ())
    centres = [np.array([40.0, 2.0, 2.0])] * 2
    ours, expected = cut_both([array] * 2, centres, [far, CROP], (3, 3, 3), nearest=False, mirrored_border=False)
    assert not ours.any()
    assert not expected.any()


@pytest.mark.parametrize("dims", [2, 3])
def test_values_change_as_they_do_one_by_one(dims: int) -> None:
    rng = np.random.default_rng(5)
    every = dict.fromkeys(("blur", "brightness", "contrast", "low_resolution", "gamma", "gamma_inverted"), 0.5)
    augment = settings_of(noise_probability=0.0, **{f"{name}_probability": share for name, share in every.items()})
    images = rng.normal(1, 2, (12, 2, 9, 8, 7)[: dims + 2]).astype(np.float32)
    images[0] = 3.0
    changes = [draw_intensity(augment, rng) for _ in images]
    expected = np.stack([apply_intensity(image, change) for image, change in zip(images, changes, strict=True)])
    ours = change_intensities(torch.from_numpy(images), changes)
    torch.testing.assert_close(ours, torch.from_numpy(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"blur_sigma": 0.9},
        {"brightness": 1.2},
        {"contrast": 1.2},
        {"zoom": 0.6},
        {"gamma": 0.8},
        {"gamma_inverted": 1.3},
    ],
)
def test_each_change_alone_touches_only_its_own_image(change: dict[str, float]) -> None:
    images = np.random.default_rng(0).normal(0, 1, (3, 1, 10, 12)).astype(np.float32)
    images[1] = 2.5  # flat: gamma has nothing to work with
    changes = [replace(NOTHING, **change), replace(NOTHING, **change), NOTHING]
    expected = np.stack([apply_intensity(image, one) for image, one in zip(images, changes, strict=True)])
    ours = change_intensities(torch.from_numpy(images.copy()), changes).numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    assert np.array_equal(ours[2], images[2])
    assert not np.allclose(ours[0], images[0], atol=1e-3)


def test_noise_has_its_width_and_depends_on_its_seed_alone() -> None:
    changes = [replace(NOTHING, noise_sd=0.3, noise_seed=7), NOTHING, replace(NOTHING, noise_sd=0.1, noise_seed=8)]
    first = change_intensities(torch.zeros(3, 1, 40, 40), changes)
    again = change_intensities(torch.zeros(1, 1, 40, 40), changes[:1])
    assert torch.equal(first[:1], again)
    assert float(first[0].std()) == pytest.approx(0.3, rel=0.1)
    assert abs(float(first[0].mean())) < 0.03
    assert not first[1].any()
    assert float(first[2].std()) == pytest.approx(0.1, rel=0.1)
    assert not torch.allclose(first[0] / 3, first[2], atol=0.01)
