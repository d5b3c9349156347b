"""What networks are made of: convolutions with norm and activation, and the tensors' layout in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unet_med.networks.layout import Layout
from unet_med.networks.norm import InstanceNormAct
from unet_med.networks.tracing import is_tracing

TRANSPOSED: dict[int, Any] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
INTERPOLATION = {2: "bilinear", 3: "trilinear"}

_BATCH_NORM: dict[int, Any] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
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


CONVOLUTION: dict[int, Any] = {2: nn.Conv2d, 3: _Convolution3d}


class Block(nn.Sequential):
    """Convolution, norm, activation.

    Args:
        layout: Says which norm and activation, and whether to pad.
        in_channels: Channels of the input.
        features: Channels of the output.
        kernel: Odd, for each axis.
        stride: For each axis; 1 where it is not given.
        dilation: Along all axes.
        active: Whether the activation is there.
        bias: Whether the convolution has a bias; as the layout says where it is not given.
    """

    def __init__(
        self,
        layout: Layout,
        in_channels: int,
        features: int,
        kernel: Sequence[int],
        stride: Sequence[int] | None = None,
        dilation: int = 1,
        active: bool = True,
        bias: bool | None = None,
    ) -> None:
        padding = tuple(dilation * (k // 2) if layout.padded else 0 for k in kernel)
        stride = stride or (1,) * layout.dims
        convolution = CONVOLUTION[layout.dims](
            in_channels,
            features,
            tuple(kernel),
            tuple(stride),
            padding,
            dilation,
            bias=layout.bias if bias is None else bias,
        )
        super().__init__(convolution, *_norm_act(layout, features, active))


def _norm_act(layout: Layout, features: int, active: bool) -> list[nn.Module]:
    """The norm of a layout and, where ``active``, the activation after it; one module where it does both."""
    if layout.norm == "instance":
        return [InstanceNormAct(features, layout.slope if active else 1.0)]
    activation: list[nn.Module] = [activation_of(layout)] if active else []
    if layout.norm == "batch":
        return [_BATCH_NORM[layout.dims](features), *activation]
    return activation


def activation_of(layout: Layout) -> nn.Module:
    """Returns the activation, which overwrites its input."""
    return nn.LeakyReLU(layout.slope, inplace=True)


def channels_last(x: Tensor) -> Tensor:
    """Returns ``x`` in the layout in which a CPU convolves twice as fast; nothing is copied where it has it already.

    Some kernels leave it (1x1 convolutions with one thread, small single images). ``contiguous`` would not do: with
    one channel both layouts are the same to it, but not to the convolution.
    """
    if x.device.type != "cpu" or is_tracing():
        return x
    return x.to(memory_format=_CHANNELS_LAST[x.dim() - 2])


def initialise(network: nn.Module, slope: float) -> None:
    """He initialisation (He et al. 2015); each voxel of a transposed convolution sums over the channels only."""
    for module in network.modules():
        if isinstance(module, (nn.ConvTranspose2d, nn.ConvTranspose3d)):
            nn.init.normal_(module.weight, std=(2 / (1 + slope**2) / module.in_channels) ** 0.5)
        elif isinstance(module, (nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(module.weight, a=slope)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
