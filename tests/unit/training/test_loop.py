"""The loop: it learns, it stops in time, and a killed run goes on exactly where it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_training import LABELS, toy_cases, toy_config, train_toy

from unet_med.errors import ConfigError, Terminated, TrainingError
from unet_med.patches import PatchDataset, patch_loader
from unet_med.training.checkpoint import load_checkpoint
from unet_med.training.distributed import Team
from unet_med.training.trainer import Trainer


def assert_same_weights(one: Mapping[str, torch.Tensor], two: Mapping[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=0, atol=0, msg=name)


def test_it_learns_and_tells(tmp_path: Path) -> None:
    told: list[tuple[int, dict[str, float], dict[str, Any]]] = []
    config = toy_config(**{"training.epochs": 12, "network.dropout": 0.0})
    result = train_toy(tmp_path, config, record=lambda *entry: told.append(entry))
    assert [epoch for epoch, _, _ in told] == list(range(1, 13))
    assert told[-1][1]["train/loss"] < told[0][1]["train/loss"]
    assert told[-1][1]["val/dice/disc"] > 0.85
    assert told[-1][2]["case3"].shape == (32, 32)
    assert "val/dice/disc" not in told[0][1]
    assert result.steps == 60
    assert result.best_score == max(m["val/dice/mean"] for _, m, _ in told if "val/dice/mean" in m)


def test_stopped_and_resumed_is_the_same_as_never_stopped(tmp_path: Path) -> None:
    whole = train_toy(tmp_path / "whole", toy_config())
    broken = tmp_path / "broken"

    def stop(epoch: int, metrics: object, masks: object) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_toy(broken, toy_config(), record=stop)
    resumed = train_toy(broken, toy_config(), resume=True)
    assert_same_weights(whole.last, resumed.last)
    assert whole.best is not None
    assert resumed.best is not None
    assert_same_weights(whole.best, resumed.best)
    assert [h["train/loss"] for h in whole.history] == [h["train/loss"] for h in resumed.history]


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from toy_training import toy_config, train_toy

if __name__ == "__main__":
    train_toy(Path(sys.argv[1]), toy_config(**{{"training.workers": 2}}), resume=True)
"""


def test_killed_at_any_step_with_two_workers_and_resumed_is_bit_for_bit_the_same(tmp_path: Path) -> None:
    whole = train_toy(tmp_path / "whole", toy_config())
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT.format(tests=str(Path(__file__).parents[2]))), encoding="utf-8")
    killed = tmp_path / "killed"
    toy_cases(killed / "cases")
    told = tmp_path / "errors.txt"  # no pipe, which loaders that outlive the process would keep open
    with told.open("wb") as errors:
        process = subprocess.Popen([sys.executable, str(script), str(killed)], stderr=errors)
    deadline = time.monotonic() + 120
    random_step = int(np.random.default_rng().integers(2, 14))
    while process.poll() is None and time.monotonic() < deadline:
        if any(int(p.stem.split("_")[1]) >= random_step for p in (killed / "checkpoint").glob("step_*.safetensors")):
            break
        time.sleep(0.002)
    process.kill()
    process.wait()
    found = load_checkpoint(killed / "checkpoint")
    assert found is not None, told.read_text()
    assert found.numbers["step"] >= random_step
    resumed = train_toy(killed, toy_config(), resume=True)
    assert_same_weights(whole.last, resumed.last)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM that a handler sees")
def test_sigterm_leaves_a_checkpoint(tmp_path: Path) -> None:
    def terminate(epoch: int, metrics: object, masks: object) -> None:
        if epoch == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    config = toy_config(**{"training.checkpoint_minutes": 60})
    with pytest.raises(Terminated):
        train_toy(tmp_path, config, record=terminate)
    found = load_checkpoint(tmp_path / "checkpoint")
    assert found is not None
    assert found.numbers["step"] == 10


def test_a_loss_that_is_not_finite_stops_before_the_weights_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(toy_config(), LABELS, 1, torch.device("cpu"))
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    batch = next(patch_loader(PatchDataset(toy_cases(tmp_path), trainer.config), 4, 0, 1, 0))
    batch["image"][0, 0, 0, 0] = float("nan")
    with pytest.raises(TrainingError, match="not finite at step 0"):
        trainer.train_step(batch, 1e-2)
    assert_same_weights(before, trainer.network.state_dict())


@pytest.mark.parametrize(
    "changes",
    [
        {"loss.kind": "dice_ce", "loss.class_weights": [0.2, 1.0]},
        {"loss.kind": "dice_focal", "loss.batch_dice": False},
        {"loss.kind": "tversky"},
    ],
    ids=lambda changes: changes["loss.kind"],
)
def test_a_batch_in_pieces_is_the_batch(tmp_path: Path, changes: dict[str, Any]) -> None:
    cases = toy_cases(tmp_path)
    config = toy_config(**{"network.dropout": 0.0, "training.optimizer": "sgd", "training.precision": "fp32"} | changes)
    results = []
    for accumulate in (1, 4):
        trainer = Trainer(config.replacing({"training.accumulate": accumulate}), LABELS, 1, torch.device("cpu"))
        batches = patch_loader(PatchDataset(cases, config), 4, 0, 5, 0)
        losses = [(trainer.train_step(batch, 0.05), trainer.parts) for batch in batches]
        results.append((losses, trainer.final_weights()))
    (whole_losses, whole), (losses, pieces) = results
    for (loss, parts), (expected, expected_parts) in zip(losses, whole_losses, strict=True):
        assert loss == pytest.approx(expected, abs=1e-5)
        assert parts == pytest.approx(expected_parts, abs=1e-5)
    for name, weight in whole.items():
        torch.testing.assert_close(pieces[name], weight, rtol=0, atol=1e-5, msg=name)


def test_dropout_differs_between_the_pieces_of_a_batch(tmp_path: Path) -> None:
    config = toy_config(**{"network.dropout": 0.5, "training.accumulate": 2})
    trainer = Trainer(config, LABELS, 1, torch.device("cpu"))
    sample = next(patch_loader(PatchDataset(toy_cases(tmp_path), config), 1, 0, 1, 0))
    assert trainer.sums_of_batch is not None
    with trainer.sums_of_batch.learning():
        first, again, second = (trainer._loss_of(number, sample)[0].item() for number in (0, 0, 1))
    assert first == again != second


@pytest.mark.parametrize(("accumulate", "world"), [(3, 1), (1, 3), (4, 2)])
def test_a_batch_that_cannot_be_dealt_out_evenly(accumulate: int, world: int) -> None:
    team = Team()
    team.world = world
    with pytest.raises(ConfigError, match=r"batch of 4 cannot be dealt out.*sampling\.batch_size=(3|8)"):
        Trainer(toy_config(**{"training.accumulate": accumulate}), LABELS, 1, torch.device("cpu"), team)


def test_minutes_are_kept(tmp_path: Path) -> None:
    started = time.monotonic()
    result = train_toy(tmp_path, toy_config(), seconds=6.0)
    assert time.monotonic() - started < 9  # calibration on a machine that others use, too
    assert result.steps > 5
    found = load_checkpoint(tmp_path / "checkpoint")
    assert found is not None
    assert found.numbers["schedule"]["total_steps"] >= result.steps


def test_samples_do_not_depend_on_workers_and_hold_the_foreground_share(tmp_path: Path) -> None:
    cases = toy_cases(tmp_path, size=64)
    config = toy_config(
        **{"sampling.foreground_share": 0.5, "augment.scaling_probability": 0, "sampling.patch_voxels": [16, 16]}
    )
    dataset = PatchDataset(cases, config)
    plain = list(patch_loader(dataset, 4, 3, 8, 0))
    worked = list(patch_loader(dataset, 4, 3, 8, 2))
    for one, two in zip(plain, worked, strict=True):
        torch.testing.assert_close(one["image"], two["image"], rtol=0, atol=0)
        torch.testing.assert_close(one["label"], two["label"], rtol=0, atol=0)
    shares = [bool((dataset[i]["label"] > 0).any()) for i in range(1, 200, 2)]
    assert all(shares)


def test_processes_share_the_samples_of_each_step(tmp_path: Path) -> None:
    dataset = PatchDataset(toy_cases(tmp_path), toy_config())
    whole = list(patch_loader(dataset, 5, 2, 4, 0))
    ranks = [list(patch_loader(dataset, 5, 2, 4, 0, rank, 2)) for rank in range(2)]
    for step, batch in enumerate(whole):
        for rank in range(2):
            for name, values in ranks[rank][step].items():
                torch.testing.assert_close(values, batch[name][rank::2], rtol=0, atol=0)


def test_batches_that_are_cut_on_the_device_teach_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy_config(**{"network.dropout": 0.0, "augment.noise_probability": 0, "training.precision": "fp32"})
    plain = train_toy(tmp_path / "plain", config)
    monkeypatch.setattr("unet_med.training.loop._room_on_card", lambda _: 10**9)
    cut_there = train_toy(tmp_path / "device", config)
    for one, two in zip(plain.history, cut_there.history, strict=True):
        assert two["train/loss"] == pytest.approx(one["train/loss"], rel=0.02)


def test_every_case_is_seen_once_in_a_pass(tmp_path: Path) -> None:
    dataset = PatchDataset(toy_cases(tmp_path), toy_config())
    for turn in range(3):
        assert sorted(dataset.case_of(turn * 4 + position).id for position in range(4)) == [
            f"case{n}" for n in range(4)
        ]
