"""Predicting a DICOM series into every format, and what is refused before or instead."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from dicom_writer import Series, set_stored, write
from inline_worker import InlineWorker

from unet_med import cli
from unet_med.errors import ConfigError, UsageError
from unet_med.io.export import seg_nrrd
from unet_med.workflows import predict as predict_module
from unet_med.workflows.predict import predict

ALL = "nifti,seg-nrrd,dicom-seg,rtstruct,dicom-sr,dicom-sc"
ENDINGS = [".nii.gz", ".seg.nrrd", ".seg.dcm", ".rtstruct.dcm", ".sr.dcm", ".sc"]
CODES = """
labels:
  background: 0
  bright:
    value: 1
    colour: [10, 200, 30]
    category: [SCT, "91723000", Anatomical Structure]
    type: [SCT, "10200004", Liver]
  dark: {value: 2, category: [SCT, "49755003", Morphologically Abnormal Structure], type: [SCT, "4147007", Mass]}
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(predict_module, "Worker", InlineWorker)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """An oblique CT series of three blobs: two bright, one dark."""
    made = Series(columns=26, rows=20, count=8)
    voxels = np.random.default_rng(0).integers(95, 105, (8, 20, 26))
    voxels[1:4, 4:9, 3:9] = 240
    voxels[3:7, 10:17, 14:22] = 240
    voxels[2:6, 3:8, 17:23] = 0
    slices = made.slices()
    for number, data in enumerate(slices):
        set_stored(data, voxels[number].astype(np.uint16))
        data.PatientName, data.PatientID, data.StudyDate = "SECRET^JANE", "SECRET-4711", "19700203"
        data.StudyID, data.AccessionNumber = "SECRET", "SECRET-ACC"
    write(tmp_path / "in" / "SECRET_JANE", slices)
    return tmp_path / "in"


@pytest.fixture
def codes(tmp_path: Path) -> Path:
    path = tmp_path / "codes.yaml"
    path.write_text(CODES, encoding="utf-8")
    return path


def _one(out: Path) -> dict[str, Any]:
    (entry,) = json.loads((out / "report.json").read_text(encoding="utf-8"))["cases"]
    return dict(entry)


def test_one_series_in_every_format(tiny_bundle, series: Path, codes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = predict(str(tiny_bundle()), series, out, formats=[ALL], labels=codes, device="cpu")
    entry = _one(out)
    assert (outcome.exit_code, entry["reason"]) == (0, None)
    name = entry["id"]
    assert entry["outputs"] == [*(name + ending for ending in ENDINGS), f"{name}.json", f"previews/{name}.png"]
    assert sorted(path.name for path in (out / f"{name}.sc").iterdir())[0] == "0001.dcm"
    assert list(entry["checks"]["formats"]) == ALL.split(",")
    assert entry["checks"]["passed"]
    for record in entry["checks"]["formats"].values():
        assert record["passed"]
    for exact in ("nifti", "seg-nrrd", "dicom-seg"):
        assert entry["checks"]["formats"][exact]["voxels"] == 0
    mask = SimpleITK.ReadImage(str(out / f"{name}.nii.gz"))
    again = SimpleITK.ReadImage(str(out / f"{name}.seg.nrrd"))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(mask), SimpleITK.GetArrayFromImage(again))
    np.testing.assert_allclose(mask.GetOrigin(), again.GetOrigin(), atol=1e-4)
    assert set(np.unique(SimpleITK.GetArrayFromImage(mask))) == {0, 1, 2}
    sidecar = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
    assert sidecar["labels"][0]["colour"] == [10, 200, 30]
    assert sidecar["labels"][0]["type"] == ["SCT", "10200004", "Liver"]
    assert sidecar["provenance"]["options"]["formats"] == ALL.split(",")
    assert len(sidecar["provenance"]["options"]["labels_sha256"]) == 64
    assert '"bright"' in (out / "labels.itksnap.txt").read_text(encoding="utf-8")
    assert "1 bright 10 200 30 255" in (out / "labels.ctbl").read_text(encoding="utf-8")
    assert not list(out.rglob("*.part*"))
    assert not list(out.rglob("*.work"))

    stamps = {path: path.stat().st_mtime_ns for path in out.glob("s*")}
    assert predict(str(tiny_bundle()), series, out, formats=[ALL], labels=codes).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("s*")} == stamps
    predict(str(tiny_bundle()), series, out, overwrite=True)
    own = {f"{name}.nii.gz", f"{name}.json", "labels.itksnap.txt", "labels.ctbl", "report.json", "volumes.csv"}
    assert {path.name for path in out.iterdir()} == own | {"journal", "journal.json", "previews"}


def test_nothing_of_a_patient_is_in_what_is_deidentified(
    tiny_bundle, series: Path, codes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert predict(str(tiny_bundle()), series, out, formats=[ALL], labels=codes, deidentify=True).exit_code == 0
    for path in out.rglob("*"):
        assert "SECRET" not in path.name
        if path.is_file() and path.name != "files.json":
            assert b"SECRET" not in path.read_bytes(), path.name
            assert b"19700203" not in path.read_bytes(), path.name


def test_probabilities_are_computed_only_where_they_are_stored(
    tiny_bundle, series: Path, codes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    outcome = predict(str(tiny_bundle()), series, out, formats=["seg"], seg_type="fractional", labels=codes)
    entry = _one(out)
    assert (outcome.exit_code, entry["reason"]) == (0, None)
    assert entry["checks"]["formats"]["dicom-seg"]["passed"]


def test_codes_are_asked_for_before_anything_is_done(
    tiny_bundle, series: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(tiny_bundle())
    with pytest.raises(ConfigError, match="dicom-seg needs a code for each label"):
        predict(model, series, tmp_path / "out", formats=["seg"])
    assert not (tmp_path / "out").exists()
    assert cli.main(["predict", model, str(series), str(tmp_path / "out"), "--format", "nifti,seg"]) == 2
    _, _, example = capsys.readouterr().err.partition("\n")
    (tmp_path / "block.yaml").write_text(example, encoding="utf-8")
    words = ["predict", model, str(series), str(tmp_path / "out"), "--format", "nifti,seg"]
    assert cli.main([*words, "--labels", str(tmp_path / "block.yaml")]) == 0


def test_a_file_that_is_no_dicom_has_no_dicom_outputs(tiny_bundle, series: Path, tmp_path: Path) -> None:
    """Beside a series the file alone is refused."""
    array = np.random.default_rng(0).normal(100, 20, (12, 10, 8)).astype(np.float32)
    nib.save(nib.Nifti1Image(array, np.eye(4)), series / "case.nii.gz")
    out = tmp_path / "out"
    outcome = predict(str(tiny_bundle()), series, out, formats=["nifti", "rtstruct"])
    entries = {entry["id"]: entry for entry in outcome.result["cases"]}
    assert outcome.exit_code == 3
    assert sorted(entry["status"] for entry in entries.values()) == ["done", "refused"]
    assert entries["case"]["outputs"] == []
    assert "rtstruct refers to the slices of a DICOM series" in entries["case"]["reason"]
    assert not list(out.glob("case*"))


def test_a_format_that_fails_its_check_leaves_nothing_of_the_case(
    tiny_bundle, series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_write = seg_nrrd.write

    def mirrored(export: Any, path: Path) -> None:
        true_write(export, path)
        data = path.read_bytes()
        path.write_bytes(data.replace(b"left-posterior-superior", b"left-anterior-superior"))

    monkeypatch.setattr(seg_nrrd, "write", mirrored)
    out = tmp_path / "out"
    outcome = predict(str(tiny_bundle()), series, out, formats=["nifti,seg-nrrd"])
    entry = _one(out)
    assert (outcome.exit_code, entry["status"], entry["outputs"]) == (4, "refused", [])
    assert entry["reason"].startswith("seg-nrrd: the written file does not read back")
    left = sorted(path.name for path in out.iterdir())
    assert left == ["journal", "journal.json", "report.json", "volumes.csv"]


def test_another_choice_of_formats_is_another_job(tiny_bundle, series: Path, tmp_path: Path) -> None:
    model = str(tiny_bundle())
    predict(model, series, tmp_path / "out")
    with pytest.raises(UsageError, match="another job"):
        predict(model, series, tmp_path / "out", formats=["seg-nrrd"])
    with pytest.raises(UsageError, match="another job"):
        predict(model, series, tmp_path / "out", deidentify=True)
