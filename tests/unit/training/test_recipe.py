"""What a network can be taught from: sparse labels, overlapping regions, neighbouring slices, another network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_training import LABELS, toy_cases, toy_config, train_toy

from unet_med.bundle import Bundle, labels_of
from unet_med.config import PipelineConfig
from unet_med.data import CachedCase, write_case
from unet_med.errors import TrainingError
from unet_med.geometry import Geometry
from unet_med.inference.predictor import Predictor
from unet_med.labels import LabelMap
from unet_med.metrics import confusion_counts, dice_iou
from unet_med.patches import PatchDataset, patch_loader
from unet_med.training.trainer import Trainer
from unet_med.volume import Volume

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SURE = {"network.dropout": 0.0, "training.precision": "fp32"}
SURE |= {f"augment.{name}_probability": 0 for name in ("elastic", "gamma", "gamma_inverted", "low_resolution", "blur")}


def taught(cases: list[CachedCase], config: PipelineConfig, labels: LabelMap, steps: int) -> Trainer:
    trainer = Trainer(config, labels, 1, CPU)
    for batch in patch_loader(PatchDataset(cases, config), 4, 0, steps, 0):
        trainer.train_step(batch, 2e-2 * (1 - trainer.step / steps))
    return trainer


def mask_of(trainer: Trainer, case: CachedCase) -> np.ndarray:
    with trainer.evaluating() as network:
        return trainer.predict(network, case)


def dice(mask: np.ndarray, truth: np.ndarray, labels: LabelMap, name: str) -> float:
    score = dice_iou(confusion_counts(mask, truth, labels))[name][0]
    assert score is not None
    return score


# ---- voxels that nobody labelled ------------------------------------------------------------------------------------


def test_one_voxel_in_ten_teaches_the_whole_and_alone_is_scored(tmp_path: Path) -> None:
    dense = toy_cases(tmp_path / "dense")
    sparsely = replace(LABELS, ignored=2)
    cases = []
    for number, case in enumerate(dense):
        known = np.random.default_rng(number).random(case.shape) < 0.1
        folder = tmp_path / "sparse" / case.id
        label = np.where(known, case.label(), 2).astype(np.uint8)
        write_case(folder, np.array(case.image()), label, None, None, ignored=2)
        cases.append(CachedCase(case.id, folder, case.shape, None))
    trainer = taught(cases[:3], toy_config(**SURE, ignore_label=2), sparsely, 60)
    mask = mask_of(trainer, dense[3])
    assert dice(mask, np.asarray(dense[3].label()), LABELS, "disc") > 0.85
    scores, _ = trainer.validate(cases[3:], ())
    known = np.asarray(cases[3].label()) != 2
    expected = dice(mask[known], np.asarray(cases[3].label())[known], LABELS, "disc")
    assert scores["val/dice/disc"] == pytest.approx(expected)


# ---- overlapping regions --------------------------------------------------------------------------------------------

NESTED = {
    "labels": {"background": 0, "rim": 1, "core": 2},
    "regions": {"whole": [1, 2], "inner": [2]},
}


def nested_cases(folder: Path, count: int = 4) -> list[CachedCase]:
    cases = []
    for number in range(count):
        rng = np.random.default_rng(number)
        centre = rng.uniform(12, 20, 2)
        distance = np.hypot(*(np.indices((32, 32)) - centre[:, None, None]))
        label = (distance < 9).astype(np.uint8) + (distance < 5)
        image = (label * 1.5 + 0.2 * rng.normal(size=label.shape)).astype(np.float32)[None]
        path = folder / f"nested{number}"
        write_case(path, (image - image.mean()) / image.std(), label, None, None)
        cases.append(CachedCase(path.name, path, label.shape, None))
    return cases


def test_regions_are_learnt_scored_and_predicted_alike(tmp_path: Path) -> None:
    cases = nested_cases(tmp_path)
    config = toy_config(**SURE, **NESTED)
    labels = labels_of(config)
    trainer = taught(cases[:3], config, labels, 120)
    scores, masks = trainer.validate(cases[3:], ["nested3"])
    assert {name.split("/")[2] for name in scores} == {"rim", "core", "whole", "inner", "mean"}
    kinds = [scores[f"val/dice/{name}"] for name in ("rim", "core", "whole", "inner")]
    assert min(kinds) > 0.7
    assert scores["val/dice/whole"] > 0.9
    assert scores["val/dice/mean"] == pytest.approx(np.mean(kinds))
    resolved = {"training.steps_per_epoch": 1, "inference.engine": "torch"}
    bundle = Bundle(config.replacing(resolved), labels, ("grey",), trainer.final_weights(), {}, "0" * 64)
    image = np.array(cases[3].image())
    found = Predictor([bundle], "cpu").predict(Volume(image, Geometry(image.shape[1:])), probabilities=True)
    changed = found.labels != masks["nested3"]
    assert changed.mean() < 0.005  # the prepared image is normalised once more
    assert found.probabilities is not None
    assert found.probabilities.sum(axis=0).max() <= 1 + 1e-6


# ---- neighbouring slices --------------------------------------------------------------------------------------------


def shifted_cases(folder: Path, count: int = 4) -> list[CachedCase]:
    """Each slice shows what the one before it holds: only who looks at the next slice can know."""
    cases = []
    for number in range(count):
        rng = np.random.default_rng(number)
        i, j = np.indices((48, 48))
        centres = rng.uniform(8, 40, (6, 2))
        label = np.stack([((i - a) ** 2 + (j - b) ** 2 < 49) for a, b in centres], axis=-1).astype(np.uint8)
        image = rng.normal(size=(1, 48, 48, 6)).astype(np.float32)
        image[0, ..., 1:] += 3 * label[..., :-1]
        path = folder / f"volume{number}"
        write_case(path, image - image.mean(), label, None, (1.0, 1.0, 4.0))
        cases.append(CachedCase(path.name, path, label.shape, (1.0, 1.0, 4.0)))
    return cases


def test_neighbouring_slices_are_seen_in_training_and_in_validation(tmp_path: Path) -> None:
    cases = shifted_cases(tmp_path)
    found = {}
    for slices in (1, 3):
        trainer = taught(cases[:3], toy_config(**SURE, **{"network.slices": slices}), LABELS, 100)
        mask = mask_of(trainer, cases[3])[..., :-1]  # the last slice has no next one
        found[slices] = dice(mask, np.asarray(cases[3].label())[..., :-1], LABELS, "disc")
    assert found[3] > 0.8
    assert found[1] < 0.4


# ---- another network ------------------------------------------------------------------------------------------------


def test_training_begins_with_the_weights_of_another_network(tmp_path: Path) -> None:
    cases = toy_cases(tmp_path)
    config = toy_config(**SURE)
    first = taught(cases[:3], config, LABELS, 40)
    weights = first.final_weights()
    second = Trainer(config, LABELS, 1, CPU, initial=weights)
    assert second.average is not None
    for state in (second.network.state_dict(), second.average):
        assert all(state[name].equal(value) for name, value in weights.items())
    batch = next(patch_loader(PatchDataset(cases, config), 4, 0, 1, 0))
    fresh = Trainer(config, LABELS, 1, CPU).train_step(batch, 1e-3)
    assert second.train_step(batch, 1e-3) < 0.7 * fresh
    assert all(weights[name].equal(value) for name, value in first.final_weights().items())


@pytest.mark.parametrize("change", [{"network.features": [4, 16]}, {"network.norm": "none"}])
def test_weights_of_another_kind_of_network_are_refused(change: dict[str, Any]) -> None:
    weights = Trainer(toy_config(), LABELS, 1, CPU).final_weights()
    with pytest.raises(TrainingError, match="do not fit the network") as caught:
        Trainer(toy_config(**change), LABELS, 1, CPU, initial=weights)
    assert caught.value.remedy


def test_a_run_that_began_without_an_average_goes_on_with_one(tmp_path: Path) -> None:
    def stop(epoch: int, metrics: object, masks: object) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_toy(tmp_path, toy_config(**{"training.ema_decay": 0.0}), record=stop)
    assert train_toy(tmp_path, toy_config(), resume=True).steps == 20
