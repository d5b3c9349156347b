"""The whole way on one folder, and again."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from toy_set import PIPELINE, SPACING, toy_image, write_toy_set

from unet_med.errors import ConfigError, NothingUsableError, UsageError
from unet_med.workflows.run import run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_toy_set(tmp_path / "data", cases=5)
    (tmp_path / "data" / "imagesTs").mkdir()
    image, _ = toy_image(50)
    nib.save(nib.Nifti1Image(image, np.diag([*SPACING, 1.0])), tmp_path / "data" / "imagesTs" / "new.nii.gz")
    short = PIPELINE | {
        "training": PIPELINE["training"] | {"epochs": 1, "steps_per_epoch": 3},
        "tracking": {"enabled": False},
    }
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(short), encoding="utf-8")
    return tmp_path


def test_a_folder_becomes_masks_and_scores_and_a_second_start_does_nothing_twice(place: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (place / "data").rglob("*")}
    outcome = run(place / "toy.yaml", place / "data", place / "OUT", device="cpu")
    assert outcome.exit_code == 0, outcome.lines
    report = json.loads((place / "OUT" / "report.json").read_text(encoding="utf-8"))
    assert {"tool", "version", "model_sha256", "cases", "totals"} <= report.keys()
    assert [case["status"] for case in report["cases"]] == ["done"]
    assert report["metrics"]["n_cases"] == 1
    mask = nib.load(place / "OUT" / "masks" / "new.nii.gz")
    assert mask.shape == nib.load(place / "data" / "imagesTs" / "new.nii.gz").shape
    assert (place / "OUT" / "evaluation" / "metrics.json").exists()
    weights = (place / "OUT" / "run" / "model" / "model.safetensors").stat().st_mtime_ns
    again = run(place / "toy.yaml", place / "data", place / "OUT", device="cpu")
    assert again.exit_code == 0
    assert (place / "OUT" / "run" / "model" / "model.safetensors").stat().st_mtime_ns == weights
    assert {path: path.stat().st_mtime_ns for path in (place / "data").rglob("*")} == before


def test_nothing_is_written_into_the_input(place: Path) -> None:
    with pytest.raises(UsageError, match="inside the input folder"):
        run(place / "toy.yaml", place / "data", place / "data" / "OUT", device="cpu")
    assert not (place / "data" / "OUT").exists()


def test_codes_that_a_format_misses_are_told_before_training(place: Path) -> None:
    with pytest.raises(ConfigError, match="dicom-seg needs a code for each label"):
        run(place / "toy.yaml", place / "data", place / "OUT", device="cpu", formats=["dicom-seg"])
    assert not (place / "OUT" / "run").exists()


def test_an_empty_folder_and_a_folder_without_labels(place: Path) -> None:
    (place / "empty").mkdir()
    with pytest.raises(NothingUsableError) as caught:
        run(place / "toy.yaml", place / "empty", place / "OUT", device="cpu")
    assert caught.value.exit_code == 4
    with pytest.raises(NothingUsableError, match="label"):
        run(place / "toy.yaml", place / "data" / "imagesTs", place / "OUT2", device="cpu")
