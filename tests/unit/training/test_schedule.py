"""The course of a run is fixed before its first step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_med.config import PipelineConfig, parse_config
from unet_med.training.schedule import Schedule, schedule_by_epochs, schedule_by_time


def config(**training: object) -> PipelineConfig:
    resolved = {"learning_rate": 1e-3, "steps_per_epoch": 10, "validation_every_epochs": 2} | training
    return parse_config({"name": "test", "training": resolved}, "test")


def test_epochs_times_steps() -> None:
    schedule = schedule_by_epochs(config(epochs=7))
    assert schedule.total_steps == 70
    assert schedule.epochs == 7
    assert [epoch for epoch in range(1, 8) if schedule.validates(epoch)] == [2, 4, 6, 7]
    assert schedule.ends_epoch(10)
    assert not schedule.ends_epoch(11)


@given(seconds=st.floats(10, 1e5), step=st.floats(0.001, 5), validation=st.floats(0, 60))
def test_a_time_budget_is_filled_and_not_exceeded(seconds: float, step: float, validation: float) -> None:
    schedule = schedule_by_time(config(), seconds, step, validation)
    validations = sum(schedule.validates(epoch) for epoch in range(1, min(schedule.epochs, 100_000) + 1))
    used = schedule.total_steps * step + validations * validation
    if schedule.total_steps > 1 and schedule.epochs < 100_000:
        assert used <= seconds + step + validation
        # as much as a validation and an epoch of grain may be left over
        assert used >= seconds - 2 * validation - 2 * step - validation * seconds / max(
            schedule.validation_every * schedule.steps_per_epoch * step, 1e-9
        )


@given(total=st.integers(1, 5000), warmup=st.integers(0, 100))
def test_the_rate_rises_then_falls_to_zero(total: int, warmup: int) -> None:
    schedule = Schedule(total, 10, 1, 1e-2, warmup, 0.9)
    rates = [schedule.learning_rate(step) for step in range(total)]
    peak = rates.index(max(rates))
    assert all(0 < rate <= 1e-2 for rate in rates)
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert schedule.learning_rate(total) == 0


def test_it_survives_the_checkpoint() -> None:
    schedule = schedule_by_epochs(config(epochs=3))
    assert Schedule.from_numbers(schedule.to_numbers()) == schedule


def test_slow_validation_comes_less_often() -> None:
    fast = schedule_by_time(config(validation_every_epochs=1), 1000, 0.5, 0.1)
    slow = schedule_by_time(config(validation_every_epochs=1), 1000, 0.5, 5)
    assert fast.validation_every == 1
    assert slow.validation_every == pytest.approx(5 / 0.06 / 5, abs=1)
