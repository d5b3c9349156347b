"""Manifests and plans of real sets, which are clean."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from unet_med.config import load_config
from unet_med.io.source import IntakeOptions
from unet_med.manifest import load_manifest
from unet_med.planning import make_plan
from unet_med.workflows.check import check
from unet_med.workflows.manifest import make_manifest

ROOT = Path(__file__).parents[2]
Shared = Callable[[str], Path]


def test_hippocampus(shared_data: Shared, tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    outcome = make_manifest(shared_data("msd_hippocampus"), path, label_names="1=anterior,2=posterior")
    assert outcome.exit_code == 0
    assert outcome.result["left_over"] == []
    started = time.process_time()
    manifest = load_manifest(path)
    assert time.process_time() - started < 10  # other tests may keep the processors busy
    assert len(manifest.training) == 220
    assert manifest.labels == {"background": 0, "anterior": 1, "posterior": 2}
    sizes = np.bincount([case.fold for case in manifest.training])
    assert sizes.tolist() == [44] * 5
    config = load_config(ROOT / "pipelines" / "hippocampus_3d.yaml")
    plan = make_plan(config, manifest, cases=[case for case in manifest.training if case.fold != 0])
    assert plan.config.unresolved() == ()
    assert plan.fingerprint["cases"] == 176
    assert plan.fingerprint["spacing_mm_median"] == [1.0, 1.0, 1.0]
    free = make_plan(load_config(ROOT / "pipelines" / "semantic_3d.yaml"), manifest, device="cuda").config
    assert free.sampling.patch_voxels == (40, 56, 40)  # nnU-Net's golden plan
    assert free.network.features == (32, 64, 128, 256)
    assert free.sampling.batch_size in (8, 9)  # 9 on all 260 cases
    assert check(path).result["findings"] == []


def test_nuclei(shared_data: Shared, tmp_path: Path) -> None:
    folder = shared_data("dsb2018_nuclei")
    path = tmp_path / "m.json"
    outcome = make_manifest(folder, path, group_by=str(folder / "index.csv"))
    assert outcome.exit_code == 0
    manifest = load_manifest(path)
    assert (len(manifest.training), manifest.task) == (150, "instance")
    assert manifest.labels == {"background": 0, "object": 1}
    assert "g000" not in path.read_text(encoding="utf-8")
    case = manifest.training[0]
    stored = tifffile.imread(folder / "labels" / f"{case.id}.tif")
    np.testing.assert_array_equal(case.case.read_label(), stored.T)
    result = check(path)
    assert (result.exit_code, result.result["findings"]) == (0, [])


def test_fluorescence_nuclei(shared_data: Shared, tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    table = ROOT / "data_manifests" / "dsb2018_fluorescence.csv"
    make_manifest(shared_data("dsb2018_nuclei"), path, group_by=str(table))
    manifest = load_manifest(path)
    assert len(manifest.training) == 120
    assert {case.case.channels for case in manifest.training} == {1}
    plan = make_plan(load_config(ROOT / "pipelines" / "nuclei_2d.yaml"), manifest, cases=manifest.training[:12])
    assert plan.config.unresolved() == ()
    assert check(path).result["findings"] == []


def test_membranes(shared_data: Shared, tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    outcome = make_manifest(
        shared_data("isbi2012_membrane"),
        path,
        images="train-volume.tif",
        labels="train-labels.tif",
        label_values="0=1,255=0",
        label_names="1=membrane",
        group_by=str(ROOT / "data_manifests" / "isbi2012_membrane_split.csv"),
        intake=IntakeOptions(axes="IYX"),
    )
    assert outcome.exit_code == 0
    manifest = load_manifest(path)
    assert [case.id for case in manifest.test] == [f"train-volume_p{page:03d}" for page in range(24, 30)]
    assert len(manifest.training) == 24
    share = np.mean([case.case.read_label().mean() for case in manifest.training])
    assert 0.2 < share < 0.25  # membranes are 22 % of the pixels
    plan = make_plan(load_config(ROOT / "pipelines" / "membrane_2d.yaml"), manifest)
    assert plan.config.unresolved() == ()
    assert check(path).result["findings"] == []


def test_tumours_in_lps_order(shared_data: Shared, tmp_path: Path) -> None:
    outcome = make_manifest(shared_data("sts_tumour") / "nifti" / "MR_T1", tmp_path / "m.json")
    assert outcome.exit_code == 0
    assert check(tmp_path / "m.json").result["findings"] == []


@pytest.mark.parametrize(
    ("name", "options"),
    [("sct_spinal_cord", {}), ("stardist_nuclei3d", {"images": "img3d.tif", "labels": "mask3d.tif"})],
)
def test_single_cases(shared_data: Shared, tmp_path: Path, name: str, options: dict[str, str]) -> None:
    intake = IntakeOptions(axes="ZYX") if "images" in options else IntakeOptions()
    outcome = make_manifest(shared_data(name), tmp_path / "m.json", **options, intake=intake)
    assert outcome.exit_code == 0
    assert outcome.result["folds"] == 0
    assert check(tmp_path / "m.json").result["findings"] == []
