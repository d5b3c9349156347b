from __future__ import annotations

import json
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest

from unet_med.errors import InputRefusedError
from unet_med.labels import Label, LabelMap
from unet_med.metrics import (
    AP_THRESHOLDS,
    case_metrics,
    confusion_counts,
    dice_iou,
    match_objects,
    summarise,
    summarise_objects,
)

LABELS = LabelMap.from_names({"background": 0, "a": 1, "b": 2})
EMPTY = np.zeros((6, 6, 6), dtype=np.uint8)


def cube(*corner: int, size: int = 2, value: int = 1) -> np.ndarray:
    array = EMPTY.copy()
    array[tuple(slice(c, c + size) for c in corner)] = value
    return array


def strict_json(data: Any) -> str:
    return json.dumps(data, allow_nan=False)


# ---- voxels -------------------------------------------------------------------------------------------------------


def test_counts_by_hand() -> None:
    mask = np.array([[0, 1, 1, 2], [2, 2, 0, 1]], dtype=np.uint8)
    label = np.array([[0, 1, 2, 2], [2, 1, 1, 0]], dtype=np.int64)
    counts = confusion_counts(mask, label, LABELS)
    assert counts == {"a": (1, 2, 2), "b": (2, 1, 1)}
    assert dice_iou(counts) == {"a": (1 / 3, 1 / 5), "b": (2 / 3, 1 / 2)}


def test_counts_add_up_over_cases() -> None:
    rng = np.random.default_rng(0)
    masks, labels = rng.integers(0, 3, (2, 4, 5, 6))
    whole = confusion_counts(masks, labels, LABELS)
    parts = [confusion_counts(m, t, LABELS) for m, t in zip(masks, labels, strict=True)]
    for name in whole:
        assert whole[name] == tuple(sum(part[name][i] for part in parts) for i in range(3))


def test_unknown_values_belong_to_no_label() -> None:
    mask, label = np.array([1, 9, -1, 2]), np.array([1, 1, 2, 250])
    assert confusion_counts(mask, label, LABELS) == {"a": (1, 0, 1), "b": (0, 1, 1)}
    bytes_too = confusion_counts(mask.astype(np.uint8), label.astype(np.uint8), LABELS)
    assert bytes_too == {"a": (1, 0, 1), "b": (0, 1, 1)}
    sparse = LabelMap((Label(1, "a", (0, 0, 0)), Label(250, "c", (0, 0, 0))))
    assert confusion_counts(mask, label, sparse) == {"a": (1, 0, 1), "c": (0, 0, 1)}


def test_surfaces_end_where_nobody_labelled() -> None:
    truth, mask = cube(1, 1, 1, size=4), cube(1, 1, 1, size=4)
    mask[4] = 2
    truth[4:] = 9
    scores = case_metrics(mask, truth, (1.0, 1.0, 1.0), replace(LABELS, ignored=9))
    assert (scores["a"]["dice"], scores["a"]["hd95_mm"], scores["a"]["mask_voxels"]) == (1.0, 0.0, 48)
    assert scores["b"]["dice"] is None
    with pytest.raises(InputRefusedError, match="cannot be compared"):
        case_metrics(mask[1:], truth, (1.0, 1.0, 1.0), replace(LABELS, ignored=9))


def test_nothing_to_compare_is_none() -> None:
    assert dice_iou(confusion_counts(EMPTY, EMPTY, LABELS)) == {"a": (None, None), "b": (None, None)}


def test_regions_are_scored_besides_their_labels() -> None:
    labels = LabelMap.from_names({"a": 1, "b": 2}, {"whole": [1, 2], "core": [2]})
    mask, label = np.array([0, 1, 2, 2]), np.array([0, 2, 1, 2])
    assert confusion_counts(mask, label, labels)["whole"] == (3, 0, 0)
    scores = case_metrics(mask.reshape(2, 2), label.reshape(2, 2), None, labels)
    assert set(scores) == {"a", "b", "whole", "core"}
    assert scores["whole"]["dice"] == 1.0


def test_other_shapes_are_refused() -> None:
    for compare in (
        lambda: confusion_counts(EMPTY, EMPTY[1:], LABELS),
        lambda: case_metrics(EMPTY, EMPTY[1:], None, LABELS),
        lambda: match_objects(EMPTY, EMPTY[1:]),
    ):
        with pytest.raises(InputRefusedError, match="cannot be compared"):
            compare()


# ---- one case -----------------------------------------------------------------------------------------------------


def test_distances_are_in_millimetres() -> None:
    scores = case_metrics(cube(1, 1, 1), cube(1, 1, 3), (1.0, 1.0, 2.5), LABELS, tolerance_mm=2.5)["a"]
    assert scores["hd95_mm"] == pytest.approx(5.0)
    assert scores["nsd"] == pytest.approx(0.5)
    assert scores["dice"] == 0.0
    assert scores["volume_error_ml"] == 0.0
    assert (scores["mask_voxels"], scores["label_voxels"]) == (8, 8)


def test_the_percentile_forgives_few_outliers() -> None:
    truth = np.zeros((60, 60), dtype=np.uint8)
    truth[10:50, 10:50] = 1
    mask = truth.copy()
    mask[0, 0] = 1  # one of 157 surface voxels
    scores = case_metrics(mask, truth, (1.0, 1.0), LABELS)["a"]
    assert scores["hd95_mm"] == 0.0
    assert scores["nsd"] == pytest.approx(312 / 313)


def test_volume_error_is_signed_and_in_ml() -> None:
    scores = case_metrics(cube(1, 1, 1, size=3), cube(1, 1, 1), (10.0, 5.0, 2.0), LABELS)["a"]
    assert scores["volume_error_ml"] == pytest.approx((27 - 8) * 0.1)
    assert case_metrics(EMPTY[0], EMPTY[0], (1.0, 1.0), LABELS)["a"]["volume_error_ml"] is None


def test_without_calibration_there_are_pixels_and_no_millimetres() -> None:
    scores = case_metrics(cube(1, 1, 1)[1], cube(1, 2, 1)[1], None, LABELS)["a"]
    assert (scores["hd95_mm"], scores["hd95_px"], scores["volume_error_ml"]) == (None, 1.0, None)


def test_empty_masks_are_defined() -> None:
    both = case_metrics(EMPTY, EMPTY, (1.0,) * 3, LABELS)["a"]
    assert [both[kind] for kind in ("dice", "iou", "hd95_mm", "nsd")] == [None] * 4
    for mask, truth in ((cube(1, 1, 1), EMPTY), (EMPTY, cube(1, 1, 1))):
        one = case_metrics(mask, truth, (1.0,) * 3, LABELS)["a"]
        assert [one[kind] for kind in ("dice", "iou", "hd95_mm", "nsd")] == [0.0, 0.0, None, 0.0]


def test_a_tolerance_of_a_whole_number_of_voxels_includes_them() -> None:
    mask, truth = cube(1, 1, 1), cube(1, 1, 4)
    assert case_metrics(mask, truth, (0.1, 0.1, 0.1), LABELS, tolerance_mm=0.3)["a"]["nsd"] == 1.0


# ---- all cases ----------------------------------------------------------------------------------------------------


def case(name: str, mask: np.ndarray, truth: np.ndarray, **more: Any) -> dict[str, Any]:
    return {"id": name, "labels": case_metrics(mask, truth, (1.0,) * 3, LABELS), **more}


def test_summary_has_the_documented_form() -> None:
    both = cube(1, 1, 1) + cube(3, 3, 3, value=2)
    summary = summarise([case("x", both, both), case("y", cube(1, 1, 1), both), case("z", EMPTY, cube(1, 1, 1))])
    strict_json(summary)
    assert list(summary) == ["n_cases", "mean", "per_label", "cases"]
    assert set(summary["mean"]) == {"dice", "iou", "hd95_mm", "nsd"}
    assert summary["n_cases"] == 3
    assert summary["per_label"]["a"]["dice"] == pytest.approx(2 / 3)
    assert summary["per_label"]["b"]["dice"] == pytest.approx(1 / 2)  # z has no b at all
    assert summary["mean"]["dice"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert summary["per_label"]["b"]["n_empty"] == 1
    assert summary["per_label"]["b"]["n_hd95_undefined"] == 1
    assert summary["per_label"]["a"]["hd95_mm"] == 0.0
    assert summary["cases"][1]["id"] == "y"
    assert summary["cases"][1]["dice"] == {"a": 1.0, "b": 0.0}
    assert summary["cases"][2]["hd95_mm"] == {"a": None, "b": None}


def test_what_never_exists_is_null() -> None:
    summary = summarise([case("x", EMPTY, EMPTY)])
    strict_json(summary)
    assert summary["mean"] == {"dice": None, "iou": None, "hd95_mm": None, "nsd": None}
    assert summary["per_label"]["a"]["n_empty"] == 1
    empty = summarise([])
    assert (empty["n_cases"], empty["mean"]["dice"], empty["per_label"]) == (0, None, {})


def test_signs_of_volume_errors_do_not_cancel_in_the_absolute_mean() -> None:
    small, large = cube(1, 1, 1), cube(1, 1, 1, size=3)
    row = summarise([case("x", small, large), case("y", large, small)])["per_label"]["a"]
    assert row["volume_error_ml"] == pytest.approx(0.0)
    assert row["absolute_volume_error_ml"] == pytest.approx(0.019)


def test_other_facts_stay_with_their_case() -> None:
    assert summarise([case("x", EMPTY, EMPTY, seconds=1.5)])["cases"][0]["seconds"] == 1.5


# ---- objects ------------------------------------------------------------------------------------------------------


def best_by_brute_force(iou: np.ndarray, threshold: float) -> tuple[int, float]:
    """Most pairs, then the largest sum, over all assignments."""
    if iou.shape[0] > iou.shape[1]:
        iou = iou.T
    best = (0, 0.0)
    for columns in permutations(range(iou.shape[1]), iou.shape[0]):
        values = [float(iou[row, column]) for row, column in enumerate(columns) if iou[row, column] >= threshold]
        best = max(best, (len(values), sum(values)))
    return best


@pytest.mark.parametrize("seed", range(8))
def test_matching_is_the_best_there_is(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask, label = np.zeros((24, 24), dtype=np.int32), np.zeros((24, 24), dtype=np.int32)
    for number in range(1, 6):
        i, j = rng.integers(0, 18, 2)
        label[i : i + 6, j : j + 6] = number * 10
        i, j = np.clip(np.array((i, j)) + rng.integers(-2, 3, 2), 0, 18)
        mask[i : i + 6, j : j + 6] = number + 3
    ours, theirs = (sorted(set(np.unique(array)) - {0}) for array in (mask, label))
    iou = np.array(
        [[np.sum((mask == a) & (label == b)) / np.sum((mask == a) | (label == b)) for b in theirs] for a in ours]
    )
    found = match_objects(mask, label)
    assert (found["n_mask"], found["n_label"]) == (len(ours), len(theirs))
    for threshold in AP_THRESHOLDS:
        assert found["matched"][f"{threshold:.2f}"] == best_by_brute_force(iou, threshold)[0]
    assert found["iou_sum"] == pytest.approx(best_by_brute_force(iou, 0.5)[1])


def test_ties_at_one_half_are_matched_once() -> None:
    label = np.array([1, 1, 2, 2])
    mask = np.array([7, 7, 7, 7])
    found = match_objects(mask, label)
    assert found["matched"]["0.50"] == 1
    assert found["iou_sum"] == pytest.approx(0.5)
    many = match_objects(np.array([1, 1, 2, 2, 3, 4]), np.array([5, 5, 5, 5, 6, 6]))
    assert many["matched"]["0.50"] == 2
    assert many["iou_sum"] == pytest.approx(1.0)


def test_scores_of_objects_by_hand() -> None:
    label = np.array([[1, 1, 0, 2, 2, 0, 3, 3]])
    mask = np.array([[4, 4, 0, 5, 0, 0, 0, 0]])
    scores = summarise_objects([match_objects(mask, label)])
    assert scores["ap"]["0.50"] == pytest.approx(2 / 3)
    assert scores["ap"]["0.55"] == pytest.approx(1 / 4)
    assert scores["pq"] == pytest.approx((1 + 0.5) / (2 + 0.5 * 1))


def test_pooling_differs_from_averaging_over_images() -> None:
    many = np.arange(1, 10)
    images = [
        match_objects(many, many),
        match_objects(np.array([1, 0]), np.array([0, 1])),
        match_objects(many * 0, many * 0),
    ]
    scores = summarise_objects(images)
    assert scores["ap"]["0.50"] == pytest.approx(9 / 11)
    assert scores["ap_per_image"]["0.50"] == pytest.approx(0.5)
    assert scores["pq"] == pytest.approx(9 / 10)
    assert scores["pq_per_image"] == pytest.approx(0.5)
    assert scores["n_empty"] == 1
    strict_json(summarise([{"id": "x", "labels": {}, "instance": images[2]}]))
