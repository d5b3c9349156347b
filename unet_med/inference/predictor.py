"""From a volume to labels on the volume's own grid, by one model or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from unet_med.bundle import Bundle
from unet_med.errors import ConfigError, InputRefusedError, MachineError, ModelError
from unet_med.inference.device import choose_device, choose_precision, precision_name
from unet_med.inference.tiling import sliding_window_logits
from unet_med.labels import LabelMap
from unet_med.networks import admissible_patch, context_voxels
from unet_med.transforms.postprocess import postprocess_labels
from unet_med.transforms.preprocess import Prepared, Preprocessor
from unet_med.volume import Volume

_SLAB_VALUES = 2**24
_MAPS_IN_MEMORY = 6
"""Feature maps of the finest level that a forward pass holds at once, in multiples of its channels."""
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "failed to allocate")


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says of a volume.

    Attributes:
        labels: (I, J[, K]) uint8 or uint16 on the volume's grid.
        notes: What was not as planned (a smaller window, ...); empty mostly.
        probabilities: (labels, I, J[, K]) float32 from 0 to 1, one for each label; only where asked for.
    """

    labels: npt.NDArray[np.uint8 | np.uint16]
    notes: list[str]
    probabilities: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True)
class _Tiles:
    """How windows are run: both numbers shrink when memory runs out."""

    window: tuple[int, ...]
    batch: int


@dataclass(frozen=True, eq=False)
class _Model:
    bundle: Bundle
    network: nn.Module
    preprocessor: Preprocessor
    precision: torch.dtype
    context: tuple[int, ...]
    mirror_axes: tuple[int, ...]
    tiles: _Tiles


class Predictor:
    """One model, or several whose logits are averaged.

    Args:
        bundles: Models with the same labels and the same number of channels.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        mirror: Average over the flips that training used; ``None``: as the pipeline says.
        memory_gb: Memory that a forward pass may use; ``None``: try, and take smaller windows when it fails.

    Attributes:
        labels: What the values of its masks mean.
        device: Where it computes.
        precisions: ``fp32``, ``bf16`` or ``fp16``, one for each model.
        notes: What holds for every case.

    Raises:
        ModelError: when the models do not belong together or a bundle's weights do not fit.
        UsageError: when the device does not exist.
    """

    def __init__(
        self,
        bundles: Sequence[Bundle],
        device: str = "auto",
        mirror: bool | None = None,
        memory_gb: float | None = None,
    ) -> None:
        if not bundles:
            raise ModelError("no model was given", remedy="give at least one bundle")
        _check_together(bundles)
        self.labels: LabelMap = bundles[0].labels
        self.device = choose_device(device)
        self._memory_bytes = None if memory_gb is None else memory_gb * 1e9
        self.notes: list[str] = []
        self._models = [self._set_up(bundle, mirror) for bundle in bundles]
        self.precisions = tuple(precision_name(model.precision) for model in self._models)
        if mirror and not all(model.mirror_axes for model in self._models):
            self.notes.append("mirroring has no effect on a model whose training mirrored no axis")

    def predict(self, volume: Volume, probabilities: bool = False) -> Prediction:
        """Labels a volume.

        Args:
            volume: (C, I, J[, K]); a 2-D model labels a volume slice by slice.
            probabilities: Also return how likely each label is; 4 bytes for each label and voxel.

        Raises:
            ModelError: when the number of channels is not the models' own.
            InputRefusedError: when the image cannot be prepared (constant, no pixel size, a picture for a 3-D model).
            MachineError: when memory does not suffice for the smallest window.
        """
        notes = list(self.notes)
        channels = len(self._models[0].bundle.channels)
        if volume.channels != channels:
            raise ModelError(
                f"made for {channels} {'channel' if channels == 1 else 'channels'}, the image has {volume.channels}",
                remedy="choose channels with --channel, or use a model that was trained on such images",
            )
        try:
            total: torch.Tensor | None = None
            for model in self._models:
                logits = self._restored(model, volume, notes)
                total = logits if total is None else total.add_(logits)
            if total is None:
                raise ModelError("no model was given", remedy="give at least one bundle")
            labels = _labels_from(total, self.labels)
            likely = _probabilities(total.div_(len(self._models)), self.labels) if probabilities else None
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise _no_memory() from error
        settings = self._models[0].bundle.config.postprocess
        cleaned = postprocess_labels(labels, settings, self.labels)
        if likely is not None:
            for place, label in enumerate(self.labels.labels):
                likely[place][(labels == label.index) & (cleaned != label.index)] = 0.0
        return Prediction(cleaned.astype(labels.dtype, copy=False), notes, likely)

    def _set_up(self, bundle: Bundle, mirror: bool | None) -> _Model:
        config = bundle.config
        axes = config.augment.mirror_axes
        wanted = config.inference.mirror if mirror is None else mirror
        mirror_axes = tuple(axis for axis in axes if axis < bundle.dims) if wanted and axes != "auto" else ()
        network = bundle.network()
        layout = torch.channels_last_3d if bundle.dims == 3 else torch.channels_last
        network = network.to(device=self.device, memory_format=layout)  # type: ignore[call-overload]
        window = config.sampling.patch_voxels
        if window == "auto":
            raise ModelError("the pipeline names no patch", "sampling.patch_voxels", "train the model again")
        batch = {("cpu", 2): 4, ("cpu", 3): 1, ("cuda", 2): 16, ("cuda", 3): 2}.get((self.device.type, bundle.dims), 1)
        model = _Model(
            bundle,
            network,
            Preprocessor(config),
            choose_precision(config.training.precision, self.device),
            context_voxels(config.network, bundle.dims),
            mirror_axes,
            _Tiles(admissible_patch(config.network, bundle.dims, window), batch),
        )
        return replace(model, tiles=self._within_budget(model))

    def _within_budget(self, model: _Model) -> _Tiles:
        """Shrinks windows until their forward pass is expected to fit ``memory_gb``."""
        tiles = model.tiles
        while self._memory_bytes is not None and _forward_bytes(model, tiles) > self._memory_bytes:
            smaller = _smaller(model, tiles)
            if smaller is None:
                break
            tiles = smaller
        if tiles.window != model.tiles.window:
            self.notes.append(f"windows of {_times(tiles.window)} instead of {_times(model.tiles.window)}: --memory-gb")
        return tiles

    def _restored(self, model: _Model, volume: Volume, notes: list[str]) -> torch.Tensor:
        """Logits of one model on the volume's grid."""
        if model.bundle.dims == 3 and volume.geometry.ndim == 2:
            raise InputRefusedError(
                "the model is made for volumes, the image is a picture",
                remedy="use a 2-D model, or say with --axes which axis of the stack is depth",
            )
        prepared = model.preprocessor.prepare(volume)
        logits = self._logits(model, prepared, notes)
        return model.preprocessor.restore(logits, prepared, background=not self.labels.regions)

    def _logits(self, model: _Model, prepared: Prepared, notes: list[str]) -> torch.Tensor:
        tiles = model.tiles
        precision = model.precision
        image = torch.from_numpy(prepared.array)
        while True:
            try:
                logits = self._run(model, image, tiles, precision)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                smaller = _smaller(model, tiles)
                if smaller is None:
                    raise _no_memory() from error
                tiles = smaller
            else:
                if bool(torch.isfinite(logits.sum())):
                    break
                if precision == torch.float32:
                    raise ModelError(
                        "the network's output is not finite", "model.safetensors", "train again; the weights diverged"
                    )
                notes.append(f"{precision_name(precision)} overflowed: computed in fp32")
                precision = torch.float32
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        if tiles != model.tiles:
            notes.append(
                f"out of memory: windows of {_times(tiles.window)}, {tiles.batch} at a time, "
                f"instead of {_times(model.tiles.window)}, {model.tiles.batch} at a time"
            )
        return logits

    def _run(self, model: _Model, image: torch.Tensor, tiles: _Tiles, precision: torch.dtype) -> torch.Tensor:
        settings = model.bundle.config.inference
        return sliding_window_logits(
            image,
            model.network,
            tiles.window,
            self.labels.outputs,
            overlap=settings.overlap,
            sigma=settings.gaussian_sigma,
            context=model.context,
            mirror_axes=model.mirror_axes,
            device=self.device,
            precision=precision,
            window_batch=tiles.batch,
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on the CPU or on a GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _OUT_OF_MEMORY)


def _no_memory() -> MachineError:
    return MachineError(
        "out of memory, even with the smallest window",
        remedy="close other programs, use a machine with more memory, or choose --device cpu",
    )


def _check_together(bundles: Sequence[Bundle]) -> None:
    first = bundles[0]
    for other in bundles[1:]:
        if (other.labels.names, other.labels.regions) != (first.labels.names, first.labels.regions):
            raise ModelError(
                f"the models have different labels: {', '.join(first.labels.names)} and "
                f"{', '.join(other.labels.names)}",
                "--also",
                "average models of one task only",
            )
        if len(other.channels) != len(first.channels):
            raise ModelError(
                f"the models need {len(first.channels)} and {len(other.channels)} channels",
                "--also",
                "average models of one task only",
            )


def _smaller(model: _Model, tiles: _Tiles) -> _Tiles | None:
    """Half the batch, then half the window as far as the network's strides allow; ``None`` at the end."""
    if tiles.batch > 1:
        return _Tiles(tiles.window, tiles.batch // 2)
    half = [-(-size // 2) for size in tiles.window]
    try:
        window = admissible_patch(model.bundle.config.network, model.bundle.dims, half)
    except ConfigError:
        return None
    window = tuple(min(new, old) for new, old in zip(window, tiles.window, strict=True))
    return _Tiles(window, 1) if window != tiles.window else None


def _forward_bytes(model: _Model, tiles: _Tiles) -> float:
    features = model.bundle.config.network.features
    widest = max(features[0], 1) if features != "auto" else 32
    voxels = prod(size + 2 * border for size, border in zip(tiles.window, model.context, strict=True))
    size = 4 if model.precision == torch.float32 else 2
    return float(tiles.batch * voxels * widest * size * _MAPS_IN_MEMORY)


def _labels_from(logits: torch.Tensor, label_map: LabelMap) -> npt.NDArray[Any]:
    """Labels slab by slab: the arg max of a whole volume would need 8 bytes for each voxel."""
    array = logits.numpy()
    per_row = prod(array.shape[2:]) * array.shape[0]
    step = max(1, _SLAB_VALUES // max(1, per_row))
    first = label_map.from_outputs(array[:, :step])
    labels = np.empty(array.shape[1:], dtype=first.dtype)
    labels[:step] = first
    for start in range(step, array.shape[1], step):
        labels[start : start + step] = label_map.from_outputs(array[:, start : start + step])
    return labels


def _probabilities(logits: torch.Tensor, label_map: LabelMap) -> npt.NDArray[np.float32]:
    """Returns for each label how likely it is: (labels, ...) from logits (outputs, ...), which are overwritten.

    A region's own label is what is left of the region outside of all regions that are painted over it.
    """
    if not label_map.regions:
        for row in range(logits.shape[1]):
            logits[:, row] = torch.softmax(logits[:, row], dim=0)
        return np.ascontiguousarray(logits[1:].numpy())
    found = np.zeros((len(label_map.labels), *logits.shape[1:]), dtype=np.float32)
    places = {label.index: place for place, label in enumerate(label_map.labels)}
    outside = torch.ones(logits.shape[1:])
    for value, region in reversed(list(zip(label_map.region_values(), logits.sigmoid_(), strict=True))):
        found[places[value]] = (region * outside).numpy()
        outside *= 1.0 - region
    return found


def _times(size: Sequence[int]) -> str:
    return "x".join(str(n) for n in size)
