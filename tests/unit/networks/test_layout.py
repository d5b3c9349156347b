from __future__ import annotations

from typing import Any

import pytest

from unet_med.config import Network
from unet_med.errors import ConfigError
from unet_med.networks import admissible_patch, build_network, context_voxels
from unet_med.networks.layout import layout_of


def network(**changes: Any) -> Network:
    values: dict[str, Any] = {
        "features": (4, 8, 16),
        "strides": ((1, 1), (2, 2), (2, 2)),
        "kernels": ((3, 3), (3, 3), (3, 3)),
    }
    return Network(**(values | changes))


CLASSIC = network(
    style="classic",
    features=(64, 128, 256, 512, 1024),
    strides=((1, 1), *[(2, 2)] * 4),
    kernels=((3, 3),) * 5,
)


def test_the_network_of_2015_needs_92_pixels_of_context() -> None:
    assert context_voxels(CLASSIC, 2) == (92, 92)
    assert admissible_patch(CLASSIC, 2, (388, 388)) == (388, 388)
    assert admissible_patch(CLASSIC, 2, (388, 389)) == (388, 404)
    assert layout_of(CLASSIC, 2).sizes(0, 28) == (572, 388)


def test_the_network_of_2015_crops_its_skip_connections_as_in_the_figure() -> None:
    skips, upsampled = (568, 280, 136, 64), (392, 200, 104, 56)
    margins = tuple((skip - up) // 2 for skip, up in zip(skips, upsampled, strict=True))
    assert tuple(layout_of(CLASSIC, 2).crop(level, 0) for level in range(4)) == margins


def test_padded_networks_need_no_context_and_patches_of_whole_strides() -> None:
    assert context_voxels(network(), 2) == (0, 0)
    assert admissible_patch(network(), 2, (30, 33)) == (32, 36)
    assert admissible_patch(network(), 2, (32, 36)) == (32, 36)


def test_anisotropic_strides_count_for_their_axis_alone() -> None:
    anisotropic = network(
        features=(4, 8, 16), strides=((1, 1, 1), (2, 2, 1), (2, 2, 2)), kernels=((3, 3, 1), (3, 3, 1), (3, 3, 3))
    )
    assert admissible_patch(anisotropic, 3, (9, 8, 3)) == (12, 8, 4)


def test_a_bottleneck_of_one_voxel_is_no_statistic() -> None:
    assert admissible_patch(network(), 2, (1, 1)) == (8, 8)
    assert admissible_patch(network(norm="none"), 2, (1, 1)) == (4, 4)


def test_classic_overrides_what_2015_did_not_have() -> None:
    layout = layout_of(CLASSIC, 2)
    assert (layout.norm, layout.slope, layout.max_pool, layout.transposed, layout.padded) == (
        "none",
        0.0,
        True,
        True,
        False,
    )


@pytest.mark.parametrize(
    ("changes", "dims", "says"),
    [
        ({"features": "auto"}, 2, "features is still 'auto'"),
        ({}, 3, "strides[0] [1, 1] must have 3 numbers"),
        ({}, 4, "dims 4 is neither 2 nor 3"),
        ({"kernels": ((3, 3), (2, 3), (3, 3))}, 2, "kernels[1] [2, 3] must be odd"),
        ({"kernels": ((3, 3), (0, 3), (3, 3))}, 2, "kernels[1] [0, 3] must be positive"),
        ({"strides": ((2, 2), (2, 2), (2, 2))}, 2, "strides[0] [2, 2] must be all 1"),
        ({"style": "classic", "deep_supervision": True}, 2, "no deep_supervision"),
        ({"features": (8,), "strides": ((1, 1),), "kernels": ((3, 3),)}, 2, "at least two levels"),
        ({"features": (8, 16)}, 2, "2 features, 3 strides and 3 kernels"),
    ],
)
def test_what_cannot_be_built_is_said(changes: dict[str, Any], dims: int, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_network(network(**changes), dims, 1, 2)
    assert says in str(caught.value)
    assert caught.value.remedy
    assert caught.value.problems


def test_all_faults_are_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        layout_of(network(strides=((2, 2), (2, 2), (2, 2)), kernels=((3, 3), (2, 2), (3, 3))), 2)
    assert len(caught.value.problems) == 2


def test_channels_outputs_and_patches_are_checked() -> None:
    with pytest.raises(ConfigError, match="0 channels"):
        build_network(network(), 2, 0, 2)
    with pytest.raises(ConfigError, match="2-D image"):
        admissible_patch(network(), 2, (8, 8, 8))
    with pytest.raises(ConfigError, match="positive"):
        admissible_patch(network(), 2, (8, 0))


STACK = {"kind": "dilated", "features": (4,), "strides": ((1, 1),), "kernels": ((3, 3),)}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kind": "residual", "style": "classic"}, "kind residual pads"),
        ({"kind": "residual", "downsampling": "maxpool"}, "not by maxpool"),
        ({"kind": "residual", "blocks_per_level": (1, 2)}, "blocks_per_level has 2 entries for 3 levels"),
        ({"blocks_per_level": (1, 2, 2)}, "blocks_per_level is for kind residual, not for unet"),
        ({"dilations": (1, 2)}, "dilations is for kind dilated and naive, not for unet"),
        (STACK | {"kind": "naive", "dilations": (1, 2)}, "kind naive has no dilations"),
        (STACK | {"strides": ((2, 2),)}, "works at full resolution"),
        (STACK | {"features": (4, 4)}, "features has 2 entries, give 1 or one for each of the 7 convolutions"),
        (
            STACK | {"kernels": ((3, 3),) * 3, "dilations": (1, 2)},
            "kernels has 3 entries, give 1 or one for each of the 2",
        ),
        (STACK | {"deep_supervision": True}, "no decoder, so no deep_supervision"),
        (STACK | {"attention": True}, "no decoder, so no attention"),
        (STACK | {"decoder_convolutions": 2}, "no decoder, so no decoder_convolutions"),
    ],
)
def test_settings_of_another_kind_are_said(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        layout_of(network(**changes), 2)
    assert says in str(caught.value)


def test_unpadded_levels_may_differ_on_the_way_up() -> None:
    fewer = CLASSIC.model_copy(update={"decoder_convolutions": 1})
    entering, leaving = layout_of(fewer, 2).sizes(0, 28)
    assert entering == 572
    assert leaving == 388 + 2 * (8 + 4 + 2 + 1), "each level keeps the two pixels of a convolution, doubled above it"
    assert context_voxels(fewer, 2) == ((entering - leaving) // 2,) * 2
