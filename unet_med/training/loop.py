"""The training loop, to be read from top to bottom.

A :class:`~unet_med.training.trainer.Trainer` holds the state that changes; :func:`fit` drives it. Randomness lives in
the data set (a function of seed and sample index) and in dropout (seeded at every step), so a run resumed from its
checkpoint takes exactly the steps it would have taken, whatever the number of processes was or is.

Of several processes (:mod:`unet_med.training.distributed`) the first keeps the time and writes; all take every branch
together.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from unet_med.config import PipelineConfig
from unet_med.data import CachedCase
from unet_med.device_data import DeviceCases, device_batches
from unet_med.errors import MachineError
from unet_med.inference.allocator import freed_memory_kept
from unet_med.inference.device import free_memory
from unet_med.patches import PatchDataset, patch_loader
from unet_med.training.checkpoint import load_checkpoint, save_checkpoint
from unet_med.training.pace import FEW_STEPS, Pace, too_few_remedy
from unet_med.training.schedule import Schedule, schedule_by_epochs
from unet_med.training.stopping import asked_to_stop
from unet_med.training.trainer import Trainer

logger = logging.getLogger(__name__)

_MEASURED_CASES = 4
_TRAINING_BYTES = 12 * 10**9
"""Memory of a card that is kept for training, half as much again as a plan takes."""
_ENDLESS = 2**48
_VALIDATION_SECONDS = "seconds_per_validation"


class EpochRecord(Protocol):
    """What is told about a finished epoch; see :mod:`unet_med.training.tracking`."""

    def __call__(self, epoch: int, metrics: Mapping[str, float], masks: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Receives the epoch's number, its metrics, and the masks of validated cases by case id."""


@dataclass(frozen=True, eq=False)
class FitResult:
    """What training leaves behind.

    Attributes:
        last: Weights after the last step (their average, if one was kept).
        best: Weights with the best score of :attr:`Trainer.best_by`; ``None`` without validation.
        best_score: That score.
        history: One entry for each epoch.
        steps: Steps taken in all.
        seconds: Time spent in this fold, all its starts together.
        seconds_per_step: Median of the steps of this start.
        notes: What a user should know (stopped early, few steps).
    """

    last: dict[str, torch.Tensor]
    best: dict[str, torch.Tensor] | None
    best_score: float | None
    history: list[dict[str, float]]
    steps: int
    seconds: float
    seconds_per_step: float
    notes: list[str]


def fit(
    trainer: Trainer,
    training: Sequence[CachedCase],
    validation: Sequence[CachedCase],
    folder: Path,
    *,
    resume: bool,
    max_seconds: float | None,
    record: EpochRecord,
    overlay_ids: Sequence[str] = (),
    progress: Callable[[Iterable[int], str], Iterable[int]] | None = None,
) -> FitResult:
    """Trains one fold to its end.

    Args:
        trainer: A fresh trainer; its team trains together, and all of it calls this with the same cases.
        training: Prepared cases to learn from.
        validation: Prepared cases to score; may be empty.
        folder: Where checkpoints go.
        resume: Go on from the newest checkpoint, if there is one.
        max_seconds: Time for this fold; ``None``: as many steps as ``training.epochs`` says.
        record: Called after each epoch, by the process that leads.
        overlay_ids: Cases whose masks ``record`` receives.
        progress: Wraps the steps to show how far it is.

    Raises:
        TrainingError: a loss or gradient was not finite.
        MachineError: another process of the team ended.
        Terminated, KeyboardInterrupt: after a checkpoint, when one of the team was asked to stop.
    """
    started = time.monotonic()
    team = trainer.team
    config = trainer.config.training
    schedule = _resumed(trainer, folder) if resume else None
    fresh = schedule is None
    earlier = trainer.seconds
    course = _Course(trainer, schedule or schedule_by_epochs(trainer.config))
    pace = _pace(trainer, max_seconds, lambda: earlier + time.monotonic() - started)
    notes: list[str] = []
    times: list[float] = []
    last_saved = time.monotonic()

    def checkpoint_now() -> None:
        nonlocal last_saved
        if team.leads:
            trainer.seconds = earlier + time.monotonic() - started
            save_checkpoint(folder, trainer.to_checkpoint(course.schedule))
            last_saved = time.monotonic()

    if fresh:
        checkpoint_now()
    with asked_to_stop() as stop, freed_memory_kept():
        batches = _batches(trainer, training, _ENDLESS if pace else course.schedule.total_steps)
        before = time.monotonic()
        for step in progress(course, "training") if progress else course:
            rate = course.schedule.learning_rate(step)
            loss = trainer.train_step(_next(batches), rate)
            times.append(time.monotonic() - before)
            _add(trainer.sums, {"loss": loss, **trainer.parts}, times[-1])
            is_late = False
            if pace is not None:
                pace.add_step(times[-1])
                is_due, is_late = team.any(*_told_by(pace, course.schedule, trainer))
                if is_due:
                    course.schedule = _planned(pace, course.schedule, trainer, validation)
            if course.schedule.ends_epoch(trainer.step) or is_late:
                _finish_epoch(trainer, course.schedule, rate, validation, overlay_ids, record, is_late, pace)
            if team.any(stop.signal is not None)[0]:
                checkpoint_now()
                stop.leave()
            if is_late and trainer.step < course.schedule.total_steps:
                notes.append(f"stopped after {trainer.step} steps: the time is over, the machine became slower")
                break
            if time.monotonic() - last_saved > config.checkpoint_minutes * 60:
                checkpoint_now()
            before = time.monotonic()
        checkpoint_now()
    if pace is not None and trainer.step < FEW_STEPS:
        notes.append(f"WARNING: only {trainer.step} steps fitted into the time: {too_few_remedy()}")
    return FitResult(
        last=trainer.final_weights(),
        best=trainer.best,
        best_score=trainer.best_score,
        history=trainer.history,
        steps=trainer.step,
        seconds=trainer.seconds,
        seconds_per_step=float(np.median(times)) if times else 0.0,
        notes=[*notes, *([trainer.forward.note] if trainer.forward.note else [])],
    )


class _Course(Iterable[int], Sized):
    """The steps still to take; their number follows the schedule, which may be planned again on the way."""

    def __init__(self, trainer: Trainer, schedule: Schedule) -> None:
        self.schedule = schedule
        self._trainer = trainer
        self._first = trainer.step

    def __iter__(self) -> Iterator[int]:
        while self._trainer.step < self.schedule.total_steps:
            yield self._trainer.step

    def __len__(self) -> int:
        return self.schedule.total_steps - self._first


def _resumed(trainer: Trainer, folder: Path) -> Schedule | None:
    """Takes over the newest checkpoint; all processes must have found the same."""
    checkpoint = load_checkpoint(folder)
    step = -1 if checkpoint is None else int(checkpoint.numbers["step"])
    if len(set(trainer.team.gather(step))) > 1:
        raise MachineError(
            "the processes of this training do not find the same checkpoint",
            remedy="give an --out that all of them share",
        )
    return None if checkpoint is None else trainer.restore(checkpoint)


def _batches(trainer: Trainer, training: Sequence[CachedCase], last_step: int) -> Iterator[dict[str, torch.Tensor]]:
    """Yields this process's samples of each step; with a card they are cut and augmented there."""
    team = trainer.team
    dataset = PatchDataset(training, trainer.config)
    steps = trainer.batch_size, trainer.step, last_step
    room = _room_on_card(trainer.device)
    if room is not None:
        cases = DeviceCases(training, trainer.device, room)
        return device_batches(cases, dataset, *steps, team.rank, team.world)
    workers = trainer.config.training.workers
    share = 0 if workers == "auto" else team.workers(workers)
    return patch_loader(dataset, *steps, share, team.rank, team.world)


def _room_on_card(device: torch.device) -> int | None:
    """Returns how many bytes of cases may lie on the card, which a plan leaves free; ``None`` without a card."""
    if device.type != "cuda":
        return None
    free = free_memory(device) or 0
    return max(0, min(free // 2, free - _TRAINING_BYTES))


# ---- with a time budget ---------------------------------------------------------------------------------------------


def _pace(trainer: Trainer, max_seconds: float | None, used: Callable[[], float]) -> Pace | None:
    if max_seconds is None:
        return None
    every = trainer.config.training.validation_every_epochs
    pace = Pace(max_seconds, used, 1 if every == "auto" else every, scorings=_views(trainer.config))
    measured = [metrics[_VALIDATION_SECONDS] for metrics in trainer.history if _VALIDATION_SECONDS in metrics]
    pace.validation_seconds = measured[-1] if measured else None
    return pace


def _told_by(pace: Pace, schedule: Schedule, trainer: Trainer) -> tuple[bool, bool]:
    """Whether to plan again, and whether to stop; one clock counts."""
    return (pace.is_due(schedule, trainer.step), pace.is_late()) if trainer.team.leads else (False, False)


def _planned(pace: Pace, schedule: Schedule, trainer: Trainer, validation: Sequence[CachedCase]) -> Schedule:
    """Plans the rest, in the process that leads; the first time some cases are validated to know how long it takes."""
    if validation and trainer.team.any(pace.validation_seconds is None)[0]:
        measured = validation[:_MEASURED_CASES]
        before = time.monotonic()
        trainer.validate(measured, ())
        share = sum(np.prod(case.shape) for case in measured) / sum(np.prod(case.shape) for case in validation)
        pace.validation_seconds = (time.monotonic() - before) / float(share)
    return Schedule.from_numbers(trainer.team.share(pace.plan(schedule, trainer.step).to_numbers()))


def _views(config: PipelineConfig) -> int:
    """How many flips of each window prediction averages, the unflipped one included."""
    axes = config.augment.mirror_axes
    return 2 ** len(axes) if config.inference.mirror and axes != "auto" else 1


# ---- what an epoch leaves -------------------------------------------------------------------------------------------


def _finish_epoch(
    trainer: Trainer,
    schedule: Schedule,
    rate: float,
    validation: Sequence[CachedCase],
    overlay_ids: Sequence[str],
    record: EpochRecord,
    last: bool,
    pace: Pace | None,
) -> None:
    epoch = len(trainer.history) + 1
    count = trainer.sums.pop("count")
    seconds = trainer.sums.pop("seconds")
    metrics = {f"train/{name}": total / count for name, total in sorted(trainer.sums.items())}
    metrics |= trainer.tally.close()
    metrics |= {"learning_rate": rate, "seconds_per_step": seconds / count, "seconds_per_epoch": seconds}
    metrics["patches_per_second"] = trainer.batch_size * count / seconds
    masks: dict[str, np.ndarray[Any, Any]] = {}
    trainer.sums = {}
    if validation and (last or schedule.validates(epoch)):
        before = time.monotonic()
        scores, masks = trainer.validate(validation, overlay_ids)
        metrics |= scores
        metrics[_VALIDATION_SECONDS] = time.monotonic() - before
        if pace is not None:
            pace.validation_seconds = metrics[_VALIDATION_SECONDS]
        score = scores.get(trainer.best_by)
        if score is not None and (trainer.best_score is None or score > trainer.best_score):
            trainer.best_score, trainer.best = score, trainer.final_weights()
    trainer.history.append(metrics)
    if trainer.team.leads:
        record(epoch, metrics, masks)


def _next(batches: Iterator[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    try:
        return next(batches)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise MachineError(
            "a loader process died, most likely for want of memory",
            remedy="set training.workers to 0 and start again with --resume",
        ) from error


def _add(sums: dict[str, float], values: Mapping[str, float], seconds: float) -> None:
    for name, value in values.items():
        sums[name] = sums.get(name, 0.0) + value
    sums["count"] = sums.get("count", 0.0) + 1
    sums["seconds"] = sums.get("seconds", 0.0) + seconds
