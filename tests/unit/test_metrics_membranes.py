from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unet_med.metrics import (
    MEMBRANE_SCORES,
    cells_beside,
    flooded,
    mask_curve,
    membrane_curve,
    membrane_scores,
    summarise,
    summarise_membranes,
    thinned,
    watershed_curve,
)

SHAPES = st.one_of(st.tuples(*[st.integers(1, 8)] * 2), st.tuples(*[st.integers(1, 5)] * 3))


@st.composite
def partitions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(SHAPES)
    values = hnp.arrays(np.uint8, shape, elements=st.integers(0, 4))
    return draw(values), draw(values)


def two_cells(wall: slice) -> np.ndarray:
    membrane = np.zeros((20, 30), dtype=bool)
    membrane[:, wall] = True
    return membrane


def test_cells_hang_together_by_faces() -> None:
    diagonal = np.eye(3, dtype=bool)
    assert cells_beside(~diagonal).max() == 3
    assert cells_beside(diagonal).max() == 2
    assert cells_beside(np.ones((2, 2, 2), dtype=bool)).max() == 0


@pytest.mark.parametrize("width", [1, 2, 5, 6])
def test_thinned_membranes_are_one_voxel_wide(width: int) -> None:
    cells = cells_beside(two_cells(slice(12, 12 + width)))
    thin = thinned(cells)
    assert (np.count_nonzero(thin == 0, axis=1) == 1).all()
    assert set(np.unique(thin)) == {0, 1, 2}
    np.testing.assert_array_equal(thin[cells > 0], cells[cells > 0])


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(bool, SHAPES))
def test_thinning_keeps_cells_and_joins_none(membrane: np.ndarray) -> None:
    cells = cells_beside(membrane)
    thin = thinned(cells)
    np.testing.assert_array_equal(thin[cells > 0], cells[cells > 0])
    assert set(np.unique(thin)) - {0} == set(np.unique(cells)) - {0}
    for axis in range(thin.ndim):
        one, next_one = (np.moveaxis(thin, axis, 0)[part] for part in (slice(1, None), slice(-1)))
        assert ((one == next_one) | (one == 0) | (next_one == 0)).all()


def test_the_width_of_a_membrane_does_not_count() -> None:
    true_cells = cells_beside(two_cells(slice(14, 15)))
    wide = mask_curve(cells_beside(two_cells(slice(12, 17))), true_cells)["0.50"]
    assert wide == dict.fromkeys(MEMBRANE_SCORES, 1.0)


def test_merging_and_splitting_by_hand() -> None:
    half = np.repeat([1, 2], 8)[None]
    one = np.ones_like(half)
    merged = membrane_scores(one, half)
    assert (merged["v_rand_split"], merged["v_rand_merge"]) == (1.0, 0.5)
    assert merged["v_rand"] == pytest.approx(2 / 3)
    assert (merged["v_info_split"], merged["v_info_merge"], merged["v_info"]) == (1.0, 0.0, 0.0)
    split = membrane_scores(half, one)
    assert (split["v_rand_split"], split["v_rand_merge"]) == (0.5, 1.0)
    assert (split["v_info_split"], split["v_info_merge"]) == (0.0, 1.0)


def test_voxels_on_the_masks_membrane_are_cells_alone() -> None:
    truth = np.ones((1, 10), dtype=np.int32)
    mask = np.array([[1, 1, 1, 1, 0, 0, 1, 1, 1, 1]], dtype=np.int32)
    numbered = np.array([[1, 1, 1, 1, 2, 3, 1, 1, 1, 1]], dtype=np.int32)
    assert membrane_scores(mask, truth) == pytest.approx(membrane_scores(numbered, truth))
    assert membrane_scores(mask, truth)["v_rand_split"] == pytest.approx((64 + 2) / 100)


def test_what_lies_on_the_true_membrane_does_not_count() -> None:
    truth = np.array([[1, 1, 0, 2, 2]])
    assert membrane_scores(np.array([[1, 1, 1, 2, 2]]), truth) == membrane_scores(np.array([[1, 1, 3, 2, 2]]), truth)
    assert membrane_scores(truth, truth * 0) == dict.fromkeys(MEMBRANE_SCORES)


@settings(max_examples=80, deadline=None)
@given(partitions())
def test_scores_are_bounded_and_do_not_depend_on_numbers(pair: tuple[np.ndarray, np.ndarray]) -> None:
    mask, truth = pair
    scores = membrane_scores(mask, truth)
    assert scores == pytest.approx(membrane_scores(np.where(mask > 0, 90 - mask, 0), 7 * truth.astype(np.int64)))
    if not truth.any():
        return
    assert all(value is not None and -1e-12 <= value <= 1 + 1e-12 for value in scores.values())
    for kind in ("v_rand", "v_info"):
        split, merge = scores[f"{kind}_split"], scores[f"{kind}_merge"]
        harmonic = 2 * split * merge / (split + merge) if split + merge else 0.0
        assert scores[kind] == pytest.approx(harmonic, abs=1e-9)
    if mask.all() and truth.all():
        back = membrane_scores(truth, mask)
        assert back["v_rand_split"] == pytest.approx(scores["v_rand_merge"])
        assert back["v_info_split"] == pytest.approx(scores["v_info_merge"], abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(bool, SHAPES))
def test_the_truth_is_perfect(membrane: np.ndarray) -> None:
    cells = cells_beside(membrane)
    expected = 1.0 if cells.any() else None
    assert mask_curve(cells, cells)["0.50"] == dict.fromkeys(MEMBRANE_SCORES, expected)


def test_the_best_threshold_is_that_of_the_mean() -> None:
    truth = cells_beside(two_cells(slice(14, 15)))
    sharp = two_cells(slice(14, 15)) * 0.75
    faint = two_cells(slice(14, 15)) * 0.35 + 0.2
    curves = [membrane_curve(one, truth) for one in (sharp, faint)]
    assert [key for key, scores in curves[1].items() if scores["v_rand"] == 1.0] == ["0.20", "0.30", "0.40", "0.50"]
    both = summarise_membranes(curves)
    assert (both["v_rand"], both["v_rand_threshold"], both["n_images"]) == (1.0, "0.20", 2)
    assert both["by_threshold"]["0.60"]["v_rand"] < 1.0
    mixed = summarise_membranes([curves[0], mask_curve(truth, truth)])
    assert set(mixed["by_threshold"]) == {"0.50"}


def test_a_watershed_of_the_map_closes_what_a_threshold_leaves_open() -> None:
    truth = cells_beside(two_cells(slice(14, 15)))
    chances = two_cells(slice(13, 16)) * 0.9
    chances[8:12] *= 0.3
    assert membrane_curve(chances, truth, (0.5,))["0.50"]["v_rand"] < 0.7
    cut = watershed_curve(chances, truth, (0.1, 0.5))
    assert cut["0.10"] == dict.fromkeys(MEMBRANE_SCORES, 1.0)
    assert cut["0.50"]["v_rand"] < 0.7  # the pass is not that high
    assert (np.count_nonzero(flooded(chances, 0.1) == 0, axis=1) == 1).all()


def test_a_flat_map_is_one_cell() -> None:
    for value in (0.0, 1.0):
        assert set(np.unique(flooded(np.full((6, 7, 5), value), 0.1))) == {1}


def test_sections_without_cells_are_counted() -> None:
    nothing = mask_curve(np.ones((2, 2), dtype=int), np.zeros((2, 2), dtype=int))
    alone = summarise_membranes([nothing])
    assert (alone["v_rand"], alone["v_info_threshold"], alone["n_empty"]) == (None, None, 1)
    assert summarise_membranes([])["v_rand"] is None
    json.dumps(summarise([{"id": "x", "membrane": nothing}]), allow_nan=False)
