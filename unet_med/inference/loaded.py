"""A model that is loaded, and how its windows are run: what it takes, and what is less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from unet_med.bundle import Bundle
from unet_med.errors import ConfigError
from unet_med.inference.emptiness import EmptinessRule, stored_rule
from unet_med.inference.engine import Engine, EngineRequest, open_engine
from unet_med.inference.stream import rolling_values
from unet_med.inference.tiling import WindowAxis, window_axes
from unet_med.networks import admissible_patch, head_channels, input_channels
from unet_med.transforms.preprocess import Prepared, Preprocessor
from unet_med.transforms.prior import Prior

if TYPE_CHECKING:
    from unet_med.inference.predictor import Predictor

_MAPS_IN_MEMORY = 6
"""Feature maps of the finest level that a forward pass holds at once, in multiples of its channels."""


@dataclass(frozen=True)
class Tiles:
    """How windows are run: both numbers shrink when memory runs out.

    Attributes:
        window: Voxels of a window along each axis of the network.
        batch: Windows in one forward pass.
    """

    window: tuple[int, ...]
    batch: int


@dataclass(eq=False)
class LoadedModel:
    """A model, ready to compute.

    Attributes:
        bundle: Where it comes from.
        network: On its device.
        preprocessor: What images go through before it.
        device: Where it computes.
        precision: In what.
        context: Voxels that it reads beyond each side of a window.
        mirror_axes: Axes of its windows along which flips are averaged.
        tiles: How windows are run, where memory suffices.
        blends_features: Whether the features of the finest level are blended, because they are fewer than the outputs.
        skips: Whether windows that hold nothing may be left out.
        low: What labels the image at low resolution first, for a cascade.
        engines: What runs it, for windows of one size.
    """

    bundle: Bundle
    network: nn.Module
    preprocessor: Preprocessor
    device: torch.device
    precision: torch.dtype
    context: tuple[int, ...]
    mirror_axes: tuple[int, ...]
    tiles: Tiles
    blends_features: bool
    skips: bool
    low: Predictor | None = None
    engines: dict[tuple[Tiles, torch.dtype], Engine] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        """Channels that are blended: features where they are fewer than the outputs; see :attr:`blends_differences`."""
        if self.blends_features:
            return head_channels(self.bundle.config.network)
        return self.bundle.labels.outputs - int(self.blends_differences)

    @property
    def blends_differences(self) -> bool:
        """Whether outputs are blended less the first one: a softmax knows no more of them, and one channel is saved."""
        return not self.blends_features and self.bundle.labels.softmax_only

    def with_prior(self, image: Prepared, labels: npt.NDArray[Any]) -> Prepared:
        """Returns the image with a copy of what a cascade's first stage found in it, on the network's grid."""
        mask = self.preprocessor.prepare_label(labels, image)
        if np.may_share_memory(mask, labels):
            mask = mask.copy()
        return replace(image, prior=Prior(mask, self.bundle.config.prior_channels))

    @property
    def sees_volumes(self) -> bool:
        """Whether a picture is not enough for it."""
        return self.bundle.dims == 3 or self.bundle.config.network.slices > 1

    def engine(self, tiles: Tiles, precision: torch.dtype) -> Engine:
        """Returns what runs windows of this size; the one of the last case where that fits."""
        key = (tiles, precision)
        if key not in self.engines:
            for engine in self.engines.values():
                engine.close()
            self.engines.clear()
            request = EngineRequest(
                network=self.network,
                window=tiles.window,
                context=self.context,
                channels=input_channels(
                    self.bundle.config.network, self.bundle.channels, self.bundle.config.prior_channels
                ),
                batch=tiles.batch,
                features=self.blends_features,
                device=self.device,
                precision=precision,
                sha256=self.bundle.sha256,
            )
            self.engines[key] = open_engine(request, self.bundle.config.inference.engine)
        return self.engines[key]

    def skip(self, tiles: Tiles) -> EmptinessRule | None:
        """Returns the rule by which windows of this size are left out, if the model has one."""
        if not self.skips:
            return None
        return stored_rule(self.bundle.meta, tiles.window, len(self.bundle.channels))

    def axes(self, size: Sequence[int], tiles: Tiles) -> tuple[WindowAxis, ...]:
        """Lays windows over an image of the network's grid."""
        settings = self.bundle.config.inference
        slices = self.bundle.config.network.slices
        sigma, centre = settings.gaussian_sigma, settings.gaussian_centre
        return window_axes(size, tiles.window, settings.overlap, sigma, self.context, slices, centre)


@dataclass(frozen=True)
class Setting:
    """How one model does one case; replaced by a smaller or more exact one when it fails."""

    tiles: Tiles
    precision: torch.dtype
    blends_on_card: bool


def smaller_setting(model: LoadedModel, setting: Setting) -> Setting | None:
    """Half the batch, then blending in the main memory, then half the window; ``None`` at the end."""
    tiles = setting.tiles
    if tiles.batch > 1:
        return replace(setting, tiles=Tiles(tiles.window, tiles.batch // 2))
    if setting.blends_on_card:
        return replace(setting, blends_on_card=False)
    window = smaller_window(model, tiles.window)
    return None if window is None else replace(setting, tiles=Tiles(window, 1))


def smaller_window(model: LoadedModel, window: tuple[int, ...]) -> tuple[int, ...] | None:
    """Half the window as far as the network's strides allow; ``None`` where that is no less."""
    try:
        half = admissible_patch(model.bundle.config.network, model.bundle.dims, [-(-size // 2) for size in window])
    except ConfigError:
        return None
    smaller = tuple(min(new, old) for new, old in zip(half, window, strict=True))
    return smaller if smaller != window else None


def needed_bytes(model: LoadedModel, prepared: Prepared, tiles: Tiles) -> float:
    """Memory of a forward pass and of the windows that are blended."""
    axes = model.axes(prepared.geometry.shape, tiles)
    held = min(rolling_values(axes, along, model.channels, tiles.batch) for along in range(prepared.geometry.ndim))
    return 4.0 * held + forward_bytes(model, tiles)


def forward_bytes(model: LoadedModel, tiles: Tiles) -> float:
    """Memory of a forward pass."""
    voxels = prod(size + 2 * border for size, border in zip(tiles.window, model.context, strict=True))
    size = 4 if model.precision == torch.float32 else 2
    return float(tiles.batch * voxels * head_channels(model.bundle.config.network) * size * _MAPS_IN_MEMORY)
