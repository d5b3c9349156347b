"""Predicts the Dice of a mask without its truth, as held-out cases taught it, and says how well it can.

A rule is chosen by leaving out each held-out case in turn: the mean of all, a rising curve of ``expected_dice``, or a
ridge regression on all features. What is said of its error comes from cases that had no part in choosing and fitting:
the choice is made again without each tenth of the cases. Only a rule that is better than always saying the mean, with
97.5 % certainty (bootstrap over cases), is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression

FEATURES = ("expected_dice", "edge_doubt", "mirror_dice")
"""What a rule may use; the curve uses the first one."""
MINIMUM_CASES = 10
"""Fewer held-out cases calibrate nothing."""
COVERAGE = 0.9
"""Of the intervals, as far as the number of cases allows."""

_PENALTIES = (0.1, 1.0, 10.0, 100.0)
_PARTS = 10
_RESAMPLES = 2000
_SMALLEST_ROOM = 0.05
_ALARM_SHARE = 0.1
_DIGITS = 9

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A Dice from 0 to 1 and the interval in which it lies."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Rule:
    """How features become a Dice.

    Attributes:
        method: ``mean``, ``isotonic`` or ``ridge``.
        features: What it needs, in this order.
        intercept, weights: Of the sum; the mean alone has no weights.
        knots: Points (feature, Dice) of a curve that is level beyond its ends.
    """

    method: str
    features: tuple[str, ...] = ()
    intercept: float = 0.0
    weights: tuple[float, ...] = ()
    knots: tuple[tuple[float, float], ...] = ()

    def __call__(self, rows: Floats) -> Floats:
        """Returns (n) Dice from features (n, number of :attr:`features`)."""
        if self.method == "isotonic":
            places, values = zip(*self.knots, strict=True)
            return np.asarray(np.interp(rows[:, 0], places, values))
        return np.asarray(np.clip(self.intercept + rows[:, : len(self.weights)] @ np.array(self.weights), 0.0, 1.0))


@dataclass(frozen=True)
class DiceModel:
    """What held-out cases say about one structure.

    Attributes:
        cases: How many could be compared.
        mean: Of their Dice.
        alarm: Nine of ten of them reach this Dice.
        always_there: Whether the structure is in the truth of every one.
        rule: Predicts Dice; ``None``: there are too few cases.
        error: Mean absolute error of the rule on cases that it had not seen.
        error_of_mean: The same of always saying the mean.
        gain: How much smaller the error is than that of the mean, 95 % interval; kept where the rule failed, too.
        correlation: Of predicted and true Dice; ``None`` where one of them is constant.
        below, above: The interval around a prediction, in units of its distance to 1 (at least 0.05).
        coverage: Share of cases whose Dice lies in the interval.
    """

    cases: int
    mean: float
    alarm: float
    always_there: bool
    rule: Rule | None = None
    error: float = 0.0
    error_of_mean: float = 0.0
    gain: tuple[float, float] = (0.0, 0.0)
    correlation: float | None = None
    below: float = 0.0
    above: float = 0.0
    coverage: float = 0.0

    @property
    def knows(self) -> bool:
        """Whether it does better than to say the mean."""
        return self.rule is not None and self.rule.method != "mean"

    def predict(self, features: Mapping[str, float | None]) -> Estimate | None:
        """Returns the Dice of a mask with these features; ``None`` where they do not suffice."""
        if self.rule is None:
            return None
        values = [features.get(name) for name in self.rule.features]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None
        value = float(self.rule(np.array([known], dtype=np.float64))[0])
        room = float(_room(np.array(value)))
        return Estimate(value, max(0.0, value - self.below * room), min(1.0, value + self.above * room))

    @property
    def sentence(self) -> str:
        """What it can do."""
        if self.rule is None:
            return f"not predicted: {self.cases} held-out cases, at least {MINIMUM_CASES} are needed"
        low, high = self.gain
        against = f"error {self.error:.3f} against {self.error_of_mean:.3f} of always saying the mean"
        certain = f"{low:+.3f} to {high:+.3f} smaller, 95 % interval, {self.cases} held-out cases"
        if not self.knows:
            return f"the mean of {self.mean:.3f}: no rule was better ({certain})"
        tied = "" if self.correlation is None else f", correlation {self.correlation:.2f}"
        return f"predicted by {self.rule.method} regression: {against} ({certain}){tied}"

    def to_json(self) -> dict[str, Any]:
        """Returns it as JSON values, with its :attr:`sentence`."""
        return {**asdict(self), "sentence": self.sentence}

    @classmethod
    def from_json(cls, data: object) -> Self | None:
        """Returns what :meth:`to_json` wrote; ``None`` for anything else, so that nothing is predicted."""
        if not isinstance(data, Mapping):
            return None
        try:
            fields = {name: data[name] for name in cls.__dataclass_fields__}
            rule = fields["rule"]
            if rule is not None:
                rule = Rule(
                    str(rule["method"]),
                    tuple(map(str, rule["features"])),
                    float(rule["intercept"]),
                    tuple(map(float, rule["weights"])),
                    tuple((float(place), float(value)) for place, value in rule["knots"]),
                )
            low, high = map(float, fields["gain"])
            return cls(**{**fields, "rule": rule, "gain": (low, high)})
        except (KeyError, TypeError, ValueError):
            return None


def calibrated(rows: Sequence[Mapping[str, float | None]], always_there: bool) -> DiceModel:
    """Learns from held-out cases.

    Args:
        rows: For each case whose Dice exists ``dice`` and the :data:`FEATURES`; those without a mask have none.
        always_there: Whether the structure is in the truth of every case.
    """
    dice = np.array([row["dice"] for row in rows], dtype=np.float64)
    alarm = float(np.quantile(dice, _ALARM_SHARE)) if len(dice) else 0.0
    mean = float(dice.mean()) if len(dice) else 0.0
    x, y, names = comparable(rows)
    if len(y) < MINIMUM_CASES:
        return DiceModel(len(y), mean, alarm, always_there)
    found, means = unseen(x, y, names)
    gain = _bootstrap_interval(np.abs(y - means) - np.abs(y - found))
    rule = chosen_rule(x, y, names) if gain[0] > 0.0 else Rule("mean", intercept=float(y.mean()))
    told = means if rule.method == "mean" else found
    below, above, coverage = _interval(y, told)
    return DiceModel(
        len(y),
        mean,
        alarm,
        always_there,
        rule,
        error=float(np.abs(y - told).mean()),
        error_of_mean=float(np.abs(y - means).mean()),
        gain=gain,
        correlation=_correlation(found, y),
        below=below,
        above=above,
        coverage=coverage,
    )


def comparable(rows: Sequence[Mapping[str, float | None]]) -> tuple[Floats, Floats, tuple[str, ...]]:
    """Returns features (n, features), Dice (n) and the names of the features, which all cases with a mask have."""
    masked = [row for row in rows if row.get(FEATURES[0]) is not None]
    names = tuple(name for name in FEATURES if masked and all(row.get(name) is not None for row in masked))
    x = np.array([[row[name] for name in names] for row in masked], dtype=np.float64).reshape(len(masked), len(names))
    return x, np.array([row["dice"] for row in masked], dtype=np.float64), names


def chosen_rule(x: Floats, y: Floats, names: Sequence[str]) -> Rule:
    """Returns the rule with the smallest leave-one-out error; the simplest of several equal ones.

    Args:
        x: (n, features).
        y: (n) Dice.
        names: Of the features.
    """
    candidates: list[tuple[Floats, Callable[[], Rule]]] = [
        ((y.sum() - y) / (len(y) - 1), lambda: Rule("mean", intercept=float(y.mean()))),
        (_left_out(isotonic_rule, x, y), lambda: isotonic_rule(x, y)),
    ]
    for penalty in _PENALTIES:
        candidates.append((left_out_ridge(x, y, penalty), partial(ridge_rule, x, y, names, penalty)))
    errors = [round(float(np.abs(y - found).mean()), _DIGITS) for found, _ in candidates]
    return candidates[int(np.argmin(errors))][1]()


def isotonic_rule(x: Floats, y: Floats) -> Rule:
    """Returns the rising curve through the levels of an isotonic regression of ``y`` on the first column of ``x``."""
    places, group = np.unique(x[:, 0], return_inverse=True)
    weights = np.bincount(group).astype(np.float64)
    fitted = isotonic_regression(np.bincount(group, y) / weights, weights=weights)
    blocks = fitted.blocks
    block = np.repeat(np.arange(len(blocks) - 1), np.diff(blocks))
    middle = np.bincount(block, places * weights) / np.bincount(block, weights)
    knots = zip(middle.tolist(), fitted.x[blocks[:-1]].tolist(), strict=True)
    return Rule("isotonic", FEATURES[:1], knots=tuple(knots))


def ridge_rule(x: Floats, y: Floats, names: Sequence[str], penalty: float) -> Rule:
    """Returns a ridge regression on standardised features; the intercept is not penalised."""
    scaled, centre, scale = _standardised(x)
    weights = np.linalg.solve(scaled.T @ scaled + penalty * np.eye(x.shape[1]), scaled.T @ (y - y.mean())) / scale
    return Rule("ridge", tuple(names), float(y.mean() - centre @ weights), tuple(map(float, weights)))


def left_out_ridge(x: Floats, y: Floats, penalty: float) -> Floats:
    """Returns for each case (n) what a ridge regression on the others says, in closed form (Allen 1974)."""
    design = np.column_stack([np.ones(len(y)), _standardised(x)[0]])
    cost = penalty * np.diag([0.0] + [1.0] * x.shape[1])
    hat = design @ np.linalg.solve(design.T @ design + cost, design.T)
    leverage = np.minimum(np.diag(hat), 1.0 - 1e-9)
    return np.asarray(np.clip(y - (y - hat @ y) / (1.0 - leverage), 0.0, 1.0))


def _standardised(x: Floats) -> tuple[Floats, Floats, Floats]:
    centre, scale = x.mean(axis=0), x.std(axis=0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    return (x - centre) / scale, centre, scale


def _left_out(fit: Callable[[Floats, Floats], Rule], x: Floats, y: Floats) -> Floats:
    others = (np.delete(np.arange(len(y)), number) for number in range(len(y)))
    return np.array([fit(x[rest], y[rest])(x[n : n + 1])[0] for n, rest in enumerate(others)])


def unseen(x: Floats, y: Floats, names: Sequence[str]) -> tuple[Floats, Floats]:
    """Returns for each case what a rule says that was chosen and fitted without it, and the mean without it."""
    part = np.random.default_rng(0).permutation(len(y)) % _PARTS
    found, means = np.empty(len(y)), np.empty(len(y))
    for number in range(_PARTS):
        out = part == number
        rule = chosen_rule(x[~out], y[~out], names)
        columns = [list(names).index(name) for name in rule.features]
        found[out] = rule(x[out][:, columns])
        means[out] = y[~out].mean()
    return found, means


def _bootstrap_interval(values: Floats) -> tuple[float, float]:
    """Returns the 95 % interval of the mean."""
    random = np.random.default_rng(0)
    means = values[random.integers(0, len(values), (_RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def _room(value: Floats) -> Floats:
    """How far wrong a prediction may be: the better a mask, the less."""
    return np.maximum(1.0 - value, _SMALLEST_ROOM)


def _interval(y: Floats, found: Floats) -> tuple[float, float, float]:
    """Returns how far truth lies below and above a prediction, in units of its room, and for which share of cases."""
    misses = np.sort((y - found) / _room(found))
    count = len(misses)
    rank = max(1, math.floor((count + 1) * (1.0 - COVERAGE) / 2.0))
    low, high = float(misses[rank - 1]), float(misses[count - rank])
    return max(0.0, -low), max(0.0, high), (count + 1 - 2 * rank) / (count + 1)


def _correlation(found: Floats, y: Floats) -> float | None:
    if min(found.std(), y.std()) < 1e-9:
        return None
    return float(np.corrcoef(found, y)[0, 1])
