from __future__ import annotations

from itertools import product

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


@pytest.mark.parametrize("count", [4, 5, 12, 25])
def test_the_test_is_the_exact_one_of_scipy(count: int) -> None:
    rng = np.random.default_rng(count)
    first, second = rng.normal(size=count), rng.normal(0.3, 1, size=count)
    expected = stats.wilcoxon(second - first, method="exact").pvalue
    assert paired_difference(first, second).p == pytest.approx(expected)


def test_ties_and_equal_cases_are_counted_out() -> None:
    """Against all ways in which the signs may fall: SciPy has no exact test for such cases."""
    difference = np.array([0.0, 0.1, 0.1, -0.1, 0.3, 0.0, 0.5, -0.2])
    ranks = stats.rankdata(np.abs(difference))[difference != 0]
    sums = np.array([np.dot(ranks, signs) for signs in product((0, 1), repeat=len(ranks))])
    found = ranks[difference[difference != 0] > 0].sum()
    expected = 2 * min((sums <= found).mean(), (sums >= found).mean())
    assert paired_difference(np.zeros(8), difference).p == pytest.approx(expected)


def test_five_cases_cannot_show_a_difference() -> None:
    """All five better is what a coin does once in sixteen; the normal distribution would call it significant."""
    found = paired_difference([0.5] * 5, [0.6, 0.61, 0.62, 0.63, 0.64])
    assert found.p == pytest.approx(2 / 2**5)
    assert not found.is_shown
    assert paired_difference([0.5] * 6, [0.6, 0.61, 0.62, 0.63, 0.64, 0.65]).is_shown


def test_many_cases_are_tested_by_the_normal_distribution() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.normal(size=201), rng.normal(0.15, 1, size=201)
    exact = stats.wilcoxon(second - first, method="exact").pvalue
    assert paired_difference(first, second).p == pytest.approx(exact, abs=2e-3)


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
