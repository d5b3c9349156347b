from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from unet_med.config import Network
from unet_med.networks import build_network, unet
from unet_med.networks.joined import convolve_joined, joining_pays

LAYOUT = {2: torch.channels_last, 3: torch.channels_last_3d}


def pair(stride: tuple[int, ...], kernel: tuple[int, ...], **options: Any) -> tuple[nn.Module, nn.Module]:
    dims = len(stride)
    transposed = (nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 2]
    plain = (nn.Conv2d, nn.Conv3d)[dims - 2]
    padding = tuple(k // 2 for k in kernel)
    return transposed(6, 3, stride, stride, bias=False), plain(6, 4, kernel, padding=padding, **options)


@pytest.mark.parametrize(
    ("stride", "kernel"),
    [((2, 2, 2), (3, 3, 3)), ((1, 2, 2), (1, 3, 3)), ((2, 3, 1), (3, 5, 3)), ((2, 2), (3, 3)), ((4, 2), (3, 1))],
)
@pytest.mark.parametrize("bias", [True, False])
def test_two_convolutions_are_one(stride: tuple[int, ...], kernel: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    up, convolution = (module.double() for module in pair(stride, kernel, bias=bias))
    below = torch.randn(2, 6, *(3, 4, 2)[: len(stride)], dtype=torch.float64).requires_grad_()
    skip = torch.randn(2, 3, *(n * s for n, s in zip(below.shape[2:], stride, strict=True)), dtype=torch.float64)
    skip.requires_grad_()
    inputs = (skip, below, up.weight, convolution.weight)
    ours = convolve_joined(skip, below, up, convolution)
    plain = convolution(torch.cat((skip, up(below)), dim=1))
    torch.testing.assert_close(ours, plain)
    gradient = torch.randn_like(ours)
    for one, other in zip(*(torch.autograd.grad(out, inputs, gradient) for out in (ours, plain)), strict=True):
        torch.testing.assert_close(one, other)


def test_bfloat16_is_no_farther_from_the_truth_than_the_plain_way() -> None:
    torch.manual_seed(0)
    up, convolution = pair((2, 2, 2), (3, 3, 3), bias=False)
    skip, below = torch.randn(2, 3, 8, 8, 8), torch.randn(2, 6, 4, 4, 4)
    truth = convolution(torch.cat((skip, up(below)), dim=1)).detach()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours = convolve_joined(skip.bfloat16(), below.bfloat16(), up, convolution)
        plain = convolution(torch.cat((skip.bfloat16(), up(below.bfloat16())), dim=1))
    assert ours.dtype == torch.bfloat16
    assert float((ours - truth).norm()) < 1.2 * float((plain - truth).norm())


@pytest.mark.parametrize(
    ("up", "convolution", "size", "pays"),
    [
        (*pair((2, 2, 2), (3, 3, 3)), 40, True),
        (*pair((2, 2, 2), (3, 3, 3)), 4, False),  # making the kernel would cost more
        (*pair((2, 2), (3, 3)), 400, False),  # in two dimensions little is saved
        (*pair((1, 2, 2), (3, 3, 3)), 40, False),
        (nn.ConvTranspose3d(6, 3, 2, 2), nn.Conv3d(6, 4, 3, padding=1), 40, False),
        (nn.ConvTranspose3d(6, 3, 2, 2, bias=False), nn.Conv3d(6, 4, 3), 40, False),
        (nn.Conv3d(6, 3, 1), nn.Conv3d(6, 4, 3, padding=1), 40, False),
    ],
)
def test_joined_only_where_it_can_be_and_pays(up: nn.Module, convolution: nn.Module, size: int, pays: bool) -> None:
    assert joining_pays(torch.empty(1, 6, *[size] * (up.weight.dim() - 2)), up, convolution) is pays


@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
def test_a_network_learns_the_same(norm: str) -> None:
    torch.manual_seed(0)
    config = Network(features=(4, 6, 8), strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)), kernels=((3, 3, 3),) * 3, norm=norm)
    network = build_network(config, 3, 2, 3).to(memory_format=torch.channels_last_3d)
    image = torch.randn(2, 2, 24, 24, 24)
    results = []
    for joined in (True, False):
        network.zero_grad()
        with (
            mock.patch.object(unet, "joining_pays", joining_pays if joined else lambda *_: False),
            mock.patch.object(unet, "convolve_joined", side_effect=convolve_joined) as called,
        ):
            logits = network.train()(image)
        assert called.called is (joined and norm != "none")
        logits.square().mean().backward()
        results.append((logits, *(parameter.grad for parameter in network.parameters())))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)
    with mock.patch.object(unet, "convolve_joined", side_effect=AssertionError("prediction takes the plain way")):
        network.eval()(image)
