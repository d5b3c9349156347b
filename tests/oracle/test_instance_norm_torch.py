"""Our instance norm against torch's."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from unet_med.config import Loss, Network
from unet_med.labels import LabelMap
from unet_med.losses import build_loss
from unet_med.networks import build_network, norm
from unet_med.networks.norm import instance_norm_act


@pytest.mark.parametrize("shape", [(4, 16, 10, 14, 10), (3, 7, 33, 17), (1, 1, 8, 8), (2, 130, 5, 3, 2)])
@pytest.mark.parametrize("slope", [1.0, 0.01, 0.0])
def test_equal_to_torch(shape: tuple[int, ...], slope: float) -> None:
    torch.manual_seed(0)
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    x = (torch.randn(shape) * 2 + 1).to(memory_format=layout).requires_grad_()
    weight, bias = torch.rand(shape[1], requires_grad=True), torch.randn(shape[1], requires_grad=True)
    gradient = torch.randn(shape)
    results = []
    for fast in (True, False):
        if fast:
            out = instance_norm_act(x, weight, bias, slope)
        else:
            out = F.instance_norm(x, weight=weight, bias=bias, eps=norm.EPSILON)
            out = out if slope == 1.0 else F.leaky_relu(out, slope)
        results.append((out, *torch.autograd.grad(out, (x, weight, bias), gradient)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4 if ours.dim() == 1 else 1e-5)


@pytest.mark.parametrize("dims", [2, 3])
def test_fifty_steps_of_training_end_at_the_same_weights(dims: int) -> None:
    config = Network(
        features=(4, 8),
        strides=((1,) * dims, (2,) * dims),
        kernels=((3,) * dims,) * 2,
    )
    loss = build_loss(Loss(class_weights=None), LabelMap.from_names({"a": 1}))
    torch.manual_seed(0)
    images = torch.randn(50, 2, 1, *(8,) * dims)
    targets = (images[:, :, 0] > 0.5).long()
    weights = []
    for fast in (True, False):
        torch.manual_seed(1)
        network = build_network(config, dims, 1, 2)
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-2, momentum=0.9)
        with mock.patch.object(norm, "_is_fast", norm._is_fast if fast else lambda _: False):
            for image, target in zip(images, targets, strict=True):
                optimizer.zero_grad()
                loss(network(image), target).backward()
                optimizer.step()
        weights.append(network.state_dict())
    for name, ours in weights[0].items():
        assert float((ours - weights[1][name]).norm()) <= 1e-5 * float(weights[1][name].norm()), name
