"""The U-Net, in two and three dimensions, of 2015 and of today.

Ronneberger, Fischer and Brox, U-Net: Convolutional Networks for Biomedical Image Segmentation, MICCAI 2015;
Çiçek et al., 3D U-Net, MICCAI 2016; the modern details (strided convolutions, instance norm, leaky ReLU, deep
supervision) follow Isensee et al., nnU-Net, Nature Methods 2021.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unet_med.networks.attention import AttentionGate
from unet_med.networks.blocks import CONVOLUTION, INTERPOLATION, TRANSPOSED, Block, channels_last, initialise
from unet_med.networks.joined import convolve_joined, joining_pays
from unet_med.networks.layout import UNetLayout
from unet_med.networks.residual import ResidualBlock, ResidualLevel
from unet_med.networks.segmenter import Segmenter

_MAX_POOL: dict[int, Any] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}


class UNet(Segmenter):
    """Encoder, bottleneck and decoder with skip connections.

    In ``train()`` mode with deep supervision ``forward`` returns a tuple of logits, finest first; in ``eval()`` mode,
    and without deep supervision, one tensor.

    ``encoder``, ``gates``, ``upsampling``, ``decoder`` and ``heads`` hold a module for each level, finest first. A
    level of plain convolutions holds :class:`Block` after :class:`Block`, of which 0 is the convolution and 1 the norm;
    :class:`ResidualLevel` is the other kind of encoder. The decoder sees the channels of the skip connection first,
    then those from below.

    Args:
        layout: The checked measures.
        in_channels: Channels of the input.
        outputs: Channels of the logits.
    """

    entry = "encoder.0.0.0.weight"
    layout: UNetLayout

    def __init__(self, layout: UNetLayout, in_channels: int, outputs: int) -> None:
        super().__init__(layout, in_channels, outputs)
        features = layout.features
        entering = (in_channels, *features)
        level_of: type[nn.Module] = ResidualLevel if layout.blocks else _Level
        self.encoder = nn.ModuleList(level_of(layout, level, entering[level]) for level in range(layout.levels))
        self.dropout = nn.Dropout(layout.dropout)
        above = range(layout.levels - 1)
        self.crops = [tuple(layout.crop(level, axis) for axis in range(layout.dims)) for level in above]
        self.gates = nn.ModuleList(AttentionGate(layout, level) for level in above if layout.attention)
        self.upsampling = nn.ModuleList(_Upsampling(layout, level) for level in above)
        self.decoder = nn.ModuleList(_Level(layout, level, 2 * features[level], decoder=True) for level in above)
        self.heads = nn.ModuleList(CONVOLUTION[layout.dims](features[n], outputs, 1) for n in range(layout.heads))
        if not self.heads[0].weight.is_meta:
            self._initialise()

    @property
    def deepest(self) -> nn.Module:
        """The last level of the encoder."""
        return self.encoder[-1]

    @property
    def deepest_strides(self) -> tuple[int, ...]:
        """The product of all strides."""
        return self.layout.total_strides()

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Maps (N, C, *patch + 2 * context) to logits (N, outputs, *patch).

        Raises:
            ModelError: if the channels or the spatial size do not fit this network.
        """
        logits: list[Tensor] = []
        for level, features in self._decoded(x, len(self.heads) if self.training else 1):
            logits.insert(0, self.heads[level](features))
        return tuple(logits) if self.training and self.layout.deep_supervision else logits[0]

    def features(self, x: Tensor) -> Tensor:
        """Maps (N, C, *patch + 2 * context) to what the finest head sees, (N, features[0], *patch).

        Raises:
            ModelError: as :meth:`forward`.
        """
        return next(features for _, features in self._decoded(x, 1))

    def _decoded(self, x: Tensor, wanted: int) -> Iterator[tuple[int, Tensor]]:
        """Yields level and features of the ``wanted`` finest levels of the decoder, the coarsest of them first."""
        self._check(x)
        x = channels_last(x)
        skips: list[Tensor] = []
        for block in self.encoder:
            x = block(x)
            skips.append(x)
        x = self.dropout(skips.pop())
        for level in range(len(self.decoder) - 1, -1, -1):
            x = self._joined(level, _cropped(skips.pop(), self.crops[level]), x)
            if level < wanted:
                yield level, x

    def _joined(self, level: int, skip: Tensor, below: Tensor) -> Tensor:
        """Returns the decoder's features of a level from its skip connection and the features of the level below."""
        if self.layout.attention:
            skip = self.gates[level](skip, below)
        blocks, upsampling = self.decoder[level], self.upsampling[level]
        first, *others = (module for block in blocks.children() for module in block.children())
        if self.training and below.device.type == "cpu" and joining_pays(below, upsampling.convolution, first):
            x = convolve_joined(skip, below, upsampling.convolution, first)
            for module in others:
                x = module(x)
            return x
        x = torch.cat((skip, upsampling(below)), dim=1)
        joined: Tensor = blocks(channels_last(x))
        return joined

    def _initialise(self) -> None:
        initialise(self, self.layout.slope)
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                module.initialise()


class _Level(nn.Sequential):
    """The convolutions of one level, each with norm and activation; the way down to it comes first."""

    def __init__(self, layout: UNetLayout, level: int, in_channels: int, decoder: bool = False) -> None:
        unit = (1,) * layout.dims
        stride: tuple[int, ...] = unit if decoder else layout.strides[level]
        blocks: list[nn.Module] = []
        if layout.max_pool and max(stride) > 1:
            blocks.append(_MAX_POOL[layout.dims](stride))
            stride = unit
        features, kernel = layout.features[level], layout.kernels[level]
        blocks.append(Block(layout, in_channels, features, kernel, stride))
        others = (layout.decoder_convolutions if decoder else layout.convolutions) - 1
        blocks += (Block(layout, features, features, kernel) for _ in range(others))
        super().__init__(*blocks)


class _Upsampling(nn.Module):
    """From the level below to this one: the size grows by the stride, the channels become this level's."""

    def __init__(self, layout: UNetLayout, level: int) -> None:
        super().__init__()
        below, features = layout.features[level + 1], layout.features[level]
        self.stride = layout.strides[level + 1]
        self.mode = "" if layout.transposed else INTERPOLATION[layout.dims]
        # The norm after the next convolution takes a bias away again, and its gradient costs more than the weights'.
        # A 1x1 convolution and an interpolation commute; before it, it has a fraction of the voxels to work on.
        self.convolution = (
            TRANSPOSED[layout.dims](below, features, self.stride, self.stride, bias=layout.bias)
            if layout.transposed
            else CONVOLUTION[layout.dims](below, features, 1, bias=layout.bias)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, below, *s) to (N, features, *s times stride)."""
        x = self.convolution(x)
        if not self.mode:
            return x
        factors = [float(stride) for stride in self.stride]
        return F.interpolate(x, scale_factor=factors, mode=self.mode, align_corners=False)


def _cropped(skip: Tensor, margins: Sequence[int]) -> Tensor:
    """Cuts a skip connection to the extent that unpadded convolutions left over."""
    for axis, margin in enumerate(margins, start=2):
        if margin:
            skip = skip[(slice(None),) * axis + (slice(margin, -margin),)]
    return skip
