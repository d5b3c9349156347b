"""The fused norm: its kernels in Triton's interpreter against torch, their compilation for a card, and its dispatch.

No card is needed. The interpreter is chosen when the kernels are defined, so those checks are programs of their own:
this file run with the name of a check.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from unet_med.config import Network
from unet_med.networks import build_network, norm

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed; torch for CUDA brings it along"
)
LAYOUT = {4: torch.channels_last, 5: torch.channels_last_3d}


def run_check(name: str, interpret: bool) -> None:
    root = Path(__file__).parents[3]
    environment = os.environ | {"PYTHONPATH": str(root), "TRITON_INTERPRET": str(int(interpret))}
    command = [sys.executable, "-W", "error::RuntimeWarning", __file__, name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


@needs_triton
def test_kernels_agree_with_torch() -> None:
    run_check("agreement", interpret=True)


@needs_triton
def test_operators_keep_the_rules_of_torch() -> None:
    run_check("rules", interpret=True)


@needs_triton
def test_a_network_trains_with_the_kernels() -> None:
    run_check("network", interpret=True)


@needs_triton
@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler for CUDA is on Linux")
def test_kernels_compile_for_a_card() -> None:
    run_check("compilation", interpret=False)


def agreement() -> None:
    from unet_med.networks import fused_norm

    torch.manual_seed(0)
    cases = [  # shape, slope, dtype, offset, values of a tile, most chunks
        ((2, 3, 4, 5), 0.01, torch.float32, 0.0, 4096, 512),
        ((2, 5, 4, 3, 7), 0.01, torch.float32, 1000.0, 64, 3),
        ((1, 1, 9, 8), 0.0, torch.float32, 1.0, 16, 4),
        ((2, 70, 2, 3, 2), 1.0, torch.bfloat16, 1.0, 256, 512),
        ((3, 2, 5, 4), 0.2, torch.float16, 1.0, 16, 2),
    ]
    for shape, slope, dtype, offset, tile, chunks in cases:
        x = (torch.randn(shape) * 2 + offset).to(dtype).to(memory_format=LAYOUT[len(shape)]).requires_grad_()
        weight, bias = torch.rand(shape[1], requires_grad=True), torch.randn(shape[1], requires_grad=True)
        gradient = torch.randn(shape).to(dtype)
        with mock.patch.multiple(fused_norm, _TILE=tile, _MOST_CHUNKS=chunks):
            ours = fused_norm.fused_instance_norm_act(x, weight, bias, slope, 1e-5)
            found = (ours, *torch.autograd.grad(ours, (x, weight, bias), gradient))
        plain = x.detach().double().requires_grad_()
        expected = F.instance_norm(plain, weight=weight.double(), bias=bias.double(), eps=1e-5)
        expected = F.leaky_relu(expected, slope)
        wanted = (expected, *torch.autograd.grad(expected, (plain, weight, bias), gradient.double()))
        rtol = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
        for mine, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(mine.double(), theirs.double(), rtol=rtol, atol=rtol, msg=f"{shape}, {dtype}")
        assert ours.dtype == dtype
        assert ours.is_contiguous(memory_format=LAYOUT[len(shape)])
    assert fused_norm.kernels_work(torch.device("cpu"))
    with mock.patch.object(fused_norm, "_normalise", mock.MagicMock()):
        assert not fused_norm.kernels_work(torch.device("cpu"))
    with mock.patch.object(fused_norm, "_merge", mock.MagicMock(__getitem__=mock.Mock(side_effect=RuntimeError))):
        assert not fused_norm.kernels_work(torch.device("cpu"))


def network() -> None:
    """The dispatch is told that the tensors of this CPU are a card's."""
    config = Network(features=(2, 4), strides=((1,) * 3, (2,) * 3), kernels=((3,) * 3,) * 2, convolutions_per_level=1)
    gradients = []
    for kernels in (True, False):
        torch.manual_seed(0)
        model = build_network(config, 3, 1, 2)
        x = torch.randn(2, 1, 4, 4, 4)
        with mock.patch.multiple(norm, _is_fast=lambda _: False, _has_kernels=lambda x, use=kernels: use):
            out = model(x)
            sum(level.square().sum() for level in (out if isinstance(out, tuple) else (out,))).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, ours in gradients[0].items():
        torch.testing.assert_close(ours, gradients[1][name], rtol=1e-3, atol=1e-4, msg=name)


def rules() -> None:
    from unet_med.networks import fused_norm

    x = torch.randn(1, 3, 2, 2).to(memory_format=torch.channels_last).requires_grad_()
    weight, bias = torch.rand(3, requires_grad=True), torch.randn(3, requires_grad=True)
    torch.library.opcheck(fused_norm._forward, (x, weight, bias, 0.01, 1e-5))


def compilation() -> None:
    """Compiles every kernel for a card with wide loads, and with sizes of one that Triton makes constants of."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from unet_med.networks import fused_norm

    sizes = {"ROWS": 64, "COLUMNS": 64, "CHUNKS": 512}
    scalars = {"rows": "i32", "channels": "i32", "chunk": "i32", "chunks": "i32", "slope": "fp32", "eps": "fp32"}
    for name in ("_statistics", "_merge", "_normalise", "_gradient_sums", "_gradient"):
        for ones in ((), ("rows", "channels", "chunks")):
            kernel = getattr(fused_norm, name)
            signature, constants, hints = {}, {}, {}
            for place, argument in enumerate(kernel.arg_names):
                if argument in sizes or argument in ones:
                    signature[argument] = "constexpr"
                    constants[(place,)] = sizes.get(argument, 1) if name != "_merge" or argument != "COLUMNS" else 8
                    continue
                values = "bf16" if argument in ("x", "out", "gradient") else "fp32"
                signature[argument] = scalars.get(argument, f"*{values}")
                if not ones and argument not in ("slope", "eps"):
                    hints[(place,)] = [["tt.divisibility", 16]]
            source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=hints)
            built = triton.compile(source, target=GPUTarget("cuda", 90, 32))
            assert built.asm["cubin"], name
            assert ones or "ld.global.v4" in built.asm["ptx"], name


# ---- dispatch: tensors without memory say which way a card's tensors take ------------------------------------------


def normalised_on_a_card(x: torch.Tensor) -> torch.Tensor:
    return norm.instance_norm_act(x, torch.ones(x.shape[1], device="cuda"), torch.zeros(x.shape[1], device="cuda"))


@pytest.fixture
def fake_card() -> object:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        yield


@pytest.mark.parametrize(
    ("layout", "dtype", "present", "fused"),
    [
        (torch.channels_last_3d, torch.bfloat16, True, True),
        (torch.channels_last_3d, torch.float32, True, True),
        (torch.channels_last_3d, torch.float64, True, False),
        (torch.contiguous_format, torch.bfloat16, True, False),
        (torch.channels_last_3d, torch.bfloat16, False, False),
    ],
)
def test_channels_last_tensors_of_a_card_take_the_kernels(
    fake_card: object,
    monkeypatch: pytest.MonkeyPatch,
    layout: torch.memory_format,
    dtype: torch.dtype,
    present: bool,
    fused: bool,
) -> None:
    calls: list[torch.Tensor] = []
    kernels = mock.Mock(fused_instance_norm_act=lambda x, *_: calls.append(x) or x)
    monkeypatch.setitem(sys.modules, "unet_med.networks.fused_norm", kernels)
    monkeypatch.setattr(norm, "_kernels_work", lambda _: present)
    x = torch.empty(2, 4, 3, 5, 6, device="cuda", dtype=dtype).to(memory_format=layout)
    assert normalised_on_a_card(x).shape == x.shape
    assert bool(calls) is fused


def test_torch_without_triton_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "unet_med.networks.fused_norm", None)  # importing it raises ImportError
    assert norm._try_kernels.__wrapped__(torch.device("cuda")) is False


if __name__ == "__main__":
    {"agreement": agreement, "rules": rules, "compilation": compilation, "network": network}[sys.argv[1]]()
