"""The stages of a case keep to themselves what goes wrong with it."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from unet_med.bundle import load_bundle
from unet_med.errors import InputRefusedError, MachineError
from unet_med.inference.casework import CaseWork, OutputError, do_case
from unet_med.inference.estimate import CaseSize
from unet_med.inference.predictor import Predictor
from unet_med.inference.worker import CaseJob
from unet_med.io.cases import Case
from unet_med.io.discover import discover
from unet_med.io.export import nifti
from unet_med.io.grouping import group_cases


@pytest.fixture
def predictor(tiny_bundle) -> Predictor:
    return Predictor([load_bundle(tiny_bundle(training__precision="fp32"))], "cpu")


@pytest.fixture
def case(tmp_path: Path) -> Case:
    array = np.random.default_rng(0).normal(100, 20, (14, 12, 9)).astype(np.int16)
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0])), tmp_path / "in" / "a.nii.gz")
    return group_cases(discover(tmp_path / "in").usable)[0]


@pytest.fixture
def job(case: Case, tmp_path: Path) -> CaseJob:
    (tmp_path / "out").mkdir()
    return CaseJob(case, "a", tmp_path / "out", {"tool": "test"})


def _refuse(self: Any, *_: Any) -> None:
    raise InputRefusedError("spoilt", "a", "mend it")


@pytest.mark.parametrize(
    ("modality", "spacing", "status", "doubts"),
    [
        ("MR", [1.0, 1.0], "refused", 0),
        ("CT", [0.1, 0.1], "done", 2),
        ("CT", [1.0, 1.0], "done", 0),
    ],
)
def test_an_image_that_the_model_is_not_meant_for(
    tiny_bundle, case: Case, job: CaseJob, modality: str, spacing: list[float], status: str, doubts: int
) -> None:
    ranges = [[value, value] for value in (*spacing, 2.0)]
    meant = {"schema": 1, "modalities": ["CT"], "body_parts": [], "spacing_mm": ranges}
    model = load_bundle(tiny_bundle("meant", meta={"intended": meant}, training__precision="fp32"))
    given = replace(case, sources=(replace(case.sources[0], modality=modality),))
    record = do_case(Predictor([model], "cpu"), replace(job, case=given))
    assert record["status"] == status
    assert len(record.get("look_at", ())) == len(record.get("unusual", ())) == doubts
    assert ("made for CT" in (record["reason"] or "")) is (status == "refused")


@pytest.mark.parametrize("stage", ["_read", "_compute", "_write"])
def test_a_refusal_in_any_stage_is_the_record_of_the_case(
    predictor: Predictor, job: CaseJob, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    monkeypatch.setattr(CaseWork, stage, _refuse)
    record = do_case(predictor, job)
    assert (record["status"], record["reason"], record["outputs"]) == ("refused", "spoilt: mend it", [])
    assert not list(job.folder.rglob("*"))


@pytest.mark.parametrize(("error", "starved"), [(MemoryError(), True), (ZeroDivisionError(), False)])
def test_an_unexpected_error_fails_the_case_and_tells_no_secret(
    predictor: Predictor, job: CaseJob, monkeypatch: pytest.MonkeyPatch, error: Exception, starved: bool
) -> None:
    def broken(self: Any) -> None:
        raise error

    monkeypatch.setattr(CaseWork, "_write", broken)
    record = do_case(predictor, job)
    assert record["status"] == "failed"
    assert record["out_of_memory"] is starved
    assert ("out of memory" in record["reason"]) is starved


def test_a_full_disk_is_told_with_the_result(
    predictor: Predictor, job: CaseJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(nifti, "save_nifti", full)
    work = CaseWork(job, predictor)
    for stage in (work.read, work.compute, work.write):
        stage()
    with pytest.raises(OutputError, match="disk full"):
        work.result()


def test_what_cannot_fit_is_not_predicted(predictor: Predictor, job: CaseJob, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[CaseSize] = []

    def full(size: CaseSize) -> list[str]:
        asked.append(size)
        raise MachineError("the prediction needs about 9.0 GB, 1.0 GB are free", remedy="take smaller windows")

    monkeypatch.setattr(Predictor, "predict", None)
    work = CaseWork(job, predictor, check_memory=full)
    for stage in (work.read, work.compute, work.write):
        stage()
    record = work.result()
    assert (record["status"], record["out_of_memory"]) == ("failed", True)
    assert "smaller windows" in record["reason"]
    assert (asked[0].geometry.shape, asked[0].voxel_bytes) == ((14, 12, 9), 2)


def test_the_record_of_a_case_that_is_done(predictor: Predictor, job: CaseJob) -> None:
    work = CaseWork(job, predictor, check_memory=lambda _: ["tight"])
    for stage in (work.read, work.compute, work.write):
        stage()
    record = work.result()
    assert record["status"] == "done"
    assert record["notes"] == ["tight"]
    assert record["windows"] == 1
    assert record["engine"].endswith("fp32")
    assert record["seconds"] > 0
    assert work.image_bytes == 3 * 14 * 12 * 9
    mask = np.asarray(nib.load(job.folder / "a.nii.gz").dataobj)
    assert [row["voxels"] for row in record["volumes"]] == [int((mask == value).sum()) for value in (1, 2)]
