"""How much of the image a voxel of the output can see, and how much of it counts."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from unet_med.config import Network
from unet_med.networks.layout import StackLayout, UNetLayout, layout_of
from unet_med.networks.segmenter import Segmenter

_MEASURED_VOXELS = 2**20

Span = tuple[int, int]
"""First and last index along one axis."""


def receptive_field(network: Network, dims: int) -> tuple[int, ...]:
    """Returns the extent of the input, in voxels along each axis, that can change one voxel of the logits.

    That of convolutions, pooling and interpolation, away from the borders; where it depends on the place of the voxel
    on the coarser grids, the largest. Instance norm sees the whole patch besides, but of it no more than two numbers.

    Args:
        network: Resolved (no ``auto``).
        dims: 2 or 3.

    Raises:
        ConfigError: if the network cannot be built.
    """
    layout = layout_of(network, dims)
    if isinstance(layout, StackLayout):
        return tuple(
            1 + sum(d * (kernel[axis] - 1) for kernel, d in zip(layout.kernels, layout.dilations, strict=True))
            for axis in range(dims)
        )
    return tuple(_UNetField(layout, axis).extent() for axis in range(dims))


class _UNetField:
    """Follows a span of output voxels back to the image, along one axis of a U-Net."""

    def __init__(self, layout: UNetLayout, axis: int) -> None:
        self.layout = layout
        self.axis = axis
        self.kernels = [kernel[axis] for kernel in layout.kernels]
        self.strides = [stride[axis] for stride in layout.strides]

    def extent(self) -> int:
        """The largest over all places on the coarser grids."""
        spans = (self._decoder(0, (place, place)) for place in range(self.layout.total_strides()[self.axis]))
        return max(last - first + 1 for first, last in spans)

    def _decoder(self, level: int, span: Span) -> Span:
        if level == self.layout.levels - 1:
            return self._encoder(level, span)
        for _ in range(self.layout.decoder_convolutions):
            span = self._convolved(level, span)
        stride, crop = self.strides[level + 1], self.layout.crop(level, self.axis)
        below = (span[0] // stride, span[1] // stride) if self.layout.transposed else _interpolated(span, stride)
        if self.layout.attention:
            compared = _interpolated(span, stride)
            below = _hull(below, compared)
            span = _hull(span, _pooled(compared, stride))
        return _hull(self._encoder(level, (span[0] + crop, span[1] + crop)), self._decoder(level + 1, below))

    def _encoder(self, level: int, span: Span) -> Span:
        for n in range(level, -1, -1):
            span = self._residual(n, span) if self.layout.blocks else self._plain(n, span)
        return span

    def _plain(self, level: int, span: Span) -> Span:
        stride = self.strides[level]
        for _ in range(self.layout.convolutions - 1):
            span = self._convolved(level, span)
        if self.layout.max_pool:
            return _pooled(self._convolved(level, span), stride)
        return self._convolved(level, span, stride)

    def _residual(self, level: int, span: Span) -> Span:
        stride = self.strides[level]
        for _ in range(2 * (self.layout.blocks[level] - 1)):
            span = self._convolved(level, span)
        span = _hull(self._convolved(level, self._convolved(level, span), stride), _pooled(span, stride))
        return self._convolved(0, span) if level == 0 else span  # the stem

    def _convolved(self, level: int, span: Span, stride: int = 1) -> Span:
        kernel = self.kernels[level]
        padding = kernel // 2 if self.layout.padded else 0
        return span[0] * stride - padding, span[1] * stride - padding + kernel - 1


def _pooled(span: Span, stride: int) -> Span:
    return span[0] * stride, span[1] * stride + stride - 1


def _interpolated(span: Span, stride: int) -> Span:
    """What linear interpolation reads: the two neighbours of each place, or one where it lies upon it."""
    first, last = (2 * place + 1 - stride for place in span)  # of the centres, in halves of a fine voxel
    return first // (2 * stride), -(-last // (2 * stride))


def _hull(one: Span, other: Span) -> Span:
    return min(one[0], other[0]), max(one[1], other[1])


def effective_field(
    network: Segmenter, patch: Sequence[int], samples: int = 8, share: float = 0.95, seed: int = 0
) -> tuple[int, ...]:
    """Returns the extent of the input, in voxels along each axis, on which the centre of the logits really depends.

    The gradient of the centre's logits with respect to the input tells how much each voxel counts (Luo et al.,
    Understanding the Effective Receptive Field, NeurIPS 2016). Its square, averaged over random inputs and summed over
    the other axes, is the energy; the extent is the shortest one that holds ``share`` of it.

    Args:
        network: Fresh or trained; evaluated, and left as it was.
        patch: That it puts out, in voxels; the extent cannot be larger than it and its context.
        samples: Random inputs, of the deviation 1 that preprocessing makes.
        share: Of the energy, above 0 and below 1.
        seed: Of the random inputs.

    Raises:
        ModelError: if the patch does not fit the strides of the network.
    """
    weight = next(network.parameters())
    size = [n + 2 * c for n, c in zip(patch, network.layout.context(), strict=True)]
    generator = torch.Generator().manual_seed(seed)
    energy = torch.zeros(size, dtype=torch.float64)
    training = network.training
    network.eval()
    try:
        for _ in range(samples):
            x = torch.randn(1, network.in_channels, *size, generator=generator, dtype=torch.float64)
            x = x.to(weight).requires_grad_()
            centre = network(x)[(0, slice(None), *(n // 2 for n in patch))]
            # With random signs the square of the sum is, on average, the sum of the outputs' squares.
            signs = torch.randint(0, 2, centre.shape, generator=generator).to(centre) * 2 - 1
            (gradient,) = torch.autograd.grad((centre * signs).sum(), x)
            energy += gradient[0].double().square().sum(0).cpu()
    finally:
        network.train(training)
    return tuple(_shortest(_along(energy, axis), share) for axis in range(len(size)))


def described_field(settings: Network, network: Segmenter, patch: Sequence[int]) -> dict[str, list[int]]:
    """Returns ``theoretical_voxels`` and ``effective_voxels`` of a trained network, as its bundle keeps them.

    Args:
        settings: What ``network`` was built of.
        network: Trained.
        patch: That it puts out, in voxels; large ones are measured with fewer inputs.
    """
    samples = max(2, min(8, _MEASURED_VOXELS // prod(patch)))
    return {
        "theoretical_voxels": list(receptive_field(settings, len(patch))),
        "effective_voxels": list(effective_field(network, patch, samples)),
    }


def _along(energy: Tensor, axis: int) -> Tensor:
    return energy.movedim(axis, 0).flatten(1).sum(1)


def _shortest(profile: Tensor, share: float) -> int:
    """Length of the shortest run of ``profile`` that holds ``share`` of its sum; 0 where there is nothing."""
    held = torch.cat((profile.new_zeros(1), profile.cumsum(0)))
    ends = torch.searchsorted(held, held[:-1] + share * held[-1])
    starts = torch.arange(len(profile))
    return max(0, int((ends - starts)[ends < len(held)].min()))
