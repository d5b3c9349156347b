from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from unet_med.config import Network
from unet_med.networks import admissible_patch, build_network
from unet_med.networks.layout import layout_of
from unet_med.networks.residual import ResidualBlock


def network(dims: int = 2, **changes: Any) -> Network:
    values: dict[str, Any] = {
        "kind": "residual",
        "features": (4, 8, 8),
        "strides": ((1,) * dims, (1, *(2,) * (dims - 1)), (2,) * dims),
        "kernels": ((1, *(3,) * (dims - 1)), (3,) * dims, (3,) * dims),
        "blocks_per_level": (1, 2, 2),
    }
    return Network(**(values | changes))


def test_blocks_and_convolutions_are_those_of_nnunet_unless_given() -> None:
    levels = 7
    config = Network(
        kind="residual", features=(2,) * levels, strides=((1, 1), *[(2, 2)] * 6), kernels=((3, 3),) * levels
    )
    layout = layout_of(config, 2)
    assert layout.blocks == (1, 3, 4, 6, 6, 6, 6)
    assert layout.decoder_convolutions == 1
    assert layout_of(config.model_copy(update={"decoder_convolutions": 3}), 2).decoder_convolutions == 3
    assert layout_of(network(), 2).blocks == (1, 2, 2)


def test_the_names_of_its_parts() -> None:
    module = build_network(network(), 2, 1, 2)
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    assert shapes["encoder.0.0.0.weight"] == (4, 1, 1, 3)  # stem
    assert shapes["encoder.0.1.first.0.weight"] == (4, 4, 1, 3)
    assert shapes["encoder.1.0.first.0.weight"] == (8, 4, 3, 3)
    assert shapes["encoder.1.0.second.0.weight"] == (8, 8, 3, 3)
    assert shapes["encoder.1.0.shortcut.projection.0.weight"] == (8, 4, 1, 1)
    assert shapes["encoder.1.1.first.1.weight"] == (8,)
    assert shapes["decoder.0.0.0.weight"] == (4, 8, 1, 3)
    assert "decoder.0.1.0.weight" not in shapes
    projected = {name.partition(".shortcut")[0] for name in shapes if "shortcut" in name}
    assert projected == {"encoder.1.0"}, "a short cut of equal width has no weights"


@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_fresh_block_is_its_short_cut(norm: str, dims: int) -> None:
    """Average over the stride, then the projection: what the input becomes before the two convolutions learn."""
    torch.manual_seed(0)
    module = build_network(network(dims, norm=norm), dims, 1, 2).eval()
    x = torch.randn(2, 8, *(8,) * dims).relu()
    pool = nn.functional.avg_pool3d if dims == 3 else nn.functional.avg_pool2d
    with torch.no_grad():
        same, halved = module.encoder[2][1], module.encoder[2][0]
        torch.testing.assert_close(same(x), x)
        torch.testing.assert_close(halved(x), pool(x, 2))
        wider = module.encoder[1][0]
        projected = wider.shortcut.projection(pool(x[:, :4], (1, *(2,) * (dims - 1))))
        torch.testing.assert_close(wider(x[:, :4]), nn.functional.leaky_relu(projected, 0.01))


@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
def test_every_weight_learns_after_the_first_step(norm: str) -> None:
    torch.manual_seed(0)
    module = build_network(network(norm=norm, deep_supervision=True, attention=True), 2, 1, 2).train()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    x = torch.randn(2, 1, 16, 16)
    for _ in range(2):
        optimizer.zero_grad()
        sum(level.square().mean() for level in module(x)).backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.mark.parametrize("dims", [2, 3])
def test_training_takes_no_longer_way_than_its_plain_formula(dims: int) -> None:
    """Values and gradients of channels-last tensors equal those of double precision, written down plainly."""
    torch.manual_seed(0)
    block = next(m for m in build_network(network(dims), dims, 1, 2).modules() if isinstance(m, ResidualBlock))
    nn.init.normal_(block.second[1].weight)
    layout = torch.channels_last_3d if dims == 3 else torch.channels_last
    x = torch.randn(2, 4, *(6,) * dims).to(memory_format=layout).requires_grad_()
    out = block(x)
    gradient = torch.randn_like(out)
    (found,) = torch.autograd.grad(out, x, gradient)

    double = x.detach().double().requires_grad_()
    convolve = nn.functional.conv3d if dims == 3 else nn.functional.conv2d
    y = double
    for part in (block.first, block.second):
        y = convolve(y, part[0].weight.double(), padding=part[0].padding)
        y = nn.functional.instance_norm(y, weight=part[1].weight.double(), bias=part[1].bias.double())
        y = nn.functional.leaky_relu(y, part[1].slope)
    plain = nn.functional.leaky_relu(y + double, 0.01)
    (expected,) = torch.autograd.grad(plain, double, gradient.double())
    torch.testing.assert_close(out.double(), plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)


def test_patches_are_those_of_the_strides() -> None:
    assert admissible_patch(network(), 2, (9, 9)) == (10, 12)
