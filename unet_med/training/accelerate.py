"""What makes a step of training shorter on a card without changing what is learnt.

A compiled forward pass is the documented way to CUDA graphs, too (mode ``reduce-overhead``). A graph of the whole
step, captured by hand, is left out: the loss is looked at in every step, the gradient scaler skips steps, and dropout
is seeded at each, all of which a graph would freeze.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

Compilation = Literal["none", "default", "reduce-overhead"]
Output = Tensor | tuple[Tensor, ...]


def set_up_card(device: torch.device, precision: str) -> None:
    """Lets cuDNN try its algorithms for the one size of patch, and chooses how float32 products are rounded.

    Args:
        device: Where training runs; nothing is changed for a device that is no card.
        precision: ``training.precision``: ``fp32`` is float32 to the last bit, everything else may use TF32.
    """
    if device.type != "cuda":
        return
    strict = precision == "fp32"
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = not strict
    torch.set_float32_matmul_precision("highest" if strict else "high")


class Forward:
    """The forward pass of a network, compiled where that is wanted and works.

    The network itself stays as it is: weights, checkpoints and validation do not notice.

    Args:
        network: In training mode when called.
        device: Where it lies. Compilation is for cards; on a CPU it was measured to gain nothing.
        wanted: ``none``, ``default``, or ``reduce-overhead``, which replays CUDA graphs and keeps their memory.
        backend: What compiles.

    Attributes:
        note: Why it is not compiled although that was wanted; empty otherwise.
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        wanted: Compilation,
        backend: str | Callable[..., Any] = "inductor",
    ) -> None:
        self.note = ""
        self._network = network
        self._compiled: Callable[[Tensor], Output] | None = None
        if wanted == "none":
            return
        if device.type != "cuda":
            self.note = f"not compiled: that is for CUDA cards, this is {device.type}"
            return
        mode = wanted if backend == "inductor" else None
        self._compiled = torch.compile(network, fullgraph=False, dynamic=False, mode=mode, backend=backend)

    def __call__(self, image: Tensor) -> Output:
        """Maps (N, C, *patch + 2 * context) to what the network returns; compiles at the first call."""
        output: Output
        if self._compiled is None:
            output = self._network(image)
            return output
        from torch._dynamo.exc import TorchDynamoException

        try:
            return self._compiled(image)
        except TorchDynamoException as error:
            self._compiled = None
            self.note = f"not compiled ({type(error).__name__}): set training.compile to none to leave the attempt out"
            logger.warning("%s", self.note)
            output = self._network(image)
            return output
