"""Sizes of a U-Net: which configurations can be built and which patches fit them.

Everything here is arithmetic on the configuration; no tensor is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, TypeVar

from unet_med.config import Network
from unet_med.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Layout:
    """A U-Net's resolved and checked measures.

    Attributes:
        dims: 2 or 3.
        features: Channels at each level, finest first.
        strides: Stride into each level, one number for each axis; the first is all 1.
        kernels: Kernel size of each level; odd numbers.
        convolutions: Convolutions of each level, on the way down and on the way up.
        padded: Whether convolutions keep the size; the network of 2015 does not pad.
        max_pool: Whether levels are entered by max-pooling rather than by a strided convolution.
        transposed: Whether the decoder up-samples by transposed convolution rather than by interpolation.
        norm: ``instance``, ``batch`` or ``none``.
        slope: Slope of the activation below 0; 0 is ReLU.
        dropout: Probability of dropout after the bottleneck.
        deep_supervision: Whether coarser levels of the decoder have heads, too.
    """

    dims: int
    features: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    convolutions: int
    padded: bool
    max_pool: bool
    transposed: bool
    norm: str
    slope: float
    dropout: float
    deep_supervision: bool

    @property
    def levels(self) -> int:
        """Number of levels, the bottleneck included."""
        return len(self.features)

    @property
    def heads(self) -> int:
        """Number of outputs in training: the finest decoder level, and with deep supervision all but the coarsest."""
        return max(1, self.levels - 2) if self.deep_supervision else 1

    def total_strides(self) -> tuple[int, ...]:
        """Returns how many voxels along each axis one bottleneck voxel stands for."""
        return tuple(prod(level[axis] for level in self.strides) for axis in range(self.dims))

    def shrinkage(self, level: int, axis: int) -> int:
        """Returns the voxels that the convolutions of one pass through a level take away along an axis."""
        return 0 if self.padded else self.convolutions * (self.kernels[level][axis] - 1)

    def crop(self, level: int, axis: int) -> int:
        """Returns the voxels, on each side, that the skip connection of a level has more than what comes from below."""
        return self._border(level + 1, axis) * self.strides[level + 1][axis]

    def sizes(self, axis: int, bottleneck: int) -> tuple[int, int]:
        """Returns the input and output voxels along an axis of a network whose bottleneck puts out this many."""
        last = self.levels - 1
        entering = bottleneck + self.shrinkage(last, axis)
        leaving = bottleneck
        for level in range(last - 1, -1, -1):
            stride = self.strides[level + 1][axis]
            entering = entering * stride + self.shrinkage(level, axis)
            leaving = leaving * stride - self.shrinkage(level, axis)
        return entering, leaving

    def context(self) -> tuple[int, ...]:
        """Returns the voxels that the input has more than the output, on each side."""
        return tuple(self._border(0, axis) for axis in range(self.dims))

    def admissible(self, patch: Sequence[int]) -> tuple[int, ...]:
        """Returns the smallest output patch that is nowhere smaller than ``patch`` and that the strides allow."""
        bottleneck = [self._bottleneck(axis, size) for axis, size in enumerate(patch)]
        if self.norm != "none" and prod(bottleneck) == 1:
            bottleneck = [2] * self.dims  # the variance of a single voxel is no statistic
        return tuple(self.sizes(axis, size)[1] for axis, size in enumerate(bottleneck))

    def _border(self, level: int, axis: int) -> int:
        """Voxels, on each side, that enter a level beyond those that leave it on the way up."""
        if level == self.levels - 1:
            return self.shrinkage(level, axis) // 2
        return self.crop(level, axis) + self.shrinkage(level, axis)

    def _bottleneck(self, axis: int, size: int) -> int:
        smallest = self.sizes(axis, 1)[1]
        return 1 + max(0, -(-(max(size, 1) - smallest) // self.total_strides()[axis]))


def layout_of(network: Network, dims: int) -> Layout:
    """Checks a resolved network configuration and returns its measures.

    Args:
        network: Without ``auto``.
        dims: 2 or 3.

    Raises:
        ConfigError: listing everything that cannot be built.
    """
    problems = [
        f"{name} is still 'auto'" for name in ("features", "strides", "kernels") if getattr(network, name) == "auto"
    ]
    if dims not in (2, 3):
        problems.append(f"dims {dims} is neither 2 nor 3")
    if not problems:
        problems = _faults(network, dims)
    if problems:
        raise ConfigError(
            f"the network cannot be built: {'; '.join(problems)}",
            "network",
            "resolve the pipeline with `unet-med plan`, or correct these keys",
            problems=tuple(f"network: {problem}" for problem in problems),
        )
    classic = network.style == "classic"
    return Layout(
        dims=dims,
        features=_resolved(network.features),
        strides=_resolved(network.strides),
        kernels=_resolved(network.kernels),
        convolutions=network.convolutions_per_level,
        padded=not classic,
        max_pool=classic or network.downsampling == "maxpool",
        transposed=classic or network.upsampling == "transposed",
        norm="none" if classic else network.norm,
        slope=0.0 if classic or network.activation == "relu" else 0.01,
        dropout=network.dropout,
        deep_supervision=network.deep_supervision,
    )


def _resolved(values: Literal["auto"] | tuple[T, ...]) -> tuple[T, ...]:
    return () if values == "auto" else values


def _faults(network: Network, dims: int) -> list[str]:
    faults: list[str] = []
    features, strides, kernels = _resolved(network.features), _resolved(network.strides), _resolved(network.kernels)
    if not len(features) == len(strides) == len(kernels):
        faults.append(
            f"{len(features)} features, {len(strides)} strides and {len(kernels)} kernels are not one per level"
        )
    if len(features) < 2:
        faults.append("features needs at least two levels")
    for name, entries in (("strides", strides), ("kernels", kernels)):
        for level, entry in enumerate(entries):
            if len(entry) != dims:
                faults.append(f"{name}[{level}] {list(entry)} must have {dims} numbers")
            elif min(entry) < 1:
                faults.append(f"{name}[{level}] {list(entry)} must be positive")
    if strides and set(strides[0]) != {1}:
        faults.append(f"strides[0] {list(strides[0])} must be all 1, the first level is the image's own")
    faults += [
        f"kernels[{level}] {list(kernel)} must be odd"
        for level, kernel in enumerate(kernels)
        if any(k % 2 == 0 for k in kernel)
    ]
    if network.style == "classic" and network.deep_supervision:
        faults.append("style classic has no deep_supervision, its unpadded levels differ in extent")
    return faults
