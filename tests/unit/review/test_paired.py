from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from unet_med.review.paired import paired_difference


def test_a_clear_difference_is_shown() -> None:
    rng = np.random.default_rng(0)
    first = rng.uniform(0.7, 0.8, 40)
    found = paired_difference(first, first + rng.normal(0.02, 0.01, 40))
    assert found.is_shown
    assert found.low < 0.02 < found.high
    assert found.mean == pytest.approx(found.second - found.first)


def test_noise_shows_no_difference() -> None:
    """Of a hundred comparisons of a model with itself, about five may be called different."""
    rng = np.random.default_rng(1)
    shown = sum(paired_difference(rng.normal(size=20), rng.normal(size=20), seed).is_shown for seed in range(100))
    assert shown <= 10


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    holds = 0
    for _ in range(60):
        difference = rng.gamma(2.0, 1.0, 30)  # skewed, mean 2
        found = paired_difference(np.zeros(30), difference)
        holds += found.low <= 2.0 <= found.high
    assert holds >= 50


def test_the_test_is_scipys() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.normal(size=25), rng.normal(0.3, 1, size=25)
    expected = stats.wilcoxon(second - first, zero_method="pratt", method="approx").pvalue
    assert paired_difference(first, second).p == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12))
def test_turning_the_pair_round_turns_the_sign(pairs: list[tuple[float, float]]) -> None:
    first, second = zip(*pairs, strict=True)
    one, other = paired_difference(first, second), paired_difference(second, first)
    assert one.mean == pytest.approx(-other.mean)
    assert one.effect == pytest.approx(-other.effect)
    assert one.p == pytest.approx(other.p)
    assert (one.higher, one.lower) == (other.lower, other.higher)
    assert -1 <= one.effect <= 1


def test_few_or_equal_cases() -> None:
    two = paired_difference([0.5, 0.6], [0.9, 0.9])
    assert two.low is None and not two.is_shown
    equal = paired_difference([0.5] * 5, [0.5] * 5)
    assert (equal.mean, equal.low, equal.high, equal.p, equal.effect) == (0, 0, 0, 1, 0)
    assert not equal.is_shown
    with pytest.raises(ValueError, match="no pairs"):
        paired_difference([1.0], [])
