"""The review: refusals with a way out, and a real server that starts, answers and ends."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from unet_med.config import Tracking
from unet_med.errors import NothingUsableError, UsageError
from unet_med.training.store import resolve_store
from unet_med.training.tracking import open_tracker
from unet_med.workflows import ui as module
from unet_med.workflows.ui import ui, ui_command

SERVE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from unet_med.workflows.ui import ui
ui(None, int(sys.argv[1]), False)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("review")
    store = Tracking(store=f"sqlite:///{folder.as_posix()}/mlflow.db")
    for experiment in ("older", "newer"):
        tracker = open_tracker(store, experiment, "run", None)
        tracker.epoch(1, {"train/loss": 1.0})
        tracker.finish("FINISHED")
    return folder


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield int(server.getsockname()[1])


def test_without_a_database_the_remedy_is_to_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NothingUsableError, match="train first"):
        ui(None, port, False)
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use_is_said_before_anything_starts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, busy_port: int
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(UsageError, match="--port"):
        ui(None, busy_port, False)


def test_the_old_file_store_is_refused(port: int) -> None:
    with pytest.raises(UsageError, match="migrate-filestore"):
        ui("./mlruns", port, False)


def test_the_command_serves_the_artifacts_beside_the_database(folder: Path) -> None:
    command = ui_command(resolve_store(f"sqlite:///{folder}/mlflow.db"), 5000)
    assert command[:4] == [sys.executable, "-m", "mlflow", "ui"]
    assert command[command.index("--backend-store-uri") + 1] == f"sqlite:///{folder}/mlflow.db"
    assert command[command.index("--artifacts-destination") + 1] == str(folder / "mlartifacts")


@pytest.mark.skipif(os.name == "nt", reason="SIGINT to another process needs a console there")
def test_it_serves_the_newest_experiment_until_ctrl_c(folder: Path, port: int) -> None:
    review = subprocess.Popen([sys.executable, "-c", SERVE, str(port)], cwd=folder, stdout=subprocess.PIPE, text=True)
    watchdog = threading.Timer(150, review.kill)
    watchdog.start()
    try:
        assert review.stdout is not None
        first = review.stdout.readline()
        family = psutil.Process(review.pid).children(recursive=True)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/")
        page = connection.getresponse().read()
        connection.close()
        review.send_signal(signal.SIGINT)
        rest = review.stdout.read()
        code = review.wait(timeout=60)
    finally:
        watchdog.cancel()
        review.kill()
        review.communicate()
    assert first == f"Experiments: http://127.0.0.1:{port}/#/experiments/2?workflowType=machine_learning\n"
    assert "Ctrl-C" in rest
    assert b"<html" in page.lower()
    assert code == 0
    assert family
    assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def test_a_server_that_dies_at_once_is_said_so(
    folder: Path, port: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(module, "ui_command", lambda store, port: [sys.executable, "-c", "raise SystemExit(7)"])
    began = time.monotonic()
    with pytest.raises(module.MachineError, match="ended at once"):
        ui(None, port, False)
    assert time.monotonic() - began < 30
    assert capfd.readouterr().out == ""


def test_the_browser_opens_the_page_of_a_server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(module, "latest_experiment", lambda store: "7")
    monkeypatch.setattr(module.webbrowser, "open", opened.append)
    outcome = ui("https://jane:secret@server", 5000, True)
    assert opened == ["https://server/#/experiments/7?workflowType=machine_learning"]
    assert outcome.result == {"address": opened[0]}
