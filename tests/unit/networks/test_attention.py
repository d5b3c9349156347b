from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from unet_med.config import Network
from unet_med.networks import build_network
from unet_med.networks.attention import AttentionGate


def network(dims: int = 2, **changes: Any) -> Network:
    values: dict[str, Any] = {
        "features": (4, 6, 8),
        "strides": ((1,) * dims, (1, *(2,) * (dims - 1)), (2,) * dims),
        "kernels": ((3,) * dims,) * 3,
    }
    return Network(**(values | changes))


def gates(module: nn.Module) -> list[AttentionGate]:
    return [part for part in module.modules() if isinstance(part, AttentionGate)]


@pytest.mark.parametrize("changes", [{}, {"style": "classic"}, {"kind": "residual"}], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_open_gates_change_nothing(changes: dict[str, Any], training: bool) -> None:
    torch.manual_seed(0)
    gated = build_network(network(attention=True, **changes), 2, 1, 2).train(training)
    plain = build_network(network(**changes), 2, 1, 2).train(training)
    plain.load_state_dict({name: value for name, value in gated.state_dict().items() if "gates" not in name})
    for gate in gates(gated):
        nn.init.constant_(gate.weight.bias, 100.0)
    x = torch.randn(2, 1, 44, 48)
    torch.testing.assert_close(gated(x), plain(x))


def test_closed_gates_let_nothing_through() -> None:
    gate = gates(build_network(network(attention=True), 2, 1, 2))[0]
    nn.init.constant_(gate.weight.bias, -100.0)
    assert float(gate(torch.randn(1, 4, 6, 8), torch.randn(1, 6, 6, 4)).abs().max().detach()) < 1e-6


def test_a_gate_is_the_formula_of_the_paper() -> None:
    """Without stride nothing is interpolated: sigmoid(psi relu(W_x x + W_g g + b_g) + b_psi), voxel by voxel."""
    torch.manual_seed(0)
    flat = network(features=(3, 5), strides=((1, 1), (1, 1)), kernels=((3, 3),) * 2, attention=True)
    (gate,) = gates(build_network(flat, 2, 1, 2))
    x, g = torch.randn(1, 3, 2, 2), torch.randn(1, 5, 2, 2)
    nn.init.normal_(gate.of_below.bias)
    found = gate(x, g).detach()
    of_x, of_g = gate.of_skip.weight[:, :, 0, 0], gate.of_below.weight[:, :, 0, 0]
    for i in range(2):
        for j in range(2):
            inner = (of_x @ x[0, :, i, j] + of_g @ g[0, :, i, j] + gate.of_below.bias).relu()
            weight = (gate.weight.weight[0, :, 0, 0] @ inner + gate.weight.bias).sigmoid()
            torch.testing.assert_close(found[0, :, i, j], (x[0, :, i, j] * weight).detach())


def test_weights_are_interpolated_between_places() -> None:
    gate = gates(build_network(network(attention=True), 2, 1, 2))[1]
    weights = gate(torch.ones(1, 6, 8, 8), torch.randn(1, 8, 4, 4))[0, 0].detach()
    assert 0 < float(weights.min()) < float(weights.max()) < 1
    steps = weights.diff(dim=0)  # at the ends a quarter of a coarse voxel, then half of one
    torch.testing.assert_close(steps[1], 2 * steps[0])
    torch.testing.assert_close(steps[-2], 2 * steps[-1])


@pytest.mark.parametrize("dims", [2, 3])
def test_every_gate_learns_and_bfloat16_stays(dims: int) -> None:
    torch.manual_seed(0)
    module = build_network(network(dims, attention=True, deep_supervision=True), dims, 1, 2).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (logits,) = module(torch.randn(2, 1, *(16,) * dims))
    assert logits.dtype == torch.bfloat16
    logits.float().square().mean().backward()
    for gate in gates(module):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in gate.parameters())
