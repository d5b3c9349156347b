"""What every network is to those who train and run it."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from unet_med.errors import ModelError
from unet_med.networks.layout import Layout
from unet_med.networks.tracing import is_tracing


class Segmenter(nn.Module):
    """A network from images to logits whose last step is a 1x1 convolution.

    Attributes:
        entry: Name of the weights that see the image, in the ``state_dict``.
        layout: The checked measures.
        in_channels: Channels of the input.
        outputs: Channels of the logits.
        heads: 1x1 convolutions to the logits, finest first; all but the first are for deep supervision.
    """

    entry: ClassVar[str]
    heads: nn.ModuleList

    def __init__(self, layout: Layout, in_channels: int, outputs: int) -> None:
        super().__init__()
        self.layout = layout
        self.in_channels = in_channels
        self.outputs = outputs

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """Maps (N, C, *patch + 2 * context) to what the finest head sees, (N, features, *patch).

        ``head`` is a 1x1 convolution and therefore linear: blending the features of overlapping windows and applying
        it afterwards gives the same logits as blending logits.

        Raises:
            ModelError: if the channels or the spatial size do not fit this network.
        """

    @property
    @abstractmethod
    def deepest(self) -> nn.Module:
        """The module whose features stand for the most of the image: the bottleneck, of a stack its last block.

        Its grid is coarser than the image by :attr:`deepest_strides`, and covers its middle where context is lost.
        """

    @property
    @abstractmethod
    def deepest_strides(self) -> tuple[int, ...]:
        """Voxels of the image along each axis for one voxel of :attr:`deepest`."""

    @property
    def head(self) -> nn.Module:
        """The 1x1 convolution from the features of the finest level to the logits."""
        return self.heads[0]

    def _check(self, x: Tensor) -> None:
        """Raises ModelError where the input does not fit; when recorded or compiled, nothing is checked."""
        if is_tracing() or torch.compiler.is_compiling():
            return
        layout = self.layout
        if x.dim() != layout.dims + 2:
            raise ModelError(
                f"a {layout.dims}-D network got a tensor of shape {tuple(x.shape)}",
                "network",
                f"give (N, C, {'I, J' if layout.dims == 2 else 'I, J, K'})",
            )
        if x.shape[1] != self.in_channels:
            raise ModelError(
                f"the network was made for {self.in_channels} channels, the input has {x.shape[1]}",
                "network",
                "give the channels that the model was trained on, in the same order",
            )
        context = layout.context()
        patch = tuple(n - 2 * c for n, c in zip(x.shape[2:], context, strict=True))
        fitting = layout.admissible(patch)
        if patch != fitting:
            whole = tuple(n + 2 * c for n, c in zip(fitting, context, strict=True))
            raise ModelError(
                f"an input of {tuple(x.shape[2:])} voxels does not fit the strides of the network",
                "network",
                f"pad it to {whole}",
            )
