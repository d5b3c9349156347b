"""How much memory a plan may take, and what a network takes of it: nnU-Net's count of feature-map elements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from unet_med.config import DILATIONS, RESIDUAL_BLOCKS, Network

Device = Literal["cpu", "gpu"]

REFERENCE_GB = 8.0
REFERENCE_ELEMENTS = {2: 85e6, 3: 560e6}
REFERENCE_BATCH = {2: 12, 3: 2}
"""nnU-Net's yardstick: this many feature-map elements for one patch, at this batch size, fill a card of 8 GB."""

RESIDUAL_GB = {"M": 8.0, "L": 24.0, "XL": 40.0}
RESIDUAL_ELEMENTS = {"M": {2: 135e6, 3: 680e6}, "L": {2: 380e6, 3: 2.1e9}, "XL": {2: 560e6, 3: 3.6e9}}
"""The same for its networks with residual encoders: the card that each size is made for, and its elements."""

CPU_GB = 3.0
CPU_SHARE = 0.5
"""A CPU trains in fp32, where an element takes twice the memory."""

SMALLEST_BATCH = 2


@dataclass(frozen=True)
class Budget:
    """What training may take.

    Attributes:
        gb: Memory in GB.
        elements: Feature-map elements of one patch that fill it at batch size :attr:`batch`.
        batch: See :attr:`elements`.
    """

    gb: float
    elements: float
    batch: int

    @property
    def largest_patch(self) -> float:
        """Feature-map elements that one patch may take: a batch has at least two."""
        return self.elements * self.batch / SMALLEST_BATCH

    def batch_of(self, elements: float) -> int:
        """Returns how many patches of this many elements fill the memory."""
        return round(self.elements / elements * self.batch)


def budget_of(network: Network, dims: int, device: Device, memory_gb: float | None = None) -> Budget:
    """Returns the budget of a network.

    Args:
        network: Kind and size count.
        dims: 2 or 3.
        device: A CPU has half the elements for the same memory.
        memory_gb: Memory that training may take; default: what the size is made for, else 8 on a GPU and 3 on a CPU.
    """
    usual = REFERENCE_GB if device == "gpu" else CPU_GB
    gb = memory_gb if memory_gb is not None else usual if network.size is None else RESIDUAL_GB[network.size]
    if network.kind == "residual":
        fitting = [size for size, needed in RESIDUAL_GB.items() if needed <= gb]
        size = network.size or (fitting[-1] if fitting else "M")
        elements = RESIDUAL_ELEMENTS[size][dims] / RESIDUAL_GB[size] * gb
    else:
        elements = REFERENCE_ELEMENTS[dims] / REFERENCE_GB * gb
    return Budget(gb, elements * (CPU_SHARE if device == "cpu" else 1.0), REFERENCE_BATCH[dims])


def blocks_of(network: Network, levels: int) -> tuple[int, ...]:
    """Returns the residual blocks of each level of the encoder."""
    blocks = network.blocks_per_level or RESIDUAL_BLOCKS
    return tuple(blocks[min(level, len(blocks) - 1)] for level in range(levels))


def dilations_of(network: Network) -> tuple[int, ...]:
    """Returns the dilation of each convolution of a network that never pools."""
    dilations = network.dilations or DILATIONS
    return dilations if network.kind == "dilated" else (1,) * len(dilations)


def network_elements(
    network: Network, patch: Sequence[int], strides: Sequence[Sequence[int]], features: Sequence[int], outputs: int
) -> int:
    """Returns the number of feature-map elements of one patch, nnU-Net's proxy for memory.

    The outputs of all convolutions count: those of encoder and decoder, of skips and up-convolutions, and the logits.

    Args:
        network: Kind and numbers of convolutions count.
        patch: In voxels.
        strides: Stride into each level.
        features: Channels of each level; of a network that never pools, of each convolution or of all.
        outputs: Channels of the logits.
    """
    if network.kind in ("dilated", "naive"):
        count = len(dilations_of(network))
        widths = tuple(features) * count if len(features) == 1 else tuple(features)
        return (sum(widths) + outputs) * math.prod(patch)
    sizes = _level_sizes(patch, strides)
    if network.kind == "residual":
        encoder = _residual_encoder(sizes, features, blocks_of(network, len(sizes)))
        convolutions = network.decoder_convolutions or 1
    else:
        encoder = sum(network.convolutions_per_level * f * n for f, n in zip(features, sizes, strict=True))
        convolutions = network.decoder_convolutions or network.convolutions_per_level
    decoder = sum((convolutions + 1) * f * n for f, n in zip(features[:-1], sizes[:-1], strict=True))
    return encoder + decoder + outputs * sizes[0]


def _level_sizes(patch: Sequence[int], strides: Sequence[Sequence[int]]) -> list[int]:
    """Voxels of each level."""
    size = list(patch)
    sizes: list[int] = []
    for stride in strides:
        size = [n // s for n, s in zip(size, stride, strict=True)]
        sizes.append(math.prod(size))
    return sizes


def _residual_encoder(sizes: Sequence[int], features: Sequence[int], blocks: Sequence[int]) -> int:
    """A stem, two convolutions in each block, and one on the skip where size or width change."""
    total, before = features[0] * sizes[0], (features[0], sizes[0])
    for width, voxels, count in zip(features, sizes, blocks, strict=True):
        changes = (width, voxels) != before
        total += (2 * count + changes) * width * voxels
        before = (width, voxels)
    return total
