"""Depth of the network and size of the patch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_med.config import Network
from unet_med.planning.memory import network_elements
from unet_med.planning.topology import Topology, fit_full_resolution, fit_patch, plan_levels


def elements(topology: Topology, first: int = 8) -> float:
    features = [first] * len(topology.strides)
    return network_elements(Network(), topology.patch, topology.strides, features, 2)


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


@pytest.mark.parametrize("budget", [1e3, 1e6, 1e8])
def test_patches_shrink_with_the_budget_and_the_search_ends(budget: float) -> None:
    def levels(size: Sequence[int]) -> Topology:
        return plan_levels((1, 1, 2), size)

    found = fit_patch((1, 1, 2), (300, 200, 100), budget, elements, levels)
    assert min(found.patch) >= 1
    assert elements(found) <= budget or budget == 1e3


@given(
    st.lists(st.floats(0.1, 10.0), min_size=2, max_size=3),
    st.lists(st.integers(1, 600), min_size=3, max_size=3),
    st.floats(10, 1e9),
)
def test_whole_resolution_takes_what_fits(spacing: list[float], median: list[int], voxels: float) -> None:
    median = median[: len(spacing)]
    patch = fit_full_resolution(spacing, median, voxels)
    assert all(1 <= n <= m for n, m in zip(patch, median, strict=True))
    assert math.prod(patch) <= voxels or max(patch) <= 8


def test_whole_resolution_by_hand() -> None:
    assert fit_full_resolution((1, 1), (100, 60), 1e9) == (100, 60)
    assert fit_full_resolution((1, 1), (100, 60), 4000) == (80, 48)
    assert fit_full_resolution((1, 1, 4), (64, 64, 6), 64 * 32 * 6) == (40, 48, 6)
