"""The state of a training run and what can be done to it: a step, a validation, a checkpoint."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import nn

from unet_med.config import PipelineConfig
from unet_med.data import CachedCase
from unet_med.errors import ConfigError, TrainingError
from unet_med.inference.device import choose_precision
from unet_med.inference.engine import EngineRequest, TorchEngine
from unet_med.inference.maps_store import MapStore
from unet_med.inference.objects import Truth, compare_objects, middle_of
from unet_med.inference.stream import ArrayRows, WindowStream, finished_rows, rolling_values
from unet_med.inference.tiling import window_axes
from unet_med.instances.decode import Objects, objects_of
from unet_med.labels import LabelMap
from unet_med.losses import build_loss
from unet_med.metrics import confusion_counts, dice_iou, structures
from unet_med.networks import Segmenter, admissible_patch, build_network, context_voxels
from unet_med.training.accelerate import Forward, Output, set_up_card
from unet_med.training.checkpoint import Checkpoint, optimizer_tensors, restore_optimizer
from unet_med.training.distributed import BatchSums, Team, shares_by_size
from unet_med.training.schedule import Schedule
from unet_med.training.tally import Tally
from unet_med.training.validation import DICE, OBJECTS, Overlaps, keep_part, mean_scores, object_scores
from unet_med.transforms.prior import Prior
from unet_med.volume import Region

logger = logging.getLogger(__name__)

_LONGEST_RUN = 10_000_019
"""Steps between the seeds of two pieces; torch takes the lower 32 bits of a seed."""


class Trainer:
    """State of a run and the operations on it.

    Args:
        config: The resolved pipeline.
        labels: What is learnt.
        channels: Channels of the images.
        device: Where to compute.
        team: The processes that train together; left out: this one alone. All hold the same weights.
        initial: Weights to begin with, of a network like this one; ``None``: fresh ones.

    Raises:
        TrainingError: if the pipeline is not resolved, or the weights to begin with do not fit the network.
        ConfigError: if a batch cannot be dealt out evenly.
    """

    def __init__(
        self,
        config: PipelineConfig,
        labels: LabelMap,
        channels: int,
        device: torch.device,
        team: Team | None = None,
        initial: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        if config.dims == "auto" or config.sampling.patch_voxels == "auto" or config.sampling.batch_size == "auto":
            raise TrainingError("the pipeline is not resolved", "sampling", "resolve it with `unet-med plan`")
        torch.manual_seed(config.seed)
        self.config = config
        self.labels = labels
        self.device = device
        self.team = team or Team()
        self.batch_size = config.sampling.batch_size
        self.pieces = pieces_of_batch(config, self.team.world)
        self.sums_of_batch = BatchSums(self.team, self.pieces) if self.pieces * self.team.world > 1 else None
        self.patch = admissible_patch(config.network, config.dims, config.sampling.patch_voxels)
        self.layout = torch.channels_last_3d if config.dims == 3 else torch.channels_last
        self.channels = channels * config.network.slices + config.prior_channels
        self.network = build_network(config.network, config.dims, self.channels, labels.outputs)
        if initial is not None:
            _take_over(self.network, initial)
        self.network = self.network.to(device=device, memory_format=self.layout)  # type: ignore[call-overload]
        set_up_card(device, config.training.precision)
        self.forward = Forward(self.network, device, config.training.compile)
        self.loss = build_loss(config.loss, labels, self.sums_of_batch, config.instances).to(device)
        self.optimizer = _build_optimizer(config, self.network)
        self.precision = choose_precision(config.training.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == torch.float16)
        self.average = deepcopy(self.network.state_dict()) if config.training.ema_decay else None
        self.step = 0
        self.seconds = 0.0
        self.parts: dict[str, float] = {}
        self.sums: dict[str, float] = {}
        self.tally = Tally(labels)
        self.history: list[dict[str, float]] = []
        self.best: dict[str, torch.Tensor] | None = None
        self.best_score: float | None = None

    # ---- one step -----------------------------------------------------------------------------------------------

    def train_step(self, batch: Mapping[str, torch.Tensor], rate: float) -> float:
        """Takes one optimizer step and returns the loss of the whole batch; ``parts`` are its terms.

        With ``training.accumulate`` the batch is computed in pieces, as if it were whole: the sums that couple its
        samples (Dice over the batch, the weight of all voxels) are learnt in a first pass without gradients, which
        adds a third to the time. Only batch norm sees the pieces. The same holds for the pieces of a team, without
        the first pass.

        Args:
            batch: This process's samples, as :func:`unet_med.patches.patch_loader` deals them.
            rate: Learning rate.

        Raises:
            TrainingError: if loss or gradient is not finite; the weights are as before.
            MachineError: if another process of the team ended.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.network.train()
        pieces = self._pieces(batch)
        if self.sums_of_batch is not None and len(pieces) > 1:
            with torch.no_grad(), self.sums_of_batch.learning():
                for number, piece in enumerate(pieces):
                    self._loss_of(number, piece)  # its sums alone count here
        self.optimizer.zero_grad(set_to_none=True)
        told: list[list[float]] = []
        seen: list[torch.Tensor] = []
        for number, piece in enumerate(pieces):
            loss, output = self._loss_of(number, piece)
            seen.append(self.tally.count(output, piece["label"]))
            torch.autograd.backward(self.scaler.scale(loss / len(pieces)))
            told.append([float(loss.detach()), *self.loss.parts.values()])
        values = torch.tensor(told, dtype=torch.float32, device=self.device).mean(0)
        counts = torch.stack(seen).sum(0).to(torch.float32)
        self.team.average([*self._gradients(), *self._statistics(), values, counts])
        value, *parts = values.tolist()
        self.parts = dict(zip(self.loss.parts, parts, strict=True))
        self._stop_unless(math.isfinite(value), "the loss")
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.training.clip_gradient_norm)
        if not self.scaler.is_enabled():  # the scaler itself skips a step whose gradient overflowed
            self._stop_unless(math.isfinite(float(norm)), "the gradient")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        self.tally.add((counts * self.team.world).tolist())
        self._update_average()
        return float(value)

    def _pieces(self, batch: Mapping[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        """Returns the samples on the device, in the pieces that gradients are computed of."""
        pieces: list[dict[str, torch.Tensor]] = [{} for _ in range(self.pieces)]
        for name, tensor in batch.items():
            layout = self.layout if name == "image" else torch.preserve_format
            there = tensor.to(self.device, non_blocking=True, memory_format=layout)
            for piece, samples in zip(pieces, there.chunk(self.pieces), strict=True):
                piece[name] = samples
        return pieces

    def _loss_of(self, number: int, piece: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, Output]:
        """Returns loss and logits of a piece; dropout is a function of seed, step and the place in the batch."""
        place = number * self.team.world + self.team.rank
        torch.manual_seed(self.config.seed + 1 + self.step + place * _LONGEST_RUN)
        if self.sums_of_batch is not None:
            self.sums_of_batch.start_piece()
        with self.autocast():
            output = self.forward(piece["image"])
        beside = {name: tensor for name, tensor in piece.items() if name not in ("image", "label")}
        loss: torch.Tensor = self.loss(output, piece["label"], **beside)
        return loss, output

    def _gradients(self) -> list[torch.Tensor]:
        return [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]

    def _statistics(self) -> list[torch.Tensor]:
        """Running statistics of batch norm, of which a team keeps the mean."""
        return [buffer for buffer in self.network.buffers() if buffer.is_floating_point()]

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
    def evaluating(self) -> Iterator[Segmenter]:
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

    @property
    def best_by(self) -> str:
        """Name of the score by which the best weights are known."""
        return f"{OBJECTS}/ap_mean" if self.labels.objects else f"{DICE}/mean"

    def predict(self, network: nn.Module, case: CachedCase) -> np.ndarray[Any, np.dtype[np.integer[Any]]]:
        """Returns the labels of a prepared case on the network's grid, by the sliding window of prediction."""
        mask = np.zeros(case.shape, dtype=self.labels.dtype)
        for rows, logits in self.logits(network, case):
            self.labels.from_outputs(logits, out=mask[rows])
        return mask

    def find(
        self, network: nn.Module, case: CachedCase
    ) -> tuple[np.ndarray[Any, np.dtype[np.integer[Any]]], Objects, Region]:
        """Returns the classes of a prepared case's voxels, its objects, cut out as the pipeline says, and where.

        Objects of a large image are looked for in its middle alone.
        """
        mask, part = np.zeros(case.shape, dtype=self.labels.dtype), middle_of(case.shape)
        maps = MapStore.in_memory(self.labels.outputs, [side.stop - side.start for side in part])
        for rows, logits in self.logits(network, case):
            self.labels.from_outputs(logits, out=mask[rows])
            keep_part(maps, part, rows, logits)
        return mask, objects_of(maps, self.config.instances), part

    def logits(self, network: nn.Module, case: CachedCase) -> Iterator[tuple[Region, torch.Tensor]]:
        """Yields the logits (outputs, *s) of the next rows of a prepared case, and where they lie."""
        settings = self.config.inference
        dims = len(self.patch)
        context = context_voxels(self.config.network, dims)
        slices = self.config.network.slices
        sigma, centre = settings.gaussian_sigma, settings.gaussian_centre
        axes = window_axes(case.shape, self.patch, settings.overlap, sigma, context, slices, centre)
        image, outputs = case.image(), self.labels.outputs
        request = EngineRequest(
            network, self.patch, context, self.channels, 1, False, self.device, self.precision, sha256=""
        )
        along = min(range(len(axes)), key=lambda axis: rolling_values(axes, axis, outputs))
        prior = case.prior()
        rows = ArrayRows(image, None if prior is None else Prior(prior, self.config.prior_channels))
        stream = WindowStream(rows, axes, along, TorchEngine(request, "training"), outputs, dims)
        for start, stop, logits in finished_rows(stream):
            region = [slice(0, size) for size in case.shape]
            region[along] = slice(start, stop)
            yield tuple(region), logits

    def validate(
        self, cases: Sequence[CachedCase], keep: Sequence[str]
    ) -> tuple[dict[str, float], dict[str, np.ndarray[Any, Any]]]:
        """Returns mean Dice and IoU over cases of each label and region, and the masks of the cases in ``keep``.

        Where objects are told apart, AP pooled over all of them besides (``val/objects/...``). The cases are dealt out
        to the team. All of it gets the scores; the masks are with the process that leads.
        """
        scores: dict[str, tuple[Overlaps, Mapping[str, Any] | None]] = {}
        masks: dict[str, np.ndarray[Any, Any]] = {}
        kept = [number for number, case in enumerate(cases) if case.id in keep]
        sizes = [float(np.prod(case.shape)) for case in cases]
        with self.evaluating() as network:
            for number in shares_by_size(sizes, self.team.world, kept)[self.team.rank]:
                case = cases[number]
                match: Mapping[str, Any] | None = None
                if self.labels.objects:
                    mask, found, part = self.find(network, case)
                    match = compare_objects(found, Truth.prepared(case, self.labels, part), self.labels)
                else:
                    mask = self.predict(network, case)
                counts = confusion_counts(mask, np.asarray(case.label()), self.labels)
                scores[case.id] = dice_iou(counts), match
                if case.id in keep:
                    masks[case.id] = mask
        everywhere = {name: score for part in self.team.gather(scores) for name, score in part.items()}
        ordered = [everywhere[case.id] for case in cases]
        means = mean_scores([overlap for overlap, _ in ordered], list(structures(self.labels)))
        return means | object_scores([match for _, match in ordered if match is not None]), masks

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
            "tally": self.tally.table.ravel().tolist(),
            "history": self.history,
            "best_by": self.best_by,
            "best_score": self.best_score,
            "threads": torch.get_num_threads(),
            "processes": self.team.world,
            "scaler": self.scaler.state_dict(),
        }
        return Checkpoint(tensors, numbers)

    def restore(self, checkpoint: Checkpoint) -> Schedule:
        """Takes over the state of a checkpoint and returns its schedule."""
        self.network.load_state_dict(dict(checkpoint.tensors["network"]))
        restore_optimizer(self.optimizer, checkpoint.tensors.get("optimizer", {}))
        if self.average is not None:
            known = checkpoint.tensors.get("average", checkpoint.tensors["network"])  # begun without an average
            for name, value in known.items():
                self.average[name].copy_(value)
        numbers = checkpoint.numbers
        self.step, self.seconds = numbers["step"], numbers["seconds"]
        self.sums, self.history = dict(numbers["sums"]), list(numbers["history"])
        self.tally.add(numbers.get("tally", [0] * self.tally.table.size))  # an older checkpoint has none
        if "best" in checkpoint.tensors and numbers.get("best_by") == self.best_by:
            self.best, self.best_score = dict(checkpoint.tensors["best"]), numbers["best_score"]
        if numbers["scaler"]:
            self.scaler.load_state_dict(numbers["scaler"])
        before = numbers["threads"], numbers.get("processes", 1)
        now = torch.get_num_threads(), self.team.world
        if before != now:
            logger.warning(
                "resumed with %d threads in each of %d processes instead of %d in each of %d: "
                "the result will differ in the last digits",
                *now,
                *before,
            )
        return Schedule.from_numbers(numbers["schedule"])


def pieces_of_batch(config: PipelineConfig, world: int) -> int:
    """Returns in how many pieces each of ``world`` processes computes its share of a batch.

    Raises:
        ConfigError: if the pieces would not have the same number of samples.
    """
    pieces, batch = config.training.accumulate, config.sampling.batch_size
    if batch == "auto" or batch % (pieces * world):
        whole = pieces * world
        shares = (
            f"{world} processes" if pieces == 1 else f"{world} x {pieces} pieces" if world > 1 else f"{pieces} pieces"
        )
        raise ConfigError(
            f"a batch of {batch} cannot be dealt out evenly to {shares}",
            "sampling.batch_size",
            f"give a multiple of {whole}, for example --set sampling.batch_size={_nearest_multiple(batch, whole)}",
        )
    return pieces


def _nearest_multiple(batch: int | str, whole: int) -> int:
    return max(whole, round(int(batch) / whole) * whole) if batch != "auto" else whole


def _take_over(network: nn.Module, initial: Mapping[str, torch.Tensor]) -> None:
    try:
        network.load_state_dict(dict(initial))
    except RuntimeError as error:
        raise TrainingError(
            "the weights to start from do not fit the network",
            "network",
            "start from a model with the same levels and features",
        ) from error


def _build_optimizer(config: PipelineConfig, network: nn.Module) -> torch.optim.Optimizer:
    """Weight decay is for the kernels of convolutions, not for biases and norms."""
    training = config.training
    decayed = [p for p in network.parameters() if p.ndim > 1]
    plain = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": training.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=1e-2, momentum=training.momentum, nesterov=training.momentum > 0)
    return torch.optim.AdamW(groups, lr=1e-3)
