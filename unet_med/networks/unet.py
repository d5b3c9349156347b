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

from unet_med.errors import ModelError
from unet_med.networks.joined import convolve_joined, joining_pays
from unet_med.networks.layout import Layout
from unet_med.networks.norm import InstanceNormAct
from unet_med.networks.tracing import is_tracing

_TRANSPOSED: dict[int, Any] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_MAX_POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
_INTERPOLATION = {2: "bilinear", 3: "trilinear"}


_HAS_ONEDNN = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


class _Convolution3d(nn.Conv3d):
    """A 3-D convolution that leaves a single small image to oneDNN, too.

    Below 20480 elements along its first four axes torch prefers its own kernel, which is several times slower: half
    of the time of predicting a small window. Gradients need torch's own choice.
    """

    padding: tuple[int, ...]

    def forward(self, input: Tensor) -> Tensor:
        """Maps (N, C, *s) to (N, features, *s)."""
        own_choice = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or is_tracing()
        if own_choice or not _HAS_ONEDNN or not _is_single_on_cpu(input):
            return super().forward(input)
        weight, bias = self.weight, self.bias
        return torch.mkldnn_convolution(input, weight, bias, self.padding, self.stride, self.dilation, self.groups)


def _is_single_on_cpu(x: Tensor) -> bool:
    return len(x) == 1 and x.device.type == "cpu" and x.dtype == torch.float32


_CONVOLUTION: dict[int, Any] = {2: nn.Conv2d, 3: _Convolution3d}


class UNet(nn.Module):
    """Encoder, bottleneck and decoder with skip connections.

    In ``train()`` mode with deep supervision ``forward`` returns a tuple of logits, finest first; in ``eval()`` mode,
    and without deep supervision, one tensor.

    Args:
        layout: The checked measures.
        in_channels: Channels of the input.
        outputs: Channels of the logits.
    """

    def __init__(self, layout: Layout, in_channels: int, outputs: int) -> None:
        super().__init__()
        self.layout = layout
        self.in_channels = in_channels
        self.outputs = outputs
        features = layout.features
        entering = (in_channels, *features)
        self.encoder = nn.ModuleList(_Level(layout, level, entering[level]) for level in range(layout.levels))
        self.dropout = nn.Dropout(layout.dropout)
        above = range(layout.levels - 1)
        self.crops = [tuple(layout.crop(level, axis) for axis in range(layout.dims)) for level in above]
        self.upsampling = nn.ModuleList(_Upsampling(layout, level) for level in above)
        self.decoder = nn.ModuleList(_Level(layout, level, 2 * features[level], decoder=True) for level in above)
        self.heads = nn.ModuleList(_CONVOLUTION[layout.dims](features[n], outputs, 1) for n in range(layout.heads))
        if not self.heads[0].weight.is_meta:
            self._initialise()

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

        ``head`` is a 1x1 convolution and therefore linear: blending the features of overlapping windows and applying
        it afterwards gives the same logits as blending logits.

        Raises:
            ModelError: as :meth:`forward`.
        """
        return next(features for _, features in self._decoded(x, 1))

    @property
    def head(self) -> nn.Module:
        """The 1x1 convolution from the features of the finest level to the logits."""
        return self.heads[0]

    def _decoded(self, x: Tensor, wanted: int) -> Iterator[tuple[int, Tensor]]:
        """Yields level and features of the ``wanted`` finest levels of the decoder, the coarsest of them first."""
        if not (is_tracing() or torch.compiler.is_compiling()):  # neither records checks
            self._check(x)
        x = _channels_last(x)
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
        blocks, upsampling = self.decoder[level], self.upsampling[level]
        first, *others = (module for block in blocks.children() for module in block.children())
        if self.training and below.device.type == "cpu" and joining_pays(below, upsampling.convolution, first):
            x = convolve_joined(skip, below, upsampling.convolution, first)
            for module in others:
                x = module(x)
            return x
        x = torch.cat((skip, upsampling(below)), dim=1)
        joined: Tensor = blocks(_channels_last(x))
        return joined

    def _check(self, x: Tensor) -> None:
        layout = self.layout
        if x.dim() != layout.dims + 2:
            raise ModelError(
                f"a {layout.dims}-D network got a tensor of shape {tuple(x.shape)}",
                "network",
                f"give (N, C, {'I, J' if layout.dims == 2 else 'I, J, K'})",
            )
        if x.shape[1] != self.in_channels:
            raise ModelError(
                f"the network was made for {self.in_channels} channels, the input has {x.shape[1]}",
                "network",
                "give the channels that the model was trained on, in the same order",
            )
        context = layout.context()
        patch = tuple(n - 2 * c for n, c in zip(x.shape[2:], context, strict=True))
        fitting = layout.admissible(patch)
        if patch != fitting:
            whole = tuple(n + 2 * c for n, c in zip(fitting, context, strict=True))
            raise ModelError(
                f"an input of {tuple(x.shape[2:])} voxels does not fit the strides of the network",
                "network",
                f"pad it to {whole}",
            )

    def _initialise(self) -> None:
        """He initialisation (He et al. 2015); each voxel of a transposed convolution sums over the channels only."""
        for module in self.modules():
            if isinstance(module, (nn.ConvTranspose2d, nn.ConvTranspose3d)):
                nn.init.normal_(module.weight, std=(2 / (1 + self.layout.slope**2) / module.in_channels) ** 0.5)
            elif isinstance(module, (nn.Conv2d, nn.Conv3d)):
                nn.init.kaiming_normal_(module.weight, a=self.layout.slope)
            else:
                continue
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class _Level(nn.Sequential):
    """The convolutions of one level, each with norm and activation; the way down to it comes first."""

    def __init__(self, layout: Layout, level: int, in_channels: int, decoder: bool = False) -> None:
        stride: tuple[int, ...] = (1,) * layout.dims if decoder else layout.strides[level]
        blocks: list[nn.Module] = []
        if layout.max_pool and max(stride) > 1:
            blocks.append(_MAX_POOL[layout.dims](stride))
            stride = (1,) * layout.dims
        features = layout.features[level]
        for number in range(layout.convolutions):
            first = number == 0
            blocks.append(
                _Block(
                    layout,
                    in_channels if first else features,
                    features,
                    layout.kernels[level],
                    stride if first else (1,) * layout.dims,
                )
            )
        super().__init__(*blocks)


class _Block(nn.Sequential):
    """Convolution, norm, activation."""

    def __init__(
        self, layout: Layout, in_channels: int, features: int, kernel: Sequence[int], stride: Sequence[int]
    ) -> None:
        padding = tuple(k // 2 if layout.padded else 0 for k in kernel)
        convolution = _CONVOLUTION[layout.dims](
            in_channels, features, tuple(kernel), tuple(stride), padding, bias=layout.norm == "none"
        )
        activation = nn.LeakyReLU(layout.slope, inplace=True)
        if layout.norm == "instance":
            super().__init__(convolution, InstanceNormAct(features, layout.slope))
        elif layout.norm == "batch":
            super().__init__(convolution, _BATCH_NORM[layout.dims](features), activation)
        else:
            super().__init__(convolution, activation)


class _Upsampling(nn.Module):
    """From the level below to this one: the size grows by the stride, the channels become this level's."""

    def __init__(self, layout: Layout, level: int) -> None:
        super().__init__()
        below, features = layout.features[level + 1], layout.features[level]
        self.stride = layout.strides[level + 1]
        self.mode = "" if layout.transposed else _INTERPOLATION[layout.dims]
        # The norm after the next convolution takes a bias away again, and its gradient costs more than the weights'.
        # A 1x1 convolution and an interpolation commute; before it, it has a fraction of the voxels to work on.
        self.convolution = (
            _TRANSPOSED[layout.dims](below, features, self.stride, self.stride, bias=layout.norm == "none")
            if layout.transposed
            else _CONVOLUTION[layout.dims](below, features, 1, bias=layout.norm == "none")
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, below, *s) to (N, features, *s times stride)."""
        x = self.convolution(x)
        if not self.mode:
            return x
        factors = [float(stride) for stride in self.stride]
        return F.interpolate(x, scale_factor=factors, mode=self.mode, align_corners=False)


def _channels_last(x: Tensor) -> Tensor:
    """Returns ``x`` in the layout in which a CPU convolves twice as fast; nothing is copied where it has it already.

    Some kernels leave it (1x1 convolutions with one thread, small single images). ``contiguous`` would not do: with
    one channel both layouts are the same to it, but not to the convolution.
    """
    if x.device.type != "cpu" or is_tracing():
        return x
    return x.to(memory_format=_CHANNELS_LAST[x.dim() - 2])


def _cropped(skip: Tensor, margins: Sequence[int]) -> Tensor:
    """Cuts a skip connection to the extent that unpadded convolutions left over."""
    for axis, margin in enumerate(margins, start=2):
        if margin:
            skip = skip[(slice(None),) * axis + (slice(margin, -margin),)]
    return skip
