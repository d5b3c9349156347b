"""Work in processes of its own: results as they come, faults told, nothing left running."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from pathlib import Path

import psutil
import pytest
from process_work import fail, square

from unet_med.errors import MachineError, TrainingError
from unet_med.training.processes import in_processes


def test_each_item_is_done_once_in_a_process_of_its_own_on_a_free_place() -> None:
    done = dict(in_processes(square, [3, 4, 5], 2))
    assert {number: answer[0] for number, answer in done.items()} == {0: 9, 1: 16, 2: 25}
    assert {answer[1] for answer in done.values()} <= {0, 1}
    assert len({answer[2] for answer in done.values()} | {os.getpid()}) == 4


def test_an_error_is_raised_here_as_it_was_there() -> None:
    with pytest.raises(TrainingError, match=r"the loss is not finite \(step 3\): lower the rate"):
        list(in_processes(fail, ["error"], 1))


@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
def test_a_process_that_dies_is_told_and_the_others_are_asked_to_stop(tmp_path: Path) -> None:
    work = in_processes(fail, [str(tmp_path), "death"], 2)
    began = time.monotonic()
    with pytest.raises(MachineError, match=r"signal 9.*--resume"):
        next(work)
    assert time.monotonic() - began < 50
    for started in tmp_path.glob("*.started"):  # it was asked perhaps before it began
        assert (tmp_path / "stopped").exists()
        assert not psutil.pid_exists(int(started.stem))


@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
def test_whoever_stops_listening_leaves_nothing_behind(tmp_path: Path) -> None:
    work = in_processes(fail, [str(tmp_path), "error"], 2)
    with pytest.raises(TrainingError):
        next(work)
    assert not multiprocessing.active_children()
