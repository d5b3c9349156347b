"""The front door: messages, exit codes, JSON, signals."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unet_med import cli, errors
from unet_med.workflows.outcome import Outcome

Stub = Callable[[Any], None]


@pytest.fixture
def scan_does(monkeypatch: pytest.MonkeyPatch) -> Stub:
    """Lets ``scan`` return an outcome, or raise."""
    import types

    def put(result: Any) -> None:
        module = types.ModuleType("unet_med.workflows.scan")

        def scan(folder: Path, intake: Any, html: Path | None) -> Outcome:
            if isinstance(result, BaseException):
                raise result
            return result(folder, intake) if callable(result) else result

        module.scan = scan  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "unet_med.workflows.scan", module)

    return put


def test_an_outcome_is_printed_written_and_its_code_returned(
    scan_does: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = {"n": np.int64(3), "nan": float("nan"), "numpy_nan": np.float32("nan"), "place": tmp_path, "x": (1, 2.5)}
    scan_does(Outcome(result, ["one", "two"], 3))
    target = tmp_path / "new" / "result.json"
    assert cli.main(["scan", str(tmp_path), "--json", str(target)]) == 3
    assert capsys.readouterr().out == "one\ntwo\n"
    written = json.loads(target.read_text(encoding="utf-8"))
    assert written == {"n": 3, "nan": None, "numpy_nan": None, "place": str(tmp_path), "x": [1, 2.5]}
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (errors.UsageError("a", "b", "c"), 2, "error: a (b): c"),
        (errors.ModelError("a", "b", "c"), 2, "error: a (b): c"),
        (errors.InputRefusedError("a", "b", "c"), 3, "error: a (b): c"),
        (errors.NothingUsableError("a", "b", "c"), 4, "error: a (b): c"),
        (errors.MachineError("a", "b", "c"), 5, "error: a (b): c"),
        (errors.TrainingError("a", "b", "c"), 1, "error: a (b): c"),
        (errors.UsageError("two\nlines"), 2, "error: two lines"),
        (MemoryError(), 5, "error: out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 5, "error: out of memory"),
        (OSError(errno.ENOSPC, "No space left", "/secret/JANE.nii"), 5, "error: the disk is full"),
        (PermissionError(errno.EACCES, "denied", "/secret/JANE.nii"), 5, "error: no permission"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (errors.Terminated(), 143, "error: terminated"),
        (ValueError("JANE in /secret"), 1, "error: internal error ValueError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_errors_are_one_line_with_their_exit_code_and_nothing_private(
    scan_does: Stub,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    text: str,
) -> None:
    import torch  # noqa: F401 - what "out of memory" means is known to torch

    scan_does(error)
    assert cli.main(["scan", str(tmp_path)]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(text)
    assert captured.err.count("\n") == 1
    assert "JANE" not in captured.err
    assert "Traceback" not in captured.err


def test_debug_shows_the_traceback(scan_does: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan_does(ValueError("why"))
    assert cli.main(["scan", str(tmp_path), "--debug"]) == 1
    assert "Traceback" in (text := capsys.readouterr().err)
    assert "ValueError: why" in text


def test_all_problems_of_a_pipeline_stand_on_lines_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline, manifest = tmp_path / "p.yaml", tmp_path / "m.json"
    pipeline.write_text("name: x\nnetwrk: {}\ntraining: {epochs: many}\n", encoding="utf-8")
    manifest.write_text("{}", encoding="utf-8")
    assert cli.main(["train", str(pipeline), "--data", str(manifest), "--out", str(tmp_path / "run")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: 2 problems in the pipeline (p.yaml): ")
    assert len(lines) == 3
    assert any("netwrk" in line and "network" in line for line in lines[1:])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["scam", "x"], "no such command 'scam'"),
        (["scan"], "missing argument"),
        (["scan", "nowhere"], "does not exist"),
        (["scan", ".", "--unbend"], "no such option"),
        (["scan", ".", "--pixel-size", "0.5;2"], "the pixel size is no list of positive numbers"),
        (["scan", ".", "--pixel-size", "-1"], "the pixel size is no list of positive numbers"),
        (["scan", ".", "--pixel-size", "1,2,3,4"], "the pixel size is no list of positive numbers"),
        (["manifest", ".", "--out", "m.json", "--folds", "1"], "invalid value"),
        (["evaluate", "m", "--data", "PIPELINE", "--out", "o", "--fold", "0", "--split", "test"], "exclude each other"),
        (["train", "PIPELINE", "--data", "PIPELINE", "--out", "o", "--fold", "first"], "number of a fold"),
        (["train", "PIPELINE", "--data", "PIPELINE", "--out", "o", "--device", "tpu"], "tpu"),
    ],
)
def test_wrong_usage_is_one_line_and_two(
    words: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = tmp_path / "p.yaml"
    pipeline.write_text("name: x\n", encoding="utf-8")
    assert cli.main([str(pipeline) if word == "PIPELINE" else word for word in words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert text in error


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0.5", (0.5, 0.5)),
        ("0.5,0.25", (0.5, 0.25)),
        ("1, 2, 3", (1.0, 2.0, 3.0)),
        ("500um", (0.5, 0.5)),
        ("500,250,3000 um", (0.5, 0.25, 3.0)),
        (None, None),
    ],
)
def test_intake_options_reach_the_workflow(
    scan_does: Stub, tmp_path: Path, text: str | None, size: tuple[float, ...] | None
) -> None:
    seen: list[Any] = []

    def remember(folder: Path, intake: Any) -> Outcome:
        seen.append((folder, intake))
        return Outcome({})

    scan_does(remember)
    words = ["scan", str(tmp_path), "--series", "s1", "--series", "s2", "--axes", "zyx", "--channel", "DAPI"]
    assert cli.main(words + (["--pixel-size", text] if text else [])) == 0
    folder, intake = seen[0]
    assert folder == tmp_path
    assert intake.series == ("s1", "s2")
    assert intake.axes == "ZYX"
    assert intake.channels == ("DAPI",)
    assert intake.pixel_size_mm == size


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert "predict" in capsys.readouterr().out


_SLEEPER = """
import signal, sys, time, types
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts with SIGINT ignored
from unet_med import cli
module = types.ModuleType("unet_med.workflows.scan")
def scan(folder, intake, html):
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("cleaned", flush=True)
module.scan = scan
sys.modules["unet_med.workflows.scan"] = module
sys.exit(cli.main(["scan", "."]))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals between processes")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_lets_finally_run_and_gives_its_code(number: signal.Signals, code: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _SLEEPER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.1)
        process.send_signal(number)
        out, error = process.communicate(timeout=20)
    assert (process.returncode, out) == (code, "cleaned\n")
    assert error.startswith("error: ")
    assert error.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX pipe")
def test_a_reader_that_goes_away_is_no_error() -> None:
    script = (
        _SLEEPER.replace("time.sleep(60)", "pass")
        .replace('print("cleaned", flush=True)', "pass")
        .replace("def scan", "from unet_med.workflows.outcome import Outcome\ndef scan")
        .replace('print("ready", flush=True)', 'return Outcome({}, ["line"] * 100000, 0)')
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "line\n"
        process.stdout.close()
        error = process.stderr.read()
        assert process.wait(timeout=20) == 0
    assert error == ""


def test_the_signal_handler_is_put_back(scan_does: Stub, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    scan_does(Outcome({}))
    assert cli.main(["scan", str(tmp_path)]) == 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_console_without_a_letter_does_not_stop_the_program(tmp_path: Path) -> None:
    script = (
        _SLEEPER.replace("time.sleep(60)", "pass")
        .replace(
            'print("ready", flush=True)',
            "from unet_med.workflows.outcome import Outcome; return Outcome({}, ['\\u2192m'])",
        )
        .replace('print("cleaned", flush=True)', "pass")
    )
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, encoding="cp1252", check=False, env=environment, timeout=30
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "?m\n", "")
