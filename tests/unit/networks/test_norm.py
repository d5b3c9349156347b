from __future__ import annotations

from unittest import mock

import pytest
import torch

from unet_med.networks import norm
from unet_med.networks.norm import InstanceNormAct, instance_norm_act

LAYOUT = {4: torch.channels_last, 5: torch.channels_last_3d}


def channels_last(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype).to(memory_format=LAYOUT[len(shape)])


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 2, 3, 2, 4), (1, 2, 3, 3)])
@pytest.mark.parametrize("slope", [1.0, 0.01, 0.0])
def test_gradients_are_right(shape: tuple[int, ...], slope: float) -> None:
    torch.manual_seed(1)
    x = channels_last(*shape, dtype=torch.float64).requires_grad_()
    weight = torch.rand(shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.randn(shape[1], dtype=torch.float64, requires_grad=True)
    with mock.patch.object(norm.F, "instance_norm", side_effect=AssertionError("the slow way was taken")):
        assert torch.autograd.gradcheck(lambda *a: instance_norm_act(*a, slope), (x, weight, bias))


def test_only_wanted_gradients_are_made() -> None:
    x = channels_last(2, 3, 4, 5)
    module = InstanceNormAct(3, 0.01)
    module(x).sum().backward()
    assert module.weight.grad is not None
    assert x.grad is None
    module.requires_grad_(False)
    x.requires_grad_()
    module(x).square().sum().backward()
    assert x.grad is not None


def test_the_layout_and_the_input_stay_as_they_are() -> None:
    x = channels_last(2, 4, 5, 6, 7)
    before = x.clone()
    out = InstanceNormAct(4, 0.01)(x)
    assert out.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(x, before)


def test_contiguous_tensors_take_torchs_own_way() -> None:
    x = torch.randn(2, 4, 5, 6)
    with mock.patch.object(norm._InstanceNormAct, "apply", side_effect=AssertionError("not for this layout")):
        InstanceNormAct(4, 0.01)(x)


def test_bfloat16_has_float32_statistics() -> None:
    torch.manual_seed(0)
    x = (channels_last(2, 8, 6, 6, 6) * 3 + 50).bfloat16()
    module = InstanceNormAct(8, 0.01)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(x)
    assert out.dtype == torch.bfloat16
    expected = torch.nn.functional.leaky_relu(torch.nn.functional.instance_norm(x.float()), 0.01)
    torch.testing.assert_close(out.float(), expected, rtol=1e-2, atol=1e-2)
    out.float().square().sum().backward()
    assert module.weight.grad is not None
    assert module.weight.grad.dtype == torch.float32
    assert torch.isfinite(module.weight.grad).all()


def test_a_constant_image_is_no_division_by_zero() -> None:
    x = torch.full((1, 2, 4, 4), 7.0).to(memory_format=torch.channels_last).requires_grad_()
    out = InstanceNormAct(2, 0.01)(x)
    assert float(out.detach().abs().max()) < 1e-3
    out.sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
