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

from unet_med.config import PipelineConfig, parse_config
from unet_med.data import CachedCase, PatchDataset, patch_loader, write_case
from unet_med.errors import Terminated, TrainingError
from unet_med.labels import LabelMap
from unet_med.training.checkpoint import load_checkpoint
from unet_med.training.loop import FitResult, fit
from unet_med.training.trainer import Trainer

LABELS = LabelMap.from_names({"background": 0, "disc": 1})


def toy_config(**changes: Any) -> PipelineConfig:
    base = {
        "name": "toy",
        "dims": 2,
        "channels": ["grey"],
        "labels": {"background": 0, "disc": 1},
        "preprocess": {"spacing_mm": None, "normalisation": [{"scheme": "zscore"}], "crop_to_nonzero": False},
        "network": {"features": [4, 8], "strides": [[1, 1], [2, 2]], "kernels": [[3, 3], [3, 3]], "dropout": 0.1},
        "loss": {"class_weights": None},
        "augment": {"rotation_degrees": [-180, 180], "mirror_axes": [0, 1], "elastic_probability": 0.2},
        "sampling": {"patch_voxels": [24, 24], "batch_size": 4},
        "training": {
            "learning_rate": 1e-2,
            "epochs": 4,
            "steps_per_epoch": 5,
            "validation_every_epochs": 2,
            "workers": 0,
            "ema_decay": 0.9,
            "checkpoint_minutes": 1e-6,
        },
    }
    return parse_config(base, "toy").replacing(changes)


def toy_cases(folder: Path, count: int = 4, size: int = 32) -> list[CachedCase]:
    cases = []
    for number in range(count):
        rng = np.random.default_rng(number)
        i, j = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
        centre = rng.uniform(10, size - 10, 2)
        label = (((i - centre[0]) ** 2 + (j - centre[1]) ** 2) < 49).astype(np.uint8)
        image = (label * 2.0 + rng.normal(size=label.shape)).astype(np.float32)[None]
        path = folder / f"case{number}"
        if not path.exists():
            write_case(path, image - image.mean(), label, None, None)
        cases.append(CachedCase(f"case{number}", path, label.shape, None))
    return cases


def train_toy(
    folder: Path, config: PipelineConfig, resume: bool = False, seconds: float | None = None, record: Any = None
) -> FitResult:
    torch.set_num_threads(1)
    cases = toy_cases(folder / "cases")
    trainer = Trainer(config, LABELS, 1, torch.device("cpu"))
    return fit(
        trainer,
        cases[:3],
        cases[3:],
        folder / "checkpoint",
        resume=resume,
        max_seconds=seconds,
        record=record or (lambda epoch, metrics, masks: None),
        overlay_ids=["case3"],
    )


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
    assert result.best_dice == max(m["val/dice/mean"] for _, m, _ in told if "val/dice/mean" in m)


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
from test_loop import toy_config, train_toy

if __name__ == "__main__":
    train_toy(Path(sys.argv[1]), toy_config(**{{"training.workers": 2}}), resume=True)
"""


def test_killed_at_any_step_with_two_workers_and_resumed_is_bit_for_bit_the_same(tmp_path: Path) -> None:
    whole = train_toy(tmp_path / "whole", toy_config())
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT.format(tests=str(Path(__file__).parent))), encoding="utf-8")
    killed = tmp_path / "killed"
    toy_cases(killed / "cases")
    process = subprocess.Popen([sys.executable, str(script), str(killed)], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    random_step = int(np.random.default_rng().integers(2, 14))
    while process.poll() is None and time.monotonic() < deadline:
        if any(int(p.stem.split("_")[1]) >= random_step for p in (killed / "checkpoint").glob("step_*.safetensors")):
            break
        time.sleep(0.002)
    process.kill()
    _, errors = process.communicate()
    found = load_checkpoint(killed / "checkpoint")
    assert found is not None, errors.decode()
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


def test_every_case_is_seen_once_in_a_pass(tmp_path: Path) -> None:
    dataset = PatchDataset(toy_cases(tmp_path), toy_config())
    for turn in range(3):
        assert sorted(dataset.case_of(turn * 4 + position).id for position in range(4)) == [
            f"case{n}" for n in range(4)
        ]
