"""Sizes of a network: which configurations can be built and which patches fit them.

Everything here is arithmetic on the configuration; no tensor is made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, TypeVar

from unet_med.config import DILATIONS, RESIDUAL_BLOCKS, Network
from unet_med.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Layout(ABC):
    """What the measures of all networks share.

    Attributes:
        dims: 2 or 3.
        padded: Whether convolutions keep the size; the network of 2015 does not pad, its input is larger instead.
        norm: ``instance``, ``batch`` or ``none``.
        slope: Slope of the activation below 0; 0 is ReLU.
        bias: Whether convolutions have a bias; without a norm they always do.
        dropout: Probability of dropout, after the bottleneck or before the head.
    """

    dims: int
    padded: bool
    norm: str
    slope: float
    bias: bool
    dropout: float

    @abstractmethod
    def context(self) -> tuple[int, ...]:
        """Returns the voxels that the input has more than the output, on each side."""

    @abstractmethod
    def admissible(self, patch: Sequence[int]) -> tuple[int, ...]:
        """Returns the smallest output patch that is nowhere smaller than ``patch`` and that the network allows."""

    def _statistical(self, size: Sequence[int]) -> tuple[int, ...]:
        """The smallest feature map, which a norm needs more of than one voxel: its variance is no statistic."""
        return (2,) * self.dims if self.norm != "none" and prod(size) == 1 else tuple(size)


@dataclass(frozen=True)
class UNetLayout(Layout):
    """A U-Net's resolved and checked measures.

    Attributes:
        features: Channels at each level, finest first.
        strides: Stride into each level, one number for each axis; the first is all 1.
        kernels: Kernel size of each level; odd numbers.
        convolutions: Convolutions of each level on the way down; a residual encoder has ``blocks`` instead.
        decoder_convolutions: Convolutions of each level on the way up.
        blocks: Residual blocks of each level on the way down; empty for plain convolutions.
        max_pool: Whether levels are entered by max-pooling rather than by a strided convolution.
        transposed: Whether the decoder up-samples by transposed convolution rather than by interpolation.
        attention: Whether gates weight the skip connections.
        deep_supervision: Whether coarser levels of the decoder have heads, too.
    """

    features: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    convolutions: int
    decoder_convolutions: int
    blocks: tuple[int, ...]
    max_pool: bool
    transposed: bool
    attention: bool
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

    def shrinkage(self, level: int, axis: int, decoder: bool = False) -> int:
        """Returns the voxels that the convolutions of one pass through a level take away along an axis."""
        convolutions = self.decoder_convolutions if decoder else self.convolutions
        return 0 if self.padded else convolutions * (self.kernels[level][axis] - 1)

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
            leaving = leaving * stride - self.shrinkage(level, axis, decoder=True)
        return entering, leaving

    def context(self) -> tuple[int, ...]:
        """Returns the voxels that the input has more than the output, on each side."""
        return tuple(self._border(0, axis) for axis in range(self.dims))

    def admissible(self, patch: Sequence[int]) -> tuple[int, ...]:
        """Returns the smallest output patch that is nowhere smaller than ``patch`` and that the strides allow."""
        bottleneck = self._statistical([self._bottleneck(axis, size) for axis, size in enumerate(patch)])
        return tuple(self.sizes(axis, size)[1] for axis, size in enumerate(bottleneck))

    def _border(self, level: int, axis: int) -> int:
        """Voxels, on each side, that enter a level beyond those that leave it on the way up."""
        down = self.shrinkage(level, axis)
        if level == self.levels - 1:
            return down // 2
        return self.crop(level, axis) + (down + self.shrinkage(level, axis, decoder=True)) // 2

    def _bottleneck(self, axis: int, size: int) -> int:
        smallest = self.sizes(axis, 1)[1]
        return 1 + max(0, -(-(max(size, 1) - smallest) // self.total_strides()[axis]))


@dataclass(frozen=True)
class StackLayout(Layout):
    """Measures of convolutions one after the other at full resolution.

    Attributes:
        features: Channels that each convolution puts out.
        kernels: Kernel size of each convolution; odd numbers.
        dilations: Of each convolution, along all axes.
    """

    features: tuple[int, ...]
    kernels: tuple[tuple[int, ...], ...]
    dilations: tuple[int, ...]

    def context(self) -> tuple[int, ...]:
        """Returns the voxels that the input has more than the output, on each side."""
        if self.padded:
            return (0,) * self.dims
        return tuple(
            sum(dilation * (kernel[axis] // 2) for kernel, dilation in zip(self.kernels, self.dilations, strict=True))
            for axis in range(self.dims)
        )

    def admissible(self, patch: Sequence[int]) -> tuple[int, ...]:
        """Returns ``patch``: without strides, any size fits."""
        return self._statistical([max(1, size) for size in patch])


def layout_of(network: Network, dims: int) -> UNetLayout | StackLayout:
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
    return _stack(network, dims) if is_stack(network) else _unet(network, dims)


def _unet(network: Network, dims: int) -> UNetLayout:
    classic = network.style == "classic"
    features = _resolved(network.features)
    return UNetLayout(
        dims=dims,
        padded=not classic,
        norm=_norm(network),
        slope=_slope(network),
        bias=_bias(network),
        dropout=network.dropout,
        features=features,
        strides=_resolved(network.strides),
        kernels=_resolved(network.kernels),
        convolutions=network.convolutions_per_level,
        decoder_convolutions=network.decoder_convolutions
        or (1 if network.kind == "residual" else network.convolutions_per_level),
        blocks=(network.blocks_per_level or _usual_blocks(len(features))) if network.kind == "residual" else (),
        max_pool=classic or network.downsampling == "maxpool",
        transposed=classic or network.upsampling == "transposed",
        attention=network.attention,
        deep_supervision=network.deep_supervision,
    )


def _stack(network: Network, dims: int) -> StackLayout:
    dilations = _dilations(network)
    return StackLayout(
        dims=dims,
        padded=network.style != "classic",
        norm=_norm(network),
        slope=_slope(network),
        bias=_bias(network),
        dropout=network.dropout,
        features=_for_each(_resolved(network.features), len(dilations)),
        kernels=_for_each(_resolved(network.kernels), len(dilations)),
        dilations=dilations if network.kind == "dilated" else (1,) * len(dilations),
    )


def is_stack(network: Network) -> bool:
    """Whether a network is convolutions at full resolution, rather than a U-Net."""
    return network.kind in ("dilated", "naive")


def _norm(network: Network) -> str:
    return "none" if network.style == "classic" else network.norm


def _slope(network: Network) -> float:
    return 0.0 if network.style == "classic" or network.activation == "relu" else 0.01


def _bias(network: Network) -> bool:
    return network.bias or _norm(network) == "none"


def _dilations(network: Network) -> tuple[int, ...]:
    return network.dilations or DILATIONS


def _usual_blocks(levels: int) -> tuple[int, ...]:
    return tuple(RESIDUAL_BLOCKS[min(level, len(RESIDUAL_BLOCKS) - 1)] for level in range(levels))


def _for_each(entries: tuple[T, ...], count: int) -> tuple[T, ...]:
    return entries * count if len(entries) == 1 else entries


def _resolved(values: Literal["auto"] | tuple[T, ...]) -> tuple[T, ...]:
    return () if values == "auto" else values


# ---- faults ------------------------------------------------------------------------------------------------------


def _faults(network: Network, dims: int) -> list[str]:
    faults = _axis_faults(network, dims)
    faults += _stack_faults(network) if is_stack(network) else _unet_faults(network)
    for key, kinds in (("blocks_per_level", ("residual",)), ("dilations", ("dilated", "naive"))):
        if getattr(network, key) is not None and network.kind not in kinds:
            faults.append(f"{key} is for kind {' and '.join(kinds)}, not for {network.kind}")
    return faults


def _axis_faults(network: Network, dims: int) -> list[str]:
    faults: list[str] = []
    strides, kernels = _resolved(network.strides), _resolved(network.kernels)
    for name, entries in (("strides", strides), ("kernels", kernels)):
        for level, entry in enumerate(entries):
            if len(entry) != dims:
                faults.append(f"{name}[{level}] {list(entry)} must have {dims} numbers")
            elif min(entry) < 1:
                faults.append(f"{name}[{level}] {list(entry)} must be positive")
    faults += [
        f"kernels[{level}] {list(kernel)} must be odd"
        for level, kernel in enumerate(kernels)
        if any(k % 2 == 0 for k in kernel)
    ]
    return faults


def _unet_faults(network: Network) -> list[str]:
    faults: list[str] = []
    features, strides, kernels = _resolved(network.features), _resolved(network.strides), _resolved(network.kernels)
    if not len(features) == len(strides) == len(kernels):
        faults.append(
            f"{len(features)} features, {len(strides)} strides and {len(kernels)} kernels are not one per level"
        )
    if len(features) < 2:
        faults.append("features needs at least two levels")
    if strides and set(strides[0]) != {1}:
        faults.append(f"strides[0] {list(strides[0])} must be all 1, the first level is the image's own")
    if network.style == "classic" and network.deep_supervision:
        faults.append("style classic has no deep_supervision, its unpadded levels differ in extent")
    if network.kind == "residual":
        faults += _residual_faults(network)
    return faults


def _residual_faults(network: Network) -> list[str]:
    faults: list[str] = []
    levels = len(_resolved(network.features))
    if network.style == "classic":
        faults.append("kind residual pads its convolutions, style classic does not")
    if network.downsampling == "maxpool":
        faults.append("kind residual goes down by strided convolutions, not by maxpool")
    if network.blocks_per_level is not None and len(network.blocks_per_level) != levels:
        faults.append(f"blocks_per_level has {len(network.blocks_per_level)} entries for {levels} levels")
    return faults


def _stack_faults(network: Network) -> list[str]:
    faults: list[str] = []
    strides, count = _resolved(network.strides), len(_dilations(network))
    if any(stride != 1 for level in strides for stride in level):
        faults.append(f"kind {network.kind} works at full resolution, strides must be all 1")
    for name in ("features", "kernels"):
        entries = len(_resolved(getattr(network, name)))
        if entries not in (1, count):
            faults.append(f"{name} has {entries} entries, give 1 or one for each of the {count} convolutions")
    if network.kind == "naive" and set(_dilations(network)) != {1} and network.dilations is not None:
        faults.append("kind naive has no dilations; a list of 1 says how many convolutions it has")
    faults += [
        f"kind {network.kind} has no decoder, so no {key}"
        for key in ("deep_supervision", "attention", "decoder_convolutions")
        if getattr(network, key)
    ]
    return faults
