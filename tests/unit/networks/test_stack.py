from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from unet_med.config import Network
from unet_med.errors import ModelError
from unet_med.networks import admissible_patch, build_network, context_voxels
from unet_med.networks.stack import identity_kernel


def network(dims: int = 2, kind: str = "dilated", **changes: Any) -> Network:
    values: dict[str, Any] = {"features": (4,), "strides": ((1,) * dims,), "kernels": ((3,) * dims,)}
    return Network(kind=kind, **(values | changes))


def test_the_convolutions_are_those_of_the_paper() -> None:
    module = build_network(network(), 2, 1, 3)
    found = [
        (m.kernel_size, m.dilation[0], m.stride, m.padding[0]) for m in module.modules() if isinstance(m, nn.Conv2d)
    ]
    paper = [((3, 3), dilation, (1, 1), dilation) for dilation in (1, 1, 2, 4, 8, 16, 1)]
    assert found == [*paper, ((1, 1), 1, (1, 1), 0)]


def test_the_naive_stack_has_the_same_weights_at_other_places() -> None:
    torch.manual_seed(0)
    dilated = build_network(network(), 2, 1, 3)
    torch.manual_seed(0)
    naive = build_network(network(kind="naive"), 2, 1, 3)
    for (name, one), (other_name, other) in zip(dilated.state_dict().items(), naive.state_dict().items(), strict=True):
        assert name == other_name
        assert torch.equal(one, other)
    assert {m.dilation for m in naive.modules() if isinstance(m, nn.Conv2d)} == {(1, 1)}
    x = torch.randn(1, 1, 20, 20)
    assert not torch.allclose(dilated(x), naive(x))


@pytest.mark.parametrize("dims", [2, 3])
def test_the_image_around_the_patch_is_its_context_where_nothing_is_padded(dims: int) -> None:
    config = network(dims, style="classic")
    assert context_voxels(config, dims) == (33,) * dims
    assert context_voxels(network(dims), dims) == (0,) * dims
    anisotropic = network(3, style="classic", kernels=((3, 3, 1),), dilations=(1, 2))
    assert context_voxels(anisotropic, 3) == (3, 3, 0)


def test_without_padding_a_voxel_depends_on_its_context_alone() -> None:
    config = network(style="classic", dilations=(1, 2, 4))
    module = build_network(config, 2, 1, 2).eval()
    margin, _ = context_voxels(config, 2)
    large = torch.randn(1, 1, 16 + 2 * margin, 16 + 2 * margin)
    with torch.no_grad():
        whole, part = module(large), module(large[..., 3:, 5:])
    assert whole.shape == (1, 2, 16, 16)
    torch.testing.assert_close(whole[..., 3:, 5:], part, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(7, 7), (1, 9), (13, 8)])
def test_any_patch_fits(size: tuple[int, int]) -> None:
    config = network(norm="none")
    assert admissible_patch(config, 2, size) == size
    assert build_network(config, 2, 1, 3)(torch.randn(2, 1, *size)).shape == (2, 3, *size)


def test_one_voxel_is_no_statistic() -> None:
    assert admissible_patch(network(), 2, (1, 1)) == (2, 2)
    assert admissible_patch(network(norm="none"), 2, (1, 1)) == (1, 1)
    with pytest.raises(ModelError, match="does not fit"):
        build_network(network(), 2, 1, 2)(torch.randn(1, 1, 1, 1))


def test_features_of_one_number_or_one_for_each_convolution() -> None:
    several = network(
        features=(4, 4, 8, 6), strides=((1, 1),) * 4, kernels=((3, 3), (1, 3), (3, 3), (5, 5)), dilations=(1, 2, 3, 1)
    )
    module = build_network(several, 2, 3, 2)
    weights = [tuple(p.shape) for name, p in module.named_parameters() if p.dim() == 4]
    assert weights == [(4, 3, 3, 3), (4, 4, 1, 3), (8, 4, 3, 3), (6, 8, 5, 5), (2, 6, 1, 1)]
    assert module(torch.randn(1, 3, 9, 9)).shape == (1, 2, 9, 9)


@pytest.mark.parametrize("dims", [2, 3])
def test_fresh_features_pass_through(dims: int) -> None:
    """The last convolution before the head sees what the first made of the image, but for a little noise."""
    torch.manual_seed(0)
    module = build_network(network(dims, features=(16,), norm="none"), dims, 1, 2).eval()
    x = torch.randn(1, 1, *(24,) * dims)
    with torch.no_grad():
        first, last = module.blocks[0](x), module.features(x)
    assert float((first - last).norm() / first.norm()) < 0.5
    assert float(torch.corrcoef(torch.stack((first.flatten(), last.flatten())))[0, 1]) > 0.9


def test_the_identity_kernel() -> None:
    x = torch.randn(2, 4, 5, 6)
    same = nn.functional.conv2d(x, identity_kernel(torch.empty(4, 4, 3, 5)), padding=(1, 2))
    torch.testing.assert_close(same, x)
    wider = nn.functional.conv2d(x, identity_kernel(torch.empty(8, 4, 3, 3)), padding=1)
    torch.testing.assert_close(wider, x.repeat_interleave(2, 1))
    narrower = nn.functional.conv2d(wider, identity_kernel(torch.empty(4, 8, 1, 1)))
    torch.testing.assert_close(narrower, x)
    mixed = identity_kernel(torch.empty(6, 4, 1, 1))[:, :, 0, 0]
    torch.testing.assert_close(mixed.sum(1), torch.ones(6), msg="each feature is a mean")


@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
@pytest.mark.parametrize("kind", ["dilated", "naive"])
def test_every_parameter_learns(kind: str, norm: str) -> None:
    module = build_network(network(kind=kind, norm=norm, bias=True), 2, 1, 2).train()
    module(torch.randn(2, 1, 12, 12)).square().mean().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        taken_away = norm != "none" and name.startswith("blocks") and name.endswith("0.bias")
        assert taken_away or parameter.grad.abs().sum() > 0, name


def test_the_head_is_applied_to_the_features() -> None:
    module = build_network(network(dropout=0.5), 2, 2, 3)
    x = torch.randn(1, 2, 8, 8)
    assert not torch.equal(module.train()(x), module(x))
    module.eval()
    assert torch.equal(module(x), module.head(module.features(x)))


def accuracy_of_what_is_far_away(kind: str) -> float:
    """Learns, and is then asked, whether the place 16 pixels to the left is bright; the naive stack sees 7."""
    torch.manual_seed(0)
    module = build_network(network(kind=kind, features=(8,)), 2, 1, 2).train()
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)

    def told(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        blocks = torch.randn(count, 1, 5, 5)
        image = nn.functional.interpolate(blocks, scale_factor=8.0)
        bright = (image[:, 0, :, :-16] > 0).long()
        return module(image)[..., 16:], bright

    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(*told(4)).backward()
        optimizer.step()
    with torch.no_grad():
        logits, bright = told(32)
    return float((logits.argmax(1) == bright).float().mean())


def test_dilations_learn_what_depth_alone_cannot_see() -> None:
    assert accuracy_of_what_is_far_away("dilated") > 0.8
    assert accuracy_of_what_is_far_away("naive") < 0.6
