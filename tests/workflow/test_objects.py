"""Objects the whole way: trained, scored by objects, thresholds chosen, tried again on maps that are kept."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import yaml
from object_set import disc_bundle, disc_picture, write_disc_set

from unet_med.bundle import read_bundle_info
from unet_med.errors import NothingUsableError, UsageError
from unet_med.instances.tuning import KEYS
from unet_med.workflows import evaluate as evaluation
from unet_med.workflows import predict as prediction
from unet_med.workflows.evaluate import evaluate
from unet_med.workflows.manifest import make_manifest
from unet_med.workflows.predict import predict
from unet_med.workflows.record import case_rows, final_metrics
from unet_med.workflows.retune import retune
from unet_med.workflows.train import train

PIPELINE: dict[str, Any] = {
    "name": "discs",
    "task": "instance",
    "dims": 2,
    "preprocess": {"spacing_mm": None, "normalisation": [{"scheme": "zscore"}], "crop_to_nonzero": False},
    "network": {"features": [8, 16], "strides": [[1, 1], [2, 2]], "kernels": [[3, 3], [3, 3]]},
    "sampling": {"patch_voxels": [48, 48], "batch_size": 4},
    "training": {
        "epochs": 1,
        "steps_per_epoch": 60,
        "learning_rate": 0.01,
        "workers": 0,
        "validation_every_epochs": 1,
    },
    "inference": {"engine": "torch"},
    "tracking": {"enabled": False},
}


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``M.json`` and a cross-validation of two folds in ``CV``. Never write into it."""
    torch.set_num_threads(1)
    work = tmp_path_factory.mktemp("discs")
    before = Path.cwd()
    os.chdir(work)
    try:
        (work / "discs.yaml").write_text(yaml.safe_dump(PIPELINE), encoding="utf-8")
        make_manifest(write_disc_set(work / "data", cases=6), work / "M.json", folds=2, task="instance")
        assert train(work / "discs.yaml", work / "M.json", work / "CV", fold="cv", device="cpu").exit_code == 0
    finally:
        os.chdir(before)
    return work


@pytest.fixture
def run(discs: Path, tmp_path: Path) -> Path:
    """One fold of it as a run of its own, to be changed."""
    shutil.copytree(discs / "CV" / "fold_0", tmp_path / "RUN")
    shutil.copy(discs / "CV" / "run.json", tmp_path / "RUN" / "run.json")
    return tmp_path / "RUN"


def metrics_of(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "metrics.json").read_text(encoding="utf-8")))


def test_objects_are_learnt_and_scored(discs: Path) -> None:
    metrics = metrics_of(discs / "CV")
    assert metrics["instance"]["n_images"] == 6
    assert metrics["instance"]["n_label"] == sum(len(np.unique(disc_picture(n)[1])) - 1 for n in range(6))
    assert metrics["instance"]["ap"]["0.50"] > 0.8
    assert metrics["mean"]["dice"] > 0.85
    assert {case["id"] for case in metrics["cases"] if case["instance"]["ap"]["0.50"] is not None} == {
        f"discs_{number}" for number in range(6)
    }


def test_thresholds_are_chosen_and_kept_in_the_bundles(discs: Path) -> None:
    for place in ("CV", "CV/fold_0", "CV/fold_1"):
        info = read_bundle_info(discs / place)
        told = metrics_of(discs / place)["objects"]
        assert info.meta["objects"] == told
        assert told["chosen"] == {key: getattr(info.config.instances, key) for key in KEYS}
        assert told["ap_mean_after"] >= told["ap_mean_before"]
        assert "mean AP" in info.meta["reasons"]["instances"]
    assert metrics_of(discs / "CV")["objects"]["images"] == 6


def test_the_tracker_is_told_of_objects(discs: Path) -> None:
    metrics = metrics_of(discs / "CV")
    final, rows = final_metrics(metrics), case_rows(metrics)
    assert final["final/objects/ap/0.75"] == metrics["instance"]["ap"]["0.75"]
    assert final["final/objects/ap_per_image/0.50"] == metrics["instance"]["ap_per_image"]["0.50"]
    assert all(isinstance(value, float | int) for value in final.values())
    assert [row["objects/n_label"] for row in rows] == [case["instance"]["n_label"] for case in metrics["cases"]]


def test_evaluation_finds_what_training_said(discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from inline_worker import InlineWorker

    monkeypatch.setattr(evaluation, "Worker", InlineWorker)
    outcome = evaluate(str(discs / "CV" / "fold_0"), discs / "M.json", out=tmp_path / "E", device="cpu")
    assert outcome.exit_code == 0
    assert outcome.result["instance"] == metrics_of(discs / "CV" / "fold_0")["instance"]
    assert any("AP@.5" in line for line in outcome.lines)
    assert sorted(path.name for path in (tmp_path / "E" / "maps").iterdir()) == sorted(
        f"{case['id']}.zarr" for case in outcome.result["cases"]
    )


def test_an_evaluation_is_cut_out_and_scored_anew(discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from inline_worker import InlineWorker

    monkeypatch.setattr(evaluation, "Worker", InlineWorker)
    out, data = tmp_path / "E", discs / "M.json"
    before = evaluate(str(discs / "CV" / "fold_0"), data, out=out, device="cpu").result
    chosen = read_bundle_info(discs / "CV" / "fold_0").config.instances
    nothing = retune(out, ["instances.minimum_voxels=100000"], data)
    assert (nothing.exit_code, nothing.result["instance"]["n_mask"]) == (0, 0)
    assert metrics_of(out)["instance"]["n_label"] == before["instance"]["n_label"]
    assert metrics_of(out)["evaluated"] == "fold 0"
    assert all(not tifffile.imread(path).any() for path in sorted((out / "masks").glob("*.tif")))
    again = retune(out, [f"instances.{key}={getattr(chosen, key)}" for key in KEYS], data)
    assert again.result["instance"] == before["instance"]
    assert again.result["mean"] == before["mean"]
    with pytest.raises(UsageError, match="in their manifest"):
        retune(out, ["instances.minimum_voxels=1"])
    make_manifest(discs / "data", tmp_path / "other.json", folds=3, task="instance")
    with pytest.raises(UsageError, match="other cases"):
        retune(out, ["instances.minimum_voxels=1"], tmp_path / "other.json")


def test_given_thresholds_change_model_and_scores(run: Path) -> None:
    before = metrics_of(run)
    outcome = retune(run, ["instances.minimum_voxels=100000"])
    assert outcome.result["instance"]["n_mask"] == 0
    assert read_bundle_info(run).config.instances.minimum_voxels == 100000
    assert metrics_of(run)["objects"]["given"] == ["minimum_voxels"]
    assert read_bundle_info(run).meta["results"]["held_out"]["instance"] == outcome.result["instance"]
    again = retune(run, ["minimum_voxels=0"])
    assert again.result["instance"] == before["instance"]


def test_thresholds_are_chosen_again(run: Path) -> None:
    before = metrics_of(run)
    retune(run, ["instances.seed_threshold=0.95"])
    assert metrics_of(run)["instance"]["ap"]["0.50"] < before["instance"]["ap"]["0.50"]
    outcome = retune(run)
    assert outcome.result["objects"]["ap_mean_after"] >= before["objects"]["ap_mean_after"] - 1e-9
    assert read_bundle_info(run).meta["objects"] == outcome.result["objects"]


def test_an_ensemble_and_its_members_are_retuned_together(discs: Path, tmp_path: Path) -> None:
    shutil.copytree(discs / "CV", tmp_path / "CV")
    outcome = retune(tmp_path / "CV", ["instances.seed_depth=0.5"])
    for place in ("CV", "CV/fold_0", "CV/fold_1"):
        assert read_bundle_info(tmp_path / place).config.instances.seed_depth == 0.5
    assert outcome.result["instance"]["n_images"] == 6
    assert set(outcome.result["folds"]) == {"fold_0", "fold_1"}
    ensemble = read_bundle_info(tmp_path / "CV")
    assert ensemble.meta["results"]["out_of_fold"]["instance"] == outcome.result["instance"]
    assert metrics_of(tmp_path / "CV")["model_sha256"] == ensemble.sha256


@pytest.mark.parametrize(
    ("override", "message"), [("network.kind=naive", "nothing that is chosen"), ("seed_threshold", "nothing that is")]
)
def test_only_what_is_chosen_after_training_can_be_set(run: Path, override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        retune(run, [override])


def test_a_run_without_maps_is_told(run: Path, tmp_path: Path) -> None:
    shutil.rmtree(run / "maps")
    with pytest.raises(NothingUsableError, match="keeps no maps"):
        retune(run)
    with pytest.raises(UsageError, match="no run"):
        retune(tmp_path)


@pytest.fixture
def predicted(tmp_path: Path, tiny_bundle, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Masks of two pictures."""
    from inline_worker import InlineWorker

    monkeypatch.setattr(prediction, "Worker", InlineWorker)
    model = disc_bundle(tiny_bundle)
    images = write_disc_set(tmp_path / "in", cases=2) / "images"
    assert predict(str(model), images, tmp_path / "OUT", formats=["label-tiff"], device="cpu").exit_code == 0
    return tmp_path / "OUT"


def sizes_in(mask: Path) -> np.ndarray:
    return np.sort(np.bincount(tifffile.imread(mask).ravel())[1:])


def test_masks_are_cut_out_anew(predicted: Path) -> None:
    before = sizes_in(predicted / "discs_0.tif")
    smallest = int(before[len(before) // 2])
    outcome = retune(predicted, [f"instances.minimum_voxels={smallest}"])
    assert outcome.exit_code == 0
    after = sizes_in(predicted / "discs_0.tif")
    assert np.array_equal(after, before[before >= smallest])
    assert len(list(csv.DictReader((predicted / "objects/discs_0.csv").read_text().splitlines()))) == len(after)
    counts = list(csv.DictReader((predicted / "counts.csv").read_text().splitlines()))
    assert [int(row["objects"]) for row in counts if row["id"] == "discs_0"] == [len(after)]
    assert json.loads((predicted / "discs_0.json").read_text())["provenance"]["options"]["retuned"] == {
        "minimum_voxels": smallest
    }
    retune(predicted, ["instances.minimum_voxels=0"])
    assert np.array_equal(sizes_in(predicted / "discs_0.tif"), before)


def test_other_outputs_stay_where_a_case_is_refused(predicted: Path) -> None:
    before = (predicted / "discs_1.tif").read_bytes()
    shutil.rmtree(predicted / "maps" / "discs_1.zarr" / "c")
    (predicted / "maps" / "discs_1.zarr" / "zarr.json").write_text("{}")
    outcome = retune(predicted, ["instances.minimum_voxels=1"])
    assert outcome.exit_code == 3
    assert any("discs_1" in line and "maps" in line for line in outcome.lines)
    assert (predicted / "discs_1.tif").read_bytes() == before


def test_masks_whose_image_is_gone_are_told_and_stay(predicted: Path, tmp_path: Path) -> None:
    before = (predicted / "discs_1.tif").read_bytes()
    (tmp_path / "in" / "images" / "discs_1.tif").unlink()
    outcome = retune(predicted, ["instances.minimum_voxels=100000"])
    assert outcome.exit_code == 3
    assert any(line.startswith("1 masks cut out anew") for line in outcome.lines)
    assert any("discs_1" in line and "there no more" in line for line in outcome.lines)
    assert (predicted / "discs_1.tif").read_bytes() == before
    assert not tifffile.imread(predicted / "discs_0.tif").any()


def test_what_masks_are_cut_out_by_is_told(predicted: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no true objects"):
        retune(predicted)
    shutil.rmtree(tmp_path / "in")
    with pytest.raises(NothingUsableError, match="there no more"):
        retune(predicted, ["seed_depth=0.2"])
