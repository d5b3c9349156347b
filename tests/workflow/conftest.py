"""A network trained in seconds, shared by the workflow tests."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from toy_set import PIPELINE, Trained, write_toy_set


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables, which take seconds to make, and nothing in them: copy it."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path.as_posix()}").search_experiments()
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Trained:
    """Trains the toy network once; its MLflow store is ``work/mlflow.db``. Never write into it."""
    from unet_med.io.source import IntakeOptions
    from unet_med.workflows.manifest import make_manifest
    from unet_med.workflows.train import train

    work = tmp_path_factory.mktemp("trained")
    before, threads = Path.cwd(), torch.get_num_threads()
    torch.set_num_threads(1)
    os.chdir(work)
    try:
        shutil.copy(empty_store, work / "mlflow.db")
        data = write_toy_set(work / "data")
        pipeline = work / "toy.yaml"
        pipeline.write_text(yaml.safe_dump(PIPELINE), encoding="utf-8")
        make_manifest(data, work / "M.json", folds=3, intake=IntakeOptions())
        outcome = train(pipeline, work / "M.json", work / "RUN", fold="0", device="cpu")
        assert outcome.exit_code == 0
    finally:
        os.chdir(before)
        torch.set_num_threads(threads)
    return Trained(work, data, work / "M.json", pipeline, work / "RUN")


@pytest.fixture
def inline_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predicts in this process: starting the worker's takes longer than its work on toys."""
    from inline_worker import InlineWorker

    from unet_med.workflows import predict

    monkeypatch.setattr(predict, "Worker", InlineWorker)
