"""Every pipeline file loads, is planned on a small data set, builds its network and takes one batch forward."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import unet_med
from unet_med.bundle import labels_of
from unet_med.config import load_config
from unet_med.io.cases import Case
from unet_med.io.discover import discover
from unet_med.losses import build_loss
from unet_med.manifest import Manifest, ManifestCase
from unet_med.networks import build_network, context_voxels
from unet_med.phantoms import write_phantoms_2d, write_phantoms_3d
from unet_med.planning import make_plan

PIPELINES = sorted((Path(unet_med.__file__).parents[1] / "pipelines").glob("*.yaml"))

pytestmark = pytest.mark.skipif(not PIPELINES, reason="the pipelines lie in the checkout, not in the package")


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Case]]:
    """Two labelled cases of each dimension."""
    found: dict[int, list[Case]] = {}
    for dims, write in ((2, write_phantoms_2d), (3, write_phantoms_3d)):
        places = write(tmp_path_factory.mktemp(f"phantoms{dims}"), cases=2, seed=1, unlabelled=0)
        found[dims] = [
            Case(label.name.split(".")[0], discover(image).usable, discover(label).usable[0])
            for image, label in places.pairs()
        ]
    return found


def _manifest(cases: list[Case], labels: dict[str, int], instances: bool) -> Manifest:
    training = tuple(
        ManifestCase(
            case.id,
            replace(case, instances=instances),
            number,
            case.id,
            {"image": f"{number}" * 64, "label": f"{number}" * 64},
        )
        for number, case in enumerate(cases)
    )
    return Manifest("phantoms", labels, ("CT",), None, "instance" if instances else "semantic", training, (), 2)


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_a_pipeline_takes_one_batch(path: Path, manifests: dict[int, list[Case]]) -> None:
    torch.set_num_threads(1)
    config = load_config(path)
    dims = config.dims if config.dims != "auto" else (2 if "2d" in path.stem else 3)
    labels = config.label_values or {"background": 0, "one": 1, "two": 2}
    numbered = dims == 2 or config.task == "instance"  # phantoms in 2-D number their objects
    if not numbered:
        labels = {**labels, **{f"more{value}": value for value in range(1, 3) if value not in labels.values()}}
    changes: dict[str, Any] = {"tracking.enabled": False}
    plan = make_plan(config.replacing(changes), _manifest(manifests[dims], labels, numbered), memory_gb=2.0)
    assert plan.config.unresolved() == ()
    resolved = plan.config
    assert resolved.label_values is not None
    assert resolved.sampling.patch_voxels != "auto"
    label_map = labels_of(resolved)
    network = build_network(resolved.network, dims, 1, label_map.outputs)
    context = context_voxels(resolved.network, dims)
    patch = resolved.sampling.patch_voxels
    generator = np.random.default_rng(0)
    size = [edge + 2 * border for edge, border in zip(patch, context, strict=True)]
    image = torch.from_numpy(generator.normal(size=(1, 1, *size)).astype(np.float32))
    target = torch.from_numpy(generator.integers(0, len(resolved.label_values), (1, *patch)))
    logits = network.train()(image)
    finest = logits[0] if isinstance(logits, tuple) else logits
    assert tuple(finest.shape) == (1, label_map.outputs, *patch)
    beside = {"border": (target > 0) * 2, "distance": (target > 0).float()} if label_map.objects else {}
    loss = build_loss(resolved.loss, label_map)(logits, target, None, **beside)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters() if p.requires_grad)
