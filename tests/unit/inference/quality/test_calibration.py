"""Dice is predicted as well as it is said, and not at all where the mean does as well."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_med.inference.quality.calibration import (
    DiceModel,
    calibrated,
    chosen_rule,
    isotonic_rule,
    left_out_ridge,
    ridge_rule,
)

NAMES = ("expected_dice", "edge_doubt")


def _rows(count: int, seed: int, informative: bool = True) -> list[dict[str, float | None]]:
    """Cases whose Dice is the expected one, bent and blurred; or has nothing to do with it."""
    random = np.random.default_rng(seed)
    expected = random.beta(8, 2, count)
    blur = random.normal(0, 0.03, count)
    dice = expected**1.5 + blur if informative else random.beta(8, 2, count)
    doubt = 0.5 - 0.4 * expected + random.normal(0, 0.05, count)
    columns = zip(np.clip(dice, 0, 1), expected, doubt, strict=True)
    return [{"dice": float(y), "expected_dice": float(e), "edge_doubt": float(d)} for y, e, d in columns]


def _arrays(rows: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([[row[name] for name in NAMES] for row in rows]), np.array([row["dice"] for row in rows])


@pytest.mark.parametrize("penalty", [0.1, 10.0])
def test_leaving_one_out_in_closed_form_is_leaving_one_out(penalty: float) -> None:
    x, y = _arrays(_rows(15, 0))
    scaled = np.column_stack([np.ones(15), (x - x.mean(0)) / x.std(0)])
    cost = np.diag([0.0, penalty, penalty])
    expected = []
    for number in range(15):
        rest = np.delete(np.arange(15), number)
        weights = np.linalg.solve(scaled[rest].T @ scaled[rest] + cost, scaled[rest].T @ y[rest])
        expected.append(scaled[number] @ weights)
    np.testing.assert_allclose(left_out_ridge(x, y, penalty), np.clip(expected, 0, 1), atol=1e-9)


def test_a_ridge_regression_solves_its_equations() -> None:
    x, y = _arrays(_rows(30, 1))
    rule = ridge_rule(x, y, NAMES, 2.0)
    scale = x.std(0)
    weights = np.array(rule.weights) * scale
    residual = y - (rule.intercept + x @ np.array(rule.weights))
    np.testing.assert_allclose(((x - x.mean(0)) / scale).T @ residual, 2.0 * weights, atol=1e-9)
    assert residual.sum() == pytest.approx(0.0, abs=1e-9)
    np.testing.assert_allclose(rule(x), np.clip(y - residual, 0, 1))


@given(points=st.lists(st.tuples(st.integers(0, 20).map(lambda n: n / 20), st.floats(0, 1)), min_size=1, max_size=20))
def test_a_curve_rises_within_what_was_seen(points: list[tuple[float, float]]) -> None:
    x, y = np.array([[place] for place, _ in points]), np.array([value for _, value in points])
    rule = isotonic_rule(x, y)
    places, values = np.array(rule.knots).T
    assert (np.diff(places) > 0).all()
    assert (np.diff(values) >= -1e-12).all()
    found = rule(np.linspace(-1, 2, 50)[:, None])
    assert found.min() >= y.min() - 1e-12
    assert found.max() <= y.max() + 1e-12


def test_a_curve_goes_through_points_that_rise() -> None:
    x = np.array([[0.1], [0.4], [0.4], [0.9]])
    rule = isotonic_rule(x, np.array([0.2, 0.3, 0.5, 0.8]))
    assert rule.knots == ((0.1, 0.2), (0.4, pytest.approx(0.4)), (0.9, 0.8))
    assert rule(np.array([[0.0], [0.65], [1.0]])).tolist() == pytest.approx([0.2, 0.6, 0.8])


def test_the_simplest_of_equal_rules_is_chosen() -> None:
    x, _ = _arrays(_rows(20, 2))
    assert chosen_rule(x, np.full(20, 0.7), NAMES).method == "mean"


@pytest.mark.parametrize("count", [20, 60, 200])
def test_what_tells_something_is_used_and_its_error_is_what_is_said(count: int) -> None:
    model = calibrated(_rows(count, 3), always_there=True)
    assert model.knows
    assert model.cases == count
    assert 0 < model.gain[0] <= model.error_of_mean - model.error <= model.gain[1]
    fresh = _rows(500, 4)
    estimates = [model.predict(row) for row in fresh]
    errors = [abs(row["dice"] - one.value) for row, one in zip(fresh, estimates, strict=True)]
    assert np.mean(errors) == pytest.approx(model.error, rel=0.4)
    assert model.correlation > 0.8
    hits = np.mean([one.low <= row["dice"] <= one.high for row, one in zip(fresh, estimates, strict=True)])
    assert hits >= model.coverage - 0.08
    assert model.coverage >= 0.9 or count < 19
    assert "regression" in model.sentence


def test_intervals_hold_on_average() -> None:
    """Over many calibrations on 30 cases, the next case lies in its interval as often as promised."""
    hits, promised = [], []
    for seed in range(60):
        *rows, fresh = _rows(31, 100 + seed)
        model = calibrated(rows, always_there=True)
        one = model.predict(fresh)
        hits.append(one.low <= fresh["dice"] <= one.high)
        promised.append(model.coverage)
    assert np.mean(hits) >= np.mean(promised) - 0.08


def test_what_tells_nothing_is_hardly_ever_used() -> None:
    models = [calibrated(_rows(30, 1000 + seed, informative=False), always_there=True) for seed in range(40)]
    assert sum(model.knows for model in models) <= 3
    idle = next(model for model in models if not model.knows)
    assert idle.sentence.startswith("the mean of 0.8")
    one = idle.predict({"expected_dice": 0.1, "edge_doubt": 0.9})
    assert one.value == pytest.approx(idle.mean, abs=1e-9)
    assert one.low < one.value < one.high


@pytest.mark.parametrize("count", [0, 1, 9])
def test_too_few_cases_calibrate_nothing(count: int) -> None:
    model = calibrated(_rows(count, 5), always_there=True)
    assert model.rule is None
    assert model.predict({"expected_dice": 0.5, "edge_doubt": 0.1}) is None
    assert model.sentence == f"not predicted: {count} held-out cases, at least 10 are needed"


def test_cases_without_a_mask_count_for_the_alarm_alone() -> None:
    empty = [{"dice": 0.0, "expected_dice": None, "edge_doubt": None}] * 5
    model = calibrated(_rows(20, 6) + empty, always_there=True)
    assert model.cases == 20
    assert model.alarm == 0.0


def test_a_feature_that_some_cases_lack_is_not_used() -> None:
    rows = [row | {"mirror_dice": None if number == 3 else 0.9} for number, row in enumerate(_rows(40, 7))]
    assert "mirror_dice" not in calibrated(rows, always_there=True).rule.features


def test_nothing_is_predicted_where_a_feature_is_missing() -> None:
    model = calibrated(_rows(60, 8), always_there=True)
    assert model.predict({"edge_doubt": 0.1}) is None
    assert model.predict({"expected_dice": None, "edge_doubt": 0.1}) is None


@given(
    model=st.sampled_from([calibrated(_rows(12, seed), always_there=True) for seed in range(4)]),
    expected=st.floats(0, 1),
    doubt=st.floats(0, 1),
)
def test_every_estimate_lies_in_its_interval_between_0_and_1(model: DiceModel, expected: float, doubt: float) -> None:
    one = model.predict({"expected_dice": expected, "edge_doubt": doubt})
    assert 0.0 <= one.low <= one.value <= one.high <= 1.0


@pytest.mark.parametrize("count", [5, 20, 80])
@pytest.mark.parametrize("informative", [True, False])
def test_what_is_stored_predicts_the_same(count: int, informative: bool) -> None:
    model = calibrated(_rows(count, 9, informative), always_there=False)
    stored = json.loads(json.dumps(model.to_json(), allow_nan=False))
    again = DiceModel.from_json(stored)
    assert again == model
    assert len(json.dumps(stored)) < 6000
    assert stored["sentence"] == model.sentence


@pytest.mark.parametrize("data", [None, 3, [], {}, {"cases": 3}, {"rule": {"method": "ridge"}}])
def test_anything_else_predicts_nothing(data: object) -> None:
    assert DiceModel.from_json(data) is None
