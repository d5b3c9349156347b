"""Held-out cases are scored on their own grids; what the model was trained on is not."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from inline_worker import InlineWorker

from unet_med.bundle import load_bundle
from unet_med.errors import ModelError, NothingUsableError, UsageError
from unet_med.manifest import load_manifest
from unet_med.workflows import evaluate as evaluate_module
from unet_med.workflows.evaluate import evaluate, score_cases
from unet_med.workflows.info import info
from unet_med.workflows.manifest import make_manifest

SHAPE = (15, 13, 10)
LABELS = {"label_names": "1=bright,2=dark"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(evaluate_module, "Worker", InlineWorker)
    yield
    torch.set_num_threads(before)


def _truth(image: np.ndarray) -> np.ndarray:
    z = (image - image.mean()) / image.std()
    label = np.where(z > 0, 1, np.where(z < -1.5, 2, 0)).astype(np.uint8)
    label[:3] = 0  # and so the model, which knows nothing of it, errs a little
    return label


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / name).mkdir(parents=True)
    affine = np.array([[0, -1.0, 0, 5], [0.8, 0, 0, 6], [0, 0, 2.5, 7], [0, 0, 0, 1.0]])
    for number in range(6):
        image = np.random.default_rng(number).normal(50, 10, SHAPE).astype(np.float32)
        nib.save(nib.Nifti1Image(image, affine), folder / "imagesTr" / f"case_{number}.nii.gz")
        nib.save(nib.Nifti1Image(_truth(image), affine), folder / "labelsTr" / f"case_{number}.nii.gz")
    outcome = make_manifest(folder, tmp_path / "M.json", folds=3, **LABELS)
    assert outcome.exit_code == 0, outcome.lines
    return tmp_path / "M.json"


def _trained_on_all_but(manifest: Path, fold: int) -> dict[str, Any]:
    cases = load_manifest(manifest).training
    return {
        "training": {
            "case_sha256": [case.sha256["image"] for case in cases if case.fold != fold],
            "fold": f"fold_{fold}",
            "n_cases": 4,
            "modality": "MR",
        },
        "results": {"held_out": {"mean": {"dice": 0.9}}},
        "reasons": {"sampling.patch_voxels": "fits the memory"},
        "tool_version": "0.1.0",
        "created": "2026-01-01T00:00:00+00:00",
    }


def test_the_fold_that_was_held_out_is_scored(tiny_bundle, manifest: Path, tmp_path: Path) -> None:
    model = tiny_bundle(meta=_trained_on_all_but(manifest, 1))
    out = tmp_path / "eval"
    outcome = evaluate(str(model), manifest, out=out, device="cpu")
    assert outcome.exit_code == 0
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert metrics == outcome.result
    expected = {case.id: case for case in load_manifest(manifest).training if case.fold == 1}
    assert metrics["n_cases"] == len(expected) == 2
    assert {entry["id"] for entry in metrics["cases"]} == set(expected)
    assert metrics["evaluated"] == "fold 1"
    assert metrics["trained_on"] == 0
    assert metrics["wall_seconds"] > 0
    assert metrics["model_sha256"] == load_bundle(model).sha256
    for entry in metrics["cases"]:
        ours = SimpleITK.ReadImage(str(out / "masks" / f"{entry['id']}.nii.gz"))
        label = SimpleITK.ReadImage(str(expected[entry["id"]].case.label.files[0]))
        measure = SimpleITK.LabelOverlapMeasuresImageFilter()
        measure.Execute(label, ours)
        assert entry["dice"]["bright"] == pytest.approx(measure.GetDiceCoefficient(1), abs=1e-9)
        assert 0.7 < entry["dice"]["bright"] < 1
    assert 0.7 < metrics["mean"]["dice"] < 1
    with (out / "cases.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["id"], row["label"]) for row in rows} == {(n, label) for n in expected for label in ("bright", "dark")}
    assert float(rows[0]["dice"]) == pytest.approx(metrics["cases"][0]["dice"]["bright"])
    assert len(list((out / "previews").glob("*.png"))) == 2
    assert any("mean" in line for line in outcome.lines)


def test_training_cases_are_refused_unless_allowed(tiny_bundle, manifest: Path, tmp_path: Path) -> None:
    model = str(tiny_bundle(meta=_trained_on_all_but(manifest, 1)))
    with pytest.raises(UsageError, match=r"trained on 2 of the 2 cases of fold 0.*--allow-training-cases") as caught:
        evaluate(model, manifest, fold=0, out=tmp_path / "eval", device="cpu")
    assert caught.value.exit_code == 2
    assert not (tmp_path / "eval").exists()
    outcome = evaluate(model, manifest, fold=0, out=tmp_path / "eval", device="cpu", allow_training_cases=True)
    assert outcome.result["trained_on"] == 2
    assert any("WARNING" in line for line in outcome.lines)


def test_the_same_case_under_another_name_is_recognised(tiny_bundle, manifest: Path, tmp_path: Path) -> None:
    meta = _trained_on_all_but(manifest, 1)
    folder = manifest.parent / "set"
    for name in ("imagesTr", "labelsTr"):
        for number in range(6):
            (folder / name / f"case_{number}.nii.gz").rename(folder / name / f"new_{5 - number}.nii.gz")
    make_manifest(folder, tmp_path / "N.json", folds=3, **LABELS)
    seen = 0
    for fold in range(3):
        try:
            evaluate(str(tiny_bundle("m", meta=meta)), tmp_path / "N.json", fold=fold, out=tmp_path / f"e{fold}")
        except UsageError:
            seen += 1
    assert seen >= 2


def test_folds_and_splits_that_do_not_exist(tiny_bundle, manifest: Path, tmp_path: Path) -> None:
    model = str(tiny_bundle(meta={"training": {"fold": "all"}}))
    out = tmp_path / "eval"
    with pytest.raises(UsageError, match="held out no fold"):
        evaluate(model, manifest, out=out)
    with pytest.raises(UsageError, match=r"no fold 7.*\[0, 1, 2\]"):
        evaluate(model, manifest, fold=7, out=out)
    with pytest.raises(UsageError, match="no split"):
        evaluate(model, manifest, split="training", out=out)
    with pytest.raises(NothingUsableError, match="no labelled case"):
        evaluate(model, manifest, split="test", out=out)


def test_other_labels_do_not_fit(tiny_bundle, manifest: Path, tmp_path: Path) -> None:
    model = str(tiny_bundle(labels={"background": 0, "dark": 1, "bright": 2}))
    with pytest.raises(ModelError, match="same labels"):
        evaluate(model, manifest, fold=0, out=tmp_path / "eval")


def test_a_case_that_changed_is_refused_and_the_others_scored(tiny_bundle, manifest: Path, tmp_path: Path) -> None:
    case = next(case for case in load_manifest(manifest).training if case.fold == 2)
    path = case.case.sources[0].files[0]
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + 1, image.affine), path)
    outcome = evaluate(str(tiny_bundle()), manifest, fold=2, out=tmp_path / "eval", device="cpu")
    assert outcome.exit_code == 3
    assert outcome.result["n_cases"] == 1
    assert outcome.result["refused"][0]["id"] == case.id
    assert "sha256" in outcome.result["refused"][0]["reason"]


def test_an_evaluation_goes_on_where_it_stopped(tiny_bundle, manifest: Path, tmp_path: Path) -> None:
    model, out = str(tiny_bundle()), tmp_path / "eval"
    first = evaluate(model, manifest, fold=1, out=out, device="cpu").result
    stamps = {path: path.stat().st_mtime_ns for path in (out / "masks").iterdir()}
    second = evaluate(model, manifest, fold=1, out=out, device="cpu").result
    assert first["cases"] == second["cases"]
    assert {path: path.stat().st_mtime_ns for path in (out / "masks").iterdir()} == stamps
    with pytest.raises(UsageError, match="another job"):
        evaluate(model, manifest, fold=2, out=out, device="cpu")


def test_scores_in_memory_are_those_of_evaluate(tiny_bundle, manifest: Path, tmp_path: Path) -> None:
    model = tiny_bundle()
    cases = [case for case in load_manifest(manifest).training if case.fold == 1]
    scored, refused = score_cases([model], cases, "cpu")
    assert refused == []
    outcome = evaluate(str(model), manifest, fold=1, out=tmp_path / "eval", device="cpu")
    for ours, theirs in zip(scored, outcome.result["cases"], strict=True):
        assert ours["id"] == theirs["id"]
        assert {name: row["dice"] for name, row in ours["labels"].items()} == theirs["dice"]


def test_info_tells_what_a_model_is(tiny_bundle, manifest: Path) -> None:
    outcome = info(str(tiny_bundle(meta=_trained_on_all_but(manifest, 1))))
    text = "\n".join(outcome.lines)
    for part in (
        "0 background, 1 bright, 2 dark",
        "16, 16, 16",
        "fits the memory",
        "Research use only",
        "4 cases",
        "0.9",
    ):
        assert part in text, part
    assert outcome.exit_code == 0
    assert outcome.result["labels"] == {"background": 0, "bright": 1, "dark": 2}
    assert "case_sha256" not in outcome.result["training"]
    json.dumps(outcome.result)
    bare = info(str(tiny_bundle("bare", meta={})))
    assert any("no score" in line for line in bare.lines)
