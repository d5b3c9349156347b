"""Training that starts from a trained model: what is kept of it, and what fits a task with other labels or channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from unet_med.bundle import Bundle
from unet_med.config import ChannelNormalisation, PipelineConfig
from unet_med.labels import LabelMap
from unet_med.manifest import Manifest, ManifestCase
from unet_med.networks import build_network, input_channels
from unet_med.networks.transfer import transferred

KEPT = "kept from the model that training starts from"
_KEPT_SECTIONS = ("preprocess.", "network.")
_KEPT_KEYS = ("dims", "sampling.patch_voxels")


def started_from(config: PipelineConfig, manifest: Manifest, start: Bundle) -> PipelineConfig:
    """Returns the pipeline with the grid, the normalisation, the network and the patch of a trained model.

    A channel that the model did not know is normalised as the known ones, where these are alike, else by its own mean
    and deviation.
    """
    channels = manifest.channels if config.channels == "auto" else config.channels
    old = start.config
    preprocess = old.preprocess.model_dump(mode="json")
    if old.preprocess.normalisation != "auto":
        entries = preprocess["normalisation"]
        known = dict(zip(start.channels, entries, strict=True))
        alike = all(entry == entries[0] for entry in entries)
        fresh = entries[0] if alike else ChannelNormalisation().model_dump(mode="json")
        preprocess["normalisation"] = [known.get(name, fresh) for name in channels]
    return config.replacing(
        {
            "dims": old.dims,
            "preprocess": preprocess,
            "network": old.network.model_dump(mode="json"),
            "sampling.patch_voxels": old.sampling.patch_voxels,
        }
    )


def with_kept_reasons(reasons: Mapping[str, str]) -> dict[str, str]:
    """Returns the reasons of a plan that :func:`started_from` bound."""
    return {
        key: KEPT if key.startswith(_KEPT_SECTIONS) or key in _KEPT_KEYS else reason for key, reason in reasons.items()
    }


def initial_weights(
    start: Bundle, config: PipelineConfig, labels: LabelMap
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Returns the weights to begin with, and what of the model could not be taken over, in sentences.

    What the model did not know starts from random numbers of ``config.seed``.

    Raises:
        ModelError: if the networks differ in more than labels and channels.
    """
    torch.manual_seed(config.seed)
    dims = 2 if config.dims == 2 else 3
    network = build_network(config.network, dims, input_channels(config.network, config.channels), labels.outputs)
    return transferred(
        start.state, network, start.channels, config.channels, start.labels.output_names, labels.output_names
    )


def origin(start: Bundle) -> dict[str, Any]:
    """Returns what a bundle notes of the model that its training started from."""
    return {"sha256": start.sha256, "name": start.config.name}


def cases_of(start: Bundle) -> tuple[str, ...]:
    """Returns the hashes of the images that a model, and those it started from, were trained on."""
    return tuple((start.meta.get("training") or {}).get("case_sha256") or ())


def seen_before(start: Bundle, held_out: Sequence[ManifestCase]) -> list[str]:
    """Returns a warning where held-out cases are not new to the model that training starts from."""
    seen = set(cases_of(start))
    count = sum(case.sha256["image"] in seen for case in held_out)
    if not count:
        return []
    return [
        f"WARNING: the model that training starts from has learnt from {count} of the {len(held_out)} held-out cases: "
        "their scores say little"
    ]
