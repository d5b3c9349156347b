"""Random changes: what is drawn is what is applied, image and label move together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_med.config import Augment
from unet_med.transforms.augment import (
    SpatialChange,
    apply_intensity,
    draw_intensity,
    draw_spatial,
    sample_patch,
)

NOTHING = SpatialChange(np.eye(3), None, ())
EVERYTHING = Augment(
    rotation_probability=1,
    rotation_degrees=(-30, 30),
    scaling_probability=1,
    elastic_probability=1,
    elastic_sd_voxels=2,
    mirror_axes=(0, 1, 2),
    noise_probability=1,
    blur_probability=1,
    brightness_probability=1,
    contrast_probability=1,
    low_resolution_probability=1,
    gamma_probability=1,
    gamma_inverted_probability=1,
)


def cut(
    array: np.ndarray, centre: list[float], shape: tuple[int, ...], change: SpatialChange = NOTHING, **more: bool
) -> np.ndarray:
    return sample_patch(
        array,
        np.array(centre, dtype=float),
        shape,
        change,
        nearest=more.get("nearest", False),
        mirrored_border=more.get("mirrored", False),
    )


def test_no_change_is_a_plain_crop() -> None:
    array = np.random.default_rng(0).random((2, 10, 11, 12)).astype(np.float32)
    patch = cut(array, [4.5, 5.5, 6.5], (4, 6, 8))
    np.testing.assert_array_equal(patch, array[:, 3:7, 3:9, 3:11])


def test_the_outside_is_zero_or_mirrored() -> None:
    array = np.arange(1, 6, dtype=np.float32).reshape(1, 5, 1, 1)
    np.testing.assert_array_equal(cut(array, [2, 0, 0], (9, 1, 1))[0, :, 0, 0], [0, 0, 1, 2, 3, 4, 5, 0, 0])
    mirrored = cut(array, [2, 0, 0], (9, 1, 1), mirrored=True)
    np.testing.assert_array_equal(mirrored[0, :, 0, 0], [3, 2, 1, 2, 3, 4, 5, 4, 3])


def test_interpolated_identity_equals_the_crop() -> None:
    array = np.random.default_rng(0).random((1, 12, 12, 12)).astype(np.float32)
    still = SpatialChange(np.eye(3), np.zeros((3, 3, 3, 3)), ())
    np.testing.assert_allclose(
        cut(array, [5.5, 5.5, 5.5], (6, 6, 6), still), cut(array, [5.5, 5.5, 5.5], (6, 6, 6)), atol=1e-5
    )


def test_a_quarter_turn_is_rot90() -> None:
    array = np.random.default_rng(0).random((1, 9, 9)).astype(np.float32)
    quarter = SpatialChange(np.array([[0.0, -1.0], [1.0, 0.0]]), None, ())
    turned = cut(array, [4, 4], (9, 9), quarter)
    np.testing.assert_allclose(turned[0], np.rot90(array[0], -1), atol=1e-5)


def test_scaling_by_two_halves_the_object() -> None:
    array = np.zeros((1, 32, 32), dtype=np.float32)
    array[0, 8:24, 8:24] = 1
    larger = cut(array, [15.5, 15.5], (32, 32), SpatialChange(np.eye(2) * 2, None, ()))
    assert larger.sum() == pytest.approx(64, rel=0.2)


def test_constant_displacement_is_a_shift() -> None:
    array = np.random.default_rng(0).random((1, 20, 20)).astype(np.float32)
    shift = np.zeros((2, 3, 3))
    shift[0] = 3.0
    moved = cut(array, [9.5, 9.5], (8, 8), SpatialChange(np.eye(2), shift, ()))
    np.testing.assert_allclose(moved, array[:, 9:17, 6:14], atol=1e-4)


def test_flips_reverse_the_patch() -> None:
    array = np.random.default_rng(0).random((1, 8, 8, 8)).astype(np.float32)
    flipped = cut(array, [3.5, 3.5, 3.5], (8, 8, 8), SpatialChange(np.eye(3), None, (1,)))
    np.testing.assert_array_equal(flipped, array[:, :, ::-1])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_image_and_label_move_together(seed: int) -> None:
    label = np.zeros((1, 24, 24, 24), dtype=np.uint8)
    label[0, 8:18, 6:16, 9:17] = 1
    change = draw_spatial(EVERYTHING, np.random.default_rng(seed), 3, (1.0, 1.0, 2.0))
    centre = [11.5, 11.5, 11.5]
    image = cut(label.astype(np.float32), centre, (16, 16, 16), change)
    moved = cut(label, centre, (16, 16, 16), change, nearest=True)
    assert set(np.unique(moved)) <= {0.0, 1.0}
    assert (np.abs(image - moved) <= 0.88).all()
    assert np.abs(image - moved).mean() < 0.12


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_intensity_changes_are_finite_and_repeatable(seed: int) -> None:
    image = np.random.default_rng(seed).normal(size=(2, 12, 10, 8)).astype(np.float32)
    change = draw_intensity(EVERYTHING, np.random.default_rng(seed))
    once, again = apply_intensity(image.copy(), change), apply_intensity(image.copy(), change)
    assert once.shape == image.shape
    assert once.dtype == np.float32
    assert np.isfinite(once).all()
    np.testing.assert_array_equal(once, again)
    assert not np.allclose(once, image)


def test_thick_slices_turn_in_their_plane_only() -> None:
    change = draw_spatial(
        Augment(rotation_probability=1, rotation_degrees=(20, 30), scaling_probability=0, mirror_axes=()),
        np.random.default_rng(0),
        3,
        (1.0, 1.0, 5.0),
    )
    np.testing.assert_allclose(change.matrix[2], [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(change.matrix[:, 2], [0, 0, 1], atol=1e-12)
    assert abs(change.matrix[0, 1]) > 0.1


def test_rotation_is_one_in_millimetres() -> None:
    spacing = np.array([1.0, 1.0, 2.0])
    change = draw_spatial(
        Augment(rotation_probability=1, rotation_degrees=(-30, 30), scaling_probability=0, mirror_axes=()),
        np.random.default_rng(0),
        3,
        tuple(spacing),
    )
    in_mm = np.diag(spacing) @ change.matrix @ np.diag(1 / spacing)
    np.testing.assert_allclose(in_mm @ in_mm.T, np.eye(3), atol=1e-9)
