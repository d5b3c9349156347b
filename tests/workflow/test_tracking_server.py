"""Training that reports to an MLflow server, which goes away and comes back."""

from __future__ import annotations

import http.client
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

from unet_med.config import PipelineConfig, Tracking
from unet_med.errors import UsageError
from unet_med.training import outbox
from unet_med.training.store import quiet_environment
from unet_med.training.tracking import MlflowTracker, open_tracker, review_lines

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


def test_a_server_that_goes_away_costs_nothing(
    start: Start, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import mlflow

    tracking = Tracking(store=f"http://127.0.0.1:{port}")
    server = start()
    tracker = open_tracker(tracking, "hippocampus", "served", None)
    assert isinstance(tracker, MlflowTracker)
    config = PipelineConfig(name="hippocampus", tracking=tracking)
    tracker.start(config.to_yaml(), config.model_dump(mode="json"), {}, {"digest": "0f" * 32}, {"fold": "fold0"})
    tracker.epoch(1, {"train/loss": 3.0})
    _end(server)
    began = time.monotonic()
    for epoch in range(2, 50):
        tracker.epoch(epoch, {"train/loss": 1.0})
    assert time.monotonic() - began < 20  # one call that fails, the others wait
    assert caplog.text.count("does not answer") == 1

    start()
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "model.safetensors").write_bytes(b"weights")
    assert tracker.bundle(bundle, "hippocampus", {"dice/mean": 0.5}) == "models:/hippocampus/1"
    tracker.finish("FINISHED")
    assert len(tracker._outbox) == 0
    history = tracker._client.get_metric_history(tracker.run_id, "train/loss")
    assert [point.step for point in history] == list(range(1, 50))
    assert tracker._client.get_run(tracker.run_id).info.status == "FINISHED"

    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.store)
    found = Path(mlflow.artifacts.download_artifacts("models:/hippocampus@candidate"))
    assert (found / "model.safetensors").read_bytes() == b"weights"
    assert review_lines(tracking, tracker)[1].startswith(f"  runs: http://127.0.0.1:{port}/#/experiments/")
    assert outbox.logger.name in {record.name for record in caplog.records}
