"""Convolutions one after the other at full resolution: context by dilation, or, as its baseline, by depth alone.

Yu and Koltun, Multi-Scale Context Aggregation by Dilated Convolutions, ICLR 2016.
"""

from __future__ import annotations

from itertools import pairwise
from math import gcd, prod

import torch
from torch import Tensor, nn

from unet_med.networks.blocks import CONVOLUTION, Block, channels_last, initialise
from unet_med.networks.layout import StackLayout
from unet_med.networks.segmenter import Segmenter

_NOISE = 0.05
"""Of the initial weights beside the identity, as a share of He's: enough to tell equal features apart."""


class Stack(Segmenter):
    """Dilated convolutions with norm and activation, then one of 1x1; nothing is pooled, any patch fits.

    Padded with zeros, or (style classic) not at all: then the image around the patch, mirrored at its borders, is the
    context. ``blocks`` holds one :class:`Block` for each convolution, of which 0 is the convolution and 1 the norm.

    Args:
        layout: The checked measures.
        in_channels: Channels of the input.
        outputs: Channels of the logits.
    """

    entry = "blocks.0.0.weight"
    layout: StackLayout

    def __init__(self, layout: StackLayout, in_channels: int, outputs: int) -> None:
        super().__init__(layout, in_channels, outputs)
        features = layout.features
        self.blocks = nn.Sequential(
            *(
                Block(layout, entering, leaving, kernel, dilation=dilation)
                for (entering, leaving), kernel, dilation in zip(
                    pairwise((in_channels, *features)), layout.kernels, layout.dilations, strict=True
                )
            )
        )
        self.dropout = nn.Dropout(layout.dropout)
        self.heads = nn.ModuleList([CONVOLUTION[layout.dims](features[-1], outputs, 1)])
        if not self.heads[0].weight.is_meta:
            self._initialise()

    @property
    def deepest(self) -> nn.Module:
        """The last block: nothing is pooled."""
        return self.blocks[-1]

    @property
    def deepest_strides(self) -> tuple[int, ...]:
        """1 along each axis."""
        return (1,) * self.layout.dims

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, *patch + 2 * context) to logits (N, outputs, *patch).

        Raises:
            ModelError: if the channels or the spatial size do not fit this network.
        """
        logits: Tensor = self.head(self.features(x))
        return logits

    def features(self, x: Tensor) -> Tensor:
        """Maps (N, C, *patch + 2 * context) to what the head sees, (N, features[-1], *patch).

        Raises:
            ModelError: as :meth:`forward`.
        """
        self._check(x)
        features: Tensor = self.dropout(self.blocks(channels_last(x)))
        return features

    def _initialise(self) -> None:
        """He initialisation of the first convolution, which makes features of the image; the others pass them on."""
        initialise(self, self.layout.slope)
        convolutions = [module for module in self.blocks.modules() if isinstance(module, (nn.Conv2d, nn.Conv3d))]
        with torch.no_grad():
            for convolution in convolutions[1:]:
                convolution.weight.mul_(_NOISE).add_(identity_kernel(convolution.weight))


def identity_kernel(like: Tensor) -> Tensor:
    """Returns weights that pass features on: Yu and Koltun's initialisation, for any two numbers of channels.

    Features are put into as many groups as both numbers allow; each feature becomes the mean of its group. With equal
    numbers it is the identity.

    Args:
        like: Weights (outputs, inputs, *kernel) of odd edges, whose shape, type and device are taken.
    """
    outputs, inputs, *kernel = like.shape
    groups = gcd(outputs, inputs)
    centre = torch.eye(groups, dtype=like.dtype, device=like.device)
    centre = centre.repeat_interleave(outputs // groups, 0).repeat_interleave(inputs // groups, 1)
    weights = like.new_zeros(outputs, inputs, prod(kernel))
    weights[:, :, prod(kernel) // 2] = centre * (groups / inputs)
    return weights.view(like.shape)
