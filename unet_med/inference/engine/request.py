"""What is asked of an engine, and what every engine does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

Wanted = Literal["auto", "openvino", "torch"]


class Engine(Protocol):
    """Runs a network on batches of windows; one caller at a time."""

    @property
    def name(self) -> str:
        """``torch`` or ``openvino``."""
        ...

    @property
    def precision(self) -> str:
        """``fp32``, ``bf16`` or ``fp16``: what convolutions compute in."""
        ...

    @property
    def why(self) -> str:
        """One sentence: why this engine runs."""
        ...

    def __call__(self, batch: Tensor) -> Tensor:
        """Maps (N, C, *window + 2 * context) float32 to (N, channels, *window) float32 on the same device.

        N is at most the batch of the request. The result belongs to the caller.
        """
        ...

    def close(self) -> None:
        """Gives back what the engine holds; it is not called again afterwards."""
        ...


@dataclass(frozen=True, eq=False)
class EngineRequest:
    """A network and the windows it will see.

    Attributes:
        network: U-Net in eval mode on ``device``, its weights channels-last.
        window: Voxels that a window puts out, 2 or 3 axes.
        context: Voxels that a window reads beyond each of its ends.
        channels: Channels of the input.
        batch: Most windows of a call.
        features: Whether ``network.features`` is run, rather than the network: blending those of overlapping windows
            and applying ``network.head`` afterwards takes less memory where there are many classes.
        device: Where the network is.
        precision: What convolutions compute in; weights, norms and results are float32.
        sha256: Of the bundle; together with the rest, the key of what is cached.
    """

    network: nn.Module
    window: tuple[int, ...]
    context: tuple[int, ...]
    channels: int
    batch: int
    features: bool
    device: torch.device
    precision: torch.dtype
    sha256: str

    @property
    def entering(self) -> tuple[int, ...]:
        """Voxels of a window together with its context."""
        return tuple(size + 2 * border for size, border in zip(self.window, self.context, strict=True))
