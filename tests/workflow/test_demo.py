"""The demo, cut short: every step is taken, a second start repeats none, another job is not overwritten."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from unet_med.errors import UsageError
from unet_med.workflows import demo as module
from unet_med.workflows.demo import demo
from unet_med.workflows.demo_recipes import Recipe

SMALL = """\
name: demo_{kind}
task: {task}
dims: {dims}
network: {{features: [4, 8], strides: [{ones}, {twos}], kernels: [{threes}, {threes}]}}
sampling: {{patch_voxels: {patch}, batch_size: 2}}
training: {{max_minutes: 0.03, workers: 0, overlay_cases: 1}}
"""


def _small(kind: module.Kind) -> Recipe:
    """Returns the demo with a small network and few cases."""
    dims = 3 if kind == "3d" else 2
    one, two, three = ([n] * dims for n in (1, 2, 3))
    task, side = ("instance", 80) if kind == "cells" else ("semantic", 16)
    pipeline = SMALL.format(kind=kind, task=task, dims=dims, ones=one, twos=two, threes=three, patch=[side] * dims)
    recipe = module.RECIPES[kind]
    short = {"frames": 4} if kind == "cells" else {}
    return replace(
        recipe, pipeline=pipeline, cases=max(recipe.folds, 3), write=partial(recipe.write, unlabelled=1, **short)
    )


@pytest.fixture(autouse=True)
def _small_and_quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> None:
    """Small networks, few cases, and the MLflow store in the test's own folder."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.setattr(module, "RECIPES", {kind: _small(kind) for kind in module.RECIPES})


@pytest.mark.parametrize(("kind", "labels"), [("3d", {"liver", "kidney"}), ("2d", {"nucleus"})])
def test_the_whole_way(kind: module.Kind, labels: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    outcome = demo(kind, out)
    assert outcome.exit_code == 0
    result = outcome.result
    assert labels <= set(result["best_threshold_dice"])
    assert max(result["best_threshold_dice"].values()) < 0.6
    assert set(result["held_out"]["per_label"]) == set(result["unlabelled"]["per_label"]) == labels
    assert (result["held_out"]["n_cases"], result["unlabelled"]["n_cases"]) == (1, 1)
    masks = [path for path in (out / "masks").iterdir() if path.name.endswith((".nii.gz", ".tif"))]
    assert len(masks) == 1
    assert (out / "run" / "model" / "model.safetensors").exists()
    text = "\n".join(outcome.lines)
    assert "best threshold" in text
    assert text.index("the whole way took") < text.index("mlflow ui --backend-store-uri")
    shown = capsys.readouterr().err
    steps = ("scan", "manifest", "check", "plan", "train", "evaluate", "predict")
    places = [shown.index(f"$ unet-med {step} ") for step in steps]
    assert places == sorted(places)

    again = demo(kind, out)
    assert again.result["held_out"] == result["held_out"]
    assert again.result["unlabelled"] == result["unlabelled"]
    with pytest.raises(UsageError, match="another demo"):
        demo("2d" if kind == "3d" else "3d", out)


def test_cells_are_followed_through_their_movie(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    outcome = demo("cells", out)
    assert outcome.exit_code == 0
    assert outcome.result["tracking"]["n_frames"] == 4
    assert outcome.result["tracking"]["n_label"] > 100
    assert outcome.result["tracks"]["frames"] == 4
    assert len(list((out / "tracks").glob("mask*.tif"))) == 4
    assert "tracks of the unlabelled movie: SEG" in "\n".join(outcome.lines)
    shown = capsys.readouterr().err
    places = [shown.index(f"$ unet-med {step} ") for step in ("manifest", "train", "predict", "track", "score")]
    assert places == sorted(places)


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work", encoding="utf-8")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="not empty"):
            demo("2d", out, overwrite=overwrite)
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]
    with pytest.raises(UsageError, match="is a file"):
        demo("2d", out / "thesis.txt")
