"""After a cross-validation the run folder is a model: the ensemble of its folds, with what was learnt out of fold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from inline_worker import InlineWorker
from toy_set import PIPELINE, write_toy_set

from unet_med import load_model
from unet_med.bundle import load_bundle, read_bundle_info
from unet_med.config import Postprocess
from unet_med.errors import UsageError
from unet_med.io.source import IntakeOptions
from unet_med.manifest import load_manifest
from unet_med.transforms.postprocess import postprocess_labels
from unet_med.workflows import cards, cross_validation, fold
from unet_med.workflows import evaluate as evaluate_module
from unet_med.workflows import train as train_module
from unet_med.workflows.doctor import doctor
from unet_med.workflows.evaluate import evaluate
from unet_med.workflows.info import info
from unet_med.workflows.manifest import make_manifest
from unet_med.workflows.outcome import Outcome
from unet_med.workflows.predict import predict
from unet_med.workflows.train import train

SHORT = PIPELINE | {"training": PIPELINE["training"] | {"epochs": 1, "steps_per_epoch": 15}}


def go(place: Path, out: str = "RUN", **options: Any) -> Outcome:
    return train(place / "toy.yaml", place / "M.json", place / out, device="cpu", **options)


@pytest.fixture(scope="module")
def crossed(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """A cross-validation of two folds; ``RUN`` and ``mlflow.db`` in it are only read."""
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("crossed")
    shutil.copy(empty_store, place / "mlflow.db")
    write_toy_set(place / "data", cases=4)
    (place / "toy.yaml").write_text(yaml.safe_dump(SHORT), encoding="utf-8")
    make_manifest(place / "data", place / "M.json", folds=2, intake=IntakeOptions())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        outcome = go(place, fold="cv")
    (place / "outcome.json").write_text(
        json.dumps({"code": outcome.exit_code, "lines": outcome.lines}), encoding="utf-8"
    )
    return place


@pytest.fixture
def place(crossed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same data and pipeline, without MLflow and without a run."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(crossed / "data", tmp_path / "data")
    quick = SHORT | {"tracking": {"enabled": False}, "training": SHORT["training"] | {"steps_per_epoch": 2}}
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(quick), encoding="utf-8")
    make_manifest(tmp_path / "data", tmp_path / "M.json", folds=2, intake=IntakeOptions())
    return tmp_path


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch, inline_worker: None) -> None:
    monkeypatch.setattr(evaluate_module, "Worker", InlineWorker)


def test_every_case_is_scored_by_the_model_that_had_not_seen_it(crossed: Path) -> None:
    metrics = json.loads((crossed / "RUN" / "metrics.json").read_text(encoding="utf-8"))
    by_fold = {
        number: json.loads((crossed / "RUN" / f"fold_{number}" / "metrics.json").read_text(encoding="utf-8"))
        for number in (0, 1)
    }
    assert metrics["n_cases"] == 4
    for case in load_manifest(crossed / "M.json").training:
        (own,) = (entry for entry in by_fold[case.fold]["cases"] if entry["id"] == case.id)
        assert next(entry for entry in metrics["cases"] if entry["id"] == case.id) == own
        bundle = read_bundle_info(crossed / "RUN" / f"fold_{case.fold}")
        assert case.sha256["image"] not in bundle.meta["training"]["case_sha256"]
    assert metrics["mean"]["dice"] == pytest.approx(
        np.mean([np.mean([e["dice"][name] for e in metrics["cases"]]) for name in metrics["per_label"]])
    )


def test_the_run_is_an_ensemble(crossed: Path) -> None:
    ensemble = read_bundle_info(crossed / "RUN")
    assert [member.folder.name for member in ensemble.members] == ["fold_0", "fold_1"]
    folds = [read_bundle_info(crossed / "RUN" / name) for name in ("fold_0", "fold_1")]
    assert [member.sha256 for member in ensemble.members] == [one.sha256 for one in folds]
    training = ensemble.meta["training"]
    assert training["n_cases"] == len(training["case_sha256"]) == 4
    assert ensemble.meta["results"]["out_of_fold"]["n_cases"] == 4
    assert ensemble.meta["quality"]["cases"] == 4
    assert "typical" in ensemble.meta
    assert not (crossed / "RUN" / "out_of_fold").exists()
    assert not (crossed / "RUN" / "cache").exists()


def test_what_the_terminal_says(crossed: Path) -> None:
    told = json.loads((crossed / "outcome.json").read_text(encoding="utf-8"))
    assert told["code"] == 0
    text = "\n".join(told["lines"])
    metrics = json.loads((crossed / "RUN" / "metrics.json").read_text(encoding="utf-8"))
    for name, row in metrics["per_label"].items():
        (line,) = (one for one in told["lines"] if one.split()[:1] == [name])
        assert line.split()[1] == f"{row['dice']:.4f}"
    assert "out of fold, 4 cases" in text
    assert "Dice of the folds: fold_0 " in text
    assert "ensemble of 2" in text
    assert "postprocess.keep_largest: " in text
    assert "registered: models:/toy/1" in text
    assert text.count("mlflow ui --backend-store-uri") == 1


def test_the_record_in_mlflow(crossed: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{(crossed / 'mlflow.db').as_posix()}")
    experiment = client.get_experiment_by_name("toy")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(runs) == 3
    assert len(children) == 2
    metrics = json.loads((crossed / "RUN" / "metrics.json").read_text(encoding="utf-8"))
    for name, row in metrics["per_label"].items():
        assert parent.data.metrics[f"final/dice/{name}"] == pytest.approx(row["dice"])
    assert client.get_model_version_by_alias("toy", "candidate").run_id == parent.info.run_id
    assert len(client.search_model_versions("name='toy'")) == 1
    table = client.list_artifacts(parent.info.run_id)
    assert {"cases.json", "model"} <= {artifact.path for artifact in table}
    charts = {artifact.path for artifact in client.list_artifacts(parent.info.run_id, "scores")}
    assert charts == {f"scores/{name}.png" for name in ("calibration", "confusion", "size_and_dice")}
    model = {artifact.path for artifact in client.list_artifacts(parent.info.run_id, "model")}
    assert {"model/MLmodel", "model/bundle.json", "model/fold_0"} <= model
    texts = [(crossed / "RUN" / f"fold_{n}" / "metrics.json").read_text(encoding="utf-8") for n in (0, 1)]
    tables = [np.array(json.loads(text)["confusion"]["table"]) for text in texts]
    assert metrics["confusion"]["table"] == (tables[0] + tables[1]).tolist()


def test_the_registered_ensemble_is_loaded_by_its_address(crossed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(crossed)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{(crossed / 'mlflow.db').as_posix()}")
    assert read_bundle_info("models:/toy@candidate").sha256 == read_bundle_info(crossed / "RUN").sha256


@pytest.mark.usefixtures("_quick")
def test_predicting_with_the_run_is_predicting_with_all_folds(crossed: Path, tmp_path: Path) -> None:
    images = crossed / "data" / "imagesTr"
    ensemble, rest = str(crossed / "RUN"), crossed / "RUN"
    known = read_bundle_info(ensemble)
    together = predict(ensemble, images, tmp_path / "A", device="cpu")
    apart = predict(str(rest / "fold_0"), images, tmp_path / "B", also=[str(rest / "fold_1")], device="cpu")
    assert together.exit_code == apart.exit_code == 0
    assert together.result["model_sha256"] == known.sha256
    assert len(list((tmp_path / "A").glob("*.nii.gz"))) == 4
    for path in sorted((tmp_path / "A").glob("*.nii.gz")):
        mean = np.asarray(nib.load(tmp_path / "B" / path.name).dataobj)
        cleaned = postprocess_labels(mean, known.config.postprocess, known.labels)
        np.testing.assert_array_equal(nib.load(path).dataobj, cleaned)
    image = nib.load(images / "toy_00.nii.gz")
    mask = load_model(ensemble, device="cpu").predict(image.get_fdata(), affine=image.affine)
    np.testing.assert_array_equal(mask, nib.load(tmp_path / "A" / "toy_00.nii.gz").dataobj)


@pytest.mark.usefixtures("_quick")
def test_a_fold_is_evaluated_by_the_member_that_held_it_out(crossed: Path, tmp_path: Path) -> None:
    model, data = str(crossed / "RUN"), crossed / "M.json"
    outcome = evaluate(model, data, fold=1, out=tmp_path / "E", device="cpu")
    assert "by the member of the ensemble" in outcome.lines[0]
    assert outcome.result["trained_on"] == 0
    own = json.loads((crossed / "RUN" / "fold_1" / "metrics.json").read_text(encoding="utf-8"))
    assert outcome.result["mean"]["dice"] == pytest.approx(own["mean"]["dice"])
    with pytest.raises(UsageError, match=r"held out no fold.*metrics\.json of its run"):
        evaluate(model, data, out=tmp_path / "F", device="cpu")
    both = evaluate(model, data, fold=1, out=tmp_path / "G", device="cpu", allow_training_cases=True)
    assert both.result["trained_on"] == 2
    assert both.result["model_sha256"] == read_bundle_info(model).sha256


def test_info_names_the_members_and_what_was_chosen(crossed: Path) -> None:
    outcome = info(str(crossed / "RUN"))
    text = "\n".join(outcome.lines)
    assert [member["name"] for member in outcome.result["members"]] == ["fold_0", "fold_1"]
    assert "ensemble of 2" in text
    assert "fold_1: 2 cases, held out 2, Dice 0." in text
    assert "postprocess.keep_largest: " in text
    assert info(str(crossed / "RUN" / "fold_0")).result["members"] == []


def test_the_doctor_takes_an_ensemble(crossed: Path) -> None:
    outcome = doctor(str(crossed / "RUN"))
    assert any(line.startswith("one of 2 models on ") for line in outcome.lines)


def test_what_helps_is_chosen_and_kept_with_its_numbers(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is given an island far away in every case: only the largest component is kept of that label."""

    def with_island(models: Any, cases: Any, device: Any, progress: Any, kept: Any) -> Any:
        from unet_med.metrics import case_metrics

        labels = read_bundle_info(models[0]).labels
        scored = []
        for case in cases:
            truth = case.case.read_label().astype(np.uint8)
            mask = truth.copy()
            mask[-1, -1, 0] = 1
            kept.keep(case.id, mask, truth)
            scored.append({"id": case.id, "labels": case_metrics(mask, truth, None, labels)})
        return scored, []

    monkeypatch.setattr(fold, "score_cases", with_island)
    outcome = go(place, fold="cv")
    one = outcome.result["postprocessing"]
    (name, *_) = read_bundle_info(place / "RUN").labels.names
    assert one["chosen"] == {"keep_largest": [name]}
    assert one["dice_after"][name] == 1.0 > one["dice_before"][name]
    ensemble = read_bundle_info(place / "RUN")
    assert ensemble.config.postprocess.keep_largest == (name,)
    assert ensemble.members[0].config.postprocess == Postprocess()
    assert "4 of 4 cases better" in ensemble.meta["reasons"]["postprocess.keep_largest"]
    assert outcome.result["per_label"][name]["dice"] == pytest.approx(one["dice_before"][name])
    assert go(place, "PLAIN", fold="cv", overrides=["postprocess.choose=false"]).result.get("postprocessing") is None
    assert read_bundle_info(place / "PLAIN").config.postprocess.keep_largest == ()


def test_interrupted_between_folds_it_goes_on_and_loses_no_mask(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = train_module.train_fold
    names: list[str] = []

    def once(config: Any, manifest: Any, cases: Any, folder: Path, session: Any) -> Any:
        names.append(cases.name)
        if len(names) == 2:
            raise KeyboardInterrupt
        return original(config, manifest, cases, folder, session)

    monkeypatch.setattr(train_module, "train_fold", once)
    with pytest.raises(KeyboardInterrupt):
        go(place, fold="cv")
    assert len(list((place / "RUN" / "out_of_fold").glob("*.npz"))) == 2
    outcome = go(place, fold="cv", resume=True)
    assert names == ["fold_0", "fold_1", "fold_1"]
    assert outcome.result["n_cases"] == 4
    assert "reasons" in outcome.result["postprocessing"]
    assert "finished already" in go(place, fold="cv", resume=True).lines[0]


def test_without_the_masks_nothing_is_chosen(crossed: Path) -> None:
    config = read_bundle_info(crossed / "RUN").config
    assert cross_validation._choice(crossed / "nothing", config, {"case"}) is None


def test_training_starts_from_a_model(crossed: Path, place: Path) -> None:
    start = crossed / "RUN" / "fold_0"
    old = load_bundle(start)
    outcome = go(place, fold="0", start_from=str(start), overrides=["network.features=[4,4]", "training.epochs=1"])
    new = load_bundle(place / "RUN")
    assert new.config.network == old.config.network
    assert new.meta["training"]["started_from"]["sha256"] == old.sha256
    assert set(old.meta["training"]["case_sha256"]) <= set(new.meta["training"]["case_sha256"])
    assert new.meta["reasons"]["network.features"] == "kept from the model that training starts from"
    assert not any("WARNING: the model that training starts from" in line for line in outcome.lines)
    change = max(float((new.state[name] - value).abs().max()) for name, value in old.state.items())
    assert 0 < change < 0.2  # two steps away, and not fresh
    with pytest.raises(UsageError, match="another pipeline"):
        go(place, fold="0", resume=True, overrides=["network.features=[4,4]", "training.epochs=1"])
    seen = go(place, "SEEN", fold="1", start_from=str(start))
    assert any("has learnt from 2 of the 2 held-out cases" in line for line in seen.lines)


@pytest.mark.slow
def test_folds_in_processes_of_their_own_leave_the_same(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ["training.precision=fp32", "training.optimizer=sgd"]
    alone = go(place, "ALONE", fold="cv", overrides=overrides)
    monkeypatch.setattr(train_module, "cards_for", lambda device, folds: min(2, folds))
    monkeypatch.setattr(cards, "available_cores", lambda: 2)
    together = go(place, "BOTH", fold="cv", overrides=overrides)
    assert together.exit_code == 0
    assert [case["id"] for case in together.result["cases"]] == [case["id"] for case in alone.result["cases"]]
    for name in ("fold_0", "fold_1"):
        weights, expected = (load_bundle(place / run / name).state for run in ("BOTH", "ALONE"))
        for key, value in expected.items():
            torch.testing.assert_close(weights[key], value, rtol=0, atol=1e-5, msg=key)
    assert together.result["mean"]["dice"] == pytest.approx(alone.result["mean"]["dice"], abs=1e-3)
    assert len(read_bundle_info(place / "BOTH").members) == 2
    assert not list((place / "BOTH").glob("**/cache"))
    journal = json.loads((place / "BOTH" / "run.json").read_text(encoding="utf-8"))
    assert set(journal["folds"]) == {"fold_0", "fold_1"}
