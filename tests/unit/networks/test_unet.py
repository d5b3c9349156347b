from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from unet_med.config import Network
from unet_med.errors import ConfigError, ModelError
from unet_med.networks import admissible_patch, build_network, context_voxels, head_channels, input_channels


def network(dims: int = 2, **changes: Any) -> Network:
    values: dict[str, Any] = {
        "features": (4, 8, 16),
        "strides": ((1,) * dims, (2,) * dims, (2,) * dims),
        "kernels": ((3,) * dims,) * 3,
    }
    values |= changes
    if values.get("kind") in ("dilated", "naive"):  # of one level
        values |= {name: values[name][:1] for name in ("features", "strides", "kernels")}
    return Network(**values)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"downsampling": "maxpool"},
        {"upsampling": "interpolate"},
        {"norm": "batch", "activation": "relu"},
        {"norm": "none", "dropout": 0.5},
        {"convolutions_per_level": 1},
        {"convolutions_per_level": 3},
        {"deep_supervision": True},
        {"decoder_convolutions": 1},
        {"bias": True},
        {"attention": True},
        {"kind": "residual", "blocks_per_level": (1, 2, 1)},
        {"kind": "residual", "norm": "none", "attention": True},
        {"kind": "dilated"},
        {"kind": "naive", "norm": "batch"},
        {"style": "classic"},
        {"style": "classic", "convolutions_per_level": 1},
        {"style": "classic", "decoder_convolutions": 1, "attention": True},
        {"kind": "dilated", "style": "classic"},
    ],
    ids=str,
)
def test_logits_have_the_size_of_the_patch(dims: int, changes: dict[str, Any]) -> None:
    config = network(dims, **changes)
    module = build_network(config, dims, 2, 3).eval()
    patch = admissible_patch(config, dims, (8,) * dims)
    context = context_voxels(config, dims)
    x = torch.randn(2, 2, *(n + 2 * c for n, c in zip(patch, context, strict=True)))
    with torch.no_grad():
        logits = module(x)
    assert logits.shape == (2, 3, *patch)
    assert torch.isfinite(logits).all()


def test_2015_maps_572_pixels_to_388() -> None:
    config = Network(
        style="classic",
        features=(2, 2, 2, 2, 2),
        strides=((1, 1), *[(2, 2)] * 4),
        kernels=((3, 3),) * 5,
    )
    with torch.no_grad():
        assert build_network(config, 2, 1, 2)(torch.zeros(1, 1, 572, 572)).shape == (1, 2, 388, 388)
        with pytest.raises(ModelError, match="does not fit") as caught:
            build_network(config, 2, 1, 2)(torch.zeros(1, 1, 571, 572))
    assert "(572, 572)" in caught.value.remedy


def test_2015_has_31_million_parameters() -> None:
    config = Network(
        style="classic",
        features=(64, 128, 256, 512, 1024),
        strides=((1, 1), *[(2, 2)] * 4),
        kernels=((3, 3),) * 5,
    )
    module = build_network(config, 2, 1, 2)
    assert parameters(module) == 31_030_658  # what every faithful copy of the 2015 network counts
    assert not any(isinstance(m, (nn.BatchNorm2d, nn.InstanceNorm2d)) for m in module.modules())


def test_classic_output_depends_on_its_own_window_alone() -> None:
    """Unpadded: the logits of a voxel do not change when anything outside its context changes."""
    config = network(style="classic")
    module = build_network(config, 2, 1, 2).eval()
    (margin, _) = context_voxels(config, 2)
    patch = admissible_patch(config, 2, (12, 12))[0]
    large = torch.randn(1, 1, patch + 4 + 2 * margin, patch + 4 + 2 * margin)
    with torch.no_grad():
        whole = module(large)
        part = module(large[..., 4:, 4:])
    torch.testing.assert_close(whole[..., 4:, 4:], part, rtol=1e-4, atol=1e-5)


def test_deep_supervision_gives_a_tuple_in_training_only() -> None:
    config = network(2, features=(4, 6, 8, 10), strides=((1, 1), (2, 2), (2, 1), (2, 2)), kernels=((3, 3),) * 4)
    config = config.model_copy(update={"deep_supervision": True})
    module = build_network(config, 2, 1, 3)
    x = torch.randn(1, 1, 16, 16)
    logits = module.train()(x)
    assert isinstance(logits, tuple)
    assert [tuple(level.shape) for level in logits] == [(1, 3, 16, 16), (1, 3, 8, 8)]
    single = module.eval()(x)
    torch.testing.assert_close(single, logits[0])


def test_channels_double_on_the_way_down_and_halve_on_the_way_up() -> None:
    module = build_network(network(features=(4, 8, 16)), 2, 1, 2)
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters() if p.dim() == 4}
    assert shapes["encoder.0.0.0.weight"] == (4, 1, 3, 3)
    assert shapes["encoder.2.0.0.weight"] == (16, 8, 3, 3)
    assert shapes["upsampling.1.convolution.weight"] == (16, 8, 2, 2)
    assert shapes["decoder.1.0.0.weight"] == (8, 16, 3, 3)
    assert shapes["heads.0.weight"] == (2, 4, 1, 1)


def test_interpolation_after_the_convolution_is_interpolation_before_it() -> None:
    module = build_network(network(upsampling="interpolate"), 2, 1, 2)
    up = module.upsampling[0]
    x = torch.randn(1, 8, 5, 6)
    bigger = nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(up(x), up.convolution(bigger), rtol=1e-4, atol=1e-5)


def test_he_initialisation_keeps_the_variance() -> None:
    torch.manual_seed(0)
    module = build_network(network(norm="none", features=(32, 64, 128)), 2, 1, 2).eval()
    with torch.no_grad():
        assert 0.3 < float(module(torch.randn(1, 1, 64, 64)).std()) < 4.0


def test_wrong_input_is_explained() -> None:
    module = build_network(network(), 2, 2, 2)
    with pytest.raises(ModelError, match="made for 2 channels, the input has 1"):
        module(torch.randn(1, 1, 16, 16))
    with pytest.raises(ModelError, match=r"does not fit the strides.*pad it to \(20, 16\)"):
        module(torch.randn(1, 2, 18, 16))
    with pytest.raises(ModelError, match="2-D network"):
        module(torch.randn(1, 2, 16, 16, 16))
    with pytest.raises(ModelError, match="pad it to"):
        build_network(network(style="classic"), 2, 1, 2)(torch.randn(1, 1, 8, 8))


def test_every_parameter_learns() -> None:
    for changes in ({"deep_supervision": True}, {"style": "classic"}):
        module = build_network(network(**changes), 2, 1, 2)
        logits = module(torch.randn(2, 1, 44, 44))
        levels = logits if isinstance(logits, tuple) else (logits,)
        sum(level.square().mean() for level in levels).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.fixture
def two_threads() -> Iterator[None]:
    """With one thread torch has another kernel, which knows one layout only."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("changes", "convolutions"),
    [
        ({"upsampling": "transposed"}, 10),
        ({"upsampling": "interpolate"}, 10),
        ({"attention": True}, 10),
        ({"kind": "residual", "blocks_per_level": (1, 2, 1)}, 1 + 8 + 2),
        ({"kind": "dilated"}, 7),
    ],
    ids=str,
)
@pytest.mark.parametrize("dims", [2, 3])
def test_all_convolutions_of_a_cpu_see_channels_last(
    two_threads: None, changes: dict[str, Any], convolutions: int, dims: int
) -> None:
    module = build_network(network(dims, **changes), dims, 1, 2)
    layout = torch.channels_last if dims == 2 else torch.channels_last_3d
    seen: list[bool] = []
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Conv3d)) and part.kernel_size[0] == 3:
            part.register_forward_pre_hook(lambda _, x: seen.append(x[0].is_contiguous(memory_format=layout)))
    module.eval()(torch.randn(2, 1, *(16,) * dims))
    assert len(seen) == convolutions
    assert all(seen)


@pytest.mark.parametrize("anisotropic", [False, True])
def test_a_single_image_is_predicted_as_it_is_in_a_batch(anisotropic: bool) -> None:
    kernels = ((3, 3, 1), (3, 3, 3), (3, 3, 3)) if anisotropic else ((3, 3, 3),) * 3
    strides = ((1, 1, 1), (2, 2, 1), (2, 2, 2)) if anisotropic else ((1, 1, 1), (2, 2, 2), (2, 2, 2))
    module = build_network(network(3, kernels=kernels, strides=strides), 3, 2, 3).eval()
    x = torch.randn(2, 2, 8, 12, 16)
    with torch.no_grad():
        together = module(x)
        alone = torch.cat([module(x[:1]), module(x[1:])])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(module(x[:1]).detach(), together[:1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
def test_bfloat16_autocast_trains_and_predicts(dims: int) -> None:
    torch.manual_seed(0)
    module = build_network(network(dims, deep_supervision=True), dims, 1, 2)
    x = torch.randn(2, 1, *(16,) * dims)
    exact = module(x)[0].detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (logits,) = module(x)
        with torch.no_grad():
            alone = module.eval()(x[:1])
    assert logits.dtype == torch.bfloat16
    for rounded in (logits.detach(), alone):
        assert float((rounded.float() - exact[: len(rounded)]).norm() / exact[: len(rounded)].norm()) < 0.1
    logits.float().square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())


def test_dropout_is_for_training_only() -> None:
    module = build_network(network(dropout=0.5), 2, 1, 2)
    x = torch.randn(1, 1, 16, 16)
    assert not torch.equal(module.train()(x), module(x))
    assert torch.equal(module.eval()(x), module(x))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"upsampling": "interpolate", "downsampling": "maxpool", "norm": "batch"},
        {"style": "classic"},
        {"kind": "residual", "attention": True},
        {"kind": "dilated"},
        {"kind": "naive", "style": "classic"},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
def test_a_trace_at_the_smallest_size_holds_at_every_other(dims: int, changes: dict[str, Any]) -> None:
    """Warnings are errors here: nothing that depends on values or shapes may be recorded."""
    anisotropic = {"strides": ((1,) * dims, (1, *(2,) * (dims - 1)), (2,) * dims)}
    config = network(dims, **(changes | anisotropic))
    module = build_network(config, dims, 1, 2).eval()
    context = context_voxels(config, dims)
    sizes = [
        [n + 2 * c for n, c in zip(admissible_patch(config, dims, wanted), context, strict=True)]
        for wanted in ((1,) * dims, (13, 7, 9)[:dims])
    ]
    with torch.no_grad():
        traced = torch.jit.trace(module, torch.zeros(1, 1, *sizes[0]), check_trace=False)
        x = torch.randn(2, 1, *sizes[1])
        torch.testing.assert_close(traced(x), module(x), rtol=1e-4, atol=1e-4)


def test_the_weights_keep_the_names_that_bundles_have() -> None:
    module = build_network(network(2, features=(4, 8), strides=((1, 1), (2, 2)), kernels=((3, 3),) * 2), 2, 1, 2)
    blocks = [f"{level}.{number}" for level in ("encoder.0", "encoder.1", "decoder.0") for number in (0, 1)]
    parts = ("0.weight", "1.weight", "1.bias")
    expected = {f"{block}.{part}" for block in blocks for part in parts}
    assert set(module.state_dict()) == expected | {"upsampling.0.convolution.weight", "heads.0.weight", "heads.0.bias"}
    biased = build_network(
        network(2, features=(4, 8), strides=((1, 1), (2, 2)), kernels=((3, 3),) * 2, bias=True), 2, 1, 2
    )
    more = {f"{block}.0.bias" for block in blocks} | {"upsampling.0.convolution.bias"}
    assert set(biased.state_dict()) == set(module.state_dict()) | more


@pytest.mark.parametrize("changes", [{}, {"kind": "residual"}, {"kind": "dilated"}, {"kind": "naive"}], ids=str)
def test_neighbouring_slices_are_channels(changes: dict[str, Any]) -> None:
    config = network(slices=5, **changes)
    channels = input_channels(config, ("T1", "T2"))
    module = build_network(config, 2, channels, 2)
    assert channels == module.in_channels == module.state_dict()[module.entry].shape[1] == 10
    assert input_channels(network(**changes), ("CT",)) == 1


@pytest.mark.parametrize("changes", [{"kind": "residual"}, {"kind": "dilated"}, {"attention": True}], ids=str)
@pytest.mark.parametrize("dims", [2, 3])
def test_every_kind_trains_in_bfloat16(changes: dict[str, Any], dims: int) -> None:
    torch.manual_seed(0)
    module = build_network(network(dims, **changes), dims, 1, 2).train()
    x = torch.randn(2, 1, *(16,) * dims)
    exact = module(x).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = module(x)
    assert logits.dtype == torch.bfloat16
    assert float((logits.detach().float() - exact).norm() / exact.norm()) < 0.2
    logits.float().square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())


@pytest.mark.parametrize("changes", [{"kind": "residual"}, {"kind": "dilated"}, {"attention": True}], ids=str)
def test_a_network_without_memory_takes_stored_weights(changes: dict[str, Any]) -> None:
    """As bundles are loaded: nothing is initialised, the weights are those of the file themselves."""
    config = network(**changes)
    trained = build_network(config, 2, 1, 2).eval()
    state = trained.state_dict()
    before = torch.random.get_rng_state()
    with torch.device("meta"):
        loaded = build_network(config, 2, 1, 2).eval()
    assert torch.equal(torch.random.get_rng_state(), before)
    loaded.load_state_dict(state, strict=True, assign=True)
    assert all(value.data_ptr() == state[name].data_ptr() for name, value in loaded.state_dict().items())
    x = torch.randn(1, 1, 16, 16)
    assert torch.equal(loaded(x), trained(x))


@pytest.mark.parametrize(
    "changes",
    [{}, {"kind": "residual"}, {"kind": "dilated"}, {"style": "classic"}],
    ids=str,
)
def test_the_channels_that_the_head_sees_are_known_without_the_network(changes: dict[str, Any]) -> None:
    config = network(**changes)
    assert head_channels(config) == build_network(config, 2, 1, 2).head.in_channels
    several = Network(kind="naive", features=(4, 6), strides=((1, 1),) * 2, kernels=((3, 3),) * 2, dilations=(1, 1))
    assert head_channels(several) == build_network(several, 2, 1, 2).head.in_channels == 6
    with pytest.raises(ConfigError, match="auto"):
        head_channels(Network())
