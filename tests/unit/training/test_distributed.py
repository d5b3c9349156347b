"""Two processes that train one network: as one process with the whole batch, and never waiting for the dead."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import training_process
from hypothesis import given
from hypothesis import strategies as st
from toy_training import toy_cases, toy_config, train_toy
from training_process import CHANGES, COUNT

from unet_med.errors import MachineError, UsageError
from unet_med.training.distributed import Team, open_team, own_device, shares_by_size
from unet_med.training.loop import FitResult

CPU = torch.device("cpu")


class Two:
    """Two processes, as torchrun would start them."""

    def __init__(self, scenario: str, folder: Path, step_seconds: float) -> None:
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, training_process.__file__, scenario, str(folder), str(step_seconds)]
        self.processes = []
        for rank in map(str, range(2)):
            with (folder / f"errors{rank}").open("wb") as errors:
                own = shared | {"RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"}
                self.processes.append(subprocess.Popen(command, env=os.environ | own, stderr=errors))

    def ending(self, rank: int) -> tuple[int, str]:
        """Exit code, and what was written to stderr."""
        code = self.processes[rank].wait(timeout=180)
        return code, (self._folder / f"errors{rank}").read_text(encoding="utf-8")

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Two]]:
    """What two processes leave behind of :func:`training_process.trains`."""
    folder = tmp_path_factory.mktemp("two")
    for place in (folder, folder / "timed", folder / "killed"):
        toy_cases(place / "cases", COUNT)
    two = Two("trains", folder, 600.0)
    try:
        for process in two.processes:
            process.wait(timeout=180)
        yield folder, two
    finally:
        two.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    """The same training in one process."""
    return train_toy(tmp_path_factory.mktemp("whole"), toy_config(**CHANGES), count=COUNT)


def facts(folder: Path, rank: int) -> dict[str, Any]:
    path = folder / f"facts{rank}.json"
    assert path.exists(), (folder / f"errors{rank}").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def test_two_processes_are_one_with_the_whole_batch(trained: tuple[Path, Two], whole: FitResult) -> None:
    first, second = facts(trained[0], 0), facts(trained[0], 1)
    assert first["weights"] == second["weights"]
    for name, weight in whole.last.items():
        torch.testing.assert_close(torch.tensor(first["weights"][name]), weight, rtol=0, atol=1e-5, msg=name)
    for mine, theirs, expected in zip(first["history"], second["history"], whole.history, strict=True):
        for name in expected:
            if "second" not in name:
                assert mine[name] == theirs[name]
                assert mine[name] == pytest.approx(expected[name], abs=1e-5)


def test_one_process_records_and_one_clock_counts(trained: tuple[Path, Two]) -> None:
    first, second = facts(trained[0], 0), facts(trained[0], 1)
    assert first["epochs"] == [1, 2, 3]
    assert first["masks"] == [["case3"]] * 3
    assert second["epochs"] == []
    assert first["steps"] == second["steps"] > 0


def test_a_dead_process_takes_the_other_along_and_one_goes_on(trained: tuple[Path, Two], whole: FitResult) -> None:
    folder, two = trained
    assert two.ending(1)[0] == 9
    code, errors = two.ending(0)
    assert code == 1
    assert "another process of this training ended" in errors
    resumed = train_toy(folder / "killed", toy_config(**CHANGES), resume=True, count=COUNT)
    assert resumed.steps == whole.steps
    for name, weight in whole.last.items():
        torch.testing.assert_close(resumed.last[name], weight, rtol=0, atol=1e-5, msg=name)


def test_a_process_that_hangs_is_given_up(tmp_path: Path) -> None:
    two = Two("hangs", tmp_path, 1.0)
    try:
        code, errors = two.ending(0)
        assert two.processes[1].poll() is None
    finally:
        two.close()
    assert code == 1
    assert "does not answer" in errors


def test_a_team_of_one_needs_nobody() -> None:
    with open_team(CPU) as team:
        assert team.leads
        assert team.gather("x") == ["x"]
        assert team.share(3) == 3
        assert team.any(True, False) == (True, False)
        tensor = torch.ones(2)
        team.average([tensor])
        assert tensor.tolist() == team.sum(tensor).tolist() == [1.0, 1.0]


def test_processes_that_outnumber_the_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert own_device(CPU) == CPU
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match="2 processes for 1 cards"):
        own_device(torch.device("cuda"))


def test_checkpoints_that_not_all_see(tmp_path: Path) -> None:
    class Elsewhere(Team):
        def gather(self, value: Any) -> list[Any]:
            return [value, 7]

    with pytest.raises(MachineError, match="do not find the same checkpoint"):
        train_toy(tmp_path, toy_config(), resume=True, team=Elsewhere())


@given(
    sizes=st.lists(st.floats(1, 100), max_size=30),
    world=st.integers(1, 5),
    first=st.sets(st.integers(0, 29), max_size=3),
)
def test_work_is_shared_out_once_and_evenly(sizes: list[float], world: int, first: set[int]) -> None:
    wanted = [item for item in first if item < len(sizes)]
    shares = shares_by_size(sizes, world, wanted)
    assert sorted(item for share in shares for item in share) == list(range(len(sizes)))
    assert set(wanted) <= set(shares[0])
    loads = [sum(sizes[item] for item in share) for share in shares]
    if not wanted and sizes:
        assert max(loads) - min(loads) <= max(sizes) + 1e-6
