"""Checkpoints come back bit for bit, and a damaged one costs only the time since the one before."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from unet_med.errors import MachineError, ModelError
from unet_med.training import checkpoint as module
from unet_med.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)


def state(step: int) -> Checkpoint:
    return Checkpoint(
        {"network": {"a.weight": torch.full((2, 3), float(step))}}, {"step": step, "history": [{"x": 1.5}]}
    )


def test_round_trip_and_only_two_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 30):
        save_checkpoint(tmp_path, state(step))
    assert len(list(tmp_path.iterdir())) == 2
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded.numbers == {"step": 30, "history": [{"x": 1.5}]}
    torch.testing.assert_close(loaded.tensors["network"]["a.weight"], torch.full((2, 3), 30.0), rtol=0, atol=0)


def test_a_damaged_file_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_checkpoint(tmp_path, state(1))
    newest = save_checkpoint(tmp_path, state(2))
    newest.write_bytes(newest.read_bytes()[:40])
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded.numbers["step"] == 1
    assert "damaged" in caplog.text


def test_none_readable_is_an_error_and_none_at_all_is_not(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, state(1)).write_bytes(b"nothing")
    with pytest.raises(ModelError, match="no checkpoint can be read"):
        load_checkpoint(tmp_path)


def test_a_full_disk_keeps_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, state(1))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(MachineError, match="--resume"):
        save_checkpoint(tmp_path, state(2))
    monkeypatch.undo()
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded.numbers["step"] == 1
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_an_optimizer_goes_on_as_if_nothing_had_been(kind: type[torch.optim.Optimizer]) -> None:
    def make() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        network = torch.nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
        options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        return network, kind(network.parameters(), lr=0.1, **options)

    def step(network: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        torch.manual_seed(seed)
        optimizer.zero_grad()
        network(torch.randn(1, 2, 8, 8)).square().mean().backward()
        optimizer.step()

    network, optimizer = make()
    for seed in range(3):
        step(network, optimizer, seed)
    other, restored = make()
    other.load_state_dict(network.state_dict())
    restore_optimizer(restored, {k: v.clone() for k, v in optimizer_tensors(optimizer).items()})
    for seed in range(3, 6):
        step(network, optimizer, seed)
        step(other, restored, seed)
    for one, two in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)
