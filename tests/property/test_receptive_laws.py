"""The receptive field that arithmetic finds is the support of the gradient."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from unet_med.config import Network
from unet_med.networks import admissible_patch, build_network, context_voxels
from unet_med.networks.layout import layout_of
from unet_med.networks.receptive import receptive_field
from unet_med.networks.segmenter import Segmenter


def kernels_of(*edges: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(*[st.sampled_from(edges)] * 2)


@st.composite
def stacks(draw: st.DrawFn) -> Network:
    dilations = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    kernels = draw(st.lists(kernels_of(1, 3, 5), min_size=len(dilations), max_size=len(dilations)))
    kind = draw(st.sampled_from(["dilated", "naive"]))
    return Network(
        kind=kind,
        style=draw(st.sampled_from(["modern", "classic"])),
        norm="none",
        features=(1,) * len(dilations),
        strides=((1, 1),) * len(dilations),
        kernels=tuple(kernels),
        dilations=tuple(dilations) if kind == "dilated" else (1,) * len(dilations),
    )


@st.composite
def unets(draw: st.DrawFn) -> Network:
    kind = draw(st.sampled_from(["unet", "residual"]))
    levels = draw(st.integers(2, 3))
    options: dict[str, Any] = {"attention": draw(st.booleans())}
    if kind == "residual":
        options["blocks_per_level"] = tuple(draw(st.integers(1, 2)) for _ in range(levels))
    else:
        options["downsampling"] = draw(st.sampled_from(["strided", "maxpool"]))
        options["style"] = draw(st.sampled_from(["modern", "classic"]))
    options["upsampling"] = draw(st.sampled_from(["transposed", "interpolate"]))
    # A third of a voxel is no number of a computer: interpolated by 3, a neighbour of weight 0 gets a little.
    interpolates = options["attention"] or options["upsampling"] == "interpolate"
    stride = st.tuples(*[st.integers(1, 2 if interpolates or levels > 2 else 3)] * 2)
    return Network(
        kind=kind,
        norm="none",
        features=(1,) * levels,
        strides=((1, 1), *(draw(stride) for _ in range(levels - 1))),
        kernels=tuple(draw(kernels_of(1, 3)) for _ in range(levels)),
        convolutions_per_level=draw(st.integers(1, 2)),
        decoder_convolutions=draw(st.sampled_from([None, 1, 2])),
        **options,
    )


def positive(module: Segmenter) -> Segmenter:
    """Weights and, with a positive image, all values are positive: no path to the image cancels another."""
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 0.1, 1.0)
        if parameter.dim() > 1:
            parameter.data /= parameter[0].numel()
    for level in getattr(module, "encoder", ()):
        if isinstance(level[0], nn.MaxPool2d):  # of which the gradient reaches the largest alone
            level[0] = nn.AvgPool2d(level[0].kernel_size)
    return module


def support(network: Network, module: Segmenter) -> tuple[int, ...]:
    """Largest extent of the gradient of one output voxel, over all its places on the coarser grids."""
    layout = layout_of(network, 2)
    period = getattr(layout, "total_strides", lambda: (1, 1))()
    wanted = [2 * (extent + size) for extent, size in zip(receptive_field(network, 2), period, strict=True)]
    patch = admissible_patch(network, 2, wanted)
    size = [n + 2 * c for n, c in zip(patch, context_voxels(network, 2), strict=True)]
    x = (torch.rand(1, 1, *size, dtype=torch.float64) + 0.1).requires_grad_()
    logits = module(x)[0, 0]
    extents = []
    for place in range(max(period)):
        centre = logits[tuple(n // 2 + place % p for n, p in zip(patch, period, strict=True))]
        (gradient,) = torch.autograd.grad(centre, x, retain_graph=True)
        seen = torch.nonzero(gradient[0, 0])
        extents.append(seen.amax(0) - seen.amin(0) + 1)
    return tuple(torch.stack(extents).amax(0).tolist())


@settings(max_examples=50, deadline=None)
@given(network=st.one_of(stacks(), unets()), seed=st.integers(0, 1000))
def test_the_receptive_field_is_the_support_of_the_gradient(network: Network, seed: int) -> None:
    torch.manual_seed(seed)
    module = positive(build_network(network, 2, 1, 1)).double().eval()
    assert support(network, module) == receptive_field(network, 2)
