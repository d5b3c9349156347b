"""The rule on single windows, and its way through a bundle's JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_med.inference.emptiness import META_KEY, EmptinessRule, stored_rule

RULE = EmptinessRule((8, 8, 8), (-2.0, 0.0), (-1.0, 1.0), (0.5, 0.25))


def _window(first: tuple[float, float] = (-1.5, -1.2), second: tuple[float, float] = (0.4, 0.6)) -> torch.Tensor:
    """(2, 8, 8, 8): one value everywhere, another one in a single voxel that a glance does not see."""
    window = torch.stack([torch.full((8, 8, 8), first[0]), torch.full((8, 8, 8), second[0])])
    window[:, 3, 5, 7] = torch.tensor([first[1], second[1]])
    return window


def test_a_window_within_all_bounds_is_empty() -> None:
    assert RULE(_window())
    assert RULE(_window()[:, :5, :, 2:6].transpose(1, 3)), "cut by the border of the image, in any layout"


@pytest.mark.parametrize(
    "window",
    [
        _window(first=(-1.9, -1.3)),
        _window(first=(-1.1, -0.9)),
        _window(first=(-1.9, -2.1)),
        _window(second=(0.1, 0.4)),
        _window(second=(0.9, 1.05)),
        _window(second=(0.4, float("nan"))),
        _window(second=(0.4, float("inf"))),
    ],
    ids=["varies", "too bright", "too dark", "the other varies", "the other is too bright", "nan", "infinite"],
)
def test_a_single_voxel_beyond_a_bound_of_one_channel_is_enough(window: torch.Tensor) -> None:
    assert not RULE(window)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 5))
def test_a_batch_says_what_each_window_says(seed: int, number: int) -> None:
    windows = torch.stack([_window(), *torch.randn(number, 2, 8, 8, 8, generator=torch.manual_seed(seed)) * 0.1 + 0.3])
    windows[1::2, 0] -= 1.8
    assert RULE.empty(windows).tolist() == [RULE(window) for window in windows]


def test_a_rule_survives_json() -> None:
    assert EmptinessRule.from_json(json.loads(json.dumps(RULE.to_json()))) == RULE


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"schema": None},
        {"low": [-2.0]},
        {"low": []},
        {"high": [-1.0, float("inf")]},
        {"high": [True, 1.0]},
        {"spread": "0.5"},
        {"window": [8, 8, 0]},
        {"window": [8.0, 8.0, 8.0]},
        {"window": None},
    ],
    ids=str,
)
def test_what_is_not_understood_is_no_rule(change: dict[str, Any]) -> None:
    assert EmptinessRule.from_json({**RULE.to_json(), **change}) is None


@pytest.mark.parametrize("data", [None, [], "rule", {}])
def test_nothing_is_no_rule(data: object) -> None:
    assert EmptinessRule.from_json(data) is None


def test_a_bundle_s_rule_is_for_its_own_windows_and_channels() -> None:
    meta = {META_KEY: {"rule": RULE.to_json(), "reason": "air"}}
    assert stored_rule(meta, [8, 8, 8], 2) == RULE
    assert stored_rule(meta, (8, 8, 4), 2) is None
    assert stored_rule(meta, (8, 8, 8), 1) is None
    for entry in ({}, {META_KEY: None}, {META_KEY: {"rule": None}}):
        assert stored_rule(entry, (8, 8, 8), 2) is None


def test_tightening_halves_what_may_vary() -> None:
    assert RULE.tightened() == replace(RULE, spread=(0.25, 0.125))
