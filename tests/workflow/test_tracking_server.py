"""Training that reports to an MLflow server, which goes away and comes back."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from toy_set import Trained

from unet_med.bundle import read_bundle_info
from unet_med.config import Tracking
from unet_med.errors import UsageError
from unet_med.training import outbox
from unet_med.training.store import quiet_environment
from unet_med.training.tracking import open_tracker
from unet_med.workflows.record import Recorder
from unet_med.workflows.train import train

pytestmark = pytest.mark.slow

Start = Callable[[], "subprocess.Popen[bytes]"]


def _end(server: subprocess.Popen[bytes]) -> None:
    for process in [*psutil.Process(server.pid).children(recursive=True), psutil.Process(server.pid)]:
        process.kill()
    server.wait()


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def start(tmp_path: Path, port: int) -> Any:
    running: list[subprocess.Popen[bytes]] = []

    def begin() -> subprocess.Popen[bytes]:
        environment = {**os.environ, **quiet_environment(), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db"]
        command += ["--artifacts-destination", str(tmp_path / "served")]
        server = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        running.append(server)
        for _ in range(600):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            try:
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return server
            except OSError:
                time.sleep(0.2)
            finally:
                connection.close()
        pytest.fail("the MLflow server did not start")

    yield begin
    for server in running:
        if server.poll() is None:
            _end(server)


def test_a_server_that_is_not_there_is_said_before_training(port: int) -> None:
    with pytest.raises(UsageError, match=r"does not answer.*tracking\.enabled=false"):
        open_tracker(Tracking(store=f"http://127.0.0.1:{port}"), "e", "r", None)


def test_a_training_loses_nothing_while_its_server_is_away(
    start: Start,
    port: int,
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import mlflow

    servers = [start()]
    told = Recorder.__call__

    def record(self: Recorder, epoch: int, *rest: Any) -> None:
        if epoch == 2:
            _end(servers[-1])
        if epoch == 4:
            servers.append(start())
        told(self, epoch, *rest)

    monkeypatch.setattr(Recorder, "__call__", record)
    store = f"http://127.0.0.1:{port}"
    changes = (f"tracking.store={store}", "name=served", "training.epochs=5", "training.steps_per_epoch=2")
    run = tmp_path / "RUN"
    outcome = train(trained.pipeline, trained.manifest, run, fold="0", device="cpu", overrides=changes)
    assert outcome.exit_code == 0
    assert caplog.text.count("does not answer") == 1
    assert outbox.logger.name in {entry.name for entry in caplog.records}
    assert any(line.startswith(f"  runs: {store}/#/experiments/") for line in outcome.lines)

    client = mlflow.MlflowClient(store, store)
    run_id = json.loads((run / "run.json").read_text(encoding="utf-8"))["mlflow_runs"]["fold_0"]
    assert client.get_run(run_id).info.status == "FINISHED"
    for name in ("train/loss", "train/dice/mean", "val/dice/mean", "system/cpu_utilization_percentage"):
        assert [point.step for point in client.get_metric_history(run_id, name)] == [1, 2, 3, 4, 5], name
    pictures = [entry.path for entry in client.list_artifacts(run_id, "images") if entry.path.endswith(".png")]
    assert len(pictures) == 6 * 2  # two held-out cases, their truth and five epochs
    found = {entry.path for entry in client.list_artifacts(run_id)}
    assert {"cases.json", "worst_cases.png", "data", "scores", "model", "pipeline.yaml", "plan.md"} <= found

    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert read_bundle_info("models:/served@candidate").sha256 == read_bundle_info(run).sha256
    assert mlflow.pytorch.load_model("models:/served@candidate") is not None
