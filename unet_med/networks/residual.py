"""The residual encoder of nnU-Net's larger networks.

Isensee et al., nnU-Net Revisited, MICCAI 2024; the blocks are those of He et al., Deep Residual Learning, CVPR 2016,
with the averaging short cut of He et al., Bag of Tricks for Image Classification, CVPR 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from unet_med.networks.blocks import Block, activation_of, channels_last
from unet_med.networks.layout import UNetLayout

_AVERAGE: dict[int, Any] = {2: F.avg_pool2d, 3: F.avg_pool3d}


class ResidualLevel(nn.Sequential):
    """The residual blocks of one level; the first of them makes the stride.

    Level 0 is ``[stem, block, ...]`` with a :class:`Block` as stem, every other ``[block, ...]``.
    """

    def __init__(self, layout: UNetLayout, level: int, in_channels: int) -> None:
        features, kernel = layout.features[level], layout.kernels[level]
        blocks: list[nn.Module] = []
        if level == 0:
            blocks.append(Block(layout, in_channels, features, kernel))
            in_channels = features
        blocks.append(ResidualBlock(layout, in_channels, features, kernel, layout.strides[level]))
        blocks += (ResidualBlock(layout, features, features, kernel) for _ in range(layout.blocks[level] - 1))
        super().__init__(*blocks)


class ResidualBlock(nn.Module):
    """Two convolutions, to whose result the input is added before the last activation.

    Its submodules are ``first``, a :class:`Block` that makes the stride; ``second``, one without activation; and
    ``shortcut``, which averages the input over the stride and, where the number of channels changes, has a
    ``projection``: a 1x1 :class:`Block` without bias and activation. In each block 0 is the convolution, 1 the norm.
    """

    def __init__(
        self,
        layout: UNetLayout,
        in_channels: int,
        features: int,
        kernel: Sequence[int],
        stride: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        unit = (1,) * layout.dims
        self.first = Block(layout, in_channels, features, kernel, stride)
        self.second = Block(layout, features, features, kernel, active=False)
        self.shortcut = nn.Sequential()
        if max(stride or unit) > 1:
            self.shortcut.add_module("average", _Average(stride or unit))
        if in_channels != features:
            self.shortcut.add_module("projection", Block(layout, in_channels, features, unit, active=False, bias=False))
        self.activation = activation_of(layout)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, *s) to (N, features, *s over stride)."""
        # Not in place: the norm keeps its result for the gradient.
        out: Tensor = self.activation(self.second(self.first(x)) + self.shortcut(x))
        return out

    def initialise(self) -> None:
        """Lets the block start as its short cut: the last weights before the sum are 0."""
        nn.init.zeros_(self.second[-1].weight)  # type: ignore[arg-type]


class _Average(nn.Module):
    """The mean over each stride."""

    def __init__(self, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = tuple(stride)

    def forward(self, x: Tensor) -> Tensor:
        averaged: Tensor = _AVERAGE[len(self.stride)](x, self.stride)
        return channels_last(averaged.to(x.dtype))  # autocast averages volumes in float32
