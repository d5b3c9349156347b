"""Folder -> manifest -> check -> plan, with clean and with faulty data."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from unet_med.errors import InputRefusedError, NothingUsableError
from unet_med.manifest import load_manifest
from unet_med.workflows.check import check
from unet_med.workflows.manifest import make_manifest
from unet_med.workflows.plan import plan

SHAPE = (12, 14, 10)


def nifti(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.eye(4) if affine is None else affine), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for number in range(5):
        label = np.zeros(SHAPE, dtype=np.uint8)
        label[2:6, 3:8, 2:7] = 1
        label[4 + number % 2, 5:7, 4:6] = 2
        nifti(tmp_path / f"set/images/c{number}.nii.gz", (random.normal(size=SHAPE) + label).astype(np.float32))
        nifti(tmp_path / f"set/labels/c{number}.nii.gz", label)
    return tmp_path / "set"


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    path = tmp_path / "p.yaml"
    path.write_text("name: test\n", encoding="utf-8")
    return path


def recode(folder: Path, table: list[float], dtype: type = np.uint8) -> None:
    for path in sorted((folder / "labels").iterdir()):
        values = np.asarray(nib.load(path).dataobj)
        nifti(path, np.array(table)[values].astype(dtype))


def test_the_way_of_a_clean_set(folder: Path, pipeline: Path, tmp_path: Path) -> None:
    data = tmp_path / "m.json"
    outcome = make_manifest(folder, data, label_names="1=liver,2=tumour")
    assert outcome.exit_code == 0
    assert any("5 training cases" in line for line in outcome.lines)
    assert check(data).lines == ["5 cases, nothing found"]
    resolved = plan(pipeline, data, overrides=["sampling.batch_size=3"])
    assert resolved.result["config"]["sampling"]["batch_size"] == 3
    (tmp_path / "resolved.yaml").write_text("\n".join(resolved.lines), encoding="utf-8")
    again = plan(tmp_path / "resolved.yaml", data)
    assert again.result["config"] == resolved.result["config"]
    page = plan(pipeline, data, explain=True).lines
    assert any(line.startswith("  patch_voxels  ") for line in page)
    assert all(len(line) <= 110 for line in page)
    assert not any("None" in line for line in page)


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NothingUsableError):
        make_manifest(tmp_path / "empty", tmp_path / "m.json")


def test_images_without_labels(folder: Path, tmp_path: Path) -> None:
    for path in (folder / "labels").iterdir():
        path.unlink()
    with pytest.raises(NothingUsableError, match="no label") as error:
        make_manifest(folder, tmp_path / "m.json")
    assert "labelsTr" in error.value.remedy
    assert not (tmp_path / "m.json").exists()


def test_an_image_without_label_is_for_prediction(folder: Path, tmp_path: Path) -> None:
    (folder / "labels/c4.nii.gz").unlink()
    outcome = make_manifest(folder, tmp_path / "m.json")
    assert outcome.exit_code == 0
    assert outcome.result["left_over"] == [{"id": "c4", "reason": "no label: kept for prediction (test)"}]
    assert [case.id for case in load_manifest(tmp_path / "m.json").test] == ["c4"]


@pytest.mark.parametrize(
    ("table", "dtype", "kind"),
    [
        ([0, 255, 255], np.uint8, "values_0_255"),
        ([0, 1, 3], np.uint8, "gaps"),
        ([0, 1.01, 2.01], np.float32, "label_floats"),
    ],
)
def test_faulty_values_are_written_refused_and_corrected(
    folder: Path, pipeline: Path, tmp_path: Path, table: list[float], dtype: type, kind: str
) -> None:
    recode(folder, table, dtype)
    before = {path: path.read_bytes() for path in folder.rglob("*.gz")}
    data = tmp_path / "m.json"
    outcome = make_manifest(folder, data)
    assert outcome.exit_code == 3
    assert {finding["kind"] for finding in outcome.result["findings"]} == {kind}
    with pytest.raises(InputRefusedError, match=r"check M\.json --fix DIR"):
        plan(pipeline, data)
    assert check(data).exit_code == 3
    fixed = check(data, tmp_path / "fixed")
    assert fixed.exit_code == 0
    assert len(fixed.result["fixed"]) == 5
    assert {path: path.read_bytes() for path in folder.rglob("*.gz")} == before
    new = tmp_path / "fixed" / "manifest.json"
    assert check(new).result["findings"] == []
    assert plan(pipeline, new).result["config"]["labels"] == load_manifest(new).labels


def test_label_values_read_0_and_255_without_copies(folder: Path, pipeline: Path, tmp_path: Path) -> None:
    recode(folder, [0, 255, 255])
    data = tmp_path / "m.json"
    assert make_manifest(folder, data, label_values="255=1", label_names="1=liver").exit_code == 0
    assert check(data).exit_code == 0
    assert plan(pipeline, data).result["config"]["labels"] == {"background": 0, "liver": 1}
    assert load_manifest(data).training[0].case.read_label().max() == 1


@pytest.mark.parametrize(("shift", "cut", "kind"), [(4.0, 0, "label_place"), (0.0, 1, "label_shape")])
def test_labels_of_another_shape_or_place(
    folder: Path, pipeline: Path, tmp_path: Path, shift: float, cut: int, kind: str
) -> None:
    path = folder / "labels/c3.nii.gz"
    values = np.asarray(nib.load(path).dataobj)
    affine = np.eye(4)
    affine[1, 3] = shift
    nifti(path, values[cut:], affine)
    data = tmp_path / "m.json"
    outcome = make_manifest(folder, data)
    assert outcome.exit_code == 3
    assert [(finding["kind"], finding["case"]) for finding in outcome.result["findings"]] == [(kind, "c3")]
    with pytest.raises(InputRefusedError, match="c3"):
        plan(pipeline, data)
    fixed = check(data, tmp_path / "fixed")
    assert fixed.exit_code == 3
    assert any("still there" in line for line in fixed.lines)
    with pytest.raises(InputRefusedError, match="c3"):
        plan(pipeline, tmp_path / "fixed" / "manifest.json")


def test_no_path_and_no_folder_is_printed(folder: Path, tmp_path: Path) -> None:
    recode(folder, [0, 1, 3])
    data = tmp_path / "m.json"
    lines = make_manifest(folder, data).lines + check(data).lines + check(data, tmp_path / "fixed").lines
    assert not any(str(tmp_path) in line for line in lines)
