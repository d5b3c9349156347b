"""How many steps there will be, and how fast each learns.

With ``training.epochs`` both are fixed before the first step. With a time budget they follow the clock: the steps that
still fit are counted again and again from those just taken (:mod:`unet_med.training.pace`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from unet_med.config import PipelineConfig
from unet_med.errors import ConfigError


@dataclass(frozen=True)
class Schedule:
    """The course of a training run, as it is stored in the checkpoint.

    Attributes:
        total_steps: Number of optimizer steps.
        steps_per_epoch: Steps between two entries of the record.
        validation_every: Epochs between two validations; the last epoch always has one.
        base_rate: Largest learning rate.
        warmup_steps: Steps of linear rise to it.
        power: Exponent of the polynomial decay to 0.
        anchor_step: Step at which ``total_steps`` was decided.
        anchor_share: Share of the course that was left then, 0 to 1; it shrinks evenly from there to 0.
    """

    total_steps: int
    steps_per_epoch: int
    validation_every: int
    base_rate: float
    warmup_steps: int
    power: float
    anchor_step: int = 0
    anchor_share: float = 1.0

    @property
    def epochs(self) -> int:
        """Number of epochs; the last may be shorter."""
        return -(-self.total_steps // self.steps_per_epoch)

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step (0 for the first): linear warm-up, then polynomial decay."""
        left = self.anchor_share * (self.total_steps - step) / max(self.total_steps - self.anchor_step, 1)
        warmup = min(self.warmup_steps, self.total_steps // 10)
        return self.base_rate * float(left**self.power) * min(1.0, (step + 1) / (warmup + 1))

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
    """Returns the schedule for ``training.epochs``.

    Raises:
        ConfigError: if the pipeline is not resolved.
    """
    training = config.training
    steps, every, rate = training.steps_per_epoch, training.validation_every_epochs, training.learning_rate
    if steps == "auto" or every == "auto" or rate == "auto":
        raise ConfigError("the course of training is not resolved", "training", "resolve it with `unet-med plan`")
    return Schedule(training.epochs * steps, steps, every, rate, training.warmup_steps, training.poly_power)
