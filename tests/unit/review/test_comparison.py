"""The answer of a comparison: which score decides, what counts as better, which case changed most."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unet_med.metrics import match_objects, summarise
from unet_med.review.comparison import (
    AP_MEAN,
    MEAN,
    OBJECTS,
    case_scores,
    changes_of,
    compared,
    other_truth,
    verdict_of,
)


def voxel_scores(kind: str, values: dict[str, float]) -> dict[str, Any]:
    return {name: case_scores({"id": name, kind: {"liver": value}}) for name, value in values.items()}


def names(count: int) -> list[str]:
    return [f"c{number}" for number in range(count)]


def test_a_distance_is_better_when_it_is_lower() -> None:
    cases = names(8)
    a = voxel_scores("hd95_mm", dict.fromkeys(cases, 4.0))
    b = voxel_scores("hd95_mm", {case: 3.0 - n / 10 for n, case in enumerate(cases)})
    verdict = verdict_of(compared(a, b, cases, seed=0))
    assert (verdict.better, verdict.headline, verdict.title) == ("B", "B is better", "HD95 mm liver")
    assert verdict_of(compared(b, a, cases, seed=0)).better == "A"
    changes = changes_of(a, b, cases, verdict)
    assert [one.case for one in changes] == cases, "the smallest gain comes first"
    assert changes[-1].gain == pytest.approx(1.7)


def test_no_difference_is_an_answer_that_says_how_large_one_could_be() -> None:
    cases = names(20)
    a = voxel_scores("dice", dict.fromkeys(cases, 0.8))
    b = voxel_scores("dice", {case: 0.8 + (-1) ** n * (n // 2 + 1) / 1000 for n, case in enumerate(cases)})
    verdict = verdict_of(compared(a, b, cases, seed=0))
    assert verdict.better is None and verdict.headline == "No difference shown"
    most = max(abs(verdict.difference.low or 0), abs(verdict.difference.high or 0))
    assert f"more than {most:.4f} either way is unlikely" in verdict.evidence
    few = verdict_of(compared(a, b, cases[:2], seed=0))
    assert few.better is None and "too few to tell" in few.evidence


def test_interval_and_test_must_agree() -> None:
    """Two large losses move the mean; most cases gain a little."""
    cases = names(12)
    gains = [-0.3, -0.25, -0.2, -0.2, *(0.01 + n / 1000 for n in range(8))]
    a = voxel_scores("dice", dict.fromkeys(cases, 0.6))
    b = voxel_scores("dice", {case: 0.6 + gain for case, gain in zip(cases, gains, strict=True)})
    verdict = verdict_of(compared(a, b, cases, seed=0))
    assert (verdict.difference.high or 0) < 0 < 0.05 < verdict.difference.p
    assert verdict.better is None and "the test does not agree" in verdict.evidence


def test_objects_decide_by_their_mean_ap() -> None:
    truth = np.zeros((20, 20), np.int32)
    truth[2:8, 2:8], truth[10:18, 10:18] = 1, 2
    half = np.where(truth == 1, 1, 0)
    entries = {}
    for side, mask in (("a", half), ("b", truth)):
        scored = [{"id": name, "instance": match_objects(mask, truth)} for name in names(6)]
        entries[side] = {entry["id"]: entry for entry in summarise(scored)["cases"]}
    a, b = ({case: case_scores(entry) for case, entry in entries[side].items()} for side in "ab")
    differences = compared(a, b, names(6), seed=0)
    assert list(differences[OBJECTS]) == [AP_MEAN, "AP@0.50", "AP@0.75", "PQ", "AJI"], "no mean of different scores"
    verdict = verdict_of(differences)
    assert (verdict.kind, verdict.label, verdict.better) == (OBJECTS, AP_MEAN, "B")
    assert verdict.difference.mean == pytest.approx(0.5)


def test_the_mean_over_labels_decides_where_there_are_several() -> None:
    cases = names(6)
    a = {case: case_scores({"dice": {"x": 0.8, "y": 0.6}}) for case in cases}
    b = {case: case_scores({"dice": {"x": 0.9, "y": 0.4 + n / 100}}) for n, case in enumerate(cases)}
    verdict = verdict_of(compared(a, b, cases, seed=0))
    assert (verdict.label, verdict.better) == (MEAN, "A")
    changes = changes_of(a, b, cases, verdict)
    assert changes[0].case == "c0" and changes[0].gain == pytest.approx(-0.05)


def test_scores_against_other_true_labels_are_noticed() -> None:
    one = {"c0": {"label_voxels": {"x": 10, "y": 5}}, "c1": {"label_voxels": {"x": 7}}, "c2": {"dice": {"x": 1}}}
    other = {"c0": {"label_voxels": {"x": 11, "y": 5}}, "c1": {"label_voxels": {"x": 7, "z": 3}}, "c2": {}}
    assert other_truth(one, other) == ["c0"]
    assert other_truth({"c": {"instance": {"n_label": 3}}}, {"c": {"instance": {"n_label": 4}}}) == ["c"]
    assert other_truth({"c": {"instance": {"n_label": 3}}}, {"c": {}}) == []
