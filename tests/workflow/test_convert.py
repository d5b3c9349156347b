"""A folder of scans in, NIfTI and TIFF out: what is done, what is refused, what is never lost."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
import zarr

from unet_med.errors import MachineError, NothingUsableError, UsageError
from unet_med.io import sinks
from unet_med.io.export import nifti as nifti_export
from unet_med.io.source import IntakeOptions
from unet_med.workflows.convert import convert

_SPEC = importlib.util.spec_from_file_location("dicom_writer", Path(__file__).parents[1] / "dicom_writer.py")
w = importlib.util.module_from_spec(_SPEC)
sys.modules["dicom_writer"] = w
_SPEC.loader.exec_module(w)

AFFINE = np.array([[-0.5, 0, 0, 10], [0, 0.75, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1.0]])
INTAKE = IntakeOptions()


def _state(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Three good images and two bad ones."""
    folder = tmp_path / "scans"
    (folder / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    volume = rng.integers(0, 900, (6, 7, 8)).astype(np.int16)
    nib.save(nib.Nifti1Image(volume, AFFINE), folder / "head.nii.gz")
    tifffile.imwrite(folder / "deep" / "cells.tif", rng.integers(0, 255, (9, 5, 3)).astype(np.uint8), photometric="rgb")
    tifffile.imwrite(
        folder / "film.tif", rng.integers(0, 255, (3, 9, 5)).astype(np.uint8), imagej=True, metadata={"axes": "TYX"}
    )
    (folder / "short.nii.gz").write_bytes((folder / "head.nii.gz").read_bytes()[:300])
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5, 2), np.int16), AFFINE), folder / "series.nii.gz")
    (folder / "notes.txt").write_text("hello")
    return folder


def test_good_images_are_written_and_bad_ones_named(scans: Path, tmp_path: Path) -> None:
    before = _state(scans)
    out = tmp_path / "out"
    outcome = convert(scans, out, INTAKE)
    assert outcome.exit_code == 3
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report == json.loads(json.dumps(outcome.result))
    status = {case["id"]: case["status"] for case in report["cases"]}
    assert status == {"head": "done", "cells": "done", "film": "done", "short": "refused", "series": "refused"}
    assert all(case["reason"] for case in report["cases"] if case["status"] == "refused")
    assert report["totals"] | {"seconds": 0} == {
        **{"cases": 5, "done": 3, "refused": 2, "failed": 0, "skipped": 1, "seconds": 0}
    }
    found = {path.name for path in out.iterdir()}
    assert found == {
        *("head.nii.gz", "head.json", "cells.tif", "cells.json", "film.tif", "film.json"),
        *("report.json", "journal.json", "journal"),
    }
    original = nib.load(scans / "head.nii.gz")
    written = nib.load(out / "head.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), np.asanyarray(original.dataobj))
    np.testing.assert_array_equal(written.affine, original.affine)
    np.testing.assert_array_equal(tifffile.imread(out / "cells.tif"), tifffile.imread(scans / "deep" / "cells.tif"))
    np.testing.assert_array_equal(tifffile.imread(out / "film.tif"), tifffile.imread(scans / "film.tif"))
    sidecar = json.loads((out / "head.json").read_text(encoding="utf-8"))
    assert sidecar["use"] == "Research use only"
    assert sidecar["provenance"]["input_sha256"] == before["head.nii.gz"]
    assert all(check["passed"] for check in sidecar["checks"].values())
    assert _state(scans) == before


def test_a_second_start_skips_what_is_finished(scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    first = convert(scans, out, INTAKE)
    (out / "film.tif").unlink()
    written: list[str] = []
    true_write = sinks.write_image
    monkeypatch.setattr(
        "unet_med.workflows.convert.write_image",
        lambda source, *rest: written.append(source.id) or true_write(source, *rest),
    )
    again = convert(scans, out, INTAKE)
    assert written == ["film"]
    assert (out / "film.tif").is_file()
    assert again.exit_code == first.exit_code
    assert [case["status"] for case in again.result["cases"]] == [case["status"] for case in first.result["cases"]]


def test_the_output_of_another_job_is_left_alone(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(scans, out, INTAKE)
    before = _state(out)
    with pytest.raises(UsageError, match="another job"):
        convert(scans, out, IntakeOptions(pixel_size_mm=(1.0,)))
    assert _state(out) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError):
        convert(scans, tmp_path / "mine", INTAKE)
    convert(scans, tmp_path / "mine", INTAKE, overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_nothing_is_written_into_the_input(scans: Path) -> None:
    before = _state(scans)
    for out in (scans, scans / "out", scans / "deep"):
        with pytest.raises(UsageError, match="lies in it"):
            convert(scans, out, INTAKE)
    assert _state(scans) == before


def test_nothing_usable_and_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        convert(tmp_path / "missing", tmp_path / "out", INTAKE)
    folder = tmp_path / "scans"
    folder.mkdir()
    with pytest.raises(NothingUsableError):
        convert(folder, tmp_path / "out", INTAKE)
    (folder / "a.nii").write_bytes(b"nothing")
    with pytest.raises(NothingUsableError, match="cannot be used"):
        convert(folder, tmp_path / "out", INTAKE)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_keeps_what_was_finished(scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    true_save = nib.save

    def full(image: nib.Nifti1Image, path: Path) -> None:
        if "head" in Path(path).name:
            raise OSError(errno.ENOSPC, "No space left on device")
        true_save(image, path)

    with monkeypatch.context() as patch:
        patch.setattr(nifti_export.nib, "save", full)
        with pytest.raises(MachineError, match="disk full"):
            convert(scans, out, INTAKE)
    done = {case["id"] for case in json.loads((out / "report.json").read_text())["cases"] if case["status"] == "done"}
    assert "cells" in done
    assert "head" not in done
    assert not list(out.rglob("*.part*"))
    assert convert(scans, out, INTAKE).exit_code == 3
    assert (out / "head.nii.gz").is_file()


def test_an_image_that_breaks_unexpectedly_does_not_stop_the_others(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_write = sinks.write_image

    def broken(source: object, *rest: object) -> object:
        if source.id == "cells":
            raise RuntimeError("secret/path/of/patient")
        return true_write(source, *rest)

    monkeypatch.setattr("unet_med.workflows.convert.write_image", broken)
    outcome = convert(scans, tmp_path / "out", INTAKE)
    status = {case["id"]: case["status"] for case in outcome.result["cases"]}
    assert (status["cells"], status["head"], outcome.exit_code) == ("failed", "done", 3)
    assert "secret" not in json.dumps(outcome.result)


def test_dicom_outputs_carry_no_patient(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    series = w.Series()
    slices = series.slices()
    for one in slices:
        one.PatientName = "SECRET^JANE"
        one.PatientID = "SECRETID"
        one.SeriesDescription = "SECRET words"
        one.StudyDescription = "SECRET study"
    folder = tmp_path / "SECRET_JANE"
    w.write(folder / "SECRET_SERIES", slices)
    out = tmp_path / "out"
    outcome = convert(folder, out, INTAKE)
    assert outcome.exit_code == 0
    private = out / "journal" / "files.json"
    for path in out.rglob("*"):
        if path.is_file() and path != private:
            raw = path.read_bytes() if path.suffix != ".gz" else bytes(nib.load(path).header.binaryblock)
            for word in (b"SECRET", b"JANE", series.uid.encode()):
                assert word not in raw, path.name
            assert b"SECRET" not in path.name.encode()
    assert "SECRET" not in "\n".join(line for line in outcome.lines if str(out) not in line)
    assert "SECRET" not in caplog.text


def test_dicom_lies_where_its_headers_say(tmp_path: Path) -> None:
    """Every voxel tells its own position, so one comparison checks order, spacing, direction and rescale."""
    series = w.Series()
    w.write(tmp_path / "in", series.slices())
    outcome = convert(tmp_path / "in", tmp_path / "out", INTAKE)
    (case,) = outcome.result["cases"]
    image = nib.load(tmp_path / "out" / case["outputs"][0])
    assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == (1, 1)
    index = np.stack(np.meshgrid(*map(np.arange, image.shape), indexing="ij"), axis=-1)
    ras = index @ image.affine[:3, :3].T + image.affine[:3, 3]
    np.testing.assert_allclose(image.get_fdata(), w.truth(ras * [-1, -1, 1]), atol=0.02)


def test_an_ome_zarr_image_is_converted_and_recognised_again(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 900, (5, 20, 30)).astype(np.uint16)
    group = zarr.create_group(tmp_path / "in" / "cells.ome.zarr")
    group.create_array("0", data=values, chunks=(1, 16, 16))
    axes = [{"name": letter, "type": "space", "unit": "micrometer"} for letter in "zyx"]
    datasets = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [2, 0.5, 0.25]}]}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    for again in (False, True):
        outcome = convert(tmp_path / "in", tmp_path / "out")
        assert outcome.exit_code == 0
        assert any("finished before" in line for line in outcome.lines) == again
    image = nib.load(tmp_path / "out" / "cells.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), values.transpose(2, 1, 0))
    np.testing.assert_allclose(image.header.get_zooms(), (0.00025, 0.0005, 0.002), rtol=1e-6)
