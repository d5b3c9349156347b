"""Compilation falls back, and the switches of a card are set; no card is needed for either."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch

from unet_med.config import Network
from unet_med.networks import build_network, norm, unet
from unet_med.training.accelerate import Forward, set_up_card

CPU, CARD = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _as_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the ways that only a CPU takes, which cannot be recorded."""
    monkeypatch.setattr(norm, "_is_fast", lambda _: False)
    monkeypatch.setattr(unet, "joining_pays", lambda *_: False)


@pytest.fixture
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    config = Network(
        features=(2, 4),
        strides=((1, 1), (2, 2)),
        kernels=((3, 3),) * 2,
        deep_supervision=True,
        convolutions_per_level=1,
    )
    return build_network(config, 2, 1, 2).train()


@pytest.fixture
def switches() -> Iterator[None]:
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    yield
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = before[:2]
    torch.set_float32_matmul_precision(before[2])


def gradients(forward: Any, network: torch.nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
    network.zero_grad()
    output = forward(image)
    sum(level.square().sum() for level in (output if isinstance(output, tuple) else (output,))).backward()
    return [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]


def assert_as_plain(forward: Forward, network: torch.nn.Module) -> None:
    image = torch.randn(1, 1, 8, 8)
    for ours, plain in zip(gradients(forward, network, image), gradients(network, network, image), strict=True):
        torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize(("device", "wanted", "noted"), [(CARD, "none", False), (CPU, "default", True)])
def test_nothing_is_compiled_unasked_or_on_a_cpu(
    network: torch.nn.Module, device: torch.device, wanted: Any, noted: bool
) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("compiled")

    forward = Forward(network, device, wanted, backend=never)
    assert_as_plain(forward, network)
    assert bool(forward.note) is noted


def test_a_compiled_network_learns_the_same(network: torch.nn.Module) -> None:
    graphs: list[Any] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    before = list(network.state_dict())
    forward = Forward(network, CARD, "default", backend=backend)
    assert_as_plain(forward, network)
    assert len(graphs) == 1  # one graph is the whole network: nothing in it breaks the recording
    assert forward.note == ""
    assert list(network.state_dict()) == before


def test_the_choice_of_the_norm_is_recorded_as_a_constant() -> None:
    def chosen(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if norm._kernels_work(x.device) else x - 1

    with mock.patch.object(norm, "_try_kernels", lambda _: True):
        out = torch.compile(chosen, backend="eager", fullgraph=True)(torch.zeros(2))
    assert torch.equal(out, torch.ones(2))


def test_a_failing_compiler_is_noted_and_left_out(network: torch.nn.Module) -> None:
    attempts: list[int] = []

    def backend(*_: Any) -> Any:
        attempts.append(1)
        raise RuntimeError("no C compiler")

    forward = Forward(network, CARD, "reduce-overhead", backend=backend)
    assert_as_plain(forward, network)
    assert "training.compile" in forward.note
    tried = len(attempts)
    assert tried
    assert_as_plain(forward, network)
    assert len(attempts) == tried


def test_other_errors_are_not_hidden(network: torch.nn.Module) -> None:
    def backend(*_: Any) -> Any:
        def run(*_: Any) -> Any:
            raise torch.OutOfMemoryError("out of memory")

        return run

    with pytest.raises(torch.OutOfMemoryError):
        Forward(network, CARD, "default", backend=backend)(torch.randn(1, 1, 8, 8))


@pytest.mark.parametrize(("precision", "tf32", "products"), [("fp32", False, "highest"), ("auto", True, "high")])
def test_a_card_rounds_as_the_pipeline_says(switches: None, precision: str, tf32: bool, products: str) -> None:
    set_up_card(CARD, precision)
    assert torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.allow_tf32 is tf32
    assert torch.get_float32_matmul_precision() == products


def test_a_cpu_is_left_alone(switches: None) -> None:
    before = torch.get_float32_matmul_precision()
    torch.backends.cudnn.benchmark = False
    set_up_card(CPU, "auto")
    assert torch.get_float32_matmul_precision() == before
    assert not torch.backends.cudnn.benchmark
