"""What becomes of one case of many, and of the command."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from unet_med.errors import InputRefusedError, MachineError, Terminated, UsageError
from unet_med.workflows.attempt import attempted, check_places, exit_code


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (InputRefusedError("two grids", "secret", "give one"), "refused", "two grids: give one"),
        (InputRefusedError("two grids", "secret"), "refused", "two grids"),
        (RuntimeError("secret"), "failed", "an unexpected RuntimeError; please report it"),
        (FileNotFoundError("secret"), "failed", "an unexpected FileNotFoundError; please report it"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_wrong_with_a_case_is_in_its_record(
    error: Exception, status: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), attempted("secret", "read") as record:
        record["outputs"] = ["half.tif"]
        raise error
    assert (record["status"], record["reason"], record["outputs"]) == (status, reason, [])
    assert record["seconds"] >= 0
    assert "secret" not in caplog.text
    assert bool(caplog.records) == (status == "failed")


def test_a_case_that_goes_well_keeps_what_was_put_in() -> None:
    with attempted("a", "read") as record:
        record["outputs"] = ["a.tif"]
    assert record.pop("seconds") >= 0
    assert record == {"id": "a", "status": "done", "reason": None, "outputs": ["a.tif"], "checks": {}}


@pytest.mark.parametrize("error", [MachineError("disk full"), MemoryError(), KeyboardInterrupt(), Terminated()])
def test_what_is_wrong_with_the_machine_ends_the_command(error: BaseException) -> None:
    expected = MachineError if isinstance(error, MemoryError) else type(error)
    with pytest.raises(expected), attempted("a", "read"):
        raise error


@pytest.mark.parametrize(
    ("states", "code"),
    [
        ([], 0),
        (["done", "done"], 0),
        (["done", "refused"], 3),
        (["failed", "done"], 3),
        (["refused", "failed"], 4),
    ],
)
def test_the_exit_code_says_whether_all_some_or_none_were_done(states: list[str], code: int) -> None:
    assert exit_code(states) == code


def test_nothing_is_written_into_the_input(tmp_path: Path) -> None:
    file = tmp_path / "a.tif"
    file.touch()
    check_places(tmp_path, "INPUT", tmp_path.with_name("out"))
    check_places(file, "INPUT", tmp_path / "out")
    for out in (tmp_path, tmp_path / "below" / "out", tmp_path / "x" / ".."):
        with pytest.raises(UsageError, match="output folder is the input"):
            check_places(tmp_path, "INPUT", out)
    with pytest.raises(UsageError, match="the input does not exist"):
        check_places(tmp_path / "none", "INPUT", tmp_path / "out")
