"""Copies of an image are known again, other images are not taken for copies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from unet_med.doctoring.likeness import SAME_STRUCTURE, _correlation, cell_size, likeness, near_duplicates

SHAPES = {2: (120, 96), 3: (40, 44, 36)}


def picture(ndim: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    coarse = ndimage.gaussian_filter(random.normal(size=SHAPES[ndim]), 6.0)
    fine = ndimage.gaussian_filter(random.normal(size=SHAPES[ndim]), 1.5)
    return (coarse / coarse.std() + fine / fine.std()).astype(np.float32)


def found(*images: np.ndarray) -> list[tuple[int, int]]:
    cells = cell_size([image.shape for image in images])
    kept = [likeness(image, cells[image.ndim]) for image in images]
    return [(one, other) for one, other, _ in near_duplicates(kept, lambda one, other: True)]


@settings(deadline=None, max_examples=12)
@given(
    ndim=st.sampled_from([2, 3]),
    seed=st.integers(0, 10_000),
    start=st.lists(st.integers(0, 2), min_size=3, max_size=3),
    stop=st.lists(st.integers(0, 2), min_size=3, max_size=3),
    noise=st.floats(0, 0.2),
    gain=st.floats(0.01, 100),
    offset=st.floats(-1000, 1000),
)
def test_a_cropped_noisy_brighter_copy_is_known(
    ndim: int, seed: int, start: list[int], stop: list[int], noise: float, gain: float, offset: float
) -> None:
    image = picture(ndim, seed)
    crop = tuple(slice(low, n - high) for low, high, n in zip(start, stop, image.shape, strict=False))
    noisy = image + np.random.default_rng(seed + 1).normal(0, noise * image.std(), image.shape)
    copy = (gain * noisy[crop].astype(np.float64) + offset).astype(np.float32)
    assert found(image, picture(ndim, seed + 20_000), copy) == [(0, 2)]


@settings(deadline=None, max_examples=8)
@given(ndim=st.sampled_from([2, 3]), seed=st.integers(0, 10_000))
def test_other_images_are_no_copies(ndim: int, seed: int) -> None:
    assert found(*(picture(ndim, seed + 20_000 * number) for number in range(4))) == []


def test_a_copy_of_large_pictures_is_known_where_cells_do_not_fit() -> None:
    random = np.random.default_rng(0)
    pictures = [
        sum(
            ndimage.zoom(random.normal(size=(400 // step, 500 // step)), step, order=1)[:400, :500] * step
            for step in (4, 10, 20)
        )
        for _ in range(4)
    ]
    assert found(*pictures, pictures[2][1:, 2:]) == [(2, 4)]


def test_only_pairs_that_matter_are_named() -> None:
    image = picture(3, 0)
    cells = cell_size([image.shape])
    kept = [likeness(image, cells[3])] * 3
    assert [pair[:2] for pair in near_duplicates(kept, lambda one, other: (one, other) == (0, 2))] == [(0, 2)]


def test_nothing_is_kept_of_what_shows_nothing() -> None:
    assert likeness(np.full((30, 40, 20), 3.0, np.float32), (1, 1, 1)) is None
    assert likeness(np.random.default_rng(0).normal(size=(64, 64, 1)), (1, 1, 1)) is None
    assert found(picture(2, 0), picture(3, 0)) == []


@pytest.mark.parametrize("shift", [(0, 0), (3, -2), (-5, 4)])
def test_correlation_is_pearsons_of_the_overlap(shift: tuple[int, int]) -> None:
    one, other = picture(2, 1), picture(2, 2)[:100, :90]
    first = one[max(shift[0], 0) :, max(shift[1], 0) :]
    second = other[max(-shift[0], 0) :, max(-shift[1], 0) :]
    rows, columns = min(len(first), len(second)), min(first.shape[1], second.shape[1])
    expected = np.corrcoef(first[:rows, :columns].ravel(), second[:rows, :columns].ravel())[0, 1]
    assert _correlation(one, other, shift) == pytest.approx(expected, abs=1e-5)
    assert 0 < SAME_STRUCTURE < 1
