"""Two runs compared with pictures: kept masks are read, others predicted; what is recorded names no case."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
import yaml
from object_set import write_disc_set
from toy_set import PIPELINE, write_toy_set

from unet_med.config import Tracking
from unet_med.errors import UsageError
from unet_med.manifest import Manifest, load_manifest
from unet_med.training.store import connect, resolve_store
from unet_med.training.tracking import open_tracker
from unet_med.workflows.compare import compare
from unet_med.workflows.manifest import make_manifest

GAINS = (-0.3, -0.2, -0.1, 0.05, 0.1, 0.2)
pytestmark = pytest.mark.usefixtures("one_thread")


def write_scores(folder: Path, manifest: Manifest, dice: dict[str, float]) -> Path:
    folder.mkdir(parents=True)
    cases = [{"id": case.id, "dice": {"label_1": dice[case.id]}} for case in manifest.training]
    (folder / "metrics.json").write_text(json.dumps({"cases": cases}), encoding="utf-8")
    return folder


@pytest.fixture
def toys(tmp_path: Path) -> Path:
    make_manifest(write_toy_set(tmp_path / "set"), tmp_path / "M.json", folds=3)
    return tmp_path / "M.json"


@pytest.fixture
def evaluation(toys: Path, tmp_path: Path) -> Path:
    """Scores, and masks: the truth without its lowest slices."""
    manifest = load_manifest(toys)
    folder = write_scores(tmp_path / "PRIVATE-EVAL", manifest, {case.id: 0.6 for case in manifest.training})
    (folder / "masks").mkdir()
    for case in manifest.training:
        assert case.case.label is not None
        truth = nib.load(case.case.label.files[0])
        mask = np.asarray(truth.dataobj).copy()
        mask[..., :8] = 0
        nib.save(nib.Nifti1Image(mask, truth.affine), folder / "masks" / f"{case.id}.nii.gz")
    return folder


@pytest.fixture
def run(toys: Path, tmp_path: Path, tiny_bundle: Callable[..., Path]) -> Path:
    """Scores and a model, that say they were recorded; no masks."""
    manifest = load_manifest(toys)
    dice = {case.id: 0.6 + gain for case, gain in zip(manifest.training, GAINS, strict=True)}
    folder = write_scores(tmp_path / "PRIVATE-RUN", manifest, dice)
    shutil.move(tiny_bundle(), folder / "model")
    config = PIPELINE | {"tracking": {"store": store_in(tmp_path)}}
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (folder / "run.json").write_text(json.dumps({"mlflow_runs": {"fold_0": "1234"}}), encoding="utf-8")
    return folder


def store_in(folder: Path) -> str:
    return f"sqlite:///{(folder / 'store.db').as_posix()}"


def test_the_page_shows_what_changed_and_the_record_names_nobody(
    evaluation: Path, run: Path, toys: Path, tmp_path: Path
) -> None:
    tracker = open_tracker(Tracking(store=store_in(tmp_path)), "toy", "toy-fold_0")
    tracker.finish("FINISHED")
    (run / "run.json").write_text(json.dumps({"mlflow_runs": {"fold_0": tracker.run_id}}), encoding="utf-8")
    outcome = compare(evaluation, run, out=tmp_path / "OUT", data=toys, device="cpu")
    html = (tmp_path / "OUT/comparison.html").read_text(encoding="utf-8")
    worst = outcome.result["changes"][0]["id"]
    assert html.count("data:image/png") == 2 * len(GAINS), "both masks of three losses and three gains"
    assert worst in html and "tiny, model" in html and "scores of masks" in html and "PRIVATE" not in html
    assert json.loads((tmp_path / "OUT/comparison.json").read_text(encoding="utf-8")) == outcome.result
    client, _ = connect(resolve_store(store_in(tmp_path)))
    run_id = outcome.lines[-1].rpartition(" ")[2]
    record = client.get_run(run_id)
    assert record.info.experiment_id == tracker.experiment_id
    assert (record.info.status, record.data.tags["comparison.b"]) == ("FINISHED", tracker.run_id)
    assert record.data.tags["comparison.better"] == "no difference shown"
    assert record.data.metrics["difference/dice/label_1/mean"] == pytest.approx(np.mean(GAINS))
    logged = {one.path: Path(client.download_artifacts(run_id, one.path)) for one in client.list_artifacts(run_id)}
    assert set(logged) == {"comparison.json", "comparison.html"}
    for path in logged.values():
        text = path.read_text(encoding="utf-8")
        assert "case-" in text
        assert "PRIVATE" not in text and not any(case["id"] in text for case in outcome.result["changes"])
    assert logged["comparison.html"].read_text(encoding="utf-8").count("data:image/png") == 2 * len(GAINS)


def test_what_was_not_recorded_is_compared_all_the_same(
    evaluation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other = shutil.copytree(evaluation, tmp_path / "again")
    outcome = compare(evaluation, other, out=tmp_path / "OUT")
    assert outcome.lines[-1].startswith("not recorded in MLflow")
    assert "No difference shown" in (tmp_path / "OUT/comparison.html").read_text(encoding="utf-8")
    assert not (tmp_path / "mlflow.db").exists()


def test_a_store_that_is_gone_is_not_made_anew(evaluation: Path, run: Path, tmp_path: Path) -> None:
    outcome = compare(evaluation, run, out=tmp_path / "OUT")
    assert outcome.lines[-1].startswith("not recorded in MLflow")
    assert not (tmp_path / "store.db").exists()


def test_objects_are_shown_beside_the_true_ones(tmp_path: Path) -> None:
    data = write_disc_set(tmp_path / "set")
    make_manifest(data, tmp_path / "M.json", folds=2, task="instance")
    manifest = load_manifest(tmp_path / "M.json")
    sides = []
    for number, name in enumerate("ab"):
        dice = {case.id: 0.5 + 0.1 * number + place / 100 for place, case in enumerate(manifest.training)}
        sides.append(write_scores(tmp_path / name, manifest, dice))
        (sides[-1] / "masks").mkdir()
        for case in manifest.training:
            truth = tifffile.imread(data / "labels" / f"{case.id}.tif")
            found = np.where(truth > number, truth, 0).astype(np.uint16)
            tifffile.imwrite(sides[-1] / "masks" / f"{case.id}.tif", found, imagej=True)
    compare(*sides, out=tmp_path / "OUT", data=tmp_path / "M.json")
    html = (tmp_path / "OUT/comparison.html").read_text(encoding="utf-8")
    assert html.count("data:image/png") == 2 * 3, "the three largest gains"


def test_pictures_need_a_page(evaluation: Path, toys: Path) -> None:
    with pytest.raises(UsageError, match="no page"):
        compare(evaluation, evaluation, data=toys)
