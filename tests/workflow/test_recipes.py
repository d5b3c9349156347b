"""The whole way from files to scores with what is less usual: sparse labels, nested regions, neighbouring slices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from toy_set import PIPELINE, write_toy_set

from unet_med.bundle import Bundle, load_bundle
from unet_med.inference.predictor import Predictor
from unet_med.io.cases import Case
from unet_med.io.nifti import inspect_nifti
from unet_med.io.source import IntakeOptions
from unet_med.workflows.manifest import make_manifest
from unet_med.workflows.score import score
from unet_med.workflows.train import train

IGNORED = 3


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    write_toy_set(tmp_path / "data")
    return tmp_path


def taught(place: Path, steps: int, **changes: Any) -> tuple[Bundle, dict[str, Any]]:
    """Trains a fold of the toy set; returns the model and its scores on held-out cases."""
    pipeline = PIPELINE | {"tracking": {"enabled": False}} | changes
    pipeline["training"] = PIPELINE["training"] | {"epochs": 1, "steps_per_epoch": steps}
    (place / "toy.yaml").write_text(yaml.safe_dump(pipeline), encoding="utf-8")
    make_manifest(place / "data", place / "M.json", folds=3, intake=IntakeOptions())
    assert train(place / "toy.yaml", place / "M.json", place / "RUN", device="cpu").exit_code == 0
    return load_bundle(place / "RUN"), json.loads((place / "RUN" / "metrics.json").read_text(encoding="utf-8"))


def predicted(place: Path, bundle: Bundle, name: str) -> np.ndarray:
    source = inspect_nifti(place / "data" / "imagesTr" / name)[0]
    return Predictor([bundle], "cpu").predict(Case(name, (source,)).read()).labels


def test_sparse_labels(place: Path) -> None:
    dense = {}
    for number, path in enumerate(sorted((place / "data" / "labelsTr").iterdir())):
        label = np.asarray(nib.load(path).dataobj)
        dense[path.name] = label
        known = np.random.default_rng(number).random(label.shape) < 0.3
        sparse = np.where(known, label, IGNORED).astype(np.uint8)
        nib.save(nib.Nifti1Image(sparse, nib.load(path).affine), path)
    bundle, metrics = taught(place, 100, ignore_label=IGNORED)
    assert (bundle.labels.ignored, len(bundle.labels.labels)) == (IGNORED, 2)
    assert metrics["mean"]["dice"] > 0.7
    case = metrics["cases"][0]
    truth = dense[f"{case['id']}.nii.gz"]
    assert sum(case["label_voxels"].values()) < 0.5 * np.count_nonzero(truth)
    mask = predicted(place, bundle, f"{case['id']}.nii.gz")
    (place / "masks").mkdir()
    nib.save(nib.Nifti1Image(mask, np.diag([1, 1, 1.5, 1])), place / "masks" / f"{case['id']}.nii.gz")
    scored = score(place / "masks", place / "data" / "labelsTr", ignore_label=IGNORED).result
    for number, name in enumerate(bundle.labels.names, start=1):
        assert scored["per_label"][f"label_{number}"]["dice"] == pytest.approx(case["dice"][name], abs=0.01)


def test_nested_regions(place: Path) -> None:
    bundle, metrics = taught(place, 100, regions={"both": [1, 2], "small": [2]})
    assert bundle.labels.outputs == 2
    assert metrics["per_label"]["both"]["dice"] > 0.7
    assert set(metrics["per_label"]) == {*bundle.labels.names, "both", "small"}


def test_neighbouring_slices(place: Path) -> None:
    network = {"features": [8, 16], "strides": [[1, 1], [2, 2]], "kernels": [[3, 3], [3, 3]], "slices": 3}
    bundle, metrics = taught(
        place,
        100,
        dims=2,
        network=network,
        preprocess=PIPELINE["preprocess"] | {"spacing_mm": [1.0, 1.0]},
        sampling={"patch_voxels": [24, 28], "batch_size": 8},
    )
    assert bundle.config.network.slices == 3
    assert metrics["mean"]["dice"] > 0.7
