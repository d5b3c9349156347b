"""How deep a network may be on a patch, and how large a patch fits into memory (nnU-Net's rules)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

MIN_EDGE = 4
"""Smallest edge of the coarsest feature map, in voxels."""

SIMILAR_SPACING = 2.0
"""Axes within this factor of the finest are pooled together and convolved with 3."""

START_VOXELS = {2: 2048**2, 3: 256**3}
"""Size of the first guess of a patch, before it is cut to the images and to memory."""

WHOLE_STEP = 8
"""Patches of networks that never pool shrink to multiples of this many voxels."""


@dataclass(frozen=True)
class Topology:
    """The levels of a network, finest first.

    Attributes:
        patch: Patch in voxels, divisible by the product of the strides.
        strides: Stride into each level; the first is all 1.
        kernels: Kernel size of each level.
    """

    patch: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]

    @property
    def divisors(self) -> tuple[int, ...]:
        """Product of the strides along each axis."""
        return tuple(math.prod(stride[axis] for stride in self.strides) for axis in range(len(self.patch)))


def plan_levels(
    spacing: Sequence[float], patch: Sequence[int], max_levels: int | None = None, keep_patch: bool = False
) -> Topology:
    """Returns strides and kernels for a patch, pooling each axis as far as size and spacing allow.

    An axis is halved while it has at least 8 voxels and its (current) spacing is within a factor of 2 of the finest;
    the kernel along it is 1 until then. The last level always has kernels of 3.

    Args:
        spacing: Relative spacing of the axes (ones when uncalibrated).
        patch: Wanted patch in voxels; it is padded to a multiple of the strides.
        max_levels: Most levels wanted.
        keep_patch: Pool an axis only as often as its size can be halved exactly.
    """
    dims = len(patch)
    size, current = [int(n) for n in patch], [float(s) for s in spacing]
    strides: list[tuple[int, ...]] = [(1,) * dims]
    kernels: list[tuple[int, ...]] = []
    kernel = [1] * dims
    while max_levels is None or len(strides) < max_levels:
        axes = _axes_to_pool(size, current, keep_patch)
        if not axes:
            break
        kernel = [
            3 if k == 3 or s / min(current) < SIMILAR_SPACING else 1 for k, s in zip(kernel, current, strict=True)
        ]
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if axis in axes else 1 for axis in range(dims)))
        for axis in axes:
            current[axis] *= 2
            size[axis] = math.ceil(size[axis] / 2)
    kernels.append((3,) * dims)
    divisors = [math.prod(stride[axis] for stride in strides) for axis in range(dims)]
    padded = tuple(math.ceil(n / d) * d for n, d in zip(patch, divisors, strict=True))
    return Topology(padded, tuple(strides), tuple(kernels))


def _axes_to_pool(size: Sequence[int], spacing: Sequence[float], exactly: bool) -> list[int]:
    axes = [a for a, n in enumerate(size) if n >= 2 * MIN_EDGE and not (exactly and n % 2)]
    if not axes:
        return []
    finest = min(spacing[a] for a in axes)
    axes = [a for a in axes if spacing[a] / finest < SIMILAR_SPACING]
    if len(axes) == 1 and size[axes[0]] < 3 * MIN_EDGE:
        return []
    return axes


def first_patch(spacing: Sequence[float], median_shape: Sequence[float]) -> list[int]:
    """Returns a patch of nearly equal edges in mm, cut to the median image."""
    dims = len(spacing)
    inverse = [1.0 / s for s in spacing]
    scale = (START_VOXELS[dims] / math.prod(inverse)) ** (1 / dims)
    return [max(1, int(min(round(i * scale), m))) for i, m in zip(inverse, median_shape, strict=True)]


def fit_patch(
    spacing: Sequence[float],
    median_shape: Sequence[float],
    budget: float,
    elements: Callable[[Topology], float],
    levels: Callable[[Sequence[int]], Topology],
) -> Topology:
    """Shrinks the patch until the memory proxy fits.

    The axis that is largest relative to the median image is reduced by the step that the network's strides allow.

    Args:
        spacing: Relative spacing of the axes.
        median_shape: Median image on the network's grid, in voxels.
        budget: Feature-map elements that one patch may take.
        elements: Memory proxy of a topology.
        levels: Topology for a patch.
    """
    topology = levels(first_patch(spacing, median_shape))
    while elements(topology) > budget:
        ratios = [n / m for n, m in zip(topology.patch, median_shape, strict=True)]
        axis = ratios.index(max(ratios))
        smaller = list(topology.patch)
        smaller[axis] -= topology.divisors[axis]
        if smaller[axis] < 1:
            break
        reduced = list(topology.patch)
        reduced[axis] -= levels(smaller).divisors[axis]
        following = levels(reduced)
        if following.patch == topology.patch:
            break
        topology = following
    return topology


def fit_full_resolution(spacing: Sequence[float], median_shape: Sequence[float], voxels: float) -> tuple[int, ...]:
    """Returns a patch of at most this many voxels for a network that never pools.

    Args:
        spacing: Relative spacing of the axes.
        median_shape: Median image on the network's grid, in voxels.
        voxels: Most voxels of a patch.
    """
    patch = first_patch(spacing, median_shape)
    while math.prod(patch) > voxels and max(patch) > WHOLE_STEP:
        ratios = [n / m if n > WHOLE_STEP else 0.0 for n, m in zip(patch, median_shape, strict=True)]
        axis = ratios.index(max(ratios))
        patch[axis] = (patch[axis] - 1) // WHOLE_STEP * WHOLE_STEP
    return tuple(patch)
