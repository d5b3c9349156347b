"""How many steps there will be, and how fast each learns: fixed before the first one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from unet_med.config import PipelineConfig
from unet_med.errors import ConfigError

_VALIDATION_SHARE = 0.06
"""Validation may take this share of a time budget."""


@dataclass(frozen=True)
class Schedule:
    """The course of a training run; stored in the checkpoint and never changed.

    Attributes:
        total_steps: Number of optimizer steps.
        steps_per_epoch: Steps between two entries of the record.
        validation_every: Epochs between two validations; the last epoch always has one.
        base_rate: Largest learning rate.
        warmup_steps: Steps of linear rise to it.
        power: Exponent of the polynomial decay to 0.
    """

    total_steps: int
    steps_per_epoch: int
    validation_every: int
    base_rate: float
    warmup_steps: int
    power: float

    @property
    def epochs(self) -> int:
        """Number of epochs; the last may be shorter."""
        return -(-self.total_steps // self.steps_per_epoch)

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step (0 for the first): linear warm-up, then polynomial decay."""
        decay = float((1.0 - step / self.total_steps) ** self.power)
        warmup = min(self.warmup_steps, self.total_steps // 10)
        return self.base_rate * decay * min(1.0, (step + 1) / (warmup + 1))

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch ends after ``step`` steps are done."""
        return step % self.steps_per_epoch == 0 or step == self.total_steps

    def validates(self, epoch: int) -> bool:
        """Whether the epoch (1 for the first) ends with a validation."""
        return epoch % self.validation_every == 0 or epoch == self.epochs

    def to_numbers(self) -> dict[str, Any]:
        """Returns the schedule as JSON-able numbers."""
        return asdict(self)

    @classmethod
    def from_numbers(cls, numbers: Mapping[str, Any]) -> Schedule:
        """Inverse of :meth:`to_numbers`."""
        return cls(**numbers)


def schedule_by_epochs(config: PipelineConfig) -> Schedule:
    """Returns the schedule for ``training.epochs``."""
    steps, every = _resolved(config)
    return _schedule(config, config.training.epochs * steps, steps, every)


def schedule_by_time(
    config: PipelineConfig, seconds: float, step_seconds: float, validation_seconds: float
) -> Schedule:
    """Returns the schedule that fills ``seconds``, validations included.

    Args:
        config: A resolved pipeline.
        seconds: What is left of the budget for steps and validations.
        step_seconds: Measured time of a step.
        validation_seconds: Measured time of a validation over all its cases.
    """
    steps, every = _resolved(config)
    epoch_seconds = steps * step_seconds
    while every * epoch_seconds * _VALIDATION_SHARE < validation_seconds and every * epoch_seconds < seconds:
        every += 1
    per_step = step_seconds + validation_seconds / (every * steps)
    total = max(1, int((seconds - validation_seconds) / per_step))
    return _schedule(config, total, min(steps, total), every)


def _resolved(config: PipelineConfig) -> tuple[int, int]:
    steps, every = config.training.steps_per_epoch, config.training.validation_every_epochs
    if steps == "auto" or every == "auto":
        raise ConfigError("the length of an epoch is not resolved", "training", "resolve it with `unet-med plan`")
    return steps, every


def _schedule(config: PipelineConfig, total: int, steps_per_epoch: int, every: int) -> Schedule:
    training = config.training
    if training.learning_rate == "auto":
        raise ConfigError("the learning rate is not resolved", "training", "resolve it with `unet-med plan`")
    return Schedule(total, steps_per_epoch, every, training.learning_rate, training.warmup_steps, training.poly_power)
