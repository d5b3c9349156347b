"""A time budget is kept whatever the machine does, and what it says of its speed at first is not believed for long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_med.training.pace import FEW_STEPS, Pace
from unet_med.training.schedule import Schedule

PER_EPOCH = 10


@dataclass
class Run:
    """A training on a machine with a clock of its own."""

    seconds: float
    step_seconds: Callable[[float], float]
    validation_seconds: float = 0.0
    scorings: float = 1.0
    clock: float = 0.0
    rates: list[float] = field(default_factory=list)
    validations: int = 0

    def go(self) -> Run:
        pace = Pace(self.seconds, lambda: self.clock, validation_every=1, scorings=self.scorings)
        schedule = Schedule(1000, PER_EPOCH, 1, 1.0, 0, 1.0)
        step = 0
        while step < schedule.total_steps and not pace.is_late():
            self.rates.append(schedule.learning_rate(step))
            taken = self.step_seconds(self.clock)
            self.clock += taken
            step += 1
            pace.add_step(taken)
            if pace.is_due(schedule, step):
                if pace.validation_seconds is None:
                    pace.validation_seconds = self.validation_seconds
                schedule = pace.plan(schedule, step)
            if schedule.ends_epoch(step) and schedule.validates(-(-step // PER_EPOCH)):
                self.clock += self.validation_seconds
                self.validations += 1
        return self

    @property
    def steps(self) -> int:
        return len(self.rates)


@settings(deadline=None, max_examples=40)
@given(seconds=st.floats(60, 1e4), step=st.floats(0.05, 2), validation=st.floats(0, 10), scorings=st.floats(1, 8))
def test_a_budget_is_filled_and_not_exceeded(seconds: float, step: float, validation: float, scorings: float) -> None:
    run = Run(seconds, lambda _: step, validation, scorings).go()
    ends = run.clock + validation * scorings
    held_back = validation * (1 + scorings) + 0.02 * seconds
    if held_back < seconds / 2:
        assert ends <= seconds + 2 * step
        assert ends >= seconds * 0.93 - 2 * step - 2 * validation
    else:  # training keeps its half
        assert seconds * 0.5 - 2 * step - 2 * validation <= run.clock <= seconds * 0.55 + 2 * step + 2 * validation


def test_a_machine_that_was_busy_at_the_start_is_made_use_of() -> None:
    """Four seconds a step at first, a tenth afterwards, and a scoring that would eat the whole budget."""
    run = Run(180, lambda clock: 4.0 if clock < 15 else 0.1, validation_seconds=20, scorings=8).go()
    assert run.steps > 500
    assert run.rates[-1] < 0.05


def test_a_machine_that_becomes_slower_still_learns_to_the_end() -> None:
    run = Run(1000, lambda clock: 0.1 if clock < 300 else 1.0).go()
    assert run.clock < 1030
    assert run.rates[-1] < 0.05
    falls = [later - earlier for earlier, later in zip(run.rates, run.rates[1:], strict=False)]
    assert max(falls) < 0.05
    assert min(falls) > -0.1


def test_the_rate_follows_the_clock() -> None:
    run = Run(1000, lambda clock: 0.2 if clock < 500 else 1.0).go()
    half = run.rates[round(500 / 0.2)]
    assert half == pytest.approx(0.5, abs=0.06)


def test_slow_validation_comes_less_often() -> None:
    assert Run(1000, lambda _: 0.5, validation_seconds=0.1).go().validations > 150
    slow = Run(1000, lambda _: 0.5, validation_seconds=5).go()
    assert slow.validations * 5 < 0.08 * 1000


def test_few_steps_are_said_aloud(caplog: pytest.LogCaptureFixture) -> None:
    assert Run(60, lambda _: 2.0).go().steps < FEW_STEPS
    assert "steps fit into the time: give more --max-minutes" in caplog.text
    caplog.clear()
    assert Run(600, lambda _: 0.1).go().steps > FEW_STEPS
    assert not caplog.records


def test_an_exhausted_budget_ends_after_the_first_look() -> None:
    assert Run(1.0, lambda _: 5.0).go().steps <= 3
