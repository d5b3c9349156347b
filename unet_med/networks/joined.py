"""The first convolution of a decoder's level, without making the upsampled image it reads.

A transposed convolution and the convolution after it are linear with nothing in between, so they are one transposed
convolution, of kernel stride + kernel - 1. In three dimensions it multiplies half as often as the two, and nothing is
upsampled, written down and joined with the skip connection. The weights stay those of the two; gradients reach them
through the composition.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CONVOLVE: dict[int, Any] = {2: F.conv2d, 3: F.conv3d}
_TRANSPOSE: dict[int, Any] = {2: F.conv_transpose2d, 3: F.conv_transpose3d}

_LEAST_SHARE_SAVED = 0.3
"""Of the products; below it, the two kernels that run instead of two others are not worth it."""

_MAKING_COST = 10
"""A product of the composition, in float32 and with its gradients, in products of the large convolutions."""


def joining_pays(below: Tensor, upsampling: Any, convolution: Any) -> bool:
    """Whether :func:`convolve_joined` can do it, with clearly fewer products, those of the composition included.

    Args:
        below: What is upsampled.
        upsampling: A transposed convolution of which the kernel is the stride, without bias; others cannot be joined.
        convolution: A padded convolution of stride 1; others cannot be joined.
    """
    if not _can_join(upsampling, convolution):
        return False
    channels, features, *stride = upsampling.weight.shape
    outputs, _, *kernel = convolution.weight.shape
    plain = prod(kernel) * features * outputs + channels * features
    composed = prod((s + k - 1) / s for s, k in zip(stride, kernel, strict=True)) * channels * outputs
    voxels = len(below) * prod(below.shape[2:]) * prod(stride)
    making = prod(stride) * prod(kernel) * channels * features * outputs
    saved = plain - composed
    return bool(saved >= _LEAST_SHARE_SAVED * plain and voxels * saved >= _MAKING_COST * making)


def _can_join(upsampling: Any, convolution: Any) -> bool:
    return (
        isinstance(upsampling, (nn.ConvTranspose2d, nn.ConvTranspose3d))
        and isinstance(convolution, (nn.Conv2d, nn.Conv3d))
        and upsampling.bias is None
        and set(convolution.stride) == {1}
        and all(k // 2 == p for k, p in zip(convolution.kernel_size, convolution.padding, strict=True))
    )


def convolve_joined(skip: Tensor, below: Tensor, upsampling: Any, convolution: Any) -> Tensor:
    """Returns ``convolution(cat(skip, upsampling(below)))`` for two that :func:`joining_pays` accepts.

    Args:
        skip: (N, features, *s).
        below: (N, channels, *s over stride).
        upsampling: A transposed convolution, channels to features.
        convolution: Of 2 * features to outputs.

    Returns:
        (N, outputs, *s).
    """
    dims, features = skip.dim() - 2, skip.shape[1]
    padding = convolution.padding
    with torch.autocast(skip.device.type, enabled=False):
        of_skip, of_upsampled = convolution.weight.split([features, convolution.weight.shape[1] - features], dim=1)
        turned = of_upsampled.transpose(0, 1).flip(tuple(range(2, 2 + dims)))
        composed = _TRANSPOSE[dims](upsampling.weight, turned)
    out: Tensor = _CONVOLVE[dims](skip, of_skip, convolution.bias, padding=padding)
    return out.add_(_TRANSPOSE[dims](below, composed, stride=upsampling.stride, padding=padding))
