"""Whether one model is better than another on the same cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

CONFIDENCE = 0.95
_RESAMPLES = 9999
_FEWEST_CASES = 3
_MOST_EXACT = 200
"""Of more cases the normal distribution is exact enough, and much faster."""
_EQUAL = 1e-12

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PairedDifference:
    """The second of two models less the first, over the cases that both were scored on.

    Attributes:
        cases: How many.
        first: Mean score of the first model.
        second: Mean score of the second.
        mean: Mean difference.
        low: Lower end of its 95 % interval (bootstrap over cases, bias-corrected and accelerated, Efron 1987); ``None``
            for fewer than three cases.
        high: Upper end.
        p: Two-sided p value of Wilcoxon's signed-rank test, equal cases ranked too (Pratt 1959); exact, also with ties,
            up to 200 cases.
        effect: Rank-biserial correlation of the pairs (Kerby 2014): -1 where the first is better on every case, 1
            where the second has the higher score on every case.
        higher: Cases on which the second has the higher score.
        lower: Cases on which it has the lower score.
    """

    cases: int
    first: float
    second: float
    mean: float
    low: float | None
    high: float | None
    p: float
    effect: float
    higher: int
    lower: int

    @property
    def is_shown(self) -> bool:
        """Whether the cases show a difference: the interval leaves out 0, and the test agrees."""
        if self.low is None or self.high is None:
            return False
        return (self.low > 0 or self.high < 0) and self.p < 1 - CONFIDENCE


def paired_difference(first: Sequence[float], second: Sequence[float], seed: int = 0) -> PairedDifference:
    """Compares the scores of two models, case by case.

    Args:
        first: Scores of the first model.
        second: Scores of the second, in the same order of cases.
        seed: Of the bootstrap.

    Raises:
        ValueError: if there is no case, or the numbers of cases differ.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"{len(first)} and {len(second)} scores are no pairs")
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    difference = other - one
    difference[np.abs(difference) < _EQUAL] = 0.0
    low, high = mean_interval(difference.tolist(), seed)
    return PairedDifference(
        cases=len(difference),
        first=float(one.mean()),
        second=float(other.mean()),
        mean=float(difference.mean()),
        low=low,
        high=high,
        p=_wilcoxon(difference),
        effect=_rank_biserial(difference),
        higher=int((difference > 0).sum()),
        lower=int((difference < 0).sum()),
    )


def mean_interval(values: Sequence[float], seed: int = 0) -> tuple[float | None, float | None]:
    """Returns the 95 % interval of a mean (bootstrap, bias-corrected and accelerated, Efron 1987).

    ``None`` twice for fewer than three values.
    """
    sample = np.asarray(values, dtype=np.float64)
    if len(sample) < _FEWEST_CASES:
        return None, None
    mean = float(sample.mean())
    if np.ptp(sample) < _EQUAL:
        return mean, mean
    found = stats.bootstrap(
        (sample,),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=_RESAMPLES,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def _wilcoxon(difference: FloatArray) -> float:
    if not difference.any():
        return 1.0
    if len(difference) > _MOST_EXACT:
        return float(stats.wilcoxon(difference, zero_method="pratt", method="approx").pvalue)
    changed = difference != 0
    steps = np.rint(2 * stats.rankdata(np.abs(difference))[changed]).astype(np.int64)  # ties have ranks of one half
    likely = _sums_of_signs(steps)
    found = int(steps[difference[changed] > 0].sum())
    return min(1.0, 2 * float(min(likely[: found + 1].sum(), likely[found:].sum())))


def _sums_of_signs(steps: npt.NDArray[np.int64]) -> FloatArray:
    """Returns how likely each sum of positive ranks is where every sign is a toss of a coin; steps are from 1 up."""
    likely = np.zeros(int(steps.sum()) + 1)
    likely[0] = 1.0
    for step in steps:
        likely[step:] = (likely[step:] + likely[:-step]) / 2  # the right side is computed before it is stored
        likely[:step] /= 2
    return likely


def _rank_biserial(difference: FloatArray) -> float:
    changed = difference[difference != 0]
    if not len(changed):
        return 0.0
    ranks = stats.rankdata(np.abs(changed))
    return float((ranks * np.sign(changed)).sum() / ranks.sum())
