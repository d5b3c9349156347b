"""Networks: a resolved configuration in, a module out."""

from __future__ import annotations

from collections.abc import Sequence

from unet_med.config import Network
from unet_med.errors import ConfigError
from unet_med.networks.layout import StackLayout, is_stack, layout_of
from unet_med.networks.segmenter import Segmenter
from unet_med.networks.stack import Stack
from unet_med.networks.unet import UNet

__all__ = ["Segmenter", "admissible_patch", "build_network", "context_voxels", "head_channels", "input_channels"]


def build_network(network: Network, dims: int, in_channels: int, outputs: int) -> Segmenter:
    """Builds a network with fresh weights (from torch's global random generator).

    Args:
        network: Resolved (no ``auto``).
        dims: 2 or 3.
        in_channels: Channels of the input: :func:`input_channels` of the image's.
        outputs: Channels of the logits.

    Returns:
        A module that maps (N, in_channels, *patch + 2 * context) to logits (N, outputs, *patch); in ``train()`` mode
        with deep supervision to a tuple of logits, finest first, each level as fine as its decoder level.

    Raises:
        ConfigError: if it cannot be built.
    """
    if in_channels < 1 or outputs < 1:
        raise ConfigError(
            f"a network from {in_channels} channels to {outputs} outputs cannot be built",
            "network",
            "name at least one channel and one label",
        )
    layout = layout_of(network, dims)
    if isinstance(layout, StackLayout):
        return Stack(layout, in_channels, outputs)
    return UNet(layout, in_channels, outputs)


def input_channels(network: Network, channels: Sequence[str], prior: int = 0) -> int:
    """Returns how many channels the network's input has: each of the image's, with its neighbouring slices (2.5-D).

    They are in the order of ``channels``, for each one slice after the other; then come the ``prior`` channels of a
    cascade's first stage (:attr:`unet_med.config.PipelineConfig.prior_channels`).
    """
    return len(channels) * network.slices + prior


def head_channels(network: Network) -> int:
    """Returns how many channels ``features`` of the network puts out, which its head turns into logits.

    Raises:
        ConfigError: if the features are still ``auto``.
    """
    if network.features == "auto":
        raise ConfigError("the features are still 'auto'", "network.features", "resolve it with `unet-med plan`")
    return network.features[-1 if is_stack(network) else 0]


def context_voxels(network: Network, dims: int) -> tuple[int, ...]:
    """Returns how many voxels the input must have more than the output, on each side of each axis.

    Zero for padded convolutions; 92 for the network of 2015, which sees 572 pixels and labels the inner 388.

    Raises:
        ConfigError: if the network cannot be built.
    """
    return layout_of(network, dims).context()


def admissible_patch(network: Network, dims: int, patch: Sequence[int]) -> tuple[int, ...]:
    """Returns the smallest patch that is nowhere smaller than ``patch`` and that the strides allow, in voxels.

    Raises:
        ConfigError: if the network cannot be built, or if ``patch`` has another number of axes.
    """
    if len(patch) != dims or min(patch) < 1:
        raise ConfigError(
            f"a patch of {tuple(patch)} voxels is none of a {dims}-D image",
            "sampling.patch_voxels",
            f"give {dims} positive numbers",
        )
    return layout_of(network, dims).admissible(patch)
