"""Counting and measuring labels without a copy of the mask."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import pytest
from allocations import peak_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_med.geometry import Geometry
from unet_med.io.export import measure
from unet_med.io.export.measure import count_labels, label_boxes, label_centroids, measure_labels
from unet_med.volume import slabs


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=3),
    st.permutations(range(3)),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
)
def test_slabs_cover_every_voxel_once(shape: list[int], order: list[int], voxels: int, seed: int) -> None:
    array = np.zeros(shape, dtype=np.uint8).transpose([axis for axis in order if axis < len(shape)])
    for region in slabs(array, voxels):
        assert array[region].size <= voxels
        array[region] += 1
    assert (array == 1).all()


def test_slabs_follow_the_memory() -> None:
    array = np.zeros((4, 5, 6), dtype=np.uint8, order="F")
    assert [array[region].shape for region in slabs(array, 45)] == [(4, 5, 2)] * 3
    assert [array.T[region].shape for region in slabs(array.T, 15)] == [(1, 3, 4), (1, 2, 4)] * 6


@pytest.mark.parametrize("order", ["C", "F"])
def test_counts_are_those_of_the_whole(order: str) -> None:
    labels = np.asarray(np.random.default_rng(3).integers(0, 300, (130, 120, 90)), dtype=np.uint16, order=order)
    np.testing.assert_array_equal(count_labels(labels), np.bincount(labels.ravel()))
    some = labels[::-2, :, ::3]
    np.testing.assert_array_equal(count_labels(some, 400), np.bincount(some.ravel(), minlength=401))
    assert count_labels(np.zeros((0, 3), dtype=np.uint8), 2).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "measuring",
    [count_labels, label_centroids, label_boxes, lambda labels: measure_labels(labels, Geometry(labels.shape))],
)
def test_measuring_a_longer_mask_takes_no_more_memory(measuring: Callable[[np.ndarray], object]) -> None:
    peaks = []
    for length in (20, 160):
        labels = np.zeros((256, 256, length), dtype=np.uint8, order="F")
        labels[50:200, 50:200, 5:] = 3
        peaks.append(peak_bytes(lambda labels=labels: measuring(labels)))
    assert peaks[1] < 1.05 * peaks[0] + 10_000


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=3), st.integers(1, 50), st.integers(0, 2**32 - 1))
def test_measures_are_those_of_the_whole_however_it_is_cut(shape: list[int], voxels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = (rng.integers(0, 4, shape) * rng.integers(0, 2, shape)).astype(np.uint16)
    labels = labels.transpose(rng.permutation(len(shape)))
    with patch.object(measure, "slabs", lambda array: slabs(array, voxels)):
        sizes, centres, boxes = count_labels(labels), label_centroids(labels), label_boxes(labels)
    assert sorted(centres) == sorted(boxes) == [int(value) for value in np.unique(labels) if value]
    for value, centre in centres.items():
        points = np.argwhere(labels == value)
        assert sizes[value] == len(points)
        np.testing.assert_allclose(centre, points.mean(axis=0), rtol=1e-12)
        assert boxes[value] == tuple(slice(a, b + 1) for a, b in zip(points.min(0), points.max(0), strict=True))
