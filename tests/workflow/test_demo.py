"""The demo, cut short: every step is taken, a second start repeats none, another job is not overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unet_med import phantoms
from unet_med.errors import UsageError
from unet_med.workflows import demo as module
from unet_med.workflows.demo import demo

SMALL = """\
name: demo_{kind}
dims: {dims}
network: {{features: [4, 8], strides: [{ones}, {twos}], kernels: [{threes}, {threes}]}}
sampling: {{patch_voxels: {patch}, batch_size: 2}}
training: {{max_minutes: 0.03, workers: 0, overlay_cases: 1}}
"""


def _small(kind: str) -> str:
    dims = int(kind[0])
    one, two, three = ([n] * dims for n in (1, 2, 3))
    return SMALL.format(kind=kind, dims=dims, ones=one, twos=two, threes=three, patch=[16] * dims)


@pytest.fixture(autouse=True)
def _small_and_quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks, few cases, and the MLflow store in the test's own folder."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "_PIPELINE_3D", _small("3d"))
    monkeypatch.setattr(module, "_PIPELINE_2D", _small("2d"))
    for name in ("write_phantoms_3d", "write_phantoms_2d"):
        write = getattr(phantoms, name)
        monkeypatch.setattr(
            module,
            name,
            lambda folder, cases, seed, truth, write=write: write(
                folder, cases=4, seed=seed, unlabelled=1, truth=truth
            ),
        )


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
