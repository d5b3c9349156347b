"""A cascade from its training to its masks: honest first stages, resumed where it was stopped, an ensemble of folds."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from toy_set import PIPELINE, SHAPE, SPACING, write_toy_set

from unet_med import load_model
from unet_med.bundle import load_bundle, read_bundle_info
from unet_med.data import PreparedCases
from unet_med.errors import ConfigError, UsageError
from unet_med.geometry import Geometry
from unet_med.inference.predictor import Predictor
from unet_med.io.source import IntakeOptions
from unet_med.manifest import ManifestCase, load_manifest
from unet_med.training.trainer import Trainer
from unet_med.volume import Volume
from unet_med.workflows import cascade as cascade_module
from unet_med.workflows.cascade import honest_halves, low_config, second_stage
from unet_med.workflows.doctor import doctor
from unet_med.workflows.info import info
from unet_med.workflows.manifest import make_manifest
from unet_med.workflows.outcome import Outcome
from unet_med.workflows.predict import predict
from unet_med.workflows.train import train

LOW_MM = [2.0, 2.0, 2.5]
CASCADE = PIPELINE | {
    "cascade": {"spacing_mm": LOW_MM},
    "sampling": {"patch_voxels": [16, 16, 16], "batch_size": 2},
    "training": PIPELINE["training"] | {"epochs": 6, "steps_per_epoch": 6, "validation_every_epochs": 4},
}
SHORT = CASCADE["training"] | {"epochs": 3, "steps_per_epoch": 2, "checkpoint_minutes": 1e-6}
QUICK = CASCADE | {"tracking": {"enabled": False}, "training": SHORT}


def go(place: Path, out: str = "RUN", **options: Any) -> Outcome:
    return train(place / "toy.yaml", place / "M.json", place / out, device="cpu", **options)


@pytest.fixture(scope="module")
def crossed(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """A cross-validation of two folds, each a cascade; ``RUN`` and ``mlflow.db`` in it are only read.

    ``masks.json`` says which models made the mask of which case.
    """
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("crossed")
    shutil.copy(empty_store, place / "mlflow.db")
    write_toy_set(place / "data", cases=6)
    (place / "toy.yaml").write_text(yaml.safe_dump(CASCADE), encoding="utf-8")
    make_manifest(place / "data", place / "M.json", folds=2, intake=IntakeOptions())
    made: list[Any] = []
    grids: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        original, given = cascade_module._Writer, cascade_module.Priors.of

        class Noted(original):  # type: ignore[misc, valid-type]
            def __init__(self, models: Any, *arguments: Any) -> None:
                super().__init__(models, *arguments)
                self.models = [str(model.folder) for model in models]

            def write(self, case: ManifestCase, file: Path) -> None:
                super().write(case, file)
                made.append([case.id, self.models])

        def noted(self: Any, *arguments: Any) -> PreparedCases:
            prepared = given(self, *arguments)
            for case in prepared.cases:
                prior = case.prior()
                assert prior is not None
                assert prior.shape == case.shape
                grids[case.id] = [str(prior.dtype), sorted(map(int, np.unique(prior)))]
            return prepared

        patch.setattr(cascade_module, "_Writer", Noted)
        patch.setattr(cascade_module.Priors, "of", noted)
        outcome = go(place, fold="cv")
    told = {"code": outcome.exit_code, "lines": outcome.lines, "masks": made, "grids": grids}
    (place / "told.json").write_text(json.dumps(told), encoding="utf-8")
    return place


@pytest.fixture
def place(crossed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same data and a shorter pipeline, without MLflow and without a run."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(crossed / "data", tmp_path / "data")
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(QUICK), encoding="utf-8")
    make_manifest(tmp_path / "data", tmp_path / "M.json", folds=2, intake=IntakeOptions())
    return tmp_path


@pytest.fixture(scope="module")
def whole(crossed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fold 0 with the shorter pipeline, trained in one go."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "toy.yaml").write_text(yaml.safe_dump(QUICK), encoding="utf-8")
    train(folder / "toy.yaml", crossed / "M.json", folder / "RUN", fold="0", device="cpu")
    return folder / "RUN"


def told(crossed: Path) -> Any:
    return json.loads((crossed / "told.json").read_text(encoding="utf-8"))


def test_no_mask_comes_from_a_model_that_saw_the_case(crossed: Path) -> None:
    cases = {case.id: case for case in load_manifest(crossed / "M.json").training}
    made = told(crossed)["masks"]
    assert len(made) == 2 * len(cases)
    for case_id, models in made:
        fold = Path(models[0]).parents[2].name
        held_out = f"fold_{cases[case_id].fold}" == fold
        assert len(models) == (2 if held_out else 1)
        for model in models:
            training = read_bundle_info(model).meta["training"]
            assert cases[case_id].sha256["image"] not in training["case_sha256"]
            assert training["fold"].startswith(f"{fold}-low_")


def test_both_first_stages_together_saw_the_training_cases(crossed: Path) -> None:
    for number in (0, 1):
        bundle = read_bundle_info(crossed / "RUN" / f"fold_{number}")
        first, second = (set(low.meta["training"]["case_sha256"]) for low in bundle.low)
        assert first
        assert second
        assert not first & second
        assert first | second == set(bundle.meta["training"]["case_sha256"])
        assert bundle.config.cascade.spacing_mm == tuple(LOW_MM)
        for low in bundle.low:
            assert low.config.preprocess.spacing_mm == tuple(LOW_MM)
            assert low.config.cascade.spacing_mm is None
            assert low.meta["training"]["steps"] == 6  # a sixth of six epochs each
        assert bundle.meta["training"]["steps"] == 4 * 6


def test_masks_are_small_integers_on_the_grid_of_the_second_stage(crossed: Path) -> None:
    grids = told(crossed)["grids"]
    assert len(grids) == 6
    for dtype, values in grids.values():
        assert dtype == "uint8"
        assert set(values) <= {0, 1, 2}
    assert any(len(values) > 1 for _, values in grids.values())


def test_what_the_terminal_says(crossed: Path) -> None:
    text = "\n".join(told(crossed)["lines"])
    assert told(crossed)["code"] == 0
    assert text.count("first stage at low resolution: Dice 0.") == 2
    assert "ensemble of 2" in text
    assert text.count("mlflow ui --backend-store-uri") == 1


def test_first_stages_are_runs_below_their_fold(crossed: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{(crossed / 'mlflow.db').as_posix()}")
    experiment = client.get_experiment_by_name("toy")
    runs = client.search_runs([experiment.experiment_id])
    parents = {run.data.tags["fold"]: run.data.tags.get("mlflow.parentRunId") for run in runs}
    ids = {run.data.tags["fold"]: run.info.run_id for run in runs}
    assert sorted(ids) == ["cv", *(f"fold_{n}{low}" for n in (0, 1) for low in ("", "-low_0", "-low_1"))]
    for number in (0, 1):
        assert parents[f"fold_{number}"] == ids["cv"]
        assert {parents[f"fold_{number}-low_{low}"] for low in (0, 1)} == {ids[f"fold_{number}"]}
    assert {run.info.status for run in runs} == {"FINISHED"}
    (version,) = client.search_model_versions("name='toy'")
    assert str(version.version) == "1"


def test_the_ensemble_of_cascades_predicts(crossed: Path, tmp_path: Path, inline_worker: None) -> None:
    outcome = predict(str(crossed / "RUN"), crossed / "data" / "imagesTr", tmp_path / "OUT", device="cpu")
    assert outcome.exit_code == 0
    report = json.loads((tmp_path / "OUT" / "report.json").read_text(encoding="utf-8"))
    assert len(report["cases"]) == 6
    model = load_model(crossed / "RUN", device="cpu")
    mask = np.asarray(nib.load(tmp_path / "OUT" / "toy_00.nii.gz").dataobj)
    image = nib.load(crossed / "data" / "imagesTr" / "toy_00.nii.gz")
    assert mask.shape == SHAPE
    assert len(np.unique(mask)) > 1
    assert np.array_equal(model.predict(np.asarray(image.dataobj), affine=image.affine), mask)


def test_what_is_said_of_it(crossed: Path) -> None:
    result = info(str(crossed / "RUN" / "fold_0"))
    assert "a cascade (first stage at 2, 2, 2.5 mm)" in "\n".join(result.lines)
    assert [one["name"] for one in result.result["first_stage"]] == ["low_0", "low_1"]
    assert "a cascade" in "\n".join(info(str(crossed / "RUN")).lines)


def test_estimates_count_both_stages(crossed: Path) -> None:
    run, image = crossed / "RUN" / "fold_0", crossed / "data" / "imagesTr" / "toy_00.nii.gz"
    (case,) = doctor(str(run), image).result["cases"]
    volume = Volume(np.asarray(nib.load(image).dataobj)[None], Geometry.from_spacing(SHAPE, SPACING))
    assert case["windows"] == Predictor([load_bundle(run)], "cpu").predict(volume).windows
    outcome = doctor(str(run / "pipeline.yaml"))
    assert any("the first one, at low resolution, is not counted" in line for line in outcome.lines)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    bundle = load_bundle(folder)
    parts = {"full": bundle, "low_0": bundle.low[0], "low_1": bundle.low[1]}
    return {f"{part}.{name}": value for part, one in parts.items() for name, value in one.state.items()}


@pytest.mark.parametrize("step", [1, 3, 6])
def test_what_was_interrupted_goes_on_as_if_it_had_not_been(
    place: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Two steps for each first stage, four for the second: it is stopped in the first, the second and the last."""
    original, taken = Trainer.train_step, [0]

    def stops(self: Trainer, *arguments: Any) -> float:
        if taken[0] == step:
            raise KeyboardInterrupt
        taken[0] += 1
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", stops)
        with pytest.raises(KeyboardInterrupt):
            go(place, fold="0")
    trained: list[int] = []

    def counts(self: Trainer, *arguments: Any) -> float:
        trained.append(self.step)
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, "train_step", counts)
    go(place, fold="0", resume=True)
    assert len(trained) == 8 - step  # nothing twice
    ours, theirs = weights(place / "RUN"), weights(whole)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
    assert not (place / "RUN" / "cache").exists()


def test_overwriting_trains_the_first_stage_anew(place: Path, whole: Path) -> None:
    before = weights(whole)
    shutil.copytree(whole, place / "RUN")
    go(place, fold="0", overwrite=True, overrides=["seed=1"])
    after = weights(place / "RUN")
    assert all(not torch.equal(before[name], after[name]) for name in before if name.endswith("0.0.0.weight"))


@pytest.mark.slow
def test_two_processes_train_it_as_one(place: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    exact = ["--set", "training.precision=fp32", "--set", "training.optimizer=sgd"]
    command = ["-m", "unet_med", "train", "toy.yaml", "--data", "M.json", "--device", "cpu", *exact, "--out", "TWO"]
    done = subprocess.run([*torchrun, *command], cwd=place, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("first stage at low resolution: Dice") == 1
    go(place, "ONE", fold="0", overrides=exact[1::2])
    two, one = weights(place / "TWO"), weights(place / "ONE")
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-4, msg=name)


def test_what_a_cascade_cannot_do(place: Path, crossed: Path) -> None:
    with pytest.raises(UsageError, match="fresh weights"):
        go(place, fold="0", start_from=str(crossed / "RUN" / "fold_0" / "model" / "low_0"))
    with pytest.raises(UsageError, match="is a cascade"):
        go(place, fold="0", start_from=str(crossed / "RUN" / "fold_0"), overrides=["cascade.spacing_mm=null"])
    cases = load_manifest(place / "M.json").training
    alone = [case for case in cases if case.group == cases[0].group]
    with pytest.raises(ConfigError, match="patients"):
        honest_halves(alone, alone, 0)


def test_halves_keep_patients_together_whatever_the_order_and_whoever_is_missing(place: Path) -> None:
    cases = [replace(case, group=f"patient{n // 2}") for n, case in enumerate(load_manifest(place / "M.json").training)]
    halves = honest_halves(cases, cases, 3)
    groups = [{case.group for case in half} for half in halves]
    assert not groups[0] & groups[1]
    assert sorted(map(len, halves)) == [2, 4]
    known = [{case.id for case in half} for half in halves]
    assert [{case.id for case in half} for half in honest_halves(cases[::-1], cases, 3)] == known
    for missing in cases:
        left = [case for case in cases if case is not missing]
        assert [{case.id for case in half} for half in honest_halves(cases, left, 3)] == [
            half - {missing.id} for half in known
        ]
    with pytest.raises(ConfigError, match="two at least"):
        honest_halves(cases, halves[0], 3)


def test_the_budget_is_shared(crossed: Path) -> None:
    resolved = load_bundle(crossed / "RUN" / "fold_0").config
    timed = resolved.replacing({"training.max_minutes": 30.0})
    assert low_config(timed, timed).training.max_minutes == pytest.approx(5.0)
    assert second_stage(timed).training.max_minutes == pytest.approx(20.0)
    assert low_config(resolved, resolved).training.epochs == 1
    assert second_stage(resolved).training.epochs == 4
    plain = resolved.replacing({"cascade.spacing_mm": None})
    assert second_stage(plain) is plain
