"""nnU-Net's parameters under the names of our networks.

Its networks are those of dynamic_network_architectures (``PlainConvUNet``, ``ResidualEncoderUNet``). They count
decoder levels from the coarsest; ours from the finest. Before the first convolution of a decoder level they put what
comes from below in front of the skip connection; ours put it behind.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from unet_med.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

_PART = {"conv": "0", "norm": "1"}
_HALF = {"1": "first", "2": "second"}
_COPIES = re.compile(r"^decoder\.encoder\.|\.all_modules\.")
"""The same parameters under a second name."""

_ENCODER = re.compile(r"encoder\.stages\.(\d+)\.0\.convs\.(\d+)\.(conv|norm)\.(\w+)")
_STEM = re.compile(r"encoder\.stem\.convs\.0\.(conv|norm)\.(\w+)")
_RESIDUAL = re.compile(r"encoder\.stages\.(\d+)\.blocks\.(\d+)\.conv([12])\.(conv|norm)\.(\w+)")
_SHORTCUT = re.compile(r"encoder\.stages\.(\d+)\.blocks\.(\d+)\.skip\.\d+\.(conv|norm)\.(\w+)")
_DECODER = re.compile(r"decoder\.stages\.(\d+)\.convs\.(\d+)\.(conv|norm)\.(\w+)")
_UPSAMPLING = re.compile(r"decoder\.transpconvs\.(\d+)\.(\w+)")
_HEAD = re.compile(r"decoder\.seg_layers\.(\d+)\.(\w+)")


def translated(weights: Mapping[str, Tensor], levels: int, heads: int, where: str) -> dict[str, Tensor]:
    """Returns the state of our network.

    Args:
        weights: nnU-Net's parameters by name.
        levels: Levels of the network, the bottleneck included.
        heads: Heads of our network, from the finest; nnU-Net has one at every level of the decoder.
        where: What the weights are, for errors.

    Raises:
        ModelError: for a parameter that is of another architecture.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if _COPIES.search(name):
            continue
        ours = _translated_name(name, levels)
        if ours is None:
            raise ModelError(
                f"the network has a part that is not known here: {name}",
                where,
                "PlainConvUNet and ResidualEncoderUNet can be imported",
            )
        head = re.match(r"heads\.(\d+)\.", ours)
        if head and int(head[1]) >= heads:
            continue
        state[ours] = _skip_first(tensor) if re.fullmatch(r"decoder\.\d+\.0\.0\.weight", ours) else tensor
    return state


def is_batch_normalised(weights: Mapping[str, Tensor]) -> bool:
    """Whether the norms hold statistics of their own, as batch normalisation does."""
    return any(name.endswith(".running_mean") for name in weights)


def _translated_name(name: str, levels: int) -> str | None:
    last = levels - 2
    if found := _ENCODER.fullmatch(name):
        return f"encoder.{found[1]}.{found[2]}.{_PART[found[3]]}.{found[4]}"
    if found := _STEM.fullmatch(name):
        return f"encoder.0.0.{_PART[found[1]]}.{found[2]}"
    if found := _RESIDUAL.fullmatch(name):
        place = _residual_place(found[1], found[2])
        return f"{place}.{_HALF[found[3]]}.{_PART[found[4]]}.{found[5]}"
    if found := _SHORTCUT.fullmatch(name):
        return f"{_residual_place(found[1], found[2])}.shortcut.projection.{_PART[found[3]]}.{found[4]}"
    if found := _DECODER.fullmatch(name):
        return f"decoder.{last - int(found[1])}.{found[2]}.{_PART[found[3]]}.{found[4]}"
    if found := _UPSAMPLING.fullmatch(name):
        return f"upsampling.{last - int(found[1])}.convolution.{found[2]}"
    if found := _HEAD.fullmatch(name):
        return f"heads.{last - int(found[1])}.{found[2]}"
    return None


def _residual_place(level: str, block: str) -> str:
    """Our first level has the stem in front of its blocks."""
    return f"encoder.{level}.{int(block) + (level == '0')}"


def _skip_first(weight: Tensor) -> Tensor:
    """Exchanges the two halves of the input channels of a convolution, (F, 2 F, *kernel)."""
    import torch

    below, skip = weight.chunk(2, dim=1)
    return torch.cat((skip, below), dim=1)
