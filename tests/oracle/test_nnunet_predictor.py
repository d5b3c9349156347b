"""Imported models predict what nnU-Net's own predictor predicts: tiny models, trained here by nnU-Net itself.

``UNET_MED_NNUNET_PYTHON`` names an interpreter that has nnunetv2 (2.6 or later).
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from nnunet_reference import arguments_of, plans_of
from scipy import ndimage

from unet_med.bundle import load_bundles, read_bundle_info
from unet_med.inference.predictor import Predictor
from unet_med.io.discover import discover
from unet_med.io.grouping import group_cases
from unet_med.transforms.preprocess import Preprocessor
from unet_med.workflows.import_nnunet import import_nnunet

PYTHON = os.environ.get("UNET_MED_NNUNET_PYTHON", "")
SIDE = Path(__file__).parents[1] / "nnunet_side.py"
EQUAL = 0.999
SLOW = 600

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="UNET_MED_NNUNET_PYTHON names no interpreter with nnunetv2"),
]


@dataclass(frozen=True)
class Scenario:
    """A data set, a plan, and what nnU-Net is to do with them."""

    name: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    plans: dict[str, Any]
    dataset: dict[str, Any]
    mirror: tuple[int, ...]
    folds: tuple[int, ...] = (0,)
    steps: int = 90
    outside: bool = False

    @property
    def configuration(self) -> str:
        return next(iter(self.plans["configurations"]))


def network(dims: int, residual: bool = False) -> dict[str, Any]:
    name = "ResidualEncoderUNet" if residual else "PlainConvUNet"
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
        "arch_kwargs": arguments_of(dims, residual, (8, 12, 16)),
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


LABELS = {"background": 0, "large": 1, "small": 2}
SCENARIOS = [
    Scenario(  # coarse slices, resampled on their own; zeros around and inside of the body; two channels
        "slices",
        (40, 44, 12),
        (1.0, 1.0, 4.0),
        plans_of(
            spacing=(3.25, 1.25, 0.8),
            patch_size=[8, 24, 24],
            architecture=network(3),
            normalization_schemes=["ZScoreNormalization"] * 2,
            use_mask_for_norm=[True, True],
            dataset_name="Dataset001_slices",
        ),
        {"channel_names": {"0": "T1", "1": "T2"}, "labels": LABELS},
        mirror=(0, 1, 2),
        outside=True,
    ),
    Scenario(  # two dimensions, across another axis than the last; CT; voxels without label
        "planes",
        (36, 30, 32),
        (1.1, 1.1, 1.1),
        plans_of(
            "2d",
            spacing=(1.0, 1.0, 1.0),
            patch_size=[32, 32],
            architecture=network(2),
            normalization_schemes=["CTNormalization"],
            use_mask_for_norm=[False],
            transpose_forward=[1, 0, 2],
            transpose_backward=[1, 0, 2],
            dataset_name="Dataset002_planes",
        ),
        {"channel_names": {"0": "CT"}, "labels": {**LABELS, "ignore": 3}},
        mirror=(0, 1),
    ),
    Scenario(  # residual encoder, regions, two folds, no mirroring
        "residual",
        (30, 32, 28),
        (1.2, 1.2, 1.2),
        plans_of(
            residual=True,
            spacing=(1.0, 1.0, 1.0),
            patch_size=[16, 24, 24],
            architecture=network(3, residual=True),
            normalization_schemes=["RescaleTo01Normalization"],
            use_mask_for_norm=[False],
            dataset_name="Dataset003_residual",
        ),
        {
            "channel_names": {"0": "US"},
            "labels": {"background": 0, "both": [1, 2], "small": 2},
            "regions_class_order": [1, 2],
        },
        mirror=(),
        folds=(0, 1),
    ),
]


def case(scenario: Scenario, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """A large ball with a small bright one in it, smooth noise, and an edge that splines overshoot."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, scenario.shape), indexing="ij"), -1) * np.array(scenario.spacing)
    middle = np.array(scenario.shape) * scenario.spacing / 2
    distance = np.linalg.norm(grid - middle - rng.uniform(-3, 3, 3), axis=-1)
    inner = np.linalg.norm(grid - middle - rng.uniform(-3, 3, 3), axis=-1)
    label = np.where(inner < 5, 2, np.where(distance < 11, 1, 0)).astype(np.uint8)
    noise = ndimage.gaussian_filter(rng.normal(size=scenario.shape), 1) * 25
    channels = [
        np.choose(label, (20.0, 110.0, 230.0)) + noise + 15 * number
        for number in range(len(scenario.dataset["channel_names"]))
    ]
    if scenario.outside:
        body = np.abs(grid - middle).max(-1) < 0.45 * np.array(scenario.shape).max()
        body &= np.linalg.norm((grid - middle) / middle, axis=-1) < 1.0
        hole = np.linalg.norm(grid - middle, axis=-1) < 3
        channels = [np.where(body & ~hole, channel, 0) for channel in channels]
    if "ignore" in scenario.dataset["labels"]:
        label[:, :4] = 3
    return [channel.astype(np.float32) for channel in channels], label


def save(path: Path, array: np.ndarray, spacing: tuple[float, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])  # stored as scanners do, not towards R and A
    nib.save(nib.Nifti1Image(array, affine), path)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trains and predicts with nnU-Net, all scenarios in one process."""
    work = tmp_path_factory.mktemp("nnunet")
    for scenario in SCENARIOS:
        raw = work / "raw" / scenario.name
        for seed in range(5):
            channels, label = case(scenario, seed)
            part = "Tr" if seed < 3 else "Ts"
            for number, channel in enumerate(channels):
                save(raw / f"images{part}" / f"c{seed}_{number:04d}.nii.gz", channel, scenario.spacing)
            if part == "Tr":
                save(raw / "labelsTr" / f"c{seed}.nii.gz", label, scenario.spacing)
        (raw / "plans.json").write_text(json.dumps(scenario.plans))
        content = {**scenario.dataset, "numTraining": 3, "file_ending": ".nii.gz"}
        (raw / "dataset.json").write_text(json.dumps(content))
    jobs = [
        {
            "name": one.name,
            "configuration": one.configuration,
            "folds": one.folds,
            "mirror": one.mirror,
            "steps": one.steps,
        }
        for one in SCENARIOS
    ]
    (work / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run(
        [PYTHON, str(SIDE), str(work)], cwd=work, capture_output=True, text=True, timeout=SLOW, check=False
    )
    assert done.returncode == 0, f"nnU-Net ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return work


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_masks_are_nnunets_own(scenario: Scenario, theirs: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    outcome = import_nnunet(theirs / "models" / scenario.name, tmp_path / "model")
    assert outcome.result["configuration"] == scenario.configuration
    assert len(read_bundle_info(tmp_path / "model").members) == (0 if len(scenario.folds) == 1 else len(scenario.folds))
    bundles = load_bundles(tmp_path / "model")
    predictor = Predictor(bundles, device="cpu")
    found = group_cases(discover(theirs / "raw" / scenario.name / "imagesTs").usable, bundles[0].channels)
    assert [one.id for one in found] == ["c3", "c4"]
    for one in found:
        volume = one.read()
        expected = np.load(theirs / "theirs" / scenario.name / f"{one.id}.npz")
        seen = Preprocessor(bundles[0].config).prepare(volume).array
        if scenario.configuration == "2d":
            seen = np.moveaxis(seen, -1, 1)
        assert seen.shape == expected["seen"].shape
        np.testing.assert_allclose(seen, expected["seen"], atol=2e-3)
        mask = predictor.predict(volume).labels
        assert set(np.unique(expected["mask"])) == {0, 1, 2}, "nnU-Net has learnt nothing: no test"
        assert float((mask == expected["mask"]).mean()) >= EQUAL
