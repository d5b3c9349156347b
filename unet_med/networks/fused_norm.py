"""Instance normalisation and leaky ReLU of channels-last tensors in one pass over memory each, for CUDA cards.

torch normalises channels-last tensors by copying them into another layout and back, which costs more than the
convolutions gain from it. A channels-last tensor is a table of voxels by channels, so here programs take blocks of
rows: one kernel gathers mean and squared deviation of each block (combined as Chan, Golub and LeVeque 1983 do, so
that a large mean costs no digits), one normalises and activates, two take the gradient back. Sums and statistics are
float32 whatever the input is; no atomic additions, so the same input gives the same result to the last bit.

The kernels are written in Triton, which the CUDA builds of torch bring along. Import this module only where it is
installed; :func:`unet_med.networks.norm.instance_norm_act` does.
"""

from __future__ import annotations

import logging
import subprocess
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

logger = logging.getLogger(__name__)

_TILE = 4096
"""Values that a program holds at once."""
_WIDEST = 64
"""Channels of a tile."""
_MOST_CHUNKS = 512
"""Blocks of rows that a sample is cut into for sums."""
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


# ---- kernels --------------------------------------------------------------------------------------------------------
# x, out, gradients: (samples, rows, channels); mean, inverse_sd: (samples, channels); partial sums:
# (samples, chunks, channels). Programs are numbered by chunk (or tile) of rows, sample, block of channels.


@triton.jit  # type: ignore[untyped-decorator]
def _tile(
    start: tl.tensor, rows: tl.tensor, channels: tl.tensor, ROWS: tl.constexpr, COLUMNS: tl.constexpr
) -> tl.tensor:
    """Returns offsets within a sample, which of them exist, and the channels with theirs."""
    row = start + tl.arange(0, ROWS)
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < channels
    offset = row[:, None].to(tl.int64) * channels + column[None, :]
    return offset, (row < rows)[:, None] & inside[None, :], column, inside


@triton.jit  # type: ignore[untyped-decorator]
def _statistics(
    x: tl.tensor,
    means: tl.tensor,
    squares: tl.tensor,
    rows: tl.tensor,
    channels: tl.tensor,
    chunk: tl.tensor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Mean and sum of squared deviations of each chunk of rows."""
    sample = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * chunk
    x += sample * rows * channels
    count = 0.0
    mean = tl.zeros((COLUMNS,), tl.float32)
    square = tl.zeros((COLUMNS,), tl.float32)
    for start in range(first, tl.minimum(first + chunk, rows), ROWS):
        offset, exists, _, _ = _tile(start, rows, channels, ROWS, COLUMNS)
        value = tl.load(x + offset, mask=exists, other=0.0).to(tl.float32)
        number = tl.minimum(rows - start, ROWS).to(tl.float32)
        tile_mean = tl.sum(value, 0) / number
        deviation = tl.where(exists, value - tile_mean[None, :], 0.0)
        step = tile_mean - mean
        share = number / (count + number)
        mean += step * share
        square += tl.sum(deviation * deviation, 0) + step * step * count * share
        count += number
    _, _, column, inside = _tile(0, rows, channels, ROWS, COLUMNS)
    place = (sample * tl.num_programs(0) + tl.program_id(0)) * channels + column
    tl.store(means + place, mean, mask=inside)
    tl.store(squares + place, square, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _merge(
    means: tl.tensor,
    squares: tl.tensor,
    mean: tl.tensor,
    inverse_sd: tl.tensor,
    rows: tl.tensor,
    channels: tl.tensor,
    chunk: tl.tensor,
    chunks: tl.tensor,
    eps: tl.tensor,
    CHUNKS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Statistics of a sample from those of its chunks."""
    sample = tl.program_id(1).to(tl.int64)
    offset, exists, column, inside = _tile(0, chunks, channels, CHUNKS, COLUMNS)
    offset += sample * chunks * channels
    number = tl.minimum(rows - tl.arange(0, CHUNKS).to(tl.int64) * chunk, chunk).to(tl.float32)[:, None]
    one = tl.load(means + offset, mask=exists, other=0.0)
    whole = tl.sum(tl.where(exists, one * number, 0.0), 0) / rows
    step = one - whole[None, :]
    square = tl.load(squares + offset, mask=exists, other=0.0) + tl.where(exists, number * step * step, 0.0)
    place = sample * channels + column
    tl.store(mean + place, whole, mask=inside)
    tl.store(inverse_sd + place, 1.0 / tl.sqrt(tl.sum(square, 0) / rows + eps), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _normalise(
    x: tl.tensor,
    out: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    mean: tl.tensor,
    inverse_sd: tl.tensor,
    rows: tl.tensor,
    channels: tl.tensor,
    slope: tl.tensor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Normalises, scales, shifts and activates one tile."""
    sample = tl.program_id(1).to(tl.int64)
    offset, exists, column, inside = _tile(tl.program_id(0) * ROWS, rows, channels, ROWS, COLUMNS)
    offset += sample * rows * channels
    centre = tl.load(mean + sample * channels + column, mask=inside, other=0.0)
    scale = tl.load(inverse_sd + sample * channels + column, mask=inside, other=0.0)
    scale *= tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(x + offset, mask=exists, other=0.0).to(tl.float32)
    value = (value - centre[None, :]) * scale[None, :] + shift[None, :]
    value = tl.where(value > 0, value, value * slope)
    tl.store(out + offset, value.to(out.dtype.element_ty), mask=exists)


@triton.jit  # type: ignore[untyped-decorator]
def _inner(
    x: tl.tensor,
    gradient: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    mean: tl.tensor,
    inverse_sd: tl.tensor,
    slope: tl.tensor,
    offset: tl.tensor,
    exists: tl.tensor,
    column: tl.tensor,
    inside: tl.tensor,
    place: tl.tensor,
) -> tl.tensor:
    """Returns normalised values, the gradient before the activation, and the scale, of one tile."""
    centre = tl.load(mean + place, mask=inside, other=0.0)
    inverse = tl.load(inverse_sd + place, mask=inside, other=0.0)
    factor = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    normal = (tl.load(x + offset, mask=exists, other=0.0).to(tl.float32) - centre[None, :]) * inverse[None, :]
    inner = tl.load(gradient + offset, mask=exists, other=0.0).to(tl.float32)
    inner = tl.where(normal * factor[None, :] + shift[None, :] > 0, inner, inner * slope)
    return normal, inner, factor * inverse


@triton.jit  # type: ignore[untyped-decorator]
def _gradient_sums(
    x: tl.tensor,
    gradient: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    mean: tl.tensor,
    inverse_sd: tl.tensor,
    sums: tl.tensor,
    products: tl.tensor,
    rows: tl.tensor,
    channels: tl.tensor,
    chunk: tl.tensor,
    slope: tl.tensor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Sums of the inner gradient, and of its product with the normalised values, of each chunk of rows."""
    sample = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * chunk
    total = tl.zeros((COLUMNS,), tl.float32)
    product = tl.zeros((COLUMNS,), tl.float32)
    for start in range(first, tl.minimum(first + chunk, rows), ROWS):
        offset, exists, column, inside = _tile(start, rows, channels, ROWS, COLUMNS)
        offset += sample * rows * channels
        place = sample * channels + column
        normal, inner, _ = _inner(
            x, gradient, weight, bias, mean, inverse_sd, slope, offset, exists, column, inside, place
        )
        total += tl.sum(inner, 0)
        product += tl.sum(inner * normal, 0)
    _, _, column, inside = _tile(0, rows, channels, ROWS, COLUMNS)
    place = (sample * tl.num_programs(0) + tl.program_id(0)) * channels + column
    tl.store(sums + place, total, mask=inside)
    tl.store(products + place, product, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _gradient(
    x: tl.tensor,
    gradient: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    mean: tl.tensor,
    inverse_sd: tl.tensor,
    sums: tl.tensor,
    products: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    channels: tl.tensor,
    slope: tl.tensor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Gradient of one tile of the input; ``sums`` and ``products`` are (samples, channels) here."""
    sample = tl.program_id(1).to(tl.int64)
    offset, exists, column, inside = _tile(tl.program_id(0) * ROWS, rows, channels, ROWS, COLUMNS)
    offset += sample * rows * channels
    place = sample * channels + column
    normal, inner, scale = _inner(
        x, gradient, weight, bias, mean, inverse_sd, slope, offset, exists, column, inside, place
    )
    total = tl.load(sums + place, mask=inside, other=0.0) / rows
    product = tl.load(products + place, mask=inside, other=0.0) / rows
    value = scale[None, :] * (inner - total[None, :] - normal * product[None, :])
    tl.store(out + offset, value.to(out.dtype.element_ty), mask=exists)


# ---- operators ------------------------------------------------------------------------------------------------------


class _Cut:
    """How the rows and channels of a tensor are shared out among programs."""

    def __init__(self, x: Tensor) -> None:
        self.samples, self.channels = x.shape[:2]
        self.rows = x[0, 0].numel()
        self.columns = min(triton.next_power_of_2(self.channels), _WIDEST)
        self.tile = {"ROWS": _TILE // self.columns, "COLUMNS": self.columns}
        blocks = triton.cdiv(self.channels, self.columns)
        tiles = triton.cdiv(self.rows, self.tile["ROWS"])
        self.chunk = triton.cdiv(tiles, min(tiles, _MOST_CHUNKS)) * self.tile["ROWS"]
        self.chunks = triton.cdiv(self.rows, self.chunk)
        self.by_tile = (tiles, self.samples, blocks)
        self.by_chunk = (self.chunks, self.samples, blocks)

    def partial(self, x: Tensor) -> Tensor:
        """Returns room for two partial sums of each chunk."""
        return x.new_empty((2, self.samples, self.chunks, self.channels), dtype=torch.float32)


@torch.library.custom_op("unet_med::instance_norm_act", mutates_args=())
def _forward(x: Tensor, weight: Tensor, bias: Tensor, slope: float, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    cut = _Cut(x)
    out = torch.empty_like(x)
    mean, inverse_sd = (x.new_empty(x.shape[:2], dtype=torch.float32) for _ in range(2))
    means, squares = cut.partial(x).unbind()
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        _statistics[cut.by_chunk](x, means, squares, cut.rows, cut.channels, cut.chunk, **cut.tile)
        columns = min(cut.columns, 8)
        _merge[(1, cut.samples, triton.cdiv(cut.channels, columns))](
            *(means, squares, mean, inverse_sd, cut.rows, cut.channels, cut.chunk, cut.chunks, eps),
            CHUNKS=triton.next_power_of_2(cut.chunks),
            COLUMNS=columns,
        )
        _normalise[cut.by_tile](x, out, weight, bias, mean, inverse_sd, cut.rows, cut.channels, slope, **cut.tile)
    return out, mean, inverse_sd


@torch.library.custom_op("unet_med::instance_norm_act_backward", mutates_args=())
def _backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse_sd: Tensor, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    cut = _Cut(x)
    gradient = gradient.contiguous(memory_format=_CHANNELS_LAST[x.dim()])
    given = (x, gradient, weight, bias, mean, inverse_sd)
    partial = cut.partial(x)
    grad_x = torch.empty_like(x)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        _gradient_sums[cut.by_chunk](*given, *partial.unbind(), cut.rows, cut.channels, cut.chunk, slope, **cut.tile)
        sums, products = partial.sum(2).unbind()
        _gradient[cut.by_tile](*given, sums, products, grad_x, cut.rows, cut.channels, slope, **cut.tile)
    return grad_x, products.sum(0).to(weight.dtype), sums.sum(0).to(bias.dtype)


@_forward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, slope: float, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    statistics = x.new_empty(x.shape[:2], dtype=torch.float32)
    return torch.empty_like(x), statistics, torch.empty_like(statistics)


@_backward.register_fake
def _(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse_sd: Tensor, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, ctx.slope, _ = inputs
    ctx.save_for_backward(x, weight, bias, *output[1:])


def _back(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(gradient, *ctx.saved_tensors, ctx.slope), None, None


_forward.register_autograd(_back, setup_context=_keep)


def fused_instance_norm_act(x: Tensor, weight: Tensor, bias: Tensor, slope: float, eps: float) -> Tensor:
    """Normalises each channel of each sample, scales, shifts, and applies a leaky ReLU.

    Args:
        x: (N, C, *s) channels-last; float32, bfloat16 or float16, at least one voxel.
        weight: (C,) scale.
        bias: (C,) shift.
        slope: Slope below 0: 1 is no activation, 0 is ReLU.
        eps: Added to the variance.

    Returns:
        (N, C, *s) channels-last, of the dtype of ``x``. Gradients flow to ``x``, ``weight`` and ``bias``, once.
    """
    out: Tensor = _forward(x, weight, bias, slope, eps)[0]
    return out


def kernels_work(device: torch.device) -> bool:
    """Whether the kernels can be built for a device and are right there, tried on a small tensor.

    They cannot where Triton finds no C compiler, or knows nothing of the card.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        x = torch.linspace(-3, 5, 240, device=device).square().reshape(2, 4, 5, 6)
        x = x.to(memory_format=torch.channels_last).requires_grad_()
        weight, bias = (torch.linspace(-0.5, 2, 4, device=device, requires_grad=True) for _ in range(2))
        theirs = F.leaky_relu(F.instance_norm(x, weight=weight, bias=bias, eps=1e-5), 0.1)
        try:
            ours = fused_instance_norm_act(x, weight, bias, 0.1, 1e-5)
            gradients = [torch.autograd.grad(out, (x, weight, bias), x.detach()) for out in (ours, theirs)]
        except (RuntimeError, OSError, subprocess.SubprocessError, triton.TritonError) as error:
            logger.warning("the fused norm cannot be used (%s); torch's own is slower", type(error).__name__)
            return False
        pairs = [(ours, theirs), *zip(*gradients, strict=True)]
        right = all(torch.allclose(one, other, rtol=1e-3, atol=1e-3) for one, other in pairs)
    if not right:
        logger.warning("the fused norm is wrong on this card; torch's own, which is slower, is used")
    return right
