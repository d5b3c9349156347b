"""The look before each training: bounded, and silent on what training itself leaves out."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from healthy_sets import NAMES, load_nifti, manifest_of, save_nifti, write_bodies

from unet_med.doctoring import examination, examine, quick_findings
from unet_med.errors import InputRefusedError


def test_it_finds_what_the_examination_finds(tmp_path: Path) -> None:
    folder = write_bodies(tmp_path / "set")
    label = load_nifti(folder / "labels/c3.nii.gz")
    save_nifti(folder / "labels/c3.nii.gz", np.array([0, 2, 1], np.uint8)[label])
    save_nifti(folder / "labels/c5.nii.gz", np.zeros_like(label))
    manifest = manifest_of(folder, tmp_path / "m.json", label_names=NAMES)
    assert quick_findings(manifest) == examine(manifest)
    assert {finding.kind for finding in quick_findings(manifest)} == {"swapped", "empty"}


def test_its_errors_stop_a_training(tmp_path: Path) -> None:
    folder = write_bodies(tmp_path / "set")
    save_nifti(folder / "images/c2.nii.gz", np.full((40, 36, 28), 5, np.int16))
    manifest = manifest_of(folder, tmp_path / "m.json", label_names=NAMES)
    manifest.require_clean()
    with pytest.raises(InputRefusedError, match="same value everywhere"):
        replace(manifest, findings=tuple(quick_findings(manifest))).require_clean()


def test_changed_files_are_left_to_training(tmp_path: Path) -> None:
    folder = write_bodies(tmp_path / "set")
    manifest = manifest_of(folder, tmp_path / "m.json", label_names=NAMES)
    save_nifti(folder / "images/c2.nii.gz", np.full((40, 36, 28), 5, np.int16))
    assert {finding.kind for finding in examine(manifest)} == {"changed"}
    assert quick_findings(manifest) == []


def test_of_a_large_set_a_part_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_bodies(tmp_path / "set")
    for kind in ("images", "labels"):
        shutil.copy(folder / f"{kind}/c1.nii.gz", folder / f"{kind}/c3.nii.gz")
    manifest = manifest_of(folder, tmp_path / "m.json", label_names=NAMES)
    looked: list[int] = []
    monkeypatch.setattr(examination, "QUICK_VOXELS", 4 * 40 * 36 * 28)
    training = tuple(replace(case, fold=number % 2, group=case.id) for number, case in enumerate(manifest.training))
    training = tuple(replace(case, fold=0) if case.id == "c1" else case for case in training)
    found = quick_findings(
        replace(manifest, training=training), lambda items, text: [*(looked.append(len(items)) or items)]
    )
    assert looked == [4]
    assert [(finding.kind, finding.case) for finding in found] == [("leak", "c3")]  # equal files are known of all
