"""Corrected labels in a data set: folds stay, new cases join, nothing leaks, the origin is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from healthy_sets import load_nifti, manifest_of, save_nifti, write_bodies

from unet_med.identity import file_sha256
from unet_med.io.discover import discover
from unet_med.manifest import Finding, Manifest, ManifestCase, load_manifest, save_manifest
from unet_med.manifest.corrections import Correction, corrected

PROVENANCE = {"kind": "corrected", "format": "seg-nrrd", "before": {"model_sha256": ["ab"]}}


@pytest.fixture
def bodies(tmp_path: Path) -> Manifest:
    """Six labelled cases in three folds, and two images without a label."""
    folder = write_bodies(tmp_path / "set", cases=8)
    for name in ("c6", "c7"):
        (folder / f"labels/{name}.nii.gz").unlink()
    return manifest_of(folder, tmp_path / "m.json", folds=3)


def correction(case: ManifestCase, folder: Path, provenance: Mapping[str, Any] = PROVENANCE) -> Correction:
    path = folder / f"{case.id}.nii.gz"
    image = load_nifti(case.case.sources[0].files[0])
    save_nifti(path, (image > 150).astype("uint8"))
    (label,) = discover(path).usable
    return Correction(case, replace(label, id=case.id), None, provenance)


def of(manifest: Manifest, name: str) -> ManifestCase:
    return next(case for case in (*manifest.training, *manifest.test) if case.id == name)


def test_a_corrected_case_keeps_its_fold_and_tells_its_origin(bodies: Manifest, tmp_path: Path) -> None:
    faulty = replace(bodies, findings=(Finding("c1", "error", "odd"), Finding("c2", "error", "odd")))
    one = correction(of(bodies, "c1"), tmp_path / "new")
    done = corrected(faulty, [one])
    save_manifest(done, tmp_path / "out" / "m.json")
    known = load_manifest(tmp_path / "out" / "m.json")
    case = of(known, "c1")
    assert [other.id for other in known.training] == [other.id for other in bodies.training]
    assert {other.id: other.fold for other in known.training} == {other.id: other.fold for other in bodies.training}
    assert case.provenance == PROVENANCE
    assert case.sha256["label"] == file_sha256(tmp_path / "new/c1.nii.gz") != of(bodies, "c1").sha256["label"]
    assert case.sha256["image"] == of(bodies, "c1").sha256["image"]
    assert [finding.case for finding in known.findings] == ["c2"]
    assert known.digest != bodies.digest
    assert not of(known, "c0").provenance


def test_an_image_without_label_joins_the_smallest_fold(bodies: Manifest, tmp_path: Path) -> None:
    done = corrected(bodies, [correction(of(bodies, name), tmp_path / "new") for name in ("c6", "c7")])
    assert not done.test and len(done.training) == 8
    folds = [case.fold for case in done.training]
    assert sorted(folds.count(fold) for fold in range(3)) == [2, 3, 3]
    assert {case.id: case.fold for case in done.training if case.id not in ("c6", "c7")} == {
        case.id: case.fold for case in bodies.training
    }


def test_a_new_case_joins_its_group(bodies: Manifest, tmp_path: Path) -> None:
    friend = of(bodies, "c3")
    one = correction(replace(of(bodies, "c6"), group=friend.group), tmp_path / "new")
    other = correction(replace(of(bodies, "c7"), id="stranger", group=friend.group), tmp_path / "new")
    done = corrected(bodies, [one, other])
    assert of(done, "c6").fold == of(done, "stranger").fold == friend.fold
    assert [case.id for case in done.test] == ["c7"]


def test_nothing_leaks_from_the_test_cases(bodies: Manifest, tmp_path: Path) -> None:
    kept = replace(of(bodies, "c5"), split="test", fold=None)
    held = replace(
        bodies, training=tuple(case for case in bodies.training if case.id != "c5"), test=(*bodies.test, kept)
    )
    relative = replace(of(bodies, "c6"), group=kept.group)
    stranger = replace(of(bodies, "c7"), id="stranger", group=kept.group)
    held = replace(held, test=tuple(relative if case.id == "c6" else case for case in held.test))
    done = corrected(held, [correction(one, tmp_path / "new") for one in (kept, relative, stranger)])
    assert {case.id for case in done.test} == {"c5", "c6", "c7", "stranger"}
    assert all(case.fold is None and case.split == "test" for case in done.test)
    assert of(done, "c5").provenance == of(done, "c6").provenance == PROVENANCE
