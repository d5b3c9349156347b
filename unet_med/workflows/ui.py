"""Opens the review of experiments: ``mlflow ui`` on the right store, at the page that shows the runs."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import time
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil

from unet_med.config import Tracking
from unet_med.errors import MachineError, NothingUsableError, UsageError
from unet_med.training.store import (
    Store,
    experiment_address,
    latest_experiment,
    quiet_environment,
    resolve_store,
)
from unet_med.workflows.outcome import Outcome

_HOST: Final = "127.0.0.1"
_START_SECONDS: Final = 120.0
_STOP_SECONDS: Final = 10.0


def ui(store: str | None, port: int, open_browser: bool) -> Outcome:
    """Serves the experiments until it is interrupted.

    Args:
        store: A ``tracking.store`` value; None for the default, ``mlflow.db`` in the working directory.
        port: Port of the address on this machine.
        open_browser: Whether to open the page.

    Raises:
        NothingUsableError: when no experiment was recorded there yet.
        UsageError: when the port is taken or the store is not one of ours.
        MachineError: when the server does not start.
    """
    place = resolve_store(store or Tracking().store)
    if place.database is None:
        address = experiment_address(latest_experiment(place) or "0", place.public_uri)
        _say(address, open_browser)
        return Outcome({"address": address}, [])
    if not place.database.is_file():
        raise NothingUsableError(
            "there is no record of experiments here",
            place.database.name,
            "train first (unet-med train ...), go to the folder where it ran, or give --store sqlite:///FILE",
        )
    experiment = latest_experiment(place)
    if experiment is None:
        raise NothingUsableError("no run was recorded here yet", place.database.name, "train first (unet-med train)")
    _check_free(port)
    address = experiment_address(experiment, f"http://{_HOST}:{port}")
    with _server(place, port) as child:
        _wait_for(child, port)
        _say(address, open_browser)
        _until_stopped(child)
    return Outcome({"address": address}, [])


def ui_command(store: Store, port: int) -> list[str]:
    """Returns the command that serves a SQLite store and the artifacts beside it."""
    return [
        *(sys.executable, "-m", "mlflow", "ui"),
        *("--backend-store-uri", store.uri),
        *("--artifacts-destination", str(store.artifacts)),
        *("--host", _HOST, "--port", str(port), "--workers", "1"),
        *("--uvicorn-opts", "--log-level warning"),
    ]


def _say(address: str, open_browser: bool) -> None:
    sys.stdout.write(f"Experiments: {address}\nCtrl-C ends the review.\n")
    sys.stdout.flush()
    if open_browser:
        webbrowser.open(address)


def _check_free(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        if probe.connect_ex((_HOST, port)) == 0:
            raise UsageError("the port is in use, perhaps by another review", f"port {port}", "give another --port")


@contextmanager
def _server(store: Store, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Runs the server and ends it together with every process that it started."""
    environment = {
        **os.environ,
        **quiet_environment(),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its workers serve language models only
        "PYTHONWARNINGS": "ignore",
    }
    folder = store.database.parent if store.database else Path.cwd()
    child = subprocess.Popen(ui_command(store, port), env=environment, cwd=folder, stdout=subprocess.DEVNULL)
    try:
        yield child
    finally:
        _end(child)


def _wait_for(child: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise MachineError("the MLflow server ended at once", f"port {port}", "its message is above")
        if _answers(port):
            return
        time.sleep(0.2)
    raise MachineError("the MLflow server does not answer", f"port {port}", "try again, or give another --port")


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection(_HOST, port, timeout=2)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _until_stopped(child: subprocess.Popen[bytes]) -> None:
    try:
        child.wait()
    except KeyboardInterrupt:
        sys.stdout.write("\n")


def _end(child: subprocess.Popen[bytes]) -> None:
    try:
        family = [*psutil.Process(child.pid).children(recursive=True), psutil.Process(child.pid)]
    except psutil.NoSuchProcess:
        family = []
    for process in family:
        _signal(process, kill=False)
    _, alive = psutil.wait_procs(family, timeout=_STOP_SECONDS)
    for process in alive:
        _signal(process, kill=True)
    child.wait()


def _signal(process: psutil.Process, *, kill: bool) -> None:
    try:
        process.kill() if kill else process.terminate()
    except psutil.NoSuchProcess:
        return
