"""One of two processes that train a toy together, as ``torchrun`` would start it: ``SCENARIO FOLDER SECONDS``."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from unet_med.errors import MachineError
from unet_med.training.distributed import BatchSums, Team, open_team, own_device

COUNT = 6
"""Cases; three are learnt from, three validated."""

CHANGES = {
    "network.features": [4, 8, 8],
    "network.strides": [[1, 1], [2, 2], [2, 2]],
    "network.kernels": [[3, 3]] * 3,
    "network.deep_supervision": True,
    "network.dropout": 0.0,  # differs between processes
    "loss.kind": "dice_ce",
    "loss.class_weights": [0.2, 1.0],
    "training.optimizer": "sgd",
    "training.momentum": 0.9,
    "training.epochs": 3,
    "training.steps_per_epoch": 3,
    "training.validation_every_epochs": 1,
    "training.precision": "fp32",
}


def trains(team: Team, folder: Path) -> None:
    """Trains three times: by epochs, by time, and until the second process dies without a word at step 4."""
    from toy_training import toy_config, train_toy

    from unet_med.training.trainer import Trainer

    agree(team)
    config = toy_config(**CHANGES)
    told: list[Any] = []
    result = train_toy(folder, config, record=lambda *entry: told.append(entry), team=team, count=COUNT)
    facts = {
        "weights": {name: weight.tolist() for name, weight in result.last.items()},
        "history": result.history,
        "epochs": [epoch for epoch, _, _ in told],
        "masks": [sorted(masks) for _, _, masks in told],
        "steps": train_toy(folder / "timed", config, seconds=3.0, team=team, count=COUNT).steps,
    }
    (folder / f"facts{team.rank}.json").write_text(json.dumps(facts), encoding="utf-8")
    original = Trainer.train_step

    def dies(self: Trainer, *arguments: Any) -> float:
        if team.rank == 1 and self.step == 4:
            os._exit(9)
        return original(self, *arguments)

    Trainer.train_step = dies
    train_toy(folder / "killed", config, team=team, count=COUNT)


def agree(team: Team) -> None:
    """What the processes tell each other, and the gradient of a sum over them."""
    told = {"rank": team.rank, "text": "ü" * team.rank}
    assert team.gather(told) == [{"rank": 0, "text": ""}, {"rank": 1, "text": "ü"}]
    assert team.share(["decided", team.rank]) == ["decided", 0]
    assert team.any(team.rank == 1, False) == (True, False)
    assert team.deal("abc") == [["a", "c"], ["b"]][team.rank]
    own = torch.full((2,), float(team.rank + 1), requires_grad=True)
    total = BatchSums(team, 1)(own)
    assert total.tolist() == [3.0, 3.0]
    (gradient,) = torch.autograd.grad((total**2).sum(), own)
    assert gradient.tolist() == [12.0, 12.0]  # the mean over both of (own + other)^2, 2 * 3, times 2


def hangs(team: Team, folder: Path) -> None:
    """The second process stops answering."""
    if team.rank == 1:
        time.sleep(600)
    team.any(False)


if __name__ == "__main__":
    scenario, folder = {"trains": trains, "hangs": hangs}[sys.argv[1]], Path(sys.argv[2])
    try:
        with open_team(own_device(torch.device("cpu")), step_seconds=float(sys.argv[3])) as team:
            scenario(team, folder)
    except MachineError as error:
        sys.exit(str(error))
