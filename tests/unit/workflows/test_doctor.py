"""What doctor says of the machine, and its estimates."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from unet_med.config import PipelineConfig
from unet_med.errors import UsageError
from unet_med.geometry import Geometry
from unet_med.inference.estimate import WindowCost, estimate_case, measure_window
from unet_med.inference.tiling import sliding_window_logits
from unet_med.networks import build_network
from unet_med.workflows.doctor import doctor
from unet_med.workflows.outcome import NOTHING_USABLE

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


@pytest.mark.parametrize(
    ("shape", "mirror"), [((40, 33, 20), False), ((40, 33, 20), True), ((16, 16, 8), False), ((9, 50, 3), False)]
)
def test_the_number_of_windows_is_what_prediction_runs(
    config: PipelineConfig, shape: tuple[int, int, int], mirror: bool
) -> None:
    """The estimate counts the forward passes of the real sliding window."""
    passes = 0

    def network(batch: torch.Tensor) -> torch.Tensor:
        nonlocal passes
        passes += batch.shape[0]
        return torch.zeros(batch.shape[0], 2, *batch.shape[2:])

    sliding_window_logits(
        torch.zeros(1, *shape), network, (16, 16, 8), 2, overlap=0.5, mirror_axes=(0, 1) if mirror else ()
    )
    geometry = Geometry.from_spacing(shape, (2.0, 2.0, 4.0))
    cost = estimate_case(geometry, config, WindowCost(0.5, 1000), mirror=mirror)
    assert cost.windows == passes
    assert cost.seconds == pytest.approx(0.5 * passes)
    assert cost.peak_bytes > 1000 + 4 * 5 * np.prod(shape)


def test_a_finer_image_is_counted_on_the_grid_of_the_network(config: PipelineConfig) -> None:
    cost = WindowCost(1.0, 0)
    coarse = estimate_case(Geometry.from_spacing((40, 40, 20), (2.0, 2.0, 4.0)), config, cost)
    fine = estimate_case(Geometry.from_spacing((80, 80, 80), (1.0, 1.0, 1.0)), config, cost)
    assert fine.windows == coarse.windows
    assert fine.peak_bytes > coarse.peak_bytes
    turned = np.array([[0, 0, 1.0, 0], [1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1]])  # stored as A, S, R
    other = estimate_case(Geometry((80, 80, 80), turned), config, cost)
    assert other.windows == fine.windows


@pytest.mark.parametrize("training", [False, True])
def test_a_window_is_measured(config: PipelineConfig, training: bool) -> None:
    network = build_network(config.network, 3, 1, 2)
    cost = measure_window(network, config, torch.device("cpu"), torch.float32, batch=2, training=training)
    assert 0 < cost.seconds < 30
    assert cost.peak_bytes >= 0
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_pipeline_and_a_folder_are_estimated(pipeline: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    image = nibabel.Nifti1Image(np.zeros((40, 33, 20), dtype=np.int16), np.diag([2.0, 2.0, 4.0, 1.0]))
    nibabel.save(image, folder / "a.nii.gz")
    outcome = doctor(str(pipeline), folder)
    estimate = outcome.result["estimate"]
    assert estimate["seconds_per_window"] > 0
    assert estimate["training"]["steps"] == 300
    assert [case["id"] for case in outcome.result["cases"]] == ["a"]
    assert outcome.result["totals"]["images"] == 1
    assert outcome.result["totals"]["peak_memory_mb"] > 50
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
