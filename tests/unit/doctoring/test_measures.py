"""The measures of single labels, each against a plainer way to get it."""

from __future__ import annotations

import numpy as np
import pytest
from healthy_sets import body
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from unet_med.doctoring.labelling import between_shares, measure_label
from unet_med.doctoring.place import _contrast, air_limit, best_shift, place
from unet_med.doctoring.stored import between_of, is_interpolated, is_nearly_whole, without_steps_between
from unet_med.geometry import Geometry


def blob(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.asarray(ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2.5) > 0.05)


# ---- interpolation --------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), ndim=st.sampled_from([2, 3]), shift=st.floats(0.15, 0.85))
def test_a_shift_by_part_of_a_voxel_is_taken_back_to_the_middle(seed: int, ndim: int, shift: float) -> None:
    values = ndimage.shift(blob((24,) * ndim, seed).astype(np.float64), shift, order=1, mode="nearest")
    between = between_of(values)
    assume(len(np.unique(np.rint(values[~between]))) == 2)
    corrected = without_steps_between(values, between)
    np.testing.assert_array_equal(corrected, (values >= 0.5).astype(int))


@pytest.mark.parametrize("ndim", [2, 3])
def test_interpolation_is_known_by_where_its_values_lie(ndim: int) -> None:
    label = blob((40,) * ndim, 1).astype(np.float64)
    assert is_interpolated(ndimage.shift(label, 0.4, order=1, mode="nearest"))
    assert is_interpolated(ndimage.zoom(label, 1.7, order=1))


def test_probabilities_and_labels_are_no_interpolation() -> None:
    label = blob((30, 30, 30), 0)
    assert not is_interpolated(label.astype(np.float32))
    assert not is_interpolated(np.random.default_rng(0).random((30, 30, 30)))
    assert not is_interpolated(ndimage.gaussian_filter(label.astype(np.float32), 6.0))
    assert not is_interpolated(np.where(label, np.nan, 0.0))
    assert is_nearly_whole(label + 0.05)
    assert not is_nearly_whole(label + 0.3)


def test_of_more_than_two_values_the_nearest_voxel_counts() -> None:
    values = np.array([[0.0, 0.0, 0.7, 1.3, 2.0, 2.0, 1.4, 1.0, 1.0]])
    between = between_of(values)
    np.testing.assert_array_equal(without_steps_between(values, between)[0, [2, 3]], [0, 2])


def test_shares_of_values_between() -> None:
    label = np.zeros((40, 40), np.uint8)
    label[8:32, 8:32] = 3
    label[12:28, 12:28] = 5
    assert between_shares(label)[0][3] < 0.1  # four voxels thick: its two outer layers touch one side only
    rim = np.where(ndimage.binary_dilation(label == 5) & (label != 5), 4, label * (label == 5))
    assert between_shares(rim) == ({4: 1.0}, ())
    assert between_shares((label > 0).astype(np.uint8)) == ({}, ())


def test_centres_are_parts_of_the_image_in_the_patient() -> None:
    label = np.zeros((21, 11, 31), np.uint8)
    label[2, 5, 15], label[18, 5, 15] = 1, 2
    affine = np.diag([-2.0, 1.0, 3.0, 1.0])  # the first axis runs to the left
    measured = measure_label(label, label, Geometry(label.shape, affine), instances=False)
    assert measured.oriented
    np.testing.assert_allclose(measured.centres[1], [0.4, 0, 0], atol=1e-6)
    np.testing.assert_allclose(measured.centres[2], [-0.4, 0, 0], atol=1e-6)
    plain = measure_label(label, label, Geometry(label.shape), instances=False)
    assert not plain.oriented
    np.testing.assert_allclose(plain.centres[1], [-0.4, 0, 0], atol=1e-6)
    objects = measure_label(label, label, Geometry(label.shape), instances=True)
    assert set(objects.centres) == {1}
    assert (objects.between, objects.direct) == ({}, None)


# ---- place ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_best_shift_is_that_of_trying_all(sign: float) -> None:
    random = np.random.default_rng(4)
    image = ndimage.gaussian_filter(random.normal(size=(24, 20)), 1.0).astype(np.float32)
    label = np.zeros(image.shape, bool)
    label[9:14, 8:12] = True
    tried = {}
    for i in range(-6, 7):
        for j in range(-5, 6):
            moved = np.zeros_like(label)
            moved[9 + i : 14 + i, 8 + j : 12 + j] = True  # the label never leaves the image
            contrast = _contrast(image, moved)
            assert contrast is not None
            tried[i, j] = sign * contrast
    best = max(tried, key=lambda shift: tried[shift])
    shift, contrast = best_shift(image, label, sign)
    assert shift == best
    assert sign * contrast == pytest.approx(tried[best], abs=1e-6)


@pytest.mark.parametrize("move", [(4, 0, 0), (0, -5, 3), (-3, 4, -2)])
def test_a_moved_label_finds_home(move: tuple[int, int, int]) -> None:
    image, label = body(0)
    moved = np.roll(label > 0, move, (0, 1, 2))
    shift, _ = best_shift(image, moved, 1.0)
    assert shift == tuple(-step for step in move)


def test_large_images_are_searched_in_steps() -> None:
    image = np.zeros((600, 560), np.float32)
    image[200:260, 300:380] = 100
    image += np.random.default_rng(0).normal(0, 5, image.shape)
    label = np.zeros(image.shape, bool)
    label[230:290, 240:320] = True
    shift, contrast = best_shift(image, label, 1.0)
    assert np.abs(np.array(shift) - (-30, 60)).max() <= 3
    assert contrast > 1.5


def test_air_is_dark_even_and_large() -> None:
    image, label = body(1)
    limit = air_limit(image)
    assert limit is not None
    assert 10 < limit < 90
    found = place(image, label > 0)
    assert found.on_air == 0.0
    assert found.on_nothing == 0.0
    assert place(image, np.pad(np.ones((3, 3, 3), bool), [(0, n - 3) for n in image.shape])).on_air == 1.0
    assert air_limit(np.random.default_rng(0).normal(size=(60, 60)).astype(np.float32)) is None
    assert air_limit(np.zeros((60, 60), np.float32)) is None
    assert place(np.ones((9, 9), np.float32), np.ones((9, 9), bool)).contrast is None
