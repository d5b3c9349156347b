"""``unet-med match``: networks of other kinds against the U-Net, with as many parameters and as much time."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from unet_med.bundle import labels_of, read_bundle_info
from unet_med.config import PipelineConfig, load_config
from unet_med.errors import ConfigError
from unet_med.io.atomic import write_json
from unet_med.manifest import load_manifest
from unet_med.networks import build_network, input_channels
from unet_med.planning import make_plan
from unet_med.workflows.compare import compare
from unet_med.workflows.outcome import Outcome
from unet_med.workflows.progress import track
from unet_med.workflows.session import JOURNAL
from unet_med.workflows.train import train

KINDS = ("unet", "dilated", "naive")
COMPARISON = "comparison.json"
_WIDEST = 1024


def match(
    pipeline: Path,
    data: Path,
    out: Path,
    kinds: Sequence[str] = KINDS,
    fold: str | None = None,
    max_minutes: float | None = None,
    device: str = "auto",
    overrides: Sequence[str] = (),
) -> Outcome:
    """Trains networks of several kinds on the same cases, patches and minutes, and compares them case by case.

    The pipeline's own network is planned first; the others get its patch, its batch and the width that brings them
    closest to its number of parameters. What was interrupted goes on where it stopped.

    Args:
        pipeline: Pipeline YAML.
        data: Manifest.
        out: Receives a run for each kind and ``comparison.json``.
        kinds: ``network.kind`` of each; the first is the pipeline's own.
        fold: As for ``train``.
        max_minutes: Budget of each fold of each kind; replaces the number of epochs.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        overrides: ``a.b=c`` changes of the pipeline, for all of them.

    Raises:
        ConfigError: when the U-Net has too few parameters for another kind.
        UsageError: as :func:`unet_med.workflows.train.train`.
    """
    base = [*overrides, f"network.kind={kinds[0]}"]
    manifest = load_manifest(data)
    planned = make_plan(load_config(pipeline, base), manifest, device=device, progress=track).config
    result: dict[str, Any] = {"networks": {}, "differences": {}}
    lines: list[str] = []
    for kind in kinds:
        changes = {} if kind == kinds[0] else matched_settings(planned, kind)
        trained = train(
            pipeline,
            data,
            out / kind,
            fold,
            max_minutes,
            resume=(out / kind / JOURNAL).exists(),
            device=device,
            overrides=[*base, *(f"{key}={json.dumps(value)}" for key, value in changes.items())],
        )
        count = parameter_count(planned.replacing(changes))
        result["networks"][kind] = {"parameters": count, "settings": changes, "mean": trained.result["mean"]}
        lines += [f"{kind}: {count:,} parameters, {_field(out / kind)}", *trained.lines]
    for one, other in combinations(kinds, 2):
        compared = compare(out / one, out / other)
        result["differences"][f"{one} -> {other}"] = compared.result
        lines += ["", *compared.lines]
    write_json(out / COMPARISON, result, COMPARISON)
    return Outcome(result, lines)


def _field(run: Path) -> str:
    info = read_bundle_info(str(run))
    field = (info.members[0] if info.members else info).meta["receptive_field"]
    seen, used = ("x".join(map(str, field[f"{kind}_voxels"])) for kind in ("theoretical", "effective"))
    return f"receptive field {seen} voxels, effective {used}"


def matched_settings(planned: PipelineConfig, kind: str) -> dict[str, Any]:
    """Returns what to change in a resolved plan for a network of another kind with as many parameters.

    Args:
        planned: The U-Net's plan.
        kind: ``network.kind`` of a network that never pools: all its convolutions have one width.

    Raises:
        ConfigError: when even one channel has more parameters.
    """
    dims = int(planned.dims)
    changes: dict[str, Any] = {
        "network.kind": kind,
        "network.strides": [[1] * dims],
        "network.kernels": [[3] * dims],
        "network.deep_supervision": False,
        "network.attention": False,
        "sampling.patch_voxels": list(planned.sampling.patch_voxels),
        "sampling.batch_size": planned.sampling.batch_size,
    }

    def of_width(width: int) -> dict[str, Any]:
        return {**changes, "network.features": [width]}

    def count(width: int) -> int:
        return parameter_count(planned.replacing(of_width(width)))

    wanted = parameter_count(planned)
    above = bisect_left(range(1, _WIDEST), wanted, key=count) + 1
    if above == 1 and count(1) > wanted:
        raise ConfigError(
            f"a {kind} network of one channel has more than the {wanted} parameters of the U-Net",
            "network.features",
            "give the U-Net more features",
        )
    return of_width(min((max(above - 1, 1), above), key=lambda width: abs(count(width) - wanted)))


def parameter_count(config: PipelineConfig) -> int:
    """Returns the number of weights of a resolved pipeline's network; none is allocated."""
    with torch.device("meta"):
        channels = input_channels(config.network, config.channels, config.prior_channels)
        network = build_network(config.network, int(config.dims), channels, labels_of(config).outputs)
    return sum(parameter.numel() for parameter in network.parameters())
