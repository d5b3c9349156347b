"""Dice on the patches of training: counted as metrics count, once for each sample, across an interruption."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from toy_training import LABELS, toy_cases, toy_config, train_toy

from unet_med.labels import LabelMap
from unet_med.metrics.voxels import confusion_table
from unet_med.patches import PatchDataset, patch_loader
from unet_med.training.tally import Tally
from unet_med.training.trainer import Trainer

NAMES = {"background": 0, "a": 1, "b": 2, "c": 3}


@pytest.mark.parametrize(
    "labels",
    [
        LabelMap.from_names(NAMES),
        LabelMap.from_names(NAMES, ignored=9),
        LabelMap.from_names(NAMES, {"whole": (1, 2, 3), "core": (2, 3), "centre": (3,)}),
        LabelMap.from_names(NAMES, objects=True),
    ],
    ids=["labels", "ignored", "regions", "objects"],
)
@pytest.mark.parametrize("deep", [False, True])
def test_it_counts_as_the_scores_do(labels: LabelMap, deep: bool) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, labels.outputs, 7, 6, 5)
    target = torch.randint(0, 4, (3, 7, 6, 5))
    if labels.ignored is not None:
        target[torch.rand(target.shape) < 0.3] = labels.ignored
    tally = Tally(labels)
    row = tally.count((logits, torch.randn(3, labels.outputs, 3, 3, 3)) if deep else logits, target)
    tally.add(row.tolist())
    expected = sum(
        confusion_table(labels.from_outputs(one), truth.numpy(), labels)
        for one, truth in zip(logits, target, strict=True)
    )
    if labels.ignored is not None:  # metrics take them for background in both
        expected[0, 0] -= int((target == labels.ignored).sum())
    np.testing.assert_array_equal(tally.table, expected)


def test_closing_gives_scores_and_begins_anew() -> None:
    tally = Tally(LABELS)
    tally.add([50.0, 10.0, 20.0, 20.0])
    assert tally.close() == pytest.approx(
        {"train/dice/disc": 40 / 70, "train/dice/mean": 40 / 70, "train/iou/disc": 0.4, "train/iou/mean": 0.4}
    )
    assert tally.close() == {}


@pytest.mark.parametrize("pieces", [1, 4])
def test_each_voxel_of_a_batch_counts_once(tmp_path: Path, pieces: int) -> None:
    config = toy_config(**{"training.accumulate": pieces, "loss.kind": "dice_ce"})
    trainer = Trainer(config, LABELS, 1, torch.device("cpu"))
    batch = next(patch_loader(PatchDataset(toy_cases(tmp_path), config), 4, 0, 1, 0))
    trainer.train_step(batch, 1e-2)
    assert trainer.tally.table.sum(axis=1).tolist() == [(batch["label"] == value).sum().item() for value in (0, 1)]


def test_every_epoch_says_how_well_it_was_learnt_and_an_interruption_changes_nothing(tmp_path: Path) -> None:
    config = toy_config(**{"network.dropout": 0.0, "training.epochs": 8})
    whole = train_toy(tmp_path / "whole", config)
    dice = [epoch["train/dice/disc"] for epoch in whole.history]
    assert len(dice) == 8
    assert dice[0] < dice[-1] <= 1
    assert all(epoch["patches_per_second"] > 0 for epoch in whole.history)
    original, steps = Trainer.train_step, []

    def interrupted(self: Trainer, *args: object) -> float:
        steps.append(1)
        if len(steps) == 8:  # in the middle of the second epoch
            raise KeyboardInterrupt
        return original(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_toy(tmp_path / "broken", config)
    resumed = train_toy(tmp_path / "broken", config, resume=True)
    assert [epoch["train/dice/disc"] for epoch in resumed.history] == dice
