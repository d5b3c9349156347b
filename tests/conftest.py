"""Fixtures that all tests share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # a processor that two wait for while they spin computes nothing
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _private_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's own state or cache, or the checkout's MLflow store."""
    home = tmp_path_factory.getbasetemp() / "state"
    home.mkdir(exist_ok=True)
    monkeypatch.setenv("XDG_STATE_HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    monkeypatch.setenv("LOCALAPPDATA", str(home))


@pytest.fixture(autouse=True)
def _no_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO stays out of this process with its many native libraries; what needs it uses ``fresh_process``."""
    monkeypatch.setitem(sys.modules, "openvino", None)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """The networks of a test module compute with one thread: small ones are faster so, and sums come out the same."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def shared_data() -> Callable[[str], Path]:
    """Returns the folder of a real data set, or skips when it is not at hand."""

    def find(name: str) -> Path:
        path = _SHARED / name
        if not path.exists():
            pytest.skip(f"the real data set {name} is not beside the checkout")
        return path

    return find


@pytest.fixture
def tiny_bundle(tmp_path: Path) -> Callable[..., Path]:
    """Returns a maker of small models that need no training: label 1 is above the mean, 2 is 1.5 sd below it."""

    def make(name: str = "model", dims: int = 3, channels: int = 1, meta: dict[str, Any] | None = None, **changes: Any):
        import torch

        from unet_med.bundle import labels_of, save_bundle
        from unet_med.config import parse_config
        from unet_med.networks import build_network

        one, two, three = [1] * dims, [2] * dims, [3] * dims
        config = parse_config(
            {
                "name": "tiny",
                "dims": dims,
                "channels": [f"c{number}" for number in range(channels)],
                "labels": {"background": 0, "bright": 1, "dark": 2},
                "preprocess": {
                    "spacing_mm": None,
                    "normalisation": [{"scheme": "zscore"}] * channels,
                    "crop_to_nonzero": False,
                },
                "network": {"features": [2, 2], "strides": [one, two], "kernels": [three, three], "norm": "none"},
                "loss": {"class_weights": None},
                "augment": {"rotation_degrees": [-30, 30], "mirror_axes": list(range(dims))},
                "sampling": {"patch_voxels": [16] * dims, "batch_size": 2},
                "training": {
                    "learning_rate": 1e-3,
                    "steps_per_epoch": 2,
                    "workers": 0,
                    "validation_every_epochs": 1,
                },
            },
            "the tiny model",
        ).replacing({key.replace("__", "."): value for key, value in changes.items()})
        network = build_network(config.network, dims, channels, labels_of(config).outputs)
        state = {key: torch.zeros_like(value) for key, value in network.state_dict().items()}
        middle = (1,) * dims
        state["encoder.0.0.0.weight"][(0, 0, *middle)] = 1.0
        state["encoder.0.0.0.weight"][(1, 0, *middle)] = -1.0
        state["encoder.0.0.0.bias"][1] = -1.5
        for channel in (0, 1):
            for key in ("encoder.0.1.0.weight", "decoder.0.0.0.weight", "decoder.0.1.0.weight"):
                for source in range(channel, state[key].shape[1], 2):
                    state[key][(channel, source, *middle)] = 1.0
            state["heads.0.weight"][channel + 1, channel] = 1.0
        folder = tmp_path / name
        save_bundle(folder, config, state, meta or {"training": {"n_cases": 3, "fold": "fold_0", "case_sha256": []}})
        return folder

    return make
