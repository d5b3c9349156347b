"""Each planted fault is found, in the case in which it was planted, and nothing else with it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from healthy_sets import (
    NAMES,
    body,
    load_nifti,
    manifest_of,
    save_nifti,
    save_picture,
    tissue,
    write_bodies,
    write_tissues,
)
from scipy import ndimage

from unet_med.doctoring import PairFinding, examine, is_fixable, repair
from unet_med.manifest import Finding, Manifest, load_manifest, save_manifest
from unet_med.phantoms import write_phantoms_2d, write_phantoms_3d

CASE = "c3"


def summary(findings: list[Finding]) -> set[tuple[str, str, str]]:
    return {(finding.kind, finding.case, finding.severity) for finding in findings}


def apart(manifest: Manifest, *ids: str) -> Manifest:
    """The manifest with these cases in folds, and groups, of their own, and all others in fold 0."""
    cases = tuple(
        replace(case, fold=1 + ids.index(case.id) if case.id in ids else 0, group=case.id) for case in manifest.training
    )
    return replace(manifest, training=cases)


# ---- no fault -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_bodies_have_no_fault(tmp_path: Path, seed: int) -> None:
    manifest = manifest_of(write_bodies(tmp_path / "set", seed=seed), tmp_path / "m.json", label_names=NAMES)
    assert examine(manifest) == []


@pytest.mark.parametrize("seed", range(3))
def test_pictures_have_no_fault(tmp_path: Path, seed: int) -> None:
    assert examine(manifest_of(write_tissues(tmp_path / "set", seed=seed), tmp_path / "m.json")) == []


def test_phantoms_have_no_fault(tmp_path: Path) -> None:
    write_phantoms_2d(tmp_path / "cells", cases=6, unlabelled=1)
    assert examine(manifest_of(tmp_path / "cells", tmp_path / "m.json")) == []


# ---- labels ---------------------------------------------------------------------------------------------------------


def label_of(folder: Path) -> np.ndarray:
    return load_nifti(folder / f"labels/{CASE}.nii.gz")


def plant_label(folder: Path, label: np.ndarray) -> None:
    save_nifti(folder / f"labels/{CASE}.nii.gz", label)


def every_label(folder: Path, table: list[int]) -> None:
    for path in sorted((folder / "labels").iterdir()):
        save_nifti(path, np.array(table, np.uint8)[load_nifti(path)])


def enlarged(label: np.ndarray) -> np.ndarray:
    """What linear interpolation makes of a label that is stored at half the resolution."""
    return ndimage.zoom(label[::2, ::2, ::2].astype(np.float32), 2, order=1)


def plant_empty(folder: Path) -> None:
    plant_label(folder, np.zeros_like(label_of(folder)))


def plant_probabilities(folder: Path) -> None:
    plant_label(folder, ndimage.gaussian_filter(label_of(folder).astype(np.float32), 4.0))


def plant_negative(folder: Path) -> None:
    plant_label(folder, label_of(folder).astype(np.int16) - 1)


def plant_interpolated_floats(folder: Path) -> None:
    plant_label(folder, enlarged(label_of(folder)))


def plant_interpolated_and_rounded(folder: Path) -> None:
    plant_label(folder, np.rint(enlarged(label_of(folder))).astype(np.uint8))


def plant_inverted(folder: Path) -> None:
    plant_label(folder, (label_of(folder) == 0).astype(np.uint8))


def plant_on_air(folder: Path) -> None:
    label = np.zeros_like(label_of(folder))
    label[:6, :7, :5], label[-6:, :7, :5] = 1, 2
    plant_label(folder, label)


def plant_on_padding(folder: Path) -> None:
    image = load_nifti(folder / f"images/{CASE}.nii.gz").copy()
    image[:, 18:] = -500
    save_nifti(folder / f"images/{CASE}.nii.gz", image)
    plant_label(folder, np.roll(label_of(folder), 14, axis=1))


def plant_shifted(folder: Path) -> None:
    plant_label(folder, np.roll(label_of(folder), 5, axis=1))


def plant_swapped_sides(folder: Path) -> None:
    plant_label(folder, np.array([0, 2, 1], np.uint8)[label_of(folder)])


def plant_shape(folder: Path) -> None:
    plant_label(folder, label_of(folder)[1:])


def plant_place(folder: Path) -> None:
    affine = np.eye(4)
    affine[1, 3] = 6.0
    save_nifti(folder / f"labels/{CASE}.nii.gz", label_of(folder), affine)


def plant_constant(folder: Path) -> None:
    image = load_nifti(folder / f"images/{CASE}.nii.gz")
    save_nifti(folder / f"images/{CASE}.nii.gz", np.full_like(image, 7))


def plant_nan(folder: Path) -> None:
    image = load_nifti(folder / f"images/{CASE}.nii.gz").copy()
    image[3, 4, 5] = np.nan
    save_nifti(folder / f"images/{CASE}.nii.gz", image)


def plant_label_as_image(folder: Path) -> None:
    save_nifti(folder / f"images/{CASE}.nii.gz", label_of(folder))


@pytest.mark.parametrize(
    ("plant", "kind", "severity"),
    [
        (plant_empty, "empty", "warning"),
        (plant_probabilities, "label_floats", "error"),
        (plant_negative, "label_negative", "error"),
        (plant_interpolated_floats, "resampled_edges", "error"),
        (plant_interpolated_and_rounded, "resampled_edges", "warning"),
        (plant_inverted, "inverted", "warning"),
        (plant_on_air, "outside", "warning"),
        (plant_on_padding, "outside", "warning"),
        (plant_shifted, "shifted", "warning"),
        (plant_swapped_sides, "swapped", "warning"),
        (plant_shape, "label_shape", "error"),
        (plant_place, "label_place", "error"),
        (plant_constant, "constant", "error"),
        (plant_nan, "image_not_finite", "error"),
        (plant_label_as_image, "label_is_image", "error"),
    ],
)
def test_a_fault_of_one_case(tmp_path: Path, plant: Callable[[Path], None], kind: str, severity: str) -> None:
    folder = write_bodies(tmp_path / "set")
    plant(folder)
    findings = examine(manifest_of(folder, tmp_path / "m.json", label_names=NAMES))
    assert summary(findings) == {(kind, CASE, severity)}
    assert all(finding.what and finding.remedy for finding in findings)


@pytest.mark.parametrize(
    ("table", "options", "kind"),
    [([0, 255, 255], {}, "values_0_255"), ([0, 1, 4], {}, "gaps"), ([1, 0, 0], {}, "inverted")],
)
def test_a_fault_of_all_labels(tmp_path: Path, table: list[int], options: dict[str, str], kind: str) -> None:
    folder = write_bodies(tmp_path / "set")
    every_label(folder, table)
    found = {finding.kind for finding in examine(manifest_of(folder, tmp_path / "m.json", **options))}
    assert found == {kind}


def test_grey_borders_are_found_beside_the_values_they_make(tmp_path: Path) -> None:
    folder = write_bodies(tmp_path / "set")
    every_label(folder, [0, 100, 200])
    label = label_of(folder) // 100
    plant_label(folder, np.rint(enlarged(label) * 100).astype(np.uint8))
    findings = examine(manifest_of(folder, tmp_path / "m.json"))
    assert {finding.kind for finding in findings} == {"gaps", "resampled_edges"}
    assert [finding.case for finding in findings if finding.kind == "resampled_edges"] == [CASE]


def test_a_shift_is_measured(tmp_path: Path) -> None:
    folder = write_bodies(tmp_path / "set")
    plant_shifted(folder)
    (finding,) = examine(manifest_of(folder, tmp_path / "m.json", label_names=NAMES))
    assert "(+0, -5, +0) voxels" in finding.what


def test_sides_are_named(tmp_path: Path) -> None:
    folder = write_bodies(tmp_path / "set")
    plant_swapped_sides(folder)
    (finding,) = examine(manifest_of(folder, tmp_path / "m.json", label_names=NAMES))
    assert finding.what.startswith("left and right seem swapped: kidney_left and kidney_right")


# ---- leaks ----------------------------------------------------------------------------------------------------------


def plant_near_duplicate(folder: Path, crop: tuple[slice, ...], noise: float, gain: float) -> None:
    image, label = load_nifti(folder / "images/c1.nii.gz"), load_nifti(folder / "labels/c1.nii.gz")
    noisy = gain * (image + np.random.default_rng(5).normal(0, noise * image.std(), image.shape)) + 17
    save_nifti(folder / f"images/{CASE}.nii.gz", noisy[crop].astype(np.float32))
    save_nifti(folder / f"labels/{CASE}.nii.gz", label[crop])


@pytest.mark.parametrize(
    ("crop", "noise", "gain"),
    [
        ((slice(None),) * 3, 0.1, 1.0),
        ((slice(1, None), slice(2, None), slice(None, -1)), 0.0, 1.0),
        ((slice(2, -2), slice(1, None), slice(None, -2)), 0.1, 0.4),
    ],
)
def test_near_duplicates_in_two_folds(tmp_path: Path, crop: tuple[slice, ...], noise: float, gain: float) -> None:
    folder = write_bodies(tmp_path / "set")
    plant_near_duplicate(folder, crop, noise, gain)
    manifest = manifest_of(folder, tmp_path / "m.json", label_names=NAMES)
    findings = examine(apart(manifest, "c1", CASE))
    assert summary(findings) == {("near_duplicate", CASE, "warning")}
    assert isinstance(findings[0], PairFinding)
    assert findings[0].other == "c1"
    together = replace(manifest, training=tuple(replace(case, fold=0) for case in manifest.training))
    assert examine(together) == []


def test_the_same_image_in_two_folds(tmp_path: Path) -> None:
    folder = write_bodies(tmp_path / "set")
    for kind in ("images", "labels"):
        save_nifti(folder / f"{kind}/{CASE}.nii.gz", load_nifti(folder / f"{kind}/c1.nii.gz"))
    manifest = manifest_of(folder, tmp_path / "m.json", label_names=NAMES)
    assert summary(examine(apart(manifest, "c1", CASE))) == {("leak", CASE, "error")}


@pytest.mark.parametrize("side", ["right", "bottom"])
def test_tiles_of_one_picture_in_two_folds(tmp_path: Path, side: str) -> None:
    folder = write_tissues(tmp_path / "set")
    image, label = tissue(77, (96, 192) if side == "right" else (192, 96))
    axis = 1 if side == "right" else 0
    for name, picture, mask in zip(("p2", "p6"), np.split(image, 2, axis), np.split(label, 2, axis), strict=True):
        save_picture(folder, name, picture, mask)
    manifest = manifest_of(folder, tmp_path / "m.json")
    findings = examine(apart(manifest, "p2", "p6"))
    assert summary(findings) == {("tiles_apart", "p2", "warning")}
    assert side in findings[0].what
    assert "p6" in findings[0].what


def test_a_group_in_two_folds(tmp_path: Path) -> None:
    manifest = manifest_of(write_bodies(tmp_path / "set"), tmp_path / "m.json", label_names=NAMES)
    training = tuple(replace(case, group="one") if case.id in ("c1", CASE) else case for case in manifest.training)
    training = tuple(replace(case, fold=number % 2) for number, case in enumerate(training))
    training = tuple(replace(case, fold=0) if case.id == "c1" else case for case in training)
    assert summary(examine(replace(manifest, training=training))) == {("group_split", CASE, "error")}


def test_a_patient_in_two_folds(tmp_path: Path) -> None:
    write_phantoms_3d(tmp_path / "set", cases=4, unlabelled=0)
    for path in (tmp_path / "set/images/patient03").iterdir():
        dataset = pydicom.dcmread(path)
        dataset.PatientID = "PHANTOM01"
        dataset.save_as(path)
    manifest = manifest_of(tmp_path / "set", tmp_path / "m.json")
    assert examine(manifest) == []
    ids = [case.id for case in manifest.training]
    findings = examine(apart(manifest, ids[0], ids[2]))
    assert summary(findings) == {("patient_split", ids[2], "error")}
    assert "PHANTOM01" not in "".join(map(str, findings))


# ---- repair ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 100])
def test_interpolated_borders_are_taken_back_on_copies(tmp_path: Path, scale: int) -> None:
    """One label is interpolated: to floats, or to grey values between 0, 100 and 200."""
    folder = write_bodies(tmp_path / "set")
    truth = {path.name: load_nifti(path) for path in sorted((folder / "labels").iterdir())}
    for name, label in truth.items():
        save_nifti(folder / "labels" / name, label * np.uint8(scale))
    made = enlarged(truth[f"{CASE}.nii.gz"]) * scale
    plant_label(folder, made if scale == 1 else np.rint(made).astype(np.uint8))
    before = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.gz")}
    manifest = manifest_of(folder, tmp_path / "m.json", label_names=NAMES if scale == 1 else None)
    findings = examine(manifest)
    assert any(finding.kind == "resampled_edges" and is_fixable(finding) for finding in findings)
    done = repair(manifest, findings, tmp_path / "fixed")
    save_manifest(done.manifest, tmp_path / "fixed/manifest.json")
    fixed = load_manifest(tmp_path / "fixed/manifest.json")
    assert {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in before} == before
    fixed.require_clean()
    for case in fixed.training:
        expected, found = truth[f"{case.id}.nii.gz"], case.case.read_label()
        assert set(np.unique(found)) == {0, 1, 2}
        if case.id == CASE:
            overlap = 2 * np.count_nonzero((found == expected) & (found > 0))
            assert overlap > 0.75 * (np.count_nonzero(found) + np.count_nonzero(expected))
        else:
            np.testing.assert_array_equal(found, expected)
    assert not [finding for finding in examine(fixed) if finding.severity == "error"]


def test_what_cannot_be_known_is_not_rewritten(tmp_path: Path) -> None:
    folder = write_bodies(tmp_path / "set")
    plant_interpolated_and_rounded(folder)
    manifest = manifest_of(folder, tmp_path / "m.json", label_names=NAMES)
    findings = examine(manifest)
    assert not any(is_fixable(finding) for finding in findings)
    assert repair(manifest, findings, tmp_path / "fixed").rewritten == ()


def test_unlabelled_voxels_are_no_label(tmp_path: Path) -> None:
    folder = write_bodies(tmp_path / "set")
    for number, path in enumerate(sorted((folder / "labels").iterdir())):
        label = load_nifti(path).copy()
        label[body(number)[1] == 0] = np.where(
            np.random.default_rng(number).random((body(number)[1] == 0).sum()) < 0.3, 9, 0
        )
        save_nifti(path, label)
    manifest = manifest_of(folder, tmp_path / "m.json", label_names=NAMES)
    known = {name: value for name, value in manifest.labels.items() if value != 9}
    assert examine(replace(manifest, labels=known, findings=(), ignore_label=9)) == []
