"""Fixtures that all tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

_SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _private_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's own state or the checkout's MLflow store."""
    home = tmp_path_factory.getbasetemp() / "state"
    home.mkdir(exist_ok=True)
    monkeypatch.setenv("XDG_STATE_HOME", str(home))
    monkeypatch.setenv("LOCALAPPDATA", str(home))


@pytest.fixture
def shared_data() -> Callable[[str], Path]:
    """Returns the folder of a real data set, or skips when it is not at hand."""

    def find(name: str) -> Path:
        path = _SHARED / name
        if not path.exists():
            pytest.skip(f"the real data set {name} is not beside the checkout")
        return path

    return find
