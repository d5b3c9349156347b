"""A run is trained again from what it left in MLflow: the same pipeline, the same fold, the same weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from toy_set import PIPELINE, Trained

from unet_med import cli
from unet_med.bundle import load_bundle
from unet_med.errors import UsageError
from unet_med.io.source import IntakeOptions
from unet_med.workflows.manifest import make_manifest
from unet_med.workflows.train import train

SHORT = PIPELINE | {
    "training": PIPELINE["training"] | {"epochs": 2, "steps_per_epoch": 2},
    "tracking": {"experiment": "again", "register_model": False},
}


@pytest.fixture(scope="module")
def place(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a run; its pipeline file is gone."""
    place = tmp_path_factory.mktemp("again")
    shutil.copytree(trained.data, place / "data")
    shutil.copy(trained.work / "mlflow.db", place / "mlflow.db")
    (place / "toy.yaml").write_text(yaml.safe_dump(SHORT), encoding="utf-8")
    make_manifest(place / "data", place / "M.json", folds=3, intake=IntakeOptions())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        torch.set_num_threads(1)
        train(place / "toy.yaml", place / "M.json", place / "FIRST", fold="1", device="cpu", overrides=["seed=3"])
    (place / "toy.yaml").unlink()
    return place


@pytest.fixture
def run_id(place: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(place)
    runs = json.loads((place / "FIRST" / "run.json").read_text(encoding="utf-8"))["mlflow_runs"]
    return str(runs["fold_1"])


def go(place: Path, run_id: str, out: str, **options: Any) -> Any:
    return train(None, place / "M.json", place / out, device="cpu", from_run=run_id, **options)


def test_the_run_comes_out_again(place: Path, run_id: str) -> None:
    outcome = go(place, run_id, "SECOND")
    assert not any("trained again" in line for line in outcome.lines)
    first, second = (load_bundle(place / name) for name in ("FIRST", "SECOND"))
    assert second.meta["training"]["fold"] == "fold_1"
    assert second.config == first.config
    assert second.config.seed == 3
    for name, weight in first.state.items():
        torch.testing.assert_close(second.state[name], weight, rtol=0, atol=0, msg=name)


def test_the_command_takes_an_id_in_place_of_a_file(
    place: Path, run_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--data", "M.json", "--out", "THIRD", "--device", "cpu", "--set", "training.epochs=1"]
    assert cli.main([*words, "--from-run", run_id]) == 0
    config = load_bundle(place / "THIRD").config
    assert (config.training.epochs, config.seed) == (1, 3)
    assert cli.main([*words[:4], "FOURTH"]) == 2
    assert "there is no pipeline" in capsys.readouterr().err


def test_other_data_are_refused(place: Path, run_id: str, trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(place / "data", tmp_path / "data")
    for kind in ("imagesTr", "labelsTr"):
        (tmp_path / "data" / kind / "toy_05.nii.gz").unlink()
    make_manifest(tmp_path / "data", tmp_path / "M.json", folds=3, intake=IntakeOptions())
    with pytest.raises(UsageError, match="not those of the run"):
        train(None, tmp_path / "M.json", tmp_path / "RUN", device="cpu", from_run=run_id)
    with pytest.raises(UsageError, match=r"began with fresh weights.*--start-from"):
        go(place, run_id, "RUN", start_from=str(trained.run))
    assert not (place / "RUN").exists()


@pytest.mark.parametrize("wanted", ["0" * 32, "no id at all"])
def test_an_unknown_run_is_said(place: Path, run_id: str, wanted: str) -> None:
    with pytest.raises(UsageError, match=r"holds no training of this id.*Run ID"):
        go(place, wanted, "RUN")


def test_a_missing_store_and_two_pipelines_are_said(
    place: Path, run_id: str, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="two pipelines"):
        train(trained.pipeline, place / "M.json", place / "RUN", device="cpu", from_run=run_id)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no record of experiments here"):
        go(place, run_id, "RUN")
    assert not (tmp_path / "mlflow.db").exists()
