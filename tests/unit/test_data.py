"""Prepared cases on disk: what is learnt from is there, what nobody labelled is known as such."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from toy_training import LABELS, toy_config

from unet_med.data import ANNOTATED, CachedCase, prepare_cases, read_target, write_case
from unet_med.errors import InputRefusedError
from unet_med.io.cases import Case
from unet_med.io.nifti import inspect_nifti
from unet_med.losses import border_weight_map
from unet_med.manifest import ManifestCase

SPARSE = replace(LABELS, ignored=255)


def cached(folder: Path, label: np.ndarray, ignored: int | None = None) -> CachedCase:
    write_case(folder, label[None].astype(np.float32), label, None, None, ignored)
    return CachedCase(folder.name, folder, label.shape, None)


def scribbles() -> np.ndarray:
    """A disc of label 1 and some background, the rest unlabelled."""
    label = np.full((20, 24), 255, dtype=np.uint8)
    label[5:9, 5:9] = 1
    label[12:18, 3:20] = 0
    return label


def manifest_case(folder: Path, label: np.ndarray, instances: bool = False) -> ManifestCase:
    folder.mkdir(exist_ok=True)
    image = np.random.default_rng(0).normal(size=label.shape).astype(np.float32)
    for name, array in {"image": image, "label": label}.items():
        nib.save(nib.Nifti1Image(array[..., None], np.eye(4)), folder / f"{name}.nii.gz")
    refs = [inspect_nifti(folder / f"{name}.nii.gz")[0] for name in ("image", "label")]
    case = Case("x", (refs[0],), refs[1], instances=instances)
    return ManifestCase("x", case, 0, "x", {"image": "0" * 64, "label": "1" * 64})


def test_positions_are_of_labels_and_of_whatever_is_labelled(tmp_path: Path) -> None:
    label = scribbles()
    case = cached(tmp_path / "sparse", label, 255)
    rows = case.foreground()
    assert case.labels == (1,)
    assert set(rows[:, 0].tolist()) == {1, ANNOTATED}
    at = label[tuple(rows[:, 1:].T)]
    assert (at[rows[:, 0] == 1] == 1).all()
    assert set(at[rows[:, 0] == ANNOTATED].tolist()) == {0, 1}
    assert np.count_nonzero(rows[:, 0] == ANNOTATED) == np.count_nonzero(label != 255)
    whole = cached(tmp_path / "whole", label)
    assert whole.labels == (1, 255)
    assert set(whole.foreground()[:, 0].tolist()) == {1, 255}


def test_a_cache_that_does_not_list_its_labels_is_used(tmp_path: Path) -> None:
    case = cached(tmp_path / "old", scribbles(), 255)
    done = case.folder / "done.json"
    done.write_text(json.dumps({key: value for key, value in json.loads(done.read_text()).items() if key != "labels"}))
    assert CachedCase(case.id, case.folder, case.shape, None).labels == (1,)


def test_targets_keep_what_is_ignored_and_refuse_what_is_unknown(tmp_path: Path) -> None:
    label = scribbles()
    case = manifest_case(tmp_path, label)
    found = read_target(case, SPARSE)
    assert found.dtype == np.uint8
    assert np.array_equal(found[..., 0], label)
    with pytest.raises(InputRefusedError, match="holds \\[255\\], which is no label"):
        read_target(case, LABELS)
    objects = np.where(label == 1, 7, label)
    assert np.array_equal(read_target(replace(case, case=replace(case.case, instances=True)), SPARSE, objects), label)
    wide = np.where(label == 255, 1000, label.astype(np.uint16))
    assert np.array_equal(read_target(case, replace(LABELS, ignored=1000), wide), wide)


def test_a_cache_is_made_for_what_is_ignored_and_unlabelled_voxels_are_no_objects(tmp_path: Path) -> None:
    case = manifest_case(tmp_path / "data", scribbles())
    config = toy_config(**{"loss.kind": "border_cross_entropy", "ignore_label": 255})
    (prepared,) = prepare_cases([case], config, SPARSE, tmp_path / "cache", lambda items, _: items).cases
    label = np.asarray(prepared.label())
    assert set(np.unique(label)) == {0, 1, 255}
    assert prepared.labels == (1,)
    weight = torch.from_numpy(np.array(prepared.arrays()["weight"][0]))
    assert torch.equal(weight, torch.from_numpy(border_weight_map(np.where(label == 1, 1, 0))))
    dense = manifest_case(tmp_path / "dense", np.where(scribbles() == 255, 0, scribbles()).astype(np.uint8))
    one, two = (
        prepare_cases([dense], config, labels, tmp_path / "cache", lambda items, _: items).cases[0].folder
        for labels in (LABELS, SPARSE)
    )
    assert one != two
