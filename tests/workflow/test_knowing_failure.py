"""A model says which of its masks somebody should look at, and which images are unlike those it learnt from."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from inline_worker import InlineWorker
from toy_set import Trained

from unet_med.bundle import load_bundle
from unet_med.geometry import Geometry
from unet_med.inference.predictor import Predictor
from unet_med.inference.quality.assessment import quality_meta
from unet_med.inference.quality.evidence import CaseEvidence
from unet_med.inference.quality.outliers import typical_meta
from unet_med.volume import Volume
from unet_med.workflows import evaluate as evaluate_module
from unet_med.workflows.evaluate import evaluate
from unet_med.workflows.info import info
from unet_med.workflows.manifest import make_manifest
from unet_med.workflows.predict import predict

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE, SPACING = (16, 14, 12), (1.0, 1.0, 2.0)


def _image(seed: int, contrast: float) -> np.ndarray:
    """Stripes; the less contrast they have over noise, the less sure the tiny model is of the bright ones."""
    random = np.random.default_rng(seed)
    stripes = np.where(np.arange(SHAPE[0]) // 4 % 2, 1.0, -1.0)[:, None, None]
    return (100 + 10 * (contrast * stripes + random.normal(size=SHAPE))).astype(np.float32)


def _contrast(seed: int) -> float:
    """Few cases are faint."""
    return float(2.5 * np.sqrt(np.random.default_rng(seed).uniform()))


def _scored(bundle: Any, count: int = 40) -> list[dict[str, Any]]:
    """Cases as a fold scores them; the truth is where the stripes are bright."""
    predictor = Predictor([bundle], "cpu")
    rows = []
    truth = np.broadcast_to((np.arange(SHAPE[0]) // 4 % 2)[:, None, None], SHAPE) > 0
    for seed in range(count):
        evidence = CaseEvidence(predictor.labels)
        image = _image(seed, _contrast(seed))
        labels = predictor.predict(_volume(image), evidence=evidence).labels
        dice = 2 * (truth & (labels == 1)).sum() / (truth.sum() + (labels == 1).sum())
        scores = {"dice": float(dice), "label_voxels": int(truth.sum()), "mask_voxels": int((labels == 1).sum())}
        rows.append({"id": f"c{seed}", "labels": {"bright": scores | evidence.features()[0]["bright"]}})
    return rows


def _volume(image: np.ndarray) -> Volume:
    return Volume(image[None], Geometry.from_spacing(SHAPE, SPACING))


def _typical() -> dict[str, Any]:
    images = [_image(seed, _contrast(seed)) for seed in range(40)]
    grid = Geometry.from_spacing(SHAPE, SPACING)
    return typical_meta((grid, ((image - image.mean()) / image.std())[None]) for image in images)


def _write(folder: Path, name: str, image: np.ndarray, spacing: tuple[float, ...] = SPACING) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(image, np.diag([*spacing, 1.0])), folder / f"{name}.nii.gz")


@pytest.fixture
def model(tiny_bundle) -> Path:
    plain = load_bundle(tiny_bundle("plain", training__precision="fp32"))
    meta = {"quality": quality_meta(_scored(plain)), "typical": _typical()}
    return tiny_bundle("knowing", meta=meta, training__precision="fp32")


@pytest.mark.usefixtures("inline_worker")
def test_the_report_says_what_needs_a_look(model: Path, tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    _write(scans, "clear", _image(100, 2.3))
    _write(scans, "faint", _image(101, 0.4))
    _write(scans, "coarse", _image(102, 2.3), (1.0, 1.0, 9.0))
    outcome = predict(str(model), scans, tmp_path / "out", device="cpu")
    assert outcome.exit_code == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    cases = {entry["id"]: entry for entry in report["cases"]}
    clear, faint, coarse = (cases[name] for name in ("clear", "faint", "coarse"))
    assert clear["look_at"] == clear["unusual"] == []
    assert clear["predicted_dice"]["bright"]["value"] > 0.8
    assert set(clear["predicted_dice"]["bright"]) == {"value", "low", "high"}
    assert faint["predicted_dice"]["bright"]["value"] < clear["predicted_dice"]["bright"]["value"] - 0.1
    assert any("9 mm from foot to head, 2 in training" in sentence for sentence in coarse["unusual"])
    lines = [line for line in outcome.lines if line.startswith("look at: ")]
    assert {line.split(": ")[1] for line in lines} == {"coarse", "faint"}
    assert any("predicted Dice of bright" in line for line in lines)


@pytest.mark.usefixtures("inline_worker")
def test_a_model_that_knows_nothing_says_nothing(tiny_bundle, tmp_path: Path) -> None:
    _write(tmp_path / "scans", "a", _image(0, 1.0))
    outcome = predict(str(tiny_bundle()), tmp_path / "scans", tmp_path / "out", device="cpu")
    (case,) = outcome.result["cases"]
    assert (case["predicted_dice"], case["unusual"], case["look_at"]) == (None, None, None)
    assert not any(line.startswith("look at") for line in outcome.lines)


def test_an_evaluation_sets_predicted_beside_true_dice(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate_module, "Worker", InlineWorker)
    label = np.broadcast_to((np.arange(SHAPE[0]) // 4 % 2)[:, None, None], SHAPE).astype(np.uint8).copy()
    label[0, 0, 0] = 2
    for number, contrast in enumerate((0.5, 1.0, 2.0)):
        _write(tmp_path / "set" / "imagesTr", f"c{number}", _image(200 + number, contrast))
        _write(tmp_path / "set" / "labelsTr", f"c{number}", label)
    make_manifest(tmp_path / "set", tmp_path / "M.json", folds=3, label_names="1=bright,2=dark")
    outcomes = [evaluate(str(model), tmp_path / "M.json", fold, out=tmp_path / f"out{fold}") for fold in range(3)]
    cases = sorted((case for outcome in outcomes for case in outcome.result["cases"]), key=lambda case: case["id"])
    predicted = [case["predicted_dice"]["bright"] for case in cases]
    assert predicted == sorted(predicted)
    assert predicted == pytest.approx([case["dice"]["bright"] for case in cases], abs=0.15)
    with (tmp_path / "out0" / "cases.csv").open(encoding="utf-8", newline="") as file:
        bright, dark = csv.DictReader(file)
    assert 0.0 < float(bright["predicted_dice"]) < 1.0
    assert dark["predicted_dice"] == ""


def test_the_model_says_what_it_knows_of_its_failures(model: Path) -> None:
    outcome = info(str(model))
    assert outcome.result["knows"][0].startswith("Dice of bright: predicted by")
    assert any("traits of 40 cases" in line for line in outcome.lines)


def test_training_learns_what_is_typical_and_what_the_held_out_cases_say(trained: Trained) -> None:
    meta = load_bundle(trained.run).meta
    assert (meta["typical"]["cases"], meta["typical"]["limit"]) == (4, None)
    assert set(meta["quality"]["labels"]) == set(load_bundle(trained.run).labels.names)
    for entry in meta["quality"]["labels"].values():
        assert entry["sentence"] == "not predicted: 2 held-out cases, at least 10 are needed"
    metrics = json.loads((trained.run / "metrics.json").read_text(encoding="utf-8"))
    for case in metrics["cases"]:
        for name, expected in case["expected_dice"].items():
            assert expected == pytest.approx(case["dice"][name], abs=0.25)
