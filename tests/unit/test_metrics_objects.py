from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from unet_med.errors import InputRefusedError
from unet_med.metrics import match_classes, match_objects, match_overlap, overlap_table, summarise_objects
from unet_med.metrics.objects import assignment


@st.composite
def graphs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    pairs = draw(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), unique=True, max_size=20))
    worth = draw(st.lists(st.floats(1e-3, 2.0), min_size=len(pairs), max_size=len(pairs)))
    rows, columns = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return rows, columns, np.array(worth, dtype=np.float64)


@settings(max_examples=100, deadline=None)
@given(graphs())
def test_the_sparse_assignment_is_worth_as_much_as_the_dense_one(
    graph: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    rows, columns, worth = graph
    chosen = assignment(rows, columns, worth)
    assert len(set(rows[chosen])) == len(set(columns[chosen])) == np.count_nonzero(chosen)
    dense = np.zeros((7, 7))
    dense[rows, columns] = worth
    assert worth[chosen].sum() == pytest.approx(dense[linear_sum_assignment(dense, maximize=True)].sum())


def voxels(array: np.ndarray) -> dict[int, set[int]]:
    flat = array.ravel()
    return {int(number): set(np.flatnonzero(flat == number).tolist()) for number in np.unique(flat) if number}


def aji_by_definition(mask: np.ndarray, label: np.ndarray) -> float:
    """As Kumar et al. write it."""
    ours, theirs = voxels(mask), voxels(label)
    shared = united = 0
    used = set()
    for true in theirs.values():
        best = max(ours, key=lambda number: len(true & ours[number]) / len(true | ours[number]))
        if true & ours[best]:
            used.add(best)
            shared += len(true & ours[best])
            united += len(true | ours[best])
        else:
            united += len(true)
    return shared / (united + sum(len(ours[number]) for number in ours if number not in used))


def aji_plus_by_definition(mask: np.ndarray, label: np.ndarray) -> float:
    ours, theirs = list(voxels(mask).values()), list(voxels(label).values())
    iou = np.array([[len(a & b) / len(a | b) for b in theirs] for a in ours])
    pairs = [(a, b) for a, b in zip(*linear_sum_assignment(iou, maximize=True), strict=True) if iou[a, b]]
    shared = sum(len(ours[a] & theirs[b]) for a, b in pairs)
    united = sum(len(ours[a] | theirs[b]) for a, b in pairs)
    free = [one for place, one in enumerate(ours) if place not in {a for a, _ in pairs}]
    free += [one for place, one in enumerate(theirs) if place not in {b for _, b in pairs}]
    return shared / (united + sum(map(len, free)))


def scattered(seed: int, shape: tuple[int, ...] = (40, 40)) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of all sizes, so that no two pairs have the same IoU but by chance."""
    random = np.random.default_rng(seed)
    mask, label = np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.int32)
    for number in range(1, 9):
        corner = random.integers(0, 30, len(shape)) * np.array(shape) // 40
        for array in (mask, label):
            begin = np.maximum(corner + random.integers(-2, 3, len(shape)), 0)
            size = random.integers(3, 11, len(shape))
            array[tuple(slice(a, a + b) for a, b in zip(begin, size, strict=True))] = number * 3
    return mask, label


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shape", [(40, 40), (20, 24, 16)])
def test_aggregated_scores_follow_their_definitions(seed: int, shape: tuple[int, ...]) -> None:
    mask, label = scattered(seed, shape)
    scores = summarise_objects([match_objects(mask, label)])
    assert scores["aji"] == pytest.approx(aji_by_definition(mask, label))
    assert scores["aji_plus"] == pytest.approx(aji_plus_by_definition(mask, label))


def test_quality_is_the_product_of_its_parts() -> None:
    matches = [match_objects(*scattered(seed)) for seed in range(3)]
    scores = summarise_objects(matches)
    assert scores["pq"] == pytest.approx(scores["sq"] * scores["rq"])
    assert scores["rq"] == scores["f1"]["0.50"]
    for key, ap in scores["ap"].items():
        assert scores["f1"][key] == pytest.approx(2 * ap / (1 + ap))
    assert (scores["n_images"], scores["n_empty"]) == (3, 0)
    single = [summarise_objects([match]) for match in matches]
    assert scores["aji_per_image"] == pytest.approx(np.mean([one["aji"] for one in single]))
    assert scores["f1_per_image"]["0.75"] == pytest.approx(np.mean([one["f1"]["0.75"] for one in single]))


def test_perfect_and_missing() -> None:
    _, label = scattered(0)
    perfect = summarise_objects([match_objects(label, label)])
    assert {perfect[kind] for kind in ("ap_mean", "f1_mean", "pq", "sq", "rq", "aji", "aji_plus")} == {1.0}
    missing = summarise_objects([match_objects(label * 0, label)])
    assert {missing[kind] for kind in ("ap_mean", "f1_mean", "pq", "rq", "aji", "aji_plus")} == {0.0}
    assert missing["sq"] is None
    assert set(summarise_objects([])["ap"].values()) == {None}


def test_objects_of_another_class_are_not_found() -> None:
    label = np.repeat(np.arange(1, 5), 4)
    table = overlap_table(label + 10, label)
    kinds = {1: "a", 2: "a", 3: "b", 4: "b"}
    said = {11: "a", 12: "b", 13: "b", 14: "c"}
    by_class = match_classes(table, said, kinds)
    assert {kind: (m["n_mask"], m["n_label"], m["matched"]["0.50"]) for kind, m in by_class.items()} == {
        "a": (1, 2, 1),
        "b": (2, 2, 1),
        "c": (1, 0, 0),
    }
    scores = summarise_objects([match_overlap(table) | {"classes": by_class}])
    assert scores["ap"]["0.50"] == 1.0
    assert {kind: own["ap"]["0.50"] for kind, own in scores["classes"].items()} == {"a": 1 / 2, "b": 1 / 3, "c": 0.0}
    with pytest.raises(InputRefusedError, match="1 objects have no class, the first is number 14"):
        match_classes(table, {11: "a", 12: "b", 13: "b"}, kinds)


def test_a_row_of_touching_objects_keeps_every_pair_apart() -> None:
    """Shifted by less than half, so that each object has two candidates and one chain holds them all."""
    label = np.repeat(np.arange(1, 301), 10)
    mask = np.roll(label, 4)
    match = match_objects(mask, label)
    assert match["matched"]["0.50"] == 0  # 6 of 14 voxels
    assert match["aji_plus"] == [300 * 6, 300 * 14]
