from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from unet_med.config import Network
from unet_med.networks import build_network
from unet_med.networks.receptive import described_field, effective_field, receptive_field


def stack(kind: str = "dilated", dims: int = 2, **changes: Any) -> Network:
    values: dict[str, Any] = {"features": (1,), "strides": ((1,) * dims,), "kernels": ((3,) * dims,), "norm": "none"}
    return Network(kind=kind, **(values | changes))


@pytest.mark.parametrize("dims", [2, 3])
def test_the_dilated_network_sees_67_voxels_and_the_naive_one_15(dims: int) -> None:
    """The number of Yu and Koltun's table 1."""
    assert receptive_field(stack(dims=dims), dims) == (67,) * dims
    assert receptive_field(stack("naive", dims), dims) == (15,) * dims
    assert receptive_field(stack(dims=dims, dilations=(1, 1, 2)), dims) == (9,) * dims


def test_each_axis_has_its_own() -> None:
    config = Network(
        features=(2, 2), strides=((1, 1, 1), (2, 2, 1)), kernels=((3, 3, 1), (3, 3, 3)), convolutions_per_level=1
    )
    (first, second, third) = receptive_field(config, 3)
    assert first == second > third == 3


@pytest.mark.parametrize("depth", [1, 4])
def test_of_equal_weights_it_is_that_of_binomial_coefficients(depth: int) -> None:
    """Luo et al., section 2: the gradient of equal weights is the box convolved with itself, layer by layer."""
    config = stack("naive", dilations=(1,) * depth, style="classic")
    module = build_network(config, 2, 1, 1)
    for parameter in module.parameters():
        nn.init.constant_(parameter, 1.0)
    nn.init.constant_(module.blocks[0][0].bias, 1e3)  # so that nothing is below 0 and all is linear
    gradient = np.ones(1)
    for _ in range(depth):
        gradient = np.convolve(gradient, np.ones(3))
    energy = np.square(gradient) / np.square(gradient).sum()
    for share in (0.3, 0.8, 0.95):
        held = [width for width in range(1, len(energy) + 1) if np.convolve(energy, np.ones(width)).max() >= share]
        assert effective_field(module, (4, 3), samples=2, share=share) == (held[0],) * 2


@pytest.mark.parametrize("changes", [{}, {"kind": "residual"}, {"attention": True}, {"norm": "instance"}], ids=str)
def test_it_lies_within_the_theoretical_one(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = Network(
        **(
            {
                "features": (4, 4, 4),
                "strides": ((1, 1), (2, 2), (2, 2)),
                "kernels": ((3, 3),) * 3,
                "norm": "none",
            }
            | changes
        )
    )
    module = build_network(config, 2, 2, 3).train()
    found = effective_field(module, (64, 64))
    assert all(1 <= ours <= most for ours, most in zip(found, receptive_field(config, 2), strict=True))
    assert module.training
    assert found == effective_field(module, (64, 64))
    assert all(parameter.grad is None for parameter in module.parameters())


def test_dilations_widen_what_really_counts() -> None:
    fields = {}
    for kind in ("dilated", "naive"):
        torch.manual_seed(0)
        module = build_network(stack(kind, features=(4,)), 2, 1, 2)
        for block in module.blocks:
            nn.init.kaiming_normal_(block[0].weight)  # not the identity, of which the centre alone would count
        fields[kind] = effective_field(module, (72, 72), samples=4)
    assert min(fields["dilated"]) > 2 * max(fields["naive"])


def test_a_network_without_weights_sees_nothing() -> None:
    module = build_network(stack(), 2, 1, 2)
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    assert effective_field(module, (8, 8)) == (0, 0)


def test_what_a_bundle_keeps() -> None:
    settings = Network(features=(4, 8), strides=((1, 1), (2, 2)), kernels=((3, 3), (3, 3)))
    torch.manual_seed(0)
    field = described_field(settings, build_network(settings, 2, 1, 2), (32, 32))
    assert field["theoretical_voxels"] == list(receptive_field(settings, 2))
    assert all(
        0 < used <= seen for used, seen in zip(field["effective_voxels"], field["theoretical_voxels"], strict=True)
    )
