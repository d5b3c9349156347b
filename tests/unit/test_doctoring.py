"""The label doctor finds what was planted, and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import tifffile

from unet_med.doctoring import examine, repair
from unet_med.errors import UsageError
from unet_med.io.discover import discover
from unet_med.io.source import IntakeOptions
from unet_med.manifest import BuildOptions, Manifest, build_manifest, load_manifest, save_manifest

Array = npt.NDArray[np.generic]
SHAPE = (6, 7, 8)


def nifti(path: Path, values: Array, affine: Array | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.eye(4) if affine is None else affine), path)


def clean(folder: Path, cases: int = 5) -> None:
    random = np.random.default_rng(3)
    for number in range(cases):
        nifti(folder / f"images/c{number}.nii.gz", random.normal(size=SHAPE).astype(np.float32))
        nifti(folder / f"labels/c{number}.nii.gz", label(number))


def label(seed: int) -> Array:
    return np.random.default_rng(100 + seed).integers(0, 3, SHAPE).astype(np.uint8)


def manifest_of(folder: Path, tmp_path: Path, **options: object) -> Manifest:
    report = build_manifest(folder, discover(folder), BuildOptions(**options), "set")  # type: ignore[arg-type]
    save_manifest(report.manifest, tmp_path / "m.json")
    return load_manifest(tmp_path / "m.json")


def found(manifest: Manifest) -> set[tuple[str, str, str]]:
    return {(finding.kind, finding.case, finding.severity) for finding in examine(manifest)}


def contents(folder: Path) -> Mapping[Path, str]:
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def test_a_clean_set_has_no_finding(tmp_path: Path) -> None:
    clean(tmp_path / "set")
    assert found(manifest_of(tmp_path / "set", tmp_path)) == set()


def plant_empty(folder: Path) -> None:
    nifti(folder / "labels/c2.nii.gz", np.zeros(SHAPE, dtype=np.uint8))


def plant_shape(folder: Path) -> None:
    nifti(folder / "labels/c2.nii.gz", np.ones((6, 7, 9), dtype=np.uint8))


def plant_place(folder: Path) -> None:
    affine = np.eye(4)
    affine[0, 3] = 5.0
    nifti(folder / "labels/c2.nii.gz", label(2), affine)


def plant_nan(folder: Path) -> None:
    values = np.ones(SHAPE, dtype=np.float32)
    values[0, 0, 0], values[1, 1, 1] = np.nan, 3
    nifti(folder / "images/c2.nii.gz", values)


def plant_constant(folder: Path) -> None:
    nifti(folder / "images/c2.nii.gz", np.full(SHAPE, 7, dtype=np.int16))


def plant_label_as_image(folder: Path) -> None:
    nifti(folder / "images/c2.nii.gz", label(2))


def plant_floats(folder: Path) -> None:
    nifti(folder / "labels/c2.nii.gz", np.linspace(0, 1, 336, dtype=np.float32).reshape(SHAPE))


def plant_negative(folder: Path) -> None:
    nifti(folder / "labels/c2.nii.gz", label(2).astype(np.int16) - 1)


@pytest.mark.parametrize(
    ("plant", "expected"),
    [
        (plant_empty, ("empty", "c2", "warning")),
        (plant_shape, ("label_shape", "c2", "error")),
        (plant_place, ("label_place", "c2", "error")),
        (plant_nan, ("image_not_finite", "c2", "error")),
        (plant_constant, ("constant", "c2", "error")),
        (plant_label_as_image, ("label_is_image", "c2", "error")),
        (plant_floats, ("label_floats", "c2", "error")),
        (plant_negative, ("label_negative", "c2", "error")),
    ],
)
def test_one_planted_fault_is_found_and_nothing_else(
    tmp_path: Path, plant: Callable[[Path], None], expected: tuple[str, str, str]
) -> None:
    clean(tmp_path / "set")
    plant(tmp_path / "set")
    manifest = manifest_of(tmp_path / "set", tmp_path)
    assert found(manifest) == {expected}
    assert all(finding.remedy for finding in examine(manifest))


def test_a_changed_file_is_found(tmp_path: Path) -> None:
    clean(tmp_path / "set")
    manifest = manifest_of(tmp_path / "set", tmp_path)
    nifti(tmp_path / "set/labels/c1.nii.gz", label(77))
    assert found(manifest) == {("changed", "c1", "error")}


def test_twins_in_two_folds_are_a_leak_whatever_the_file(tmp_path: Path) -> None:
    clean(tmp_path / "set")
    values = np.asarray(nib.load(tmp_path / "set/images/c0.nii.gz").dataobj)
    nifti(tmp_path / "set/images/c3.nii", values)
    (tmp_path / "set/images/c3.nii.gz").unlink()
    manifest = manifest_of(tmp_path / "set", tmp_path)
    assert found(manifest) == {("leak", "c3", "error")}
    together = tuple(replace(case, fold=0) for case in manifest.training)
    assert found(replace(manifest, training=together)) == {("twice", "c3", "warning")}
    test = replace(manifest.training[3], split="test", fold=None)
    apart = replace(manifest, training=(*manifest.training[:3], manifest.training[4]), test=(test,))
    assert found(apart) == {("leak", "c3", "error")}


def test_a_group_in_two_folds_is_found(tmp_path: Path) -> None:
    clean(tmp_path / "set")
    manifest = manifest_of(tmp_path / "set", tmp_path)
    cases = tuple(replace(case, group="one") for case in manifest.training)
    assert {kind for kind, _, _ in found(replace(manifest, training=cases))} == {"group_split"}


def test_values_that_the_manifest_does_not_know_are_found(tmp_path: Path) -> None:
    clean(tmp_path / "set")
    manifest = replace(manifest_of(tmp_path / "set", tmp_path), labels={"background": 0, "liver": 1})
    assert {kind for kind, _, _ in found(manifest)} == {"unknown_value"}


def test_masks_are_no_objects(tmp_path: Path) -> None:
    clean(tmp_path / "set")
    for number in range(5):
        nifti(tmp_path / f"set/labels/c{number}.nii.gz", (label(number) > 0).astype(np.uint8))
    assert found(manifest_of(tmp_path / "set", tmp_path, task="instance")) == {("one_object", "", "warning")}


# ---- repair ---------------------------------------------------------------------------------------------------------


def repaired(manifest: Manifest, folder: Path) -> Manifest:
    done = repair(manifest, examine(manifest), folder)
    save_manifest(done.manifest, folder / "manifest.json")
    return load_manifest(folder / "manifest.json")


@pytest.mark.parametrize(
    ("stored", "values"),
    [({1: 255, 2: 255}, {1: 1, 2: 1}), ({1: 3, 2: 7}, {1: 1, 2: 2}), ({1: 1, 2: 255}, {1: 1, 2: 2})],
)
def test_values_are_renumbered_on_copies(tmp_path: Path, stored: dict[int, int], values: dict[int, int]) -> None:
    source = tmp_path / "set"
    clean(source)
    table, meant = np.array([0, stored[1], stored[2]]), np.array([0, values[1], values[2]])
    affine = np.diag([-1.0, 1.0, 2.0, 1.0])
    for number in range(5):
        nifti(source / f"labels/c{number}.nii.gz", table[label(number)].astype(np.uint8), affine)
        image = np.asarray(nib.load(source / f"images/c{number}.nii.gz").dataobj)
        nifti(source / f"images/c{number}.nii.gz", image, affine)
    before = contents(source)
    manifest = manifest_of(source, tmp_path)
    new = repaired(manifest, tmp_path / "fixed")
    assert contents(source) == before
    assert sorted(new.labels.values()) == sorted({0, *values.values()})
    for number, case in enumerate(new.training):
        np.testing.assert_array_equal(case.case.read_label(), meant[label(number)])
        assert case.fold == manifest.training[number].fold
        assert case.sha256["image"] == manifest.training[number].sha256["image"]
    assert examine(new) == []
    new.require_clean()


def test_names_follow_their_values(tmp_path: Path) -> None:
    source = tmp_path / "set"
    clean(source)
    for number in range(5):
        nifti(source / f"labels/c{number}.nii.gz", np.array([0, 2, 5], dtype=np.uint8)[label(number)])
    manifest = manifest_of(source, tmp_path, label_names="5=tumour")
    assert repaired(manifest, tmp_path / "fixed").labels == {"background": 0, "label_1": 1, "tumour": 2}


def test_nearly_whole_floats_are_rounded_and_others_are_left_alone(tmp_path: Path) -> None:
    source = tmp_path / "set"
    clean(source)
    nifti(source / "labels/c1.nii.gz", (label(1) + 0.02).astype(np.float32))
    manifest = manifest_of(source, tmp_path)
    new = repaired(manifest, tmp_path / "fixed")
    np.testing.assert_array_equal(new.training[1].case.read_label(), label(1))
    assert [path.name for path in sorted((tmp_path / "fixed/labels").iterdir())] == ["c1.json", "c1.nii.gz"]
    assert examine(new) == []
    plant_floats(source)
    manifest = manifest_of(source, tmp_path)
    assert {f.kind for f in examine(repaired(manifest, tmp_path / "again"))} == {"label_floats"}


def test_the_pages_of_a_stack_are_corrected_together(tmp_path: Path) -> None:
    source = tmp_path / "stack"
    source.mkdir()
    pages = np.random.default_rng(0).integers(0, 255, (6, 20, 30), dtype=np.uint8)
    tifffile.imwrite(source / "em-volume.tif", pages, photometric="minisblack")
    tifffile.imwrite(source / "em-labels.tif", np.uint8(255) * (pages > 99), photometric="minisblack")
    report = build_manifest(source, discover(source, IntakeOptions(axes="IYX")), BuildOptions(), "em")
    new = repaired(report.manifest, tmp_path / "fixed")
    assert len(new.training) == 6
    for number, case in enumerate(new.training):
        np.testing.assert_array_equal(case.case.read_label(), pages[number].T > 99)
    assert examine(new) == []


def test_stored_values_are_replaced_when_the_manifest_remaps_them(tmp_path: Path) -> None:
    source = tmp_path / "set"
    clean(source)
    for number in range(5):
        nifti(source / f"labels/c{number}.nii.gz", np.array([0, 100, 200], dtype=np.uint8)[label(number)])
    manifest = manifest_of(source, tmp_path, label_values="100=3,200=1")
    new = repaired(manifest, tmp_path / "fixed")
    assert new.label_values is None
    np.testing.assert_array_equal(new.training[0].case.read_label(), np.array([0, 2, 1])[label(0)])


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    clean(tmp_path / "set")
    manifest = manifest_of(tmp_path / "set", tmp_path)
    with pytest.raises(UsageError, match="not empty"):
        repair(manifest, [], tmp_path / "set")
