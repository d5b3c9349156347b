"""Training as a user meets it: what it leaves behind, and what it says when something is wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from toy_set import PIPELINE, Trained, write_toy_set

from unet_med.bundle import load_bundle
from unet_med.config import load_config
from unet_med.errors import ConfigError, InputRefusedError, MachineError, NothingUsableError, UsageError
from unet_med.io.source import IntakeOptions
from unet_med.manifest import Finding, Manifest
from unet_med.training.distributed import Team
from unet_med.training.trainer import Trainer
from unet_med.workflows import train as train_module
from unet_med.workflows.manifest import make_manifest
from unet_med.workflows.run import run
from unet_med.workflows.train import train


@pytest.fixture
def place(tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a copy of the toy data, a short pipeline without MLflow, and a manifest."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained.data, tmp_path / "data")
    short = PIPELINE | {
        "training": PIPELINE["training"] | {"epochs": 2, "steps_per_epoch": 2},
        "tracking": {"enabled": False},
    }
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(short), encoding="utf-8")
    return tmp_path


def go(place: Path, out: str = "RUN", **options: Any) -> Any:
    if not (place / "M.json").exists():
        make_manifest(place / "data", place / "M.json", folds=3, intake=IntakeOptions())
    return train(place / "toy.yaml", place / "M.json", place / out, device="cpu", **options)


def change_image(place: Path, name: str, change: Any) -> None:
    path = place / "data" / "imagesTr" / name
    image = nib.load(path)
    values = change(image.get_fdata().astype(np.float32))
    nib.save(nib.Nifti1Image(values, image.affine), path)


def test_what_a_run_leaves_behind(trained: Trained) -> None:
    metrics = json.loads((trained.run / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["n_cases"] == 2
    assert metrics["mean"]["dice"] > 0.8
    bundle = load_bundle(trained.run)
    assert bundle.config.unresolved() == ()
    assert bundle.meta["training"]["fold"] == "fold_0"
    assert len(bundle.meta["training"]["case_sha256"]) == 4
    assert bundle.meta["results"]["held_out"]["mean"]["dice"] == metrics["mean"]["dice"]
    assert load_config(trained.run / "pipeline.yaml") == bundle.config
    reasons = json.loads((trained.run / "plan.json").read_text(encoding="utf-8"))["reasons"]
    assert reasons["loss.class_weights"]
    assert not (trained.run / "cache").exists()
    assert load_bundle(trained.run / "model_best").meta["validation_dice"] > 0.8


def test_the_record_in_mlflow(trained: Trained) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{(trained.work / 'mlflow.db').as_posix()}")
    experiment = client.get_experiment_by_name("toy")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "val/dice/mean")
    assert [metric.step for metric in history] == [1, 2, 3]
    assert run.data.metrics["learning_rate"] > 0
    for name in ("train/loss", "patches_per_second", "system/cpu_utilization_percentage"):
        assert name in run.data.metrics
    labels = load_bundle(trained.run).labels.names
    for name in (*(f"{kind}/{label}" for kind in ("dice", "iou") for label in labels), "dice/mean"):
        assert run.data.metrics[f"train/{name}"] > 0.3
        assert f"val/{name}" in run.data.metrics
    assert {"task", "data_digest", "seed", "fold"} <= run.data.tags.keys()
    assert client.get_model_version_by_alias("toy", "candidate").run_id == run.info.run_id


def test_what_can_be_looked_at_in_mlflow(trained: Trained) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{(trained.work / 'mlflow.db').as_posix()}")
    (run,) = client.search_runs([client.get_experiment_by_name("toy").experiment_id])
    places = (None, "data", "scores", "model")
    found = {entry.path for place in places for entry in client.list_artifacts(run.info.run_id, place)}
    assert {f"data/{name}.png" for name in ("fingerprint", "augmentation")} <= found
    assert {f"scores/{name}.png" for name in ("confusion", "calibration", "size_and_dice")} <= found
    assert {"cases.json", "overlays.png", "worst_cases.png", "pipeline.yaml", "plan.md"} <= found
    assert {f"model/{name}" for name in ("bundle.json", "MODEL_CARD.md", "MLmodel", "input_example.json")} <= found


def test_what_the_metrics_say_of_voxels(trained: Trained) -> None:
    metrics = json.loads((trained.run / "metrics.json").read_text(encoding="utf-8"))
    table = np.array(metrics["confusion"]["table"])
    assert metrics["confusion"]["labels"] == ["background", *load_bundle(trained.run).labels.names]
    assert table.sum() == metrics["n_cases"] * 24 * 28 * 20
    assert (np.diag(table) > 0.5 * table.sum(axis=1)).all()
    assert all(0 <= entry["error"] < 0.5 for entry in metrics["calibration"].values())
    told = load_bundle(trained.run).meta["results"]["held_out"]
    assert "confusion" not in told
    assert set(told["calibration_error"]) == set(metrics["calibration"])


def test_a_second_start_needs_a_word(place: Path) -> None:
    go(place)
    with pytest.raises(UsageError, match="--resume"):
        go(place)
    again = go(place, resume=True)
    assert "finished already" in again.lines[0]
    with pytest.raises(UsageError, match="another pipeline"):
        go(place, resume=True, overrides=["seed=5"])
    assert go(place, overwrite=True, overrides=["seed=5"]).exit_code == 0


def test_a_folder_with_other_things_is_left_alone(place: Path) -> None:
    (place / "RUN").mkdir()
    (place / "RUN" / "thesis.txt").write_text("precious", encoding="utf-8")
    with pytest.raises(UsageError, match="not empty"):
        go(place)
    assert (place / "RUN" / "thesis.txt").read_text(encoding="utf-8") == "precious"
    assert len(list((place / "RUN").iterdir())) == 1


@pytest.mark.parametrize("fold", ["7", "first"])
def test_a_fold_that_does_not_exist(place: Path, fold: str) -> None:
    with pytest.raises(UsageError, match=r"there is no fold.*use one of \[0, 1, 2\]"):
        go(place, fold=fold)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda values: np.full_like(values, 3.0), "same value everywhere"),
        (lambda values: np.where(values > values.max() - 1, np.nan, values), "no number or infinite"),
    ],
    ids=["constant", "nan"],
)
def test_a_bad_image_is_left_out_and_the_others_are_used(place: Path, change: Any, reason: str) -> None:
    change_image(place, "toy_03.nii.gz", change)
    outcome = go(place, fold="all")
    assert outcome.exit_code == 3
    told = [line for line in outcome.lines if "toy_03" in line]
    assert len(told) == 1
    assert reason in told[0]
    assert load_bundle(place / "RUN").meta["training"]["n_cases"] == 5


def test_a_file_changed_since_the_manifest_is_left_out(place: Path) -> None:
    make_manifest(place / "data", place / "M.json", folds=3, intake=IntakeOptions())
    change_image(place, "toy_02.nii.gz", lambda values: values + 1)
    outcome = go(place, fold="all")
    assert outcome.exit_code == 3
    assert any("toy_02" in line and "sha256 differs" in line for line in outcome.lines)


def test_no_usable_case_is_an_error(place: Path) -> None:
    for number in range(6):
        change_image(place, f"toy_{number:02d}.nii.gz", lambda values: np.zeros_like(values))
    with pytest.raises((NothingUsableError, InputRefusedError)) as caught:
        go(place, fold="all")
    assert caught.value.exit_code in (3, 4)


def test_out_of_memory_says_what_to_make_smaller(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def starve(*_: object, **__: object) -> float:
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9999 bytes.")

    monkeypatch.setattr(Trainer, "train_step", starve)
    with pytest.raises(MachineError, match=r"out of memory.*sampling\.batch_size") as caught:
        go(place)
    assert caught.value.exit_code == 5


def test_interrupted_and_resumed_doubles_nothing_in_mlflow(
    place: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    shutil.copy(trained.work / "mlflow.db", place / "mlflow.db")
    options = {
        "overrides": ["tracking.enabled=true", "training.epochs=4", "name=resumed", "training.checkpoint_minutes=60"]
    }
    steps = 0
    original = Trainer.train_step

    def interrupted(self: Trainer, *args: Any) -> float:
        nonlocal steps
        steps += 1
        if steps == 6:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        go(place, **options)
    monkeypatch.setattr(Trainer, "train_step", original)
    client = MlflowClient(f"sqlite:///{(place / 'mlflow.db').as_posix()}")
    experiment = client.get_experiment_by_name("resumed")
    (killed,) = client.search_runs([experiment.experiment_id])
    assert killed.info.status == "KILLED"
    assert [m.step for m in client.get_metric_history(killed.info.run_id, "train/loss")] == [1, 2]
    assert go(place, resume=True, **options).exit_code == 0
    (resumed,) = client.search_runs([experiment.experiment_id])
    assert resumed.info.run_id == killed.info.run_id
    assert resumed.info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(resumed.info.run_id, "train/loss")] == [1, 2, 3, 4]


def test_a_full_disk_stops_with_the_remedy(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("unet_med.data.np.save", full)
    with pytest.raises(MachineError) as caught:
        go(place)
    assert caught.value.exit_code == 5
    assert "free some disk space" in str(caught.value)


def test_too_few_cases_for_folds(place: Path) -> None:
    shutil.rmtree(place / "data")
    write_toy_set(place / "data", cases=1)
    with pytest.raises(UsageError, match="--fold all"):
        go(place)
    assert go(place, fold="all").exit_code == 0


def test_a_batch_that_two_processes_cannot_share(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    team = Team()
    team.world = 2
    monkeypatch.setattr(train_module, "open_team", lambda device: nullcontext(team))
    with pytest.raises(ConfigError, match="a batch of 3 cannot be dealt out evenly to 2 processes"):
        go(place, overrides=["sampling.batch_size=3"])


@pytest.mark.slow
def test_two_processes_train_score_and_write_as_one(place: Path) -> None:
    change_image(place, "toy_03.nii.gz", lambda values: np.full_like(values, 3.0))
    make_manifest(place / "data", place / "M.json", folds=3, intake=IntakeOptions())
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    fp32 = ["--set", "training.precision=fp32", "--set", "training.optimizer=sgd"]
    command = ["-m", "unet_med", "train", "toy.yaml", "--data", "M.json", "--device", "cpu", *fp32]
    done = subprocess.run([*torchrun, *command, "--out", "TWO"], cwd=place, capture_output=True, text=True, check=False)
    assert "exitcode  : 3" in done.stderr, done.stderr  # a case was left out, says the process that leads
    assert done.stdout.count("fold_0: ") == 1
    assert done.stdout.count("left out toy_03") == 1
    assert "2 processes" in done.stdout
    assert go(place, out="ONE", overrides=fp32[1::2]).exit_code == 3
    two, one = (json.loads((place / out / "metrics.json").read_text(encoding="utf-8")) for out in ("TWO", "ONE"))
    assert [case["id"] for case in two["cases"]] == [case["id"] for case in one["cases"]]
    assert two["mean"]["dice"] == pytest.approx(one["mean"]["dice"], abs=1e-3)
    weights, expected = (load_bundle(place / out).state for out in ("TWO", "ONE"))
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-5, msg=name)
    assert not (place / "TWO" / "cache").exists()


def test_the_whole_way_is_for_one_process(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="only training is done by several processes"):
        run(place / "toy.yaml", place / "data", place / "OUT")


def test_the_label_doctor_looks_before_training_and_not_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = [Finding("toy_01", "warning", "the label is odd", "look at it", "odd")]
    looks: list[int] = []

    def quick(manifest: Manifest, progress: Any) -> list[Finding]:
        looks.append(len(manifest.training))
        return told

    monkeypatch.setattr(train_module, "quick_findings", quick)
    assert any("the label is odd" in line for line in go(place).lines)
    assert looks == [6]
    go(place, resume=True)
    assert looks == [6]
    told[:] = [replace(told[0], severity="error")]
    with pytest.raises(InputRefusedError, match=r"the label is odd \(toy_01\): look at it"):
        go(place, "OTHER")
    assert not (place / "OTHER").exists()


def test_a_set_that_holds_one_image_in_two_folds_is_not_trained_on(place: Path) -> None:
    for kind in ("imagesTr", "labelsTr"):
        shutil.copy(place / "data" / kind / "toy_00.nii.gz", place / "data" / kind / "twin.nii.gz")
    make_manifest(place / "data", place / "M.json", folds=3, intake=IntakeOptions())
    manifest = json.loads((place / "M.json").read_text(encoding="utf-8"))
    for case in manifest["training"]:
        case["fold"] = int("twin" in str(case["image"]))
        case["group"] = str(case["image"])
    (place / "M.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(InputRefusedError):
        go(place)
