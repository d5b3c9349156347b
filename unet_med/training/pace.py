"""A time budget that is kept on a machine whose speed is not known and may change.

The first steps are timed, and a validation; then the number of steps is decided, and decided again whenever another
twentieth of the budget is used, or before the last step when time is left. The learning rate follows the clock: where
half of the time for steps is left, half of the course is. What was decided is in the checkpoint, so that a resumed run
goes on with it until the next decision. A run with a time budget is therefore resumed without a seam, but two of them
never take exactly the same steps; runs of ``training.epochs`` do.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace

from unet_med.training.schedule import Schedule

logger = logging.getLogger(__name__)

FEW_STEPS = 100
"""Below this, a budget is called too small to learn much."""

_FIRST_LOOK = 3
_LOOK_SHARE = 0.05
_VALIDATION_SHARE = 0.06
_ONLY_THE_LAST = 2**31
_FINISH_SHARE = 0.02
_MOST_HELD_BACK = 0.5
_WORTH_GOING_ON = 0.02
_OVERTIME = 1.08


class Pace:
    """Measures the steps of this start, and plans the rest of the budget from them.

    Args:
        seconds: Wall-clock budget of the fold.
        used: Returns the seconds used so far, all starts of the fold together.
        validation_every: Least number of epochs between two validations.
        scorings: Time of the scoring after the last step, in validations.
    """

    def __init__(self, seconds: float, used: Callable[[], float], validation_every: int, scorings: float) -> None:
        self.validation_seconds: float | None = None
        self._seconds = seconds
        self._used = used
        self._validation_every = validation_every
        self._scorings = scorings
        self._times: list[float] = []
        self._planned_at = 0
        self._planned_when = -math.inf

    def add_step(self, seconds: float) -> None:
        """Takes note of a step, the wait for its samples included."""
        self._times.append(seconds)

    def is_due(self, schedule: Schedule, step: int) -> bool:
        """Whether the rest should be planned again after ``step`` steps."""
        if step == schedule.total_steps or len(self._times) == _FIRST_LOOK:
            return True
        return len(self._times) > _FIRST_LOOK and self._used() - self._planned_when > self._seconds * _LOOK_SHARE

    def is_late(self) -> bool:
        """Whether the time for steps is over, beyond what planning can mend."""
        return self._used() > self._for_steps() * _OVERTIME

    def plan(self, schedule: Schedule, step: int) -> Schedule:
        """Returns the schedule with as many steps after ``step`` as the rest of the budget holds.

        Half of the budget is for steps in any case, however long validation and scoring will take.
        """
        step_seconds, validation_seconds = self._step_seconds(), self.validation_seconds or 0.0
        left = max(self._for_steps() - self._used(), 0.0)
        epoch_seconds = schedule.steps_per_epoch * step_seconds
        between = validation_seconds / _VALIDATION_SHARE
        every = max(self._validation_every, math.ceil(between / epoch_seconds) if between < left else _ONLY_THE_LAST)
        more = int(left / (step_seconds + validation_seconds / (every * schedule.steps_per_epoch)))
        if step == schedule.total_steps and more * step_seconds < self._seconds * _WORTH_GOING_ON:
            more = 0
        first = self._planned_when == -math.inf
        self._planned_at, self._planned_when = len(self._times), self._used()
        if first:
            self._say(step + more, step_seconds, validation_seconds)
        return replace(
            schedule,
            total_steps=step + more,
            validation_every=every,
            anchor_step=step,
            anchor_share=min(left / self._for_steps(), 1.0),
        )

    def _for_steps(self) -> float:
        """Seconds of the budget for steps and the validations between them."""
        after = (self.validation_seconds or 0.0) * (1 + self._scorings) + self._seconds * _FINISH_SHARE
        return self._seconds - min(after, self._seconds * _MOST_HELD_BACK)

    def _step_seconds(self) -> float:
        """Mean over the steps since the last plan, at least three; the first of a start pays for setting up."""
        count = max(len(self._times) - self._planned_at, _FIRST_LOOK)
        recent = self._times[1:][-count:] or self._times
        return max(sum(recent) / len(recent), 1e-6)

    def _say(self, steps: int, step_seconds: float, validation_seconds: float) -> None:
        logger.info("%.3f s a step, %.1f s a validation: about %d steps", step_seconds, validation_seconds, steps)
        if steps < FEW_STEPS:
            logger.warning("only about %d steps fit into the time: %s", steps, too_few_remedy())


def too_few_remedy() -> str:
    """What helps where few steps fit into the budget."""
    return "give more --max-minutes, a smaller sampling.patch_voxels or a smaller sampling.batch_size"
