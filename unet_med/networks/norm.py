"""Instance normalisation that keeps the channels-last layout, with the activation in the same function.

Convolutions on a CPU are fastest on channels-last tensors, but ``F.instance_norm`` copies those into another layout
and back. One sample of a channels-last batch is itself a channels-last batch of one, so the statistics of instance
normalisation are those of batch normalisation sample by sample, for which torch has a kernel that keeps the layout.
The formula is the same (Ulyanov et al. 2016), only the order of summation differs.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from unet_med.networks.tracing import is_tracing

EPSILON = 1e-5

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class _InstanceNormAct(torch.autograd.Function):
    """Instance norm and (leaky) ReLU, sample by sample; only the input, the result and the statistics are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> Tensor:
        out = torch.empty_like(x)
        mean = torch.empty(x.shape[:2], dtype=weight.dtype)
        inverse_sd = torch.empty_like(mean)
        for n in range(len(x)):
            result = (out[n : n + 1], mean[n], inverse_sd[n])
            torch.native_batch_norm(x[n : n + 1], weight, bias, None, None, True, 0.0, eps, out=result)
            if slope != 1.0:
                F.leaky_relu_(out[n], slope)
        ctx.save_for_backward(x, out, weight, mean, inverse_sd)
        ctx.eps, ctx.slope = eps, slope
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, out, weight, mean, inverse_sd = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=_CHANNELS_LAST[x.dim()])
        wanted = [bool(w) for w in ctx.needs_input_grad[:3]]
        grad_x = torch.empty_like(x) if wanted[0] else None
        grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(weight)
        for n in range(len(x)):
            one = slice(n, n + 1)
            inner = gradient[one]
            if ctx.slope != 1.0:
                inner = torch.ops.aten.leaky_relu_backward(inner, out[one], ctx.slope, True)
            parts = torch.ops.aten.native_batch_norm_backward(
                inner, x[one], weight, None, None, mean[n], inverse_sd[n], True, ctx.eps, wanted
            )
            if grad_x is not None:
                grad_x[one] = parts[0]
            if wanted[1]:
                grad_weight += parts[1]
            if wanted[2]:
                grad_bias += parts[2]
        return grad_x, grad_weight if wanted[1] else None, grad_bias if wanted[2] else None, None, None


def instance_norm_act(x: Tensor, weight: Tensor, bias: Tensor, slope: float = 1.0, eps: float = EPSILON) -> Tensor:
    """Normalises each channel of each sample, scales, shifts, and applies a leaky ReLU.

    Args:
        x: (N, C, *s) floating point; channels-last takes the fast way on a CPU, and on a card where Triton is
            installed, and stays channels-last.
        weight: (C,) scale; float32 also where ``x`` is bfloat16, statistics are then float32.
        bias: (C,) shift.
        slope: Slope below 0: 1 is no activation, 0 is ReLU.
        eps: Added to the variance.

    Returns:
        (N, C, *s) of the dtype of ``x``, equal to ``F.leaky_relu(F.instance_norm(x, ...), slope)``.
    """
    out: Tensor
    if is_tracing():
        out = torch.instance_norm(x, weight, bias, None, None, True, 0.0, eps, False)  # F. checks the shape in Python
    elif _is_fast(x):
        out = _InstanceNormAct.apply(x, weight, bias, eps, slope)  # type: ignore[no-untyped-call]
        return out
    elif _has_kernels(x):
        from unet_med.networks.fused_norm import fused_instance_norm_act

        return fused_instance_norm_act(x, weight, bias, slope, eps)
    else:
        out = F.instance_norm(x, weight=weight, bias=bias, eps=eps)
    return out if slope == 1.0 else F.leaky_relu(out, slope, inplace=True)


def _is_fast(x: Tensor) -> bool:
    return x.device.type == "cpu" and _is_channels_last(x)


def _has_kernels(x: Tensor) -> bool:
    return x.device.type == "cuda" and x.itemsize <= 4 and _is_channels_last(x) and _kernels_work(x.device)


def _is_channels_last(x: Tensor) -> bool:
    layout = _CHANNELS_LAST.get(x.dim())
    return layout is not None and x.is_contiguous(memory_format=layout)


def _kernels_work(device: torch.device) -> bool:
    """Whether the kernels of :mod:`unet_med.networks.fused_norm` run on a card; a compiler records the answer."""
    return _try_kernels(device)


@lru_cache
def _try_kernels(device: torch.device) -> bool:
    try:
        from unet_med.networks.fused_norm import kernels_work
    except ImportError:  # torch without Triton
        return False
    return kernels_work(device)


# torch.compiler.assume_constant_result does the same, but imports the compiler first: more than a second.
_kernels_work._dynamo_marked_constant = True  # type: ignore[attr-defined]


class InstanceNormAct(nn.Module):
    """Instance norm with learnt scale and shift, and the activation after it; see :func:`instance_norm_act`."""

    def __init__(self, channels: int, slope: float = 1.0, eps: float = EPSILON) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.slope = slope
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Returns the normalised and activated ``x`` (N, C, *s)."""
        return instance_norm_act(x, self.weight, self.bias, self.slope, self.eps)

    def extra_repr(self) -> str:
        """Returns what ``print`` shows."""
        return f"{len(self.weight)}, slope={self.slope}"
