"""The training loop, to be read from top to bottom.

One :class:`Trainer` holds the state that changes; :func:`fit` drives it. Randomness lives in the data set (a function
of seed and sample index) and in dropout (seeded at every step), so a run resumed from its checkpoint takes exactly
the steps it would have taken.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from unet_med.config import PipelineConfig
from unet_med.data import CachedCase, PatchDataset, patch_loader
from unet_med.errors import MachineError, Terminated, TrainingError
from unet_med.inference.device import choose_precision
from unet_med.inference.tiling import sliding_window_logits
from unet_med.labels import LabelMap
from unet_med.losses import build_loss
from unet_med.metrics import confusion_counts, dice_iou
from unet_med.networks import admissible_patch, build_network, context_voxels
from unet_med.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from unet_med.training.schedule import Schedule, schedule_by_epochs, schedule_by_time

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


class Trainer:
    """State of a run and the operations on it."""

    def __init__(self, config: PipelineConfig, labels: LabelMap, channels: int, device: torch.device) -> None:
        if config.dims == "auto" or config.sampling.patch_voxels == "auto" or config.sampling.batch_size == "auto":
            raise TrainingError("the pipeline is not resolved", "sampling", "resolve it with `unet-med plan`")
        torch.manual_seed(config.seed)
        self.config = config
        self.labels = labels
        self.device = device
        self.batch_size = config.sampling.batch_size
        self.patch = admissible_patch(config.network, config.dims, config.sampling.patch_voxels)
        self.layout = torch.channels_last_3d if config.dims == 3 else torch.channels_last
        self.network = build_network(config.network, config.dims, channels, labels.outputs)
        self.network = self.network.to(device=device, memory_format=self.layout)  # type: ignore[call-overload]
        self.loss = build_loss(config.loss, labels).to(device)
        self.optimizer = _build_optimizer(config, self.network)
        self.precision = choose_precision(config.training.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == torch.float16)
        self.average = deepcopy(self.network.state_dict()) if config.training.ema_decay else None
        self.step = 0
        self.seconds = 0.0
        self.sums: dict[str, float] = {}
        self.history: list[dict[str, float]] = []
        self.best: dict[str, torch.Tensor] | None = None
        self.best_dice: float | None = None

    # ---- one step -----------------------------------------------------------------------------------------------

    def train_step(self, batch: Mapping[str, torch.Tensor], rate: float) -> float:
        """Takes one optimizer step and returns the loss.

        Raises:
            TrainingError: if loss or gradient is not finite; the weights are as before.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.network.train()
        torch.manual_seed(self.config.seed + 1 + self.step)
        image = batch["image"].to(self.device, non_blocking=True, memory_format=self.layout)
        label = batch["label"].to(self.device, non_blocking=True)
        weight = batch["weight"].to(self.device, non_blocking=True) if "weight" in batch else None
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            logits = self.network(image)
        loss = self.loss(_float(logits), label, weight)
        value = float(loss.detach())
        self._stop_unless(math.isfinite(value), "the loss")
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.training.clip_gradient_norm)
        if not self.scaler.is_enabled():  # the scaler itself skips a step whose gradient overflowed
            self._stop_unless(math.isfinite(float(norm)), "the gradient")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        self._update_average()
        return value

    def autocast(self) -> AbstractContextManager[Any]:
        """Returns the mixed-precision context of this device."""
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.precision)

    def _stop_unless(self, finite: bool, what: str) -> None:
        if not finite:
            raise TrainingError(
                f"{what} is not finite at step {self.step}",
                remedy="the last checkpoint is kept; lower training.learning_rate or set training.precision to fp32",
            )

    def _update_average(self) -> None:
        """Exponential moving average of the weights, with the usual warm-up."""
        if self.average is None:
            return
        decay = min(self.config.training.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self.network.state_dict().items():
                if value.is_floating_point():
                    self.average[name].lerp_(value, 1 - decay)
                else:
                    self.average[name].copy_(value)

    # ---- validation ---------------------------------------------------------------------------------------------

    def final_weights(self) -> dict[str, torch.Tensor]:
        """Returns the weights to deploy: their average if one is kept, else the network's own."""
        return {k: v.detach().cpu().clone() for k, v in (self.average or self.network.state_dict()).items()}

    @contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """Lends the network in evaluation mode with the weights that would be deployed."""
        own = None
        if self.average is not None:
            own = {k: v.clone() for k, v in self.network.state_dict().items()}
            self.network.load_state_dict(self.average)
        self.network.eval()
        try:
            yield self.network
        finally:
            if own is not None:
                self.network.load_state_dict(own)

    def predict(self, network: nn.Module, case: CachedCase) -> np.ndarray[Any, np.dtype[np.integer[Any]]]:
        """Returns the labels of a prepared case on the network's grid, by the sliding window of prediction."""
        config = self.config
        logits = sliding_window_logits(
            torch.from_numpy(np.array(case.image())),
            network,
            self.patch,
            self.labels.outputs,
            overlap=config.inference.overlap,
            sigma=config.inference.gaussian_sigma,
            context=context_voxels(config.network, len(self.patch)),
            device=self.device,
            precision=self.precision,
        )
        return self.labels.from_outputs(logits.numpy())

    def validate(
        self, cases: Sequence[CachedCase], keep: Sequence[str]
    ) -> tuple[dict[str, float], dict[str, np.ndarray[Any, Any]]]:
        """Returns mean Dice and IoU per label over cases, and the masks of the cases in ``keep``."""
        scores: list[dict[str, tuple[float | None, float | None]]] = []
        masks: dict[str, np.ndarray[Any, Any]] = {}
        with self.evaluating() as network:
            for case in cases:
                mask = self.predict(network, case)
                scores.append(dice_iou(confusion_counts(mask, np.asarray(case.label()), self.labels)))
                if case.id in keep:
                    masks[case.id] = mask
        return _mean_scores(scores, self.labels.names), masks

    # ---- checkpoint ---------------------------------------------------------------------------------------------

    def to_checkpoint(self, schedule: Schedule) -> Checkpoint:
        """Returns the whole state."""
        tensors: dict[str, Mapping[str, torch.Tensor]] = {
            "network": self.network.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer),
        }
        if self.average is not None:
            tensors["average"] = self.average
        if self.best is not None:
            tensors["best"] = self.best
        numbers = {
            "step": self.step,
            "seconds": self.seconds,
            "schedule": schedule.to_numbers(),
            "sums": self.sums,
            "history": self.history,
            "best_dice": self.best_dice,
            "threads": torch.get_num_threads(),
            "scaler": self.scaler.state_dict(),
        }
        return Checkpoint(tensors, numbers)

    def restore(self, checkpoint: Checkpoint) -> Schedule:
        """Takes over the state of a checkpoint and returns its schedule."""
        self.network.load_state_dict(dict(checkpoint.tensors["network"]))
        restore_optimizer(self.optimizer, checkpoint.tensors.get("optimizer", {}))
        if self.average is not None:
            for name, value in checkpoint.tensors["average"].items():
                self.average[name].copy_(value)
        self.best = dict(checkpoint.tensors["best"]) if "best" in checkpoint.tensors else None
        numbers = checkpoint.numbers
        self.step, self.seconds = numbers["step"], numbers["seconds"]
        self.sums, self.history = dict(numbers["sums"]), list(numbers["history"])
        self.best_dice = numbers["best_dice"]
        if numbers["scaler"]:
            self.scaler.load_state_dict(numbers["scaler"])
        if numbers["threads"] != torch.get_num_threads():
            logger.warning(
                "resumed with %d threads instead of %d: the result will differ in the last digits",
                torch.get_num_threads(),
                numbers["threads"],
            )
        return Schedule.from_numbers(numbers["schedule"])


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
    with _asked_to_stop() as stop:
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
    left = seconds * (1 - _FINISH_SHARE) - (time.monotonic() - started) - validation_seconds
    step_seconds = float(np.mean(times[1:]))
    logger.info("calibration: %.3f s a step, %.1f s a validation", step_seconds, validation_seconds)
    return schedule_by_time(trainer.config, max(left, step_seconds), step_seconds, validation_seconds)


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


def _float(logits: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor | tuple[torch.Tensor, ...]:
    if isinstance(logits, torch.Tensor):
        return logits.float()
    return tuple(level.float() for level in logits)


def _add(sums: dict[str, float], values: Mapping[str, float], seconds: float) -> None:
    for name, value in values.items():
        sums[name] = sums.get(name, 0.0) + value
    sums["count"] = sums.get("count", 0.0) + 1
    sums["seconds"] = sums.get("seconds", 0.0) + seconds


def _mean_scores(
    scores: Sequence[Mapping[str, tuple[float | None, float | None]]], names: Sequence[str]
) -> dict[str, float]:
    """Means over cases for each label, then over labels; a score that does not exist is left out."""
    metrics: dict[str, float] = {}
    for position, kind in enumerate(("dice", "iou")):
        means = []
        for name in names:
            values = [value for score in scores if (value := score[name][position]) is not None]
            if values:
                metrics[f"val/{kind}/{name}"] = float(np.mean(values))
                means.append(metrics[f"val/{kind}/{name}"])
        if means:
            metrics[f"val/{kind}/mean"] = float(np.mean(means))
    return metrics


def _build_optimizer(config: PipelineConfig, network: nn.Module) -> torch.optim.Optimizer:
    """Weight decay is for the kernels of convolutions, not for biases and norms."""
    training = config.training
    decayed = [p for p in network.parameters() if p.ndim > 1]
    plain = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": training.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=1e-2, momentum=training.momentum, nesterov=training.momentum > 0)
    return torch.optim.AdamW(groups, lr=1e-3)


class _StopRequest:
    """Remembers that the process was asked to stop, so that a step is never cut in two."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:  # asked twice: at once
            self.leave()
        self.signal = number

    def leave(self) -> None:
        """Raises what the signal means."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise Terminated


@contextmanager
def _asked_to_stop() -> Iterator[_StopRequest]:
    request = _StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
