"""A model as one network, and whether another format of it says the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unet_med.bundle import Bundle, BundleInfo, load_bundles, read_bundle_info
from unet_med.errors import ModelError
from unet_med.inference.engine.request import EngineRequest
from unet_med.networks import admissible_patch, context_voxels, input_channels

TOLERANCE = 1e-3
"""Largest difference of two logits, as a share of the largest one."""
_WINDOWS = 3


class _Mean(nn.Module):
    """The mean of what several networks say."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([network(x) for network in self.networks]).mean(dim=0)


@dataclass(frozen=True, eq=False)
class Exported:
    """A model whose networks are one.

    Attributes:
        info: What the model says of itself.
        bundles: Its networks, an ensemble has several.
        request: Their mean on one window, in float32 on the CPU.
    """

    info: BundleInfo
    bundles: tuple[Bundle, ...]
    request: EngineRequest

    @property
    def described(self) -> dict[str, Any]:
        """What a user of the network alone must know, JSON-able."""
        config, labels, request = self.info.config, self.info.labels, self.request
        return {
            "name": config.name,
            "use": "Research use only",
            "model_sha256": self.info.sha256,
            "networks": len(self.bundles),
            "input": {
                "name": "image",
                "axes": ["window", "channel", *"IJK"[: len(request.window)]],
                "shape": [1, request.channels, *request.entering],
                "channels": list(self.info.channels),
                "slices": config.network.slices,
            },
            "output": {
                "name": "logits",
                "shape": [1, labels.outputs, *request.window],
                "outputs": list(labels.output_names),
                "labels": {"background": 0} | {label.name: label.index for label in labels.labels},
                "regions": {name: list(members) for name, members in labels.regions},
            },
            **{key: config.model_dump(mode="json")[key] for key in ("task", "preprocess", "inference", "postprocess")},
        }


def open_exported(model: str) -> Exported:
    """Loads a model to be written in another format.

    Args:
        model: Bundle folder, run folder, or an MLflow address.

    Raises:
        ModelError: The model is damaged, a cascade, or an ensemble of networks that see different images.
    """
    info, bundles = read_bundle_info(model), load_bundles(model)
    if any(bundle.low for bundle in bundles):
        raise ModelError("a cascade is no single network", info.folder.name, "export a model of one stage")
    first = bundles[0]
    if any(_seen(bundle) != _seen(first) for bundle in bundles):
        raise ModelError(
            "the members of the ensemble see different images", info.folder.name, "export the members one by one"
        )
    config = first.config
    window = config.sampling.patch_voxels
    if window == "auto":
        raise ModelError("the pipeline names no patch", "sampling.patch_voxels", "train the model again")
    networks = [bundle.network() for bundle in bundles]
    request = EngineRequest(
        network=networks[0] if len(networks) == 1 else _Mean(networks).eval(),
        window=admissible_patch(config.network, first.dims, window),
        context=context_voxels(config.network, first.dims),
        channels=input_channels(config.network, first.channels),
        batch=1,
        features=False,
        device=torch.device("cpu"),
        precision=torch.float32,
        sha256=info.sha256,
    )
    return Exported(info, bundles, request)


def check_equal(exported: Exported, run: Callable[[Tensor], Tensor], what: str) -> float:
    """Compares a network in another format with the one that it was made from.

    Args:
        exported: The network.
        run: Maps (1, C, *window + 2 * context) float32 to (1, outputs, *window).
        what: The format, for the error.

    Returns:
        The largest difference of two logits on a few invented windows, as a share of the largest logit.

    Raises:
        ModelError: It is above :data:`TOLERANCE`.
    """
    request = exported.request
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for number in range(_WINDOWS):
        coarse = [max(1, size // 2**number) for size in request.entering]
        noise = torch.randn(1, request.channels, *coarse, generator=generator)
        with torch.no_grad():
            window = F.interpolate(noise, size=request.entering)
            own: Tensor = request.network(window)
        share = float((run(window) - own).abs().max() / own.abs().max().clamp_min(TOLERANCE))
        worst = max(worst, share if isfinite(share) else inf)
    if worst > TOLERANCE:
        raise ModelError(
            f"the model as {what} says something else (by {worst:.2g} of its largest output)",
            exported.info.folder.name,
            "export it in another format",
        )
    return worst


def _seen(bundle: Bundle) -> dict[str, Any]:
    """What decides which windows of an image a network sees, and how they are joined."""
    config = bundle.config.model_dump(mode="json")
    seen = {key: config[key] for key in ("preprocess", "inference")}
    return seen | {
        "window": admissible_patch(bundle.config.network, bundle.dims, config["sampling"]["patch_voxels"]),
        "context": context_voxels(bundle.config.network, bundle.dims),
        "slices": bundle.config.network.slices,
    }
