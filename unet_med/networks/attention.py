"""Gates on skip connections.

Oktay et al., Attention U-Net: Learning Where to Look for the Pancreas, MIDL 2018.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from unet_med.networks.blocks import CONVOLUTION, INTERPOLATION
from unet_med.networks.layout import UNetLayout


class AttentionGate(nn.Module):
    """Weights a skip connection, voxel by voxel, by what the level below says of each place.

    Both are compared on the grid below: ``of_skip`` brings the skip connection there by a convolution of kernel and
    stride the level's stride, ``of_below`` is a 1x1 convolution; ReLU of their sum, ``weight`` (1x1, one channel) and a
    sigmoid give the weights, which are interpolated linearly.

    Args:
        layout: The network's measures.
        level: Of the skip connection.
    """

    def __init__(self, layout: UNetLayout, level: int) -> None:
        super().__init__()
        features, below = layout.features[level : level + 2]
        convolution = CONVOLUTION[layout.dims]
        self.stride = layout.strides[level + 1]
        self.of_skip = convolution(features, features, self.stride, self.stride, bias=False)
        self.of_below = convolution(below, features, 1)
        self.weight = convolution(features, 1, 1)

    def forward(self, skip: Tensor, below: Tensor) -> Tensor:
        """Maps skip (N, features, *s) and below (N, C, *s over stride) to the weighted skip (N, features, *s)."""
        weights = self.weight(F.relu(self.of_skip(skip) + self.of_below(below))).sigmoid()
        factors = [float(stride) for stride in self.stride]
        mode = INTERPOLATION[len(factors)]
        weights = F.interpolate(weights, scale_factor=factors, mode=mode, align_corners=False)
        return skip * weights.to(skip.dtype)  # autocast interpolates in float32
