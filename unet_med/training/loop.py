"""The training loop, to be read from top to bottom.

A :class:`~unet_med.training.trainer.Trainer` holds the state that changes; :func:`fit` drives it. Randomness lives in
the data set (a function of seed and sample index) and in dropout (seeded at every step), so a run resumed from its
checkpoint takes exactly the steps it would have taken.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from unet_med.config import PipelineConfig
from unet_med.data import CachedCase, PatchDataset, patch_loader
from unet_med.errors import MachineError
from unet_med.training.checkpoint import load_checkpoint, save_checkpoint
from unet_med.training.schedule import Schedule, schedule_by_epochs, schedule_by_time
from unet_med.training.stopping import asked_to_stop
from unet_med.training.trainer import Trainer

logger = logging.getLogger(__name__)

_CALIBRATION_STEPS = (3, 24)
_CALIBRATION_CASES = 4
_CALIBRATION_SHARE = 0.03
_FINISH_SHARE = 0.02
_OVERTIME = 1.08


class EpochRecord(Protocol):
    """What is told about a finished epoch; see :mod:`unet_med.training.tracking`."""

    def __call__(self, epoch: int, metrics: Mapping[str, float], masks: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Receives the epoch's number, its metrics, and the masks of validated cases by case id."""


@dataclass(frozen=True, eq=False)
class FitResult:
    """What training leaves behind.

    Attributes:
        last: Weights after the last step (their average, if one was kept).
        best: Weights with the best validation Dice; ``None`` without validation.
        best_dice: That Dice.
        history: One entry for each epoch.
        steps: Steps taken in all.
        seconds: Time spent in this fold, all its starts together.
        seconds_per_step: Median of the steps of this start.
        notes: What a user should know (stopped early, precision, threads).
    """

    last: dict[str, torch.Tensor]
    best: dict[str, torch.Tensor] | None
    best_dice: float | None
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
        trainer: A fresh trainer.
        training: Prepared cases to learn from.
        validation: Prepared cases to score; may be empty.
        folder: Where checkpoints go.
        resume: Go on from the newest checkpoint, if there is one.
        max_seconds: Time left for this fold; ``None``: as many steps as ``training.epochs`` says.
        record: Called after each epoch.
        overlay_ids: Cases whose masks ``record`` receives.
        progress: Wraps the steps to show how far it is.

    Raises:
        TrainingError: a loss or gradient was not finite.
        Terminated, KeyboardInterrupt: after a checkpoint, when asked to stop.
    """
    started = time.monotonic()
    dataset = PatchDataset(training, trainer.config)
    workers = trainer.config.training.workers
    workers = 0 if workers == "auto" else workers
    checkpoint = load_checkpoint(folder) if resume else None
    if checkpoint is not None:
        schedule = trainer.restore(checkpoint)
    elif max_seconds is not None:
        schedule = _calibrated(trainer, dataset, validation, workers, max_seconds)
    else:
        schedule = schedule_by_epochs(trainer.config)
    earlier = trainer.seconds
    notes: list[str] = []
    times: list[float] = []
    last_saved = time.monotonic()

    def checkpoint_now() -> None:
        nonlocal last_saved
        trainer.seconds = earlier + time.monotonic() - started
        save_checkpoint(folder, trainer.to_checkpoint(schedule))
        last_saved = time.monotonic()

    if checkpoint is None:
        checkpoint_now()  # from here on the number of steps is settled
    with asked_to_stop() as stop:
        steps: Iterable[int] = range(trainer.step, schedule.total_steps)
        batches = patch_loader(dataset, trainer.batch_size, trainer.step, schedule.total_steps, workers)
        before = time.monotonic()
        for step in progress(steps, "training") if progress else steps:
            rate = schedule.learning_rate(step)
            loss = trainer.train_step(_next(batches), rate)
            times.append(time.monotonic() - before)
            before = time.monotonic()
            _add(trainer.sums, {"loss": loss, **trainer.loss.parts}, times[-1])
            out_of_time = max_seconds is not None and earlier + before - started > max_seconds * _OVERTIME
            if schedule.ends_epoch(trainer.step) or out_of_time:
                _finish_epoch(trainer, schedule, rate, validation, overlay_ids, record, out_of_time)
                before = time.monotonic()
            if stop.signal is not None:
                checkpoint_now()
                stop.leave()
            if out_of_time and trainer.step < schedule.total_steps:
                notes.append(f"stopped after {trainer.step} of {schedule.total_steps} steps: the machine became slower")
                break
            if time.monotonic() - last_saved > trainer.config.training.checkpoint_minutes * 60:
                checkpoint_now()
        checkpoint_now()
    return FitResult(
        last=trainer.final_weights(),
        best=trainer.best,
        best_dice=trainer.best_dice,
        history=trainer.history,
        steps=trainer.step,
        seconds=trainer.seconds,
        seconds_per_step=float(np.median(times)) if times else 0.0,
        notes=notes,
    )


def _calibrated(
    trainer: Trainer, dataset: PatchDataset, validation: Sequence[CachedCase], workers: int, seconds: float
) -> Schedule:
    """Measures a few steps and one validated case on copies, then fixes the number of steps."""
    started = time.monotonic()
    probe = Trainer(trainer.config, trainer.labels, _channels(dataset), trainer.device)
    least, most = _CALIBRATION_STEPS
    times: list[float] = []
    before = time.monotonic()
    for batch in patch_loader(dataset, trainer.batch_size, 0, most, workers):
        probe.train_step(batch, 1e-6)
        times.append(time.monotonic() - before)  # with the wait for the batch: augmentation is part of a step
        before = time.monotonic()
        if len(times) >= least and time.monotonic() - started > seconds * _CALIBRATION_SHARE:
            break
    validation_seconds = 0.0
    if validation:
        probe.validate(validation[:1], ())  # the first one pays for what is set up once
        before = time.monotonic()
        measured = validation[:_CALIBRATION_CASES]
        probe.validate(measured, ())
        share = sum(np.prod(case.shape) for case in measured) / sum(np.prod(case.shape) for case in validation)
        validation_seconds = (time.monotonic() - before) / float(share)
    scoring_seconds = validation_seconds * _views(trainer.config)
    left = seconds * (1 - _FINISH_SHARE) - (time.monotonic() - started) - scoring_seconds
    step_seconds = float(np.mean(times[1:]))
    logger.info("calibration: %.3f s a step, %.1f s a validation", step_seconds, validation_seconds)
    return schedule_by_time(trainer.config, max(left, step_seconds), step_seconds, validation_seconds)


def _views(config: PipelineConfig) -> int:
    """How many flips of each window prediction averages, the unflipped one included."""
    axes = config.augment.mirror_axes
    return 2 ** len(axes) if config.inference.mirror and axes != "auto" else 1


def _finish_epoch(
    trainer: Trainer,
    schedule: Schedule,
    rate: float,
    validation: Sequence[CachedCase],
    overlay_ids: Sequence[str],
    record: EpochRecord,
    last: bool,
) -> None:
    epoch = len(trainer.history) + 1
    count = trainer.sums.pop("count")
    seconds = trainer.sums.pop("seconds")
    metrics = {f"train/{name}": total / count for name, total in sorted(trainer.sums.items())}
    metrics |= {"learning_rate": rate, "seconds_per_step": seconds / count, "seconds_per_epoch": seconds}
    masks: dict[str, np.ndarray[Any, Any]] = {}
    trainer.sums = {}
    if validation and (last or schedule.validates(epoch)):
        scores, masks = trainer.validate(validation, overlay_ids)
        metrics |= scores
        dice = scores.get("val/dice/mean")
        if dice is not None and (trainer.best_dice is None or dice > trainer.best_dice):
            trainer.best_dice, trainer.best = dice, trainer.final_weights()
    trainer.history.append(metrics)
    record(epoch, metrics, masks)


def _channels(dataset: PatchDataset) -> int:
    return int(dataset[0]["image"].shape[0])


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
