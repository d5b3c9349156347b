"""The way of truth in DICOM through the commands: scan, manifest, check, plan, convert, and reading."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import annotation_writer as a
import dicom_writer as w
import nibabel as nib
import numpy as np
import pytest
from pydicom.dataset import FileDataset

import unet_med
from unet_med.errors import InputRefusedError
from unet_med.geometry import Geometry
from unet_med.manifest import load_manifest
from unet_med.workflows.check import check
from unet_med.workflows.convert import convert
from unet_med.workflows.manifest import make_manifest

ROWS, COLUMNS, COUNT = 16, 20, 8
NAMES = ["liver", "spleen"]


def _series(number: int) -> tuple[w.Series, list[FileDataset]]:
    series = w.Series(columns=COLUMNS, rows=ROWS, count=COUNT, number=number)
    slices = series.slices()
    for index, data in enumerate(slices):
        data.PatientID = f"SECRET-{number}"
        noise = np.random.default_rng((number, index)).normal(scale=20, size=(ROWS, COLUMNS))
        w.set_values(data, series.values(series.position(index)) + noise)
    return series, slices


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six series: four with a SEG (organs in another order, one lacks the second), one with contours, one without."""
    root = tmp_path / "SECRET^JANE" / "in"
    for number in range(1, 7):
        series, slices = _series(number)
        w.write(root / f"SECRET_{number}", slices)
        truth = np.zeros((COUNT, ROWS, COLUMNS), dtype=np.uint8)
        truth[2:6, 3:9, 4 : 8 + number] = 1
        truth[3:7, 10:14, 4 : 8 + number] = 2
        np.save(tmp_path / f"truth{number}.npy", truth.transpose(2, 1, 0))
        if number == 2:
            a.save(a.segmentation(slices, np.where(truth, 3 - truth, 0).astype(np.uint8), NAMES[::-1]), _truth(root, 2))
        elif number <= 4:
            a.save(a.segmentation(slices, truth, NAMES, "LABELMAP" if number == 3 else "BINARY"), _truth(root, number))
        elif number == 5:
            structures = a.Structures(series, slices)
            width = 7.5 + number
            boxes = {
                "Liver": [_box(structures, index, 3.5, 2.5, width, 8.5) for index in range(2, 6)],
                "Spleen": [_box(structures, index, 3.5, 9.5, width, 13.5) for index in range(3, 7)],
            }
            a.save(structures.dataset(boxes, known_images=False), _truth(root, 5))
    return root


def _truth(root: Path, number: int) -> Path:
    return root / "truth" / f"SECRET{number}.dcm"


def _box(structures: a.Structures, index: int, x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return structures.points(index, [(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def _number_of(case_id: str) -> int:
    return int(case_id[1:4])


def test_manifest_of_dicom_truth(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "M.json"
    outcome = make_manifest(folder, out, folds=5)
    assert outcome.exit_code == 0
    text = "\n".join(outcome.lines) + json.dumps(outcome.result) + out.read_text()
    assert "SECRET" not in text.upper()
    assert "series paired with the SEG or RTSTRUCT that refers to them: 5" in outcome.lines
    assert stat.S_IMODE((tmp_path / "M.json.sources.json").stat().st_mode) == 0o600
    entry = next(one for one in json.loads(out.read_text())["training"] if one["id"].startswith("s002"))
    assert entry["label"].startswith("dicom/s300-")
    assert entry["read"]["label"] == {"segments": {"1": 2, "2": 1}}

    manifest = load_manifest(out)
    assert manifest.labels == {"background": 0, "liver": 1, "spleen": 2}
    assert (len(manifest.training), len(manifest.test), manifest.folds) == (5, 1, 5)
    for case in manifest.training:
        label = case.case.read_label()
        assert label.dtype == np.uint8
        assert np.array_equal(label, np.load(tmp_path / f"truth{_number_of(case.id)}.npy")), case.id
        assert label.shape == case.case.read().array.shape[1:]
    checked = check(out)
    assert checked.exit_code == 0, checked.lines


def test_a_changed_annotation_is_noticed(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "M.json"
    make_manifest(folder, out)
    series, slices = _series(1)
    a.save(a.segmentation(slices, np.ones((COUNT, ROWS, COLUMNS), dtype=np.uint8), ["kidney"]), _truth(folder, 1))
    assert series.number == 1
    checked = check(out)
    assert checked.exit_code == 3
    _truth(folder, 3).unlink()
    with pytest.raises(InputRefusedError, match="the label is missing"):
        load_manifest(out)


def test_check_fix_writes_annotations_as_label_images(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "M.json"
    assert make_manifest(folder, out, label_names="3=liver,2=spleen").exit_code == 3
    check(out, fix=tmp_path / "fixed")
    manifest = load_manifest(tmp_path / "fixed" / "manifest.json")
    assert manifest.labels == {"background": 0, "spleen": 1, "liver": 2}
    assert {case.case.label.kind for case in manifest.training} == {"nifti"}
    for case in manifest.training:
        truth = np.load(tmp_path / f"truth{_number_of(case.id)}.npy")
        assert np.array_equal(case.case.read_label(), np.where(truth, 3 - truth, 0))


def test_convert_writes_labels_on_the_grid_of_their_series(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "out"
    outcome = convert(folder, out)
    assert outcome.exit_code == 0
    assert outcome.result["totals"]["done"] == 11
    masks = [path for path in out.glob("s*.json") if json.loads(path.read_text())["kind"] == "mask"]
    assert len(masks) == 5
    for path in masks:
        about = json.loads(path.read_text())
        image = nib.load(out / f"{about['provenance']['image']}.nii.gz")
        mask = nib.load(path.with_suffix(".nii.gz"))
        assert np.abs(mask.affine - image.affine).max() < 1e-3
        truth = np.load(tmp_path / f"truth{_number_of(about['provenance']['image'])}.npy")
        values = {one["name"].lower(): one["value"] for one in about["labels"]}
        stored = np.asarray(mask.dataobj)
        assert stored.dtype == np.uint8
        for number, name in enumerate(NAMES, start=1):
            assert np.array_equal(stored == values[name], truth == number)
    written = "".join(path.read_text() for path in out.glob("*.json"))
    assert "SECRET" not in written.upper()


def test_convert_an_annotation_alone(tmp_path: Path, folder: Path) -> None:
    outcome = convert(_truth(folder, 1), tmp_path / "seg")
    assert outcome.exit_code == 0
    [mask] = (tmp_path / "seg").glob("*.nii.gz")
    # Slices without a segment are not stored in the file: five of eight are left.
    assert nib.load(mask).shape == (COLUMNS, ROWS, 5)
    alone = convert(_truth(folder, 5), tmp_path / "contours")
    assert alone.exit_code == 4
    assert "give the folder of the series that it was drawn on" in alone.result["cases"][0]["reason"]


def test_a_refused_annotation_is_reported(tmp_path: Path, folder: Path) -> None:
    path = _truth(folder, 1)
    path.write_bytes(path.read_bytes()[:-30])
    outcome = convert(folder, tmp_path / "out")
    assert outcome.exit_code == 3
    refused = [case for case in outcome.result["cases"] if case["status"] == "refused"]
    assert len(refused) == 1
    assert "truncated" in refused[0]["reason"]


def test_read_gives_the_labels_of_a_seg(tmp_path: Path, folder: Path) -> None:
    volume = unet_med.read(_truth(folder, 1))
    truth = np.load(tmp_path / "truth1.npy")
    assert np.array_equal(volume.array[0], truth[:, :, 2:7])
    series = unet_med.read(folder / "SECRET_1")
    assert volume.geometry.same_grid(Geometry(series.geometry.shape, series.geometry.affine).crop(_planes(2, 7)))


def _planes(start: int, stop: int) -> tuple[slice, slice, slice]:
    return slice(None), slice(None), slice(start, stop)
