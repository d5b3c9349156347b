"""Manifests on disk."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tifffile

from unet_med.errors import InputRefusedError, MachineError, UsageError
from unet_med.identity import file_sha256
from unet_med.io.discover import discover
from unet_med.io.source import IntakeOptions
from unet_med.manifest import BuildOptions, Finding, build_manifest, load_manifest, save_manifest, verify
from unet_med.manifest.files import table_path
from unet_med.manifest.model import content_sha256


def nifti(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six cases of an image and a label with 0, 1, 2, and one image without label."""
    random = np.random.default_rng(0)
    root = tmp_path / "set"
    for number in range(6):
        nifti(root / f"imagesTr/c{number}.nii.gz", random.normal(size=(6, 7, 8)).astype(np.float32))
        nifti(root / f"labelsTr/c{number}.nii.gz", random.integers(0, 3, (6, 7, 8)).astype(np.uint8))
    nifti(root / "imagesTs/t.nii.gz", random.normal(size=(6, 7, 8)).astype(np.float32))
    return root


def decathlon(folder: Path, **more: Any) -> Path:
    """A plain Decathlon file, as others write it."""
    path = folder / "dataset.json"
    data = {
        "name": "Set",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "tumour"},
        "training": [{"image": f"./imagesTr/c{n}.nii.gz", "label": f"./labelsTr/c{n}.nii.gz"} for n in range(6)],
        "test": ["./imagesTs/t.nii.gz"],
    }
    path.write_text(json.dumps(data | more), encoding="utf-8")
    return path


def built(folder: Path, out: Path, **options: Any) -> Path:
    save_manifest(build_manifest(folder, discover(folder), BuildOptions(**options), "set").manifest, out)
    return out


def test_what_is_saved_is_what_is_loaded(folder: Path, tmp_path: Path) -> None:
    report = build_manifest(folder, discover(folder), BuildOptions(folds=3, label_names="1=liver"), "my set")
    finding = Finding("c1", "warning", "the label is empty", "look at it", "empty")
    manifest = replace(report.manifest, findings=(finding,), description="d", licence="l")
    path = tmp_path / "deep" / "m.json"
    assert save_manifest(manifest, path) == [path]
    loaded = load_manifest(path)
    assert loaded.name == "my_set"
    assert loaded.labels == {"background": 0, "liver": 1, "label_2": 2}
    assert (loaded.folds, loaded.task, loaded.channels) == (3, "semantic", ("channel_0",))
    assert (loaded.findings, loaded.description, loaded.licence) == ((finding,), "d", "l")
    for one, other in zip(manifest.training, loaded.training, strict=True):
        assert (one.id, one.fold, one.group, dict(one.sha256)) == (
            other.id,
            other.fold,
            other.group,
            dict(other.sha256),
        )
        assert one.case.sources[0].files[0].samefile(other.case.sources[0].files[0])
        np.testing.assert_array_equal(one.case.read().array, other.case.read().array)
        np.testing.assert_array_equal(one.case.read_label(), other.case.read_label())
    assert loaded.digest == manifest.digest
    assert [case.id for case in loaded.test] == ["t"]
    assert loaded.test[0].fold is None


def test_paths_are_relative_and_the_set_can_be_moved(folder: Path, tmp_path: Path) -> None:
    path = built(folder, tmp_path / "m.json")
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data["training"][0]["image"] == "set/imagesTr/c0.nii.gz"
    assert str(tmp_path) not in path.read_text(encoding="utf-8")
    moved = tmp_path.parent / f"{tmp_path.name}-moved"
    tmp_path.rename(moved)
    assert load_manifest(moved / "m.json").training[0].case.read().array.shape == (1, 6, 7, 8)
    moved.rename(tmp_path)


def test_hashes_are_those_of_the_files(folder: Path, tmp_path: Path) -> None:
    manifest = load_manifest(built(folder, tmp_path / "m.json"))
    assert manifest.training[2].sha256["image"] == file_sha256(folder / "imagesTr/c2.nii.gz")
    verify(manifest.training[2])


@pytest.mark.parametrize(("name", "part"), [("imagesTr/c2.nii.gz", "image"), ("labelsTr/c2.nii.gz", "label")])
def test_a_changed_file_is_refused_by_name_of_its_case(folder: Path, tmp_path: Path, name: str, part: str) -> None:
    manifest = load_manifest(built(folder, tmp_path / "m.json"))
    nifti(folder / name, np.ones((6, 7, 8), dtype=np.uint8))
    with pytest.raises(InputRefusedError, match=rf"{part} is not the one .*\(c2\)"):
        verify(manifest.training[2])
    verify(manifest.training[1])


def test_a_missing_file_is_refused(folder: Path, tmp_path: Path) -> None:
    manifest = load_manifest(built(folder, tmp_path / "m.json"))
    (folder / "labelsTr/c2.nii.gz").unlink()
    with pytest.raises(InputRefusedError, match=r"label cannot be read any more \(c2\)"):
        verify(manifest.training[2])
    with pytest.raises(InputRefusedError, match=r"label is missing \(c2\)"):
        load_manifest(tmp_path / "m.json")


# ---- files of others ------------------------------------------------------------------------------------------------


def test_plain_decathlon_files(folder: Path) -> None:
    manifest = load_manifest(decathlon(folder))
    assert manifest.labels == {"background": 0, "liver": 1, "tumour": 2}
    assert (manifest.modality, manifest.channels, manifest.folds) == ("CT", ("CT",), 5)
    assert [case.id for case in manifest.training] == [f"c{n}" for n in range(6)]
    assert {case.fold for case in manifest.training} == set(range(5))
    assert [case.id for case in manifest.test] == ["t"]
    assert manifest.training[0].sha256["image"] == file_sha256(folder / "imagesTr/c0.nii.gz")
    assert set(manifest.test[0].sha256) == {"image"}
    verify(manifest.training[0])
    assert [case.fold for case in load_manifest(folder / "dataset.json").training] == [
        case.fold for case in manifest.training
    ]


def test_labels_either_way_round(folder: Path) -> None:
    turned = {"background": 0, "tumour": 2, "liver": 1}
    assert load_manifest(decathlon(folder, labels=turned)).labels == {"background": 0, "liver": 1, "tumour": 2}
    assert load_manifest(decathlon(folder, labels={"1": "liver"})).labels == {"background": 0, "liver": 1}


def test_given_folds_are_kept(folder: Path) -> None:
    entries = [
        {"image": f"imagesTr/c{n}.nii.gz", "label": f"labelsTr/c{n}.nii.gz", "fold": n % 2, "group": "g"}
        for n in range(6)
    ]
    manifest = load_manifest(decathlon(folder, training=entries))
    assert [case.fold for case in manifest.training] == [0, 1, 0, 1, 0, 1]
    assert manifest.folds == 2


def test_channels_of_several_files(folder: Path) -> None:
    entries = [
        {"image": ["imagesTr/c0.nii.gz", "imagesTr/c1.nii.gz"], "label": "labelsTr/c0.nii.gz", "id": "both"},
        {"image": ["imagesTr/c2.nii.gz", "imagesTr/c3.nii.gz"], "label": "labelsTr/c2.nii.gz"},
    ]
    manifest = load_manifest(decathlon(folder, training=entries, modality={"0": "T1", "1": "FLAIR"}))
    assert manifest.training[0].case.read().array.shape == (2, 6, 7, 8)
    assert [case.id for case in manifest.training] == ["both", "c2"]
    assert manifest.channels == ("T1", "FLAIR")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"labels": {}}, "does not say what its labels mean"),
        ({"labels": {"whole": [1, 2]}}, "regions_class_order does not say"),
        ({"training": {}}, "no list 'training'"),
        ({"training": [], "test": []}, "lists no case"),
        ({"training": [{"label": "x"}]}, "entry 0 of 'training' has no image"),
        ({"label_values": {"a": 1}}, "label_values"),
        ({"unet_med_schema": 99}, "newer version"),
    ],
)
def test_files_that_are_no_manifest_are_refused(folder: Path, change: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        load_manifest(decathlon(folder, **change))


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the manifest"):
        load_manifest(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{", encoding="utf-8")
    with pytest.raises(UsageError, match="no valid JSON"):
        load_manifest(tmp_path / "bad.json")


# ---- pages ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    random = np.random.default_rng(1)
    root = tmp_path / "stack"
    root.mkdir()
    pages = random.integers(0, 255, (10, 20, 30), dtype=np.uint8)
    tifffile.imwrite(root / "em-volume.tif", pages, photometric="minisblack")
    tifffile.imwrite(root / "em-labels.tif", np.uint8(255) * (pages > 99), photometric="minisblack")
    return root


def test_pages_are_cases_of_their_own(stack: Path, tmp_path: Path) -> None:
    options = BuildOptions(label_values="0=1,255=0", label_names="1=membrane")
    report = build_manifest(stack, discover(stack, IntakeOptions(axes="IYX")), options, "em")
    save_manifest(report.manifest, tmp_path / "m.json")
    manifest = load_manifest(tmp_path / "m.json")
    assert [case.id for case in manifest.training] == [f"em-volume_p{n:03d}" for n in range(10)]
    assert len({case.sha256["image"] for case in manifest.training}) == 10
    assert manifest.label_values == {0: 1, 255: 0}
    stored = tifffile.imread(stack / "em-volume.tif")
    case = manifest.training[7]
    np.testing.assert_array_equal(case.case.read().array[0], stored[7].T)
    np.testing.assert_array_equal(case.case.read_label(), stored[7].T <= 99)
    verify(case)
    folds = [case.fold for case in manifest.training]
    assert sorted(set(folds)) == list(range(5))
    assert all(folds[n] == folds[n + 1] for n in range(0, 10, 2))


def test_images_of_one_file_are_different_contents(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "two.ome.tif", ome=True) as file:
        for seed in range(2):
            file.write(np.random.default_rng(seed).integers(0, 255, (8, 9), dtype=np.uint8), metadata={"axes": "YX"})
    sources = discover(tmp_path).usable
    assert [source.id for source in sources] == ["two-s1", "two-s2"]
    assert len({content_sha256([source]) for source in sources}) == 2


def test_a_table_sends_pages_to_test(stack: Path, tmp_path: Path) -> None:
    table = tmp_path / "split.csv"
    table.write_text(
        "id,split\n" + "".join(f"em-volume_p{n:03d},{'test' if n > 7 else 'train'}\n" for n in range(10)),
        encoding="utf-8",
    )
    options = BuildOptions(label_values="255=1", group_by=str(table))
    manifest = build_manifest(stack, discover(stack, IntakeOptions(axes="IYX")), options, "em").manifest
    assert [case.id for case in manifest.test] == ["em-volume_p008", "em-volume_p009"]
    assert all(case.case.label is not None and case.fold is None for case in manifest.test)
    assert len(manifest.training) == 8


# ---- patients -------------------------------------------------------------------------------------------------------


def test_dicom_files_are_named_in_a_private_table_only(tmp_path: Path) -> None:
    from unet_med.phantoms import write_phantoms_3d

    write_phantoms_3d(tmp_path / "set", 3, 0)
    for place in ("images", "labels"):
        for path in sorted((tmp_path / "set" / place).iterdir()):
            path.rename(path.with_name(path.name.replace("patient01", "SECRET_JANE")))
    path = built(tmp_path / "set", tmp_path / "m.json")
    text = path.read_text(encoding="utf-8").replace("labels/SECRET_JANE.nii.gz", "")
    assert "SECRET" not in text
    table = table_path(path)
    assert "SECRET_JANE" in table.read_text(encoding="utf-8")
    if os.name == "posix":
        assert stat.S_IMODE(table.stat().st_mode) == 0o600
    manifest = load_manifest(path)
    case = next(case for case in manifest.training if case.case.label and "SECRET" in case.case.label.files[0].name)
    assert case.id.startswith("s0")
    assert case.group.startswith("g-")
    assert case.case.read().array.shape[1:] == case.case.read_label().shape
    verify(case)
    table.unlink()
    with pytest.raises(InputRefusedError, match="table of DICOM files"):
        load_manifest(path)


def test_series_of_one_patient_share_a_group(tmp_path: Path) -> None:
    import pydicom

    from unet_med.phantoms import write_phantoms_3d

    write_phantoms_3d(tmp_path / "set", 4, 0)
    for path in (tmp_path / "set/images").rglob("*.dcm"):
        header = pydicom.dcmread(path)
        header.PatientID = "A" if path.parent.name in ("patient01", "patient03") else path.parent.name
        header.save_as(path)
    manifest = load_manifest(built(tmp_path / "set", tmp_path / "m.json", folds=2))
    groups = {case.case.label.files[0].name[:9]: case.group for case in manifest.training if case.case.label}
    assert groups["patient01"] == groups["patient03"]
    assert len(set(groups.values())) == 3


def test_group_names_are_hashed(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "groups.csv"
    table.write_text("id,patient\n" + "".join(f"c{n},SECRET{n // 2}\n" for n in range(6)), encoding="utf-8")
    path = built(folder, tmp_path / "m.json", group_by=str(table), folds=3)
    assert "SECRET" not in path.read_text(encoding="utf-8")
    manifest = load_manifest(path)
    assert [case.group for case in manifest.training][::2] == [case.group for case in manifest.training][1::2]
    assert [case.fold for case in manifest.training][::2] == [case.fold for case in manifest.training][1::2]
    assert len({case.group for case in manifest.training}) == 3


def test_contradicting_tables_are_refused(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    for text, what in [
        ("id,group,fold\n" + "".join(f"c{n},g,{n % 2}\n" for n in range(6)), "one group .* into two folds"),
        ("id,group,split\nc0,g,train\nc1,g,test\n", "both for training and for testing"),
        ("id,fold\nc0,0\nc1,1\n", "folds for some cases only"),
        ("id,group\nx,y\n", "names none of the cases"),
    ]:
        table.write_text(text, encoding="utf-8")
        with pytest.raises(UsageError, match=what):
            build_manifest(folder, discover(folder), BuildOptions(group_by=str(table)), "set")


def test_the_same_image_twice_stays_in_one_fold(folder: Path) -> None:
    (folder / "imagesTr/c4.nii.gz").write_bytes((folder / "imagesTr/c0.nii.gz").read_bytes())
    report = build_manifest(folder, discover(folder), BuildOptions(folds=3), "set")
    by_id = {case.id: case for case in report.manifest.training}
    assert by_id["c0"].fold == by_id["c4"].fold
    assert by_id["c0"].group == by_id["c4"].group
    assert any("c0, c4 are the same image" in note for note in report.notes)


def test_a_dataset_json_beside_the_images_gives_names(folder: Path) -> None:
    decathlon(folder)
    manifest = build_manifest(folder, discover(folder), BuildOptions(), "set").manifest
    assert manifest.labels == {"background": 0, "liver": 1, "tumour": 2}
    assert (manifest.modality, manifest.channels) == ("CT", ("CT",))


def test_the_digest_does_not_depend_on_names_and_order(folder: Path, tmp_path: Path) -> None:
    manifest = load_manifest(built(folder, tmp_path / "m.json"))
    turned = replace(
        manifest, training=tuple(replace(case, id=f"x{case.id}") for case in reversed(manifest.training)), name="y"
    )
    assert turned.digest == manifest.digest
    assert replace(manifest, training=manifest.training[1:]).digest != manifest.digest


def test_a_full_disk_is_the_machines_fault(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = build_manifest(folder, discover(folder), BuildOptions(), "set").manifest

    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(MachineError, match="disk is full"):
        save_manifest(manifest, tmp_path / "m.json")
    assert not (tmp_path / "m.json").exists()
