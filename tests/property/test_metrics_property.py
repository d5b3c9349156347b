from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unet_med.labels import LabelMap
from unet_med.metrics import case_metrics, confusion_counts, match_objects, summarise, summarise_objects

LABELS = LabelMap.from_names({"a": 1, "b": 2})
SHAPES = st.one_of(st.tuples(*[st.integers(1, 7)] * 2), st.tuples(*[st.integers(1, 5)] * 3))
SPACING = st.floats(0.1, 5.0)


@st.composite
def pairs(draw: st.DrawFn, highest: int = 2) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(SHAPES)
    values = hnp.arrays(np.uint8, shape, elements=st.integers(0, highest))
    return draw(values), draw(values)


@settings(max_examples=60, deadline=None)
@given(pairs(), SPACING, st.floats(0.0, 4.0))
def test_scores_are_bounded_symmetric_and_consistent(
    pair: tuple[np.ndarray, np.ndarray], spacing: float, tolerance: float
) -> None:
    mask, truth = pair
    spacings = (spacing,) * mask.ndim
    there = case_metrics(mask, truth, spacings, LABELS, tolerance)
    back = case_metrics(truth, mask, spacings, LABELS, tolerance)
    diagonal = spacing * float(np.linalg.norm(mask.shape))
    for name, scores in there.items():
        for kind in ("dice", "iou", "hd95_mm", "nsd"):
            value, other = scores[kind], back[name][kind]
            assert (value is None) == (other is None)
            if value is not None and other is not None:
                assert abs(value - other) < 1e-9
                assert 0 <= value <= (diagonal if kind == "hd95_mm" else 1)
        dice, iou = scores["dice"], scores["iou"]
        if dice is not None and iou is not None:
            assert abs(dice - 2 * iou / (1 + iou)) < 1e-12
        empty = not scores["mask_voxels"], not scores["label_voxels"]
        assert (dice is None) == all(empty)
        assert (scores["hd95_mm"] is None) == any(empty)


@settings(max_examples=40, deadline=None)
@given(pairs())
def test_the_truth_is_perfect(pair: tuple[np.ndarray, np.ndarray]) -> None:
    truth, _ = pair
    for scores in case_metrics(truth, truth, (1.0,) * truth.ndim, LABELS, 0.0).values():
        if scores["label_voxels"]:
            assert (scores["dice"], scores["iou"], scores["hd95_mm"], scores["nsd"]) == (1.0, 1.0, 0.0, 1.0)


@settings(max_examples=40, deadline=None)
@given(pairs(), st.integers(1, 3))
def test_distances_do_not_depend_on_what_lies_around(pair: tuple[np.ndarray, np.ndarray], margin: int) -> None:
    mask, truth = (np.pad(array, 1) for array in pair)
    spacing = (0.7, 1.3, 2.0)[: mask.ndim]
    wide = case_metrics(np.pad(mask, margin), np.pad(truth, margin), spacing, LABELS)
    assert wide == case_metrics(mask, truth, spacing, LABELS)


@settings(max_examples=60, deadline=None)
@given(pairs(highest=6))
def test_objects_are_matched_symmetrically_and_renumbering_changes_nothing(
    pair: tuple[np.ndarray, np.ndarray],
) -> None:
    mask, truth = pair
    there, back = match_objects(mask, truth), match_objects(truth, mask)
    assert there["matched"] == back["matched"]
    renumbered = match_objects(np.where(mask > 0, 200 - mask, 0), truth)
    # Where two objects are equally good, AJI depends on which is taken.
    for key in there.keys() - {"aji", "aji_plus"}:
        assert there[key] == renumbered[key]
    counts = list(there["matched"].values())
    assert counts == sorted(counts, reverse=True)
    assert counts[0] <= min(there["n_mask"], there["n_label"])
    scores = summarise_objects([there])
    for value in (*scores["ap"].values(), scores["pq"]):
        assert value is None or 0 <= value <= 1


@settings(max_examples=30, deadline=None)
@given(st.lists(pairs(), max_size=4))
def test_the_summary_stays_within_its_cases(drawn: list[tuple[np.ndarray, np.ndarray]]) -> None:
    cases = [
        {"id": str(n), "labels": case_metrics(mask, truth, (1.0,) * mask.ndim, LABELS)}
        for n, (mask, truth) in enumerate(drawn)
    ]
    for name, row in summarise(cases)["per_label"].items():
        for kind in ("dice", "iou", "hd95_mm", "nsd"):
            values = [value for case in cases if (value := case["labels"][name][kind]) is not None]
            assert (row[kind] is None) == (not values)
            if values:
                assert min(values) - 1e-12 <= row[kind] <= max(values) + 1e-12


@settings(max_examples=60, deadline=None)
@given(pairs(highest=3), st.data())
def test_what_nobody_labelled_does_not_count(pair: tuple[np.ndarray, np.ndarray], data: st.DataObject) -> None:
    mask, truth = pair
    sparse = replace(LABELS, ignored=3)
    known = truth != 3
    assert confusion_counts(mask, truth, sparse) == confusion_counts(mask[known], truth[known], LABELS)
    other = np.where(known, mask, data.draw(hnp.arrays(np.uint8, mask.shape, elements=st.integers(0, 3))))
    spacing = (1.0,) * mask.ndim
    assert case_metrics(other, truth, spacing, sparse) == case_metrics(mask, truth, spacing, sparse)
