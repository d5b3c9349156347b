"""``import-nnunet``: a trained folder becomes a model that all commands take."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from nnunet_reference import DATASET, ReferenceUNet, plans_of

from unet_med.bundle import Bundle, load_bundle, load_bundles, read_bundle_info
from unet_med.cli import main
from unet_med.errors import ModelError, UsageError
from unet_med.geometry import Geometry
from unet_med.inference.predictor import Predictor
from unet_med.volume import Volume
from unet_med.workflows.import_nnunet import import_nnunet
from unet_med.workflows.info import info

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (16, 16, 8)


def network(seed: int, residual: bool = False) -> ReferenceUNet:
    torch.manual_seed(seed)
    arguments = plans_of(residual=residual)["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    made = ReferenceUNet(3, 1, 3, arguments)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        made.decoder.seg_layers[-1].bias.zero_()
    return made.eval()


def trained_folder(
    folder: Path, *folds: int, residual: bool = False, mirror: tuple[int, ...] | None = None, **plan: Any
) -> Path:
    """What nnU-Net leaves behind; the network of fold N has the seed N."""
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans_of(residual=residual, **plan)))
    (folder / "dataset.json").write_text(json.dumps(DATASET))
    for fold in folds:
        content = {
            "network_weights": network(fold, residual).state_dict(),
            "current_epoch": 1000,
            "init_args": {"configuration": "3d_fullres"},
            "trainer_name": "nnUNetTrainer",
            "inference_allowed_mirroring_axes": mirror,
        }
        place = folder / f"fold_{fold}"
        (place / "validation").mkdir(parents=True)
        torch.save(content, place / "checkpoint_final.pth")
        summary = {
            "foreground_mean": {"Dice": 0.5 + fold / 10},
            "mean": {"1": {"Dice": 0.5}, "2": {"Dice": 0.5 + fold / 5}},
            "metric_per_case": [{}] * (1 + fold),
        }
        (place / "validation" / "summary.json").write_text(json.dumps(summary))
    return folder


def image() -> Volume:
    array = np.random.default_rng(0).normal(100, 20, (1, *SHAPE)).astype(np.float32)
    return Volume(array, Geometry.from_spacing(SHAPE, (1.0, 1.0, 2.0)))


def exactly(bundles: Sequence[Bundle]) -> Predictor:
    """Computes in float32, as the reference does."""
    changes = {"training.precision": "fp32", "inference.engine": "torch"}
    return Predictor([replace(one, config=one.config.replacing(changes)) for one in bundles], device="cpu")


def by_reference(networks: list[ReferenceUNet], volume: Volume, mirror: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """The arg max of logits averaged over networks and flips, on the axes (z, y, x), back on (x, y, z)."""
    values = volume.array[0].transpose(2, 1, 0)
    seen = torch.from_numpy(((values - values.mean()) / values.std())[None, None])
    flips = [[axis + 2 for axis in some] for n in range(len(mirror) + 1) for some in combinations(mirror, n)]
    with torch.inference_mode():
        logits = sum(one(seen.flip(turn)).flip(turn) for one in networks for turn in flips)
    return np.asarray(logits[0].argmax(0).numpy().transpose(2, 1, 0))  # type: ignore[index]


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("mirror", [(), (0, 2)])
def test_one_fold_predicts_as_its_network(tmp_path: Path, residual: bool, mirror: tuple[int, ...]) -> None:
    folder = trained_folder(tmp_path / "t__p__3d_fullres", 0, residual=residual, mirror=mirror or None)
    outcome = import_nnunet(folder, tmp_path / "model")
    assert outcome.result["folds"] == ["0"]
    found = exactly([load_bundle(tmp_path / "model")]).predict(image()).labels
    expected = by_reference([network(0, residual)], image(), mirror)
    assert len(np.unique(expected)) > 1
    assert (found == expected).mean() > 0.999


def test_several_folds_are_an_ensemble_of_averaged_logits(tmp_path: Path) -> None:
    folder = trained_folder(tmp_path / "t__p__3d_fullres", 0, 1, 2)
    outcome = import_nnunet(folder, tmp_path / "model")
    bundles = load_bundles(tmp_path / "model")
    assert len(bundles) == 3
    found = exactly(bundles).predict(image()).labels
    expected = by_reference([network(fold) for fold in range(3)], image(), ())
    assert (found == expected).mean() > 0.999
    held_out = outcome.result["results"]["held_out"]
    assert held_out["n_cases"] == 6
    assert held_out["mean"]["dice"] == pytest.approx((1 * 0.5 + 2 * 0.6 + 3 * 0.7) / 6)
    assert held_out["per_label"]["small"]["dice"] == pytest.approx((1 * 0.5 + 2 * 0.7 + 3 * 0.9) / 6)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_one_of_several_folds_can_be_chosen(tmp_path: Path) -> None:
    folder = trained_folder(tmp_path / "t__p__3d_fullres", 0, 1)
    import_nnunet(folder, tmp_path / "model", folds=["1"], name="mine")
    bundle = load_bundle(tmp_path / "model")
    assert bundle.config.name == "mine"
    weights = network(1).state_dict()["encoder.stages.0.0.convs.0.conv.weight"]
    assert torch.equal(bundle.state["encoder.0.0.0.weight"], weights)
    assert bundle.meta["training"]["fold"] == "fold 1 of nnU-Net"


def test_images_are_turned_to_where_the_training_images_lay(tmp_path: Path) -> None:
    import_nnunet(trained_folder(tmp_path / "t__p__3d_fullres", 0), tmp_path / "model", orientation="LPS")
    stored = image()  # towards R, A, S
    found = exactly([load_bundle(tmp_path / "model")]).predict(stored).labels
    turned = Volume(np.ascontiguousarray(stored.array[:, ::-1, ::-1]), stored.geometry)
    expected = by_reference([network(0)], turned, ())[::-1, ::-1]
    assert (found == expected).mean() > 0.999
    assert (found == by_reference([network(0)], stored, ())).mean() < 0.99


def test_info_tells_where_it_comes_from(tmp_path: Path) -> None:
    import_nnunet(trained_folder(tmp_path / "t__p__3d_fullres", 0), tmp_path / "model")
    text = "\n".join(info(str(tmp_path / "model")).lines)
    for words in (
        "nnU-Net's plan, 3d_fullres",
        "trained by nnU-Net v2 (nnUNetTrainer, 1000 epochs)",
        "1 large, 2 small",
    ):
        assert words in text


def test_the_command_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = trained_folder(tmp_path / "t__p__3d_fullres", 0)
    out = str(tmp_path / "model")
    assert main(["import-nnunet", str(folder), out]) == 0
    said = capsys.readouterr().out
    assert "nnU-Net 3d_fullres, 1 fold" in said
    assert "Dice 0.5000 on 1 case" in said
    assert main(["import-nnunet", str(folder), out]) == 2
    assert main(["import-nnunet", str(folder), out, "--overwrite", "--fold", "0"]) == 0
    assert main(["import-nnunet", str(folder), str(tmp_path / "other"), "--fold", "4"]) == 2
    assert not (tmp_path / "other").exists()


def test_weights_that_do_not_fit_the_plans_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    folder = trained_folder(tmp_path / "t__p__3d_fullres", 0)
    plans = json.loads((folder / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 6, 10]
    (folder / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(ModelError, match="do not fit the plans"):
        import_nnunet(folder, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    folder = trained_folder(tmp_path / "t__p__3d_fullres", 0)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("x")
    with pytest.raises(UsageError, match="holds something"):
        import_nnunet(folder, tmp_path / "model")


def test_the_folder_is_only_read(tmp_path: Path) -> None:
    folder = trained_folder(tmp_path / "t__p__3d_fullres", 0, 1)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    import_nnunet(folder, tmp_path / "model")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert read_bundle_info(tmp_path / "model").meta["nnunet"]["fold"] == ["0", "1"]
