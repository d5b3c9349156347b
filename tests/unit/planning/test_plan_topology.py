"""Depth of the network and size of the patch."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from unet_med.planning.topology import Topology, feature_map_elements, fit_patch, plan_levels

# Spacing (mm), median shape on that spacing (voxels), outputs, patch and whether nnU-Net's is met exactly. The patch
# is nnU-Net's golden plan for a card of 8 GB, both sorted in the plane, whose two axes are alike.
GOLDEN = [
    ("Heart", (1.25, 1.25, 1.37), (320, 232, 115), 2, (192, 160, 80), True),
    ("Liver", (0.77, 0.77, 1.0), (512, 512, 482), 3, (128, 128, 128), True),
    ("Hippocampus", (1.0, 1.0, 1.0), (36, 50, 35), 3, (40, 56, 40), True),
    ("Prostate", (0.62, 0.62, 3.6), (320, 319, 20), 3, (320, 256, 20), True),
    ("Lung", (0.79, 0.79, 1.24), (512, 512, 252), 2, (192, 160, 80), True),
    ("Pancreas", (0.8, 0.8, 2.5), (512, 512, 96), 3, (224, 224, 40), True),
    ("HepaticVessel", (0.8, 0.8, 1.5), (512, 512, 150), 3, (192, 192, 64), True),
    ("Spleen", (0.79, 0.79, 1.6), (512, 512, 187), 2, (192, 160, 64), True),
    # ours stops one step earlier: 192 x 192 x 56 takes 554 of the 560 million elements allowed
    ("Colon", (0.78, 0.78, 3.0), (512, 512, 150), 2, (192, 192, 56), False),
]


@pytest.mark.parametrize(("name", "spacing", "median", "outputs", "patch", "exact"), GOLDEN)
def test_golden_plans(
    name: str, spacing: tuple[float, ...], median: tuple[int, ...], outputs: int, patch: tuple[int, ...], exact: bool
) -> None:
    def elements(topology: Topology) -> float:
        features = [min(320, 32 * 2**level) for level in range(len(topology.strides))]
        return feature_map_elements(topology.patch, topology.strides, features, outputs)

    found = fit_patch(spacing, median, 560e6, elements, lambda size: plan_levels(spacing, size))
    if name == "Hippocampus":
        assert found.patch == patch
    else:
        assert (*sorted(found.patch[:2], reverse=True), found.patch[2]) == patch
    assert elements(found) <= 560e6
    assert exact or patch == (192, 192, 56)


def test_an_isotropic_patch_is_pooled_evenly() -> None:
    found = plan_levels((1, 1, 1), (128, 128, 128))
    assert found.strides == ((1, 1, 1),) + ((2, 2, 2),) * 5
    assert found.kernels == ((3, 3, 3),) * 6
    assert found.divisors == (32, 32, 32)


def test_a_coarse_axis_is_left_alone_until_the_others_have_caught_up() -> None:
    found = plan_levels((0.62, 0.62, 3.6), (320, 256, 20))
    assert [stride[2] for stride in found.strides] == [1, 1, 1, 2, 2, 1, 1]
    assert [kernel[2] for kernel in found.kernels] == [1, 1, 3, 3, 3, 3, 3]
    assert found.patch[2] % 4 == 0


def test_the_bottleneck_keeps_four_voxels() -> None:
    found = plan_levels((1, 1), (100, 37))
    assert all(size // divisor >= 4 for size, divisor in zip(found.patch, found.divisors, strict=True))
    assert all(size % divisor == 0 for size, divisor in zip(found.patch, found.divisors, strict=True))
    assert all(padded >= size for padded, size in zip(found.patch, (100, 37), strict=True))


def test_a_given_patch_is_kept_by_pooling_less() -> None:
    assert plan_levels((1, 1), (100, 100), keep_patch=True).strides == ((1, 1), (2, 2), (2, 2))
    assert plan_levels((1, 1), (100, 100), keep_patch=True).patch == (100, 100)
    assert plan_levels((1, 1), (64, 64), max_levels=3).strides == ((1, 1), (2, 2), (2, 2))


def test_elements_of_a_small_network_by_hand() -> None:
    # levels of 8x8 and 4x4: encoder 2*4*64 + 2*8*16; decoder 2 convolutions, 1 up-convolution, 3 outputs at 8x8
    assert feature_map_elements((8, 8), ((1, 1), (2, 2)), (4, 8), 3) == 512 + 256 + (3 * 4 + 3) * 64


@pytest.mark.parametrize("budget", [1e3, 1e6, 1e8])
def test_patches_shrink_with_the_budget_and_the_search_ends(budget: float) -> None:
    def elements(topology: Topology) -> float:
        return feature_map_elements(topology.patch, topology.strides, [8] * len(topology.strides), 2)

    def levels(size: Sequence[int]) -> Topology:
        return plan_levels((1, 1, 2), size)

    found = fit_patch((1, 1, 2), (300, 200, 100), budget, elements, levels)
    assert min(found.patch) >= 1
    assert elements(found) <= budget or budget == 1e3
