"""Checkpoints are read as tensors and numbers; nothing in them is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunet_reference import DATASET, plans_of

from unet_med.errors import ModelError
from unet_med.nnunet import load_checkpoint, open_folder, validation_results


def write_folder(folder: Path, *folds: str, content: Any = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(plans_of()))
    (folder / "dataset.json").write_text(json.dumps(DATASET))
    for fold in folds:
        (folder / f"fold_{fold}").mkdir()
        torch.save(as_trained() if content is None else content, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def as_trained() -> dict[str, Any]:
    """What nnU-Net's trainer saves, with the kinds of values that it logs."""
    return {
        "network_weights": {"_orig_mod.encoder.x.weight": torch.ones(2, dtype=torch.float16)},
        "optimizer_state": {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None,
        "logging": {"ema_fg_dice": [np.float64(0.5), np.float32(0.25)], "epochs": [np.int64(3)], "ok": np.bool_(True)},
        "_best_ema": np.float64(0.5),
        "current_epoch": 7,
        "init_args": {"plans": plans_of(), "configuration": "3d_fullres", "fold": 0, "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 2),
    }


def test_weights_and_what_prediction_needs_are_found(tmp_path: Path) -> None:
    folder = open_folder(write_folder(tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres", "1", "0", "all"))
    assert folder.folds == ("0", "1", "all")
    found = load_checkpoint(folder, "1")
    assert found.configuration == "3d_fullres"
    assert (found.trainer, found.mirror_axes, found.epochs) == ("nnUNetTrainer", (0, 2), 7)
    assert torch.equal(found.weights["encoder.x.weight"], torch.ones(2))


def test_weights_alone_are_enough_where_the_folder_says_the_rest(tmp_path: Path) -> None:
    content = {"network_weights": {"a": torch.zeros(1)}}
    folder = open_folder(write_folder(tmp_path / "Own__nnUNetPlans__2d", "0", content=content))
    found = load_checkpoint(folder, "0")
    assert (found.configuration, found.trainer, found.mirror_axes, found.epochs) == ("2d", "Own", (), None)


class _Trap:
    """Pickles as a call that makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def test_a_checkpoint_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    folder = open_folder(write_folder(tmp_path / "a__b__2d", "0", content={"network_weights": {}, "x": _Trap(mark)}))
    with pytest.raises(ModelError, match="more than tensors and numbers"):
        load_checkpoint(folder, "0")
    assert not mark.exists()


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a__b__2d", "0")
    file = folder / "fold_0" / "checkpoint_final.pth"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ModelError, match="damaged"):
        load_checkpoint(open_folder(folder), "0")


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], {"network_weights": {}}])
def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path, content: Any) -> None:
    folder = open_folder(write_folder(tmp_path / "a__b__2d", "0", content=content))
    with pytest.raises(ModelError, match="no network_weights"):
        load_checkpoint(folder, "0")


def test_a_folder_above_a_single_trainer_will_do(tmp_path: Path) -> None:
    inner = write_folder(tmp_path / "Dataset001_Toy" / "nnUNetTrainer__nnUNetPlans__2d", "0")
    assert open_folder(tmp_path / "Dataset001_Toy").path == inner
    write_folder(tmp_path / "Dataset001_Toy" / "nnUNetTrainer__nnUNetPlans__3d_fullres", "0")
    with pytest.raises(ModelError, match="holds 2 trained models"):
        open_folder(tmp_path / "Dataset001_Toy")


def test_what_is_no_trained_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        open_folder(tmp_path / "nothing")
    with pytest.raises(ModelError, match=r"no plans\.json"):
        open_folder(tmp_path)
    folder = write_folder(tmp_path / "a__b__2d")
    with pytest.raises(ModelError, match="no fold has a checkpoint_best"):
        open_folder(folder, "best")
    write_folder(tmp_path / "c__d__2d", "3")
    with pytest.raises(ModelError, match="fold 1 has no checkpoint"):
        load_checkpoint(open_folder(tmp_path / "c__d__2d"), "1")
    (folder / "plans.json").write_text("[]")
    with pytest.raises(ModelError, match="no entries"):
        open_folder(folder)


def test_their_own_validation_is_kept(tmp_path: Path) -> None:
    folder = open_folder(write_folder(tmp_path / "a__b__2d", "0", "1"))
    validation = folder.path / "fold_0" / "validation"
    validation.mkdir()
    summary = {
        "foreground_mean": {"Dice": 0.75},
        "mean": {"1": {"Dice": 0.5, "IoU": 0.4}, "2": {"Dice": 1.0}},
        "metric_per_case": [{}, {}],
    }
    (validation / "summary.json").write_text(json.dumps(summary))
    found = validation_results(folder, "0", {1: "large", 2: "small"})
    assert found["mean"] == {"dice": 0.75}
    assert found["n_cases"] == 2
    assert found["per_label"] == {"large": {"dice": 0.5}, "small": {"dice": 1.0}}
    assert validation_results(folder, "1", {}) == {}
