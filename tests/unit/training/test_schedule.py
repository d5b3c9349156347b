"""The number of steps and how fast each learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_med.config import PipelineConfig, parse_config
from unet_med.errors import ConfigError
from unet_med.training.schedule import Schedule, schedule_by_epochs


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


def test_a_course_planned_again_falls_evenly_from_where_it_was() -> None:
    first = Schedule(100, 10, 1, 1.0, 0, 1.0)
    again = replace(first, total_steps=250, anchor_step=50, anchor_share=first.learning_rate(50))
    assert again.learning_rate(50) == pytest.approx(first.learning_rate(50))
    assert again.learning_rate(150) == pytest.approx(0.25)
    assert again.learning_rate(250) == 0
    assert replace(again, total_steps=50).learning_rate(50) == 0
    assert Schedule.from_numbers(again.to_numbers()) == again


def test_a_pipeline_that_is_not_resolved_has_no_course() -> None:
    with pytest.raises(ConfigError, match="not resolved"):
        schedule_by_epochs(parse_config({"name": "test"}, "test"))
