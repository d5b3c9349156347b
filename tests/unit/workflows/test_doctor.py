"""What doctor says of the machine, and its estimates."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from unet_med.config import PipelineConfig
from unet_med.errors import UsageError
from unet_med.inference.estimate import Rates, measure_window
from unet_med.inference.worker import Setup
from unet_med.networks import build_network
from unet_med.workflows import doctor as doctor_module
from unet_med.workflows.doctor import doctor
from unet_med.workflows.outcome import MACHINE, NOTHING_USABLE

RESOLVED: dict[str, object] = {
    "dims": 3,
    "channels": ["CT"],
    "labels": {"background": 0, "one": 1},
    "preprocess.spacing_mm": [2.0, 2.0, 4.0],
    "preprocess.normalisation": [{"scheme": "zscore"}],
    "preprocess.crop_to_nonzero": False,
    "network.features": [4, 8],
    "network.strides": [[1, 1, 1], [2, 2, 2]],
    "network.kernels": [[3, 3, 3], [3, 3, 3]],
    "loss.class_weights": None,
    "augment.rotation_degrees": [-30, 30],
    "augment.mirror_axes": [0, 1],
    "sampling.patch_voxels": [16, 16, 8],
    "sampling.batch_size": 2,
    "training.learning_rate": 0.001,
    "training.epochs": 10,
    "training.steps_per_epoch": 30,
    "training.workers": 0,
    "training.validation_every_epochs": 5,
}


@pytest.fixture
def config() -> PipelineConfig:
    torch.set_num_threads(1)
    return PipelineConfig(name="small").replacing(RESOLVED)


@pytest.fixture
def pipeline(config: PipelineConfig, tmp_path: Path) -> Path:
    path = tmp_path / "pipeline.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    return path


def test_the_machine_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = doctor()
    machine = outcome.result["machine"]
    assert outcome.exit_code == 0
    assert machine["libraries"]["torch"] == torch.__version__
    assert machine["threads"] == torch.get_num_threads()
    assert machine["cores"] >= 1
    assert machine["devices"][0] == "cpu"
    assert all(machine["dicom_decoders"].values())
    assert not any("mlruns" in warning for warning in machine["warnings"])
    text = "\n".join(outcome.lines)
    for word in ("processor", "memory", "disk", "devices", "libraries", "DICOM"):
        assert word in text


def test_a_leftover_file_store_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlruns" / "0").mkdir(parents=True)
    (tmp_path / "mlruns" / "0" / "meta.yaml").write_text("name: Default\n", encoding="utf-8")
    warnings = doctor().result["machine"]["warnings"]
    assert any("mlflow migrate-filestore" in warning for warning in warnings)


@pytest.mark.parametrize("training", [False, True])
def test_a_window_is_measured(config: PipelineConfig, training: bool) -> None:
    network = build_network(config.network, 3, 1, 2)
    cost = measure_window(network, config, torch.device("cpu"), torch.float32, batch=2, training=training)
    assert 0 < cost.seconds < 30
    assert cost.peak_bytes >= 0
    assert all(parameter.grad is None for parameter in network.parameters())


class _Measured:
    """Stands in for the process that measures."""

    rates = Rates(2.0, 0.5, 0.0, 0.0, 0.0, 0.1, 300_000_000, 100_000_000, "torch fp32", "it was asked for")

    def __init__(self, setup: Setup) -> None:
        assert setup.probe is not None
        self.probe = setup.probe

    def wait_ready(self) -> None:
        """Ready."""

    def collect(self) -> dict[str, object]:
        return asdict(self.rates)

    def stop(self) -> None:
        """Nothing to stop."""


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    for name, depth in (("a", 20), ("b", 40)):
        image = nibabel.Nifti1Image(np.zeros((40, 33, depth), dtype=np.int16), np.diag([2.0, 2.0, 4.0, 1.0]))
        nibabel.save(image, folder / f"{name}.nii.gz")
    return folder


def test_a_pipeline_and_a_folder_are_estimated(pipeline: Path, scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "Worker", _Measured)
    outcome = doctor(str(pipeline), scans)
    result = outcome.result
    assert outcome.exit_code == 0
    assert result["fits"] is True
    assert result["estimate"]["training"]["steps"] == 300
    assert result["estimate"]["engine"] == "torch fp32"
    assert [(case["id"], case["windows"]) for case in result["cases"]] == [("a", 4 * 4 * 4), ("b", 4 * 4 * 9)]
    assert result["cases"][0]["seconds"] == pytest.approx(64 * 0.5 + 0.1)
    assert result["totals"]["images"] == 2
    assert result["totals"]["seconds"] == pytest.approx(2.0 + (64 + 144) * 0.5 + 0.2, abs=0.2)
    assert 200 < result["totals"]["peak_memory_mb"] < 210
    assert any("it was asked for" in line for line in outcome.lines)


def test_what_will_not_fit_is_refused_with_the_way_out(
    pipeline: Path, scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_module, "Worker", _Measured)
    monkeypatch.setattr(doctor_module, "available_bytes", lambda: 200_500_000)
    outcome = doctor(str(pipeline), scans)
    assert outcome.exit_code == MACHINE
    assert outcome.result["fits"] is False
    assert outcome.lines[-1].startswith("error: 2 of 2 images will not fit")
    monkeypatch.setattr(doctor_module, "available_bytes", lambda: 250_000_000)
    assert doctor(str(pipeline), scans).result["fits"] is True


@pytest.mark.parametrize("alone", [True, False])
def test_a_real_process_measures(tiny_bundle, tmp_path: Path, alone: bool) -> None:
    """The numbers are checked by the benchmark; here, that every one of them is measured."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(1 if alone else 2):
        array = np.random.default_rng(number).normal(100, 20, (30, 25, 20)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0])), folder / f"{number}.nii.gz")
    outcome = doctor(str(tiny_bundle()), folder)
    estimate = outcome.result["estimate"]
    assert outcome.exit_code == 0
    assert 0 < estimate["seconds_per_window"] < 5
    assert 0.1 < estimate["start_seconds"] < 120
    assert estimate["engine"].split()[0] in ("torch", "openvino")
    assert outcome.result["totals"]["peak_memory_mb"] > 100
    assert "An estimate" in outcome.lines[-1]


def test_images_that_the_model_cannot_take_are_not_estimated(pipeline: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    (folder / "a.txt").write_text("no image", encoding="utf-8")
    assert doctor(str(pipeline), folder).exit_code == NOTHING_USABLE


def test_an_unresolved_pipeline_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("name: open\n", encoding="utf-8")
    with pytest.raises(UsageError, match="unet-med plan"):
        doctor(str(path))
