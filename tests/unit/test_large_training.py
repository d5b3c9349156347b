"""Large images are learnt from without being read as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from large_images import picture, watched_reads

from unet_med import data
from unet_med.bundle import load_bundle
from unet_med.data import ANNOTATED, CachedCase, prepare_cases
from unet_med.errors import NothingUsableError
from unet_med.io.cases import Case
from unet_med.io.tiff import inspect_tiff
from unet_med.manifest import ManifestCase
from unet_med.patches import PatchDataset
from unet_med.planning import fingerprint


def _slide(folder: Path, wrong: int = 0) -> ManifestCase:
    """Two channels and their labels, in tiles; the last voxel may have a label that there is not."""
    image = picture((150, 70), channels=2)
    label = (image[0] > 1300).astype(np.uint8) + (image[0] > 1700)
    label[-1, -1] = wrong or label[-1, -1]
    sizes = {"PhysicalSizeX": 1.0, "PhysicalSizeY": 1.0}
    options: dict[str, Any] = {"ome": True, "photometric": "minisblack", "tile": (32, 32)}
    tifffile.imwrite(folder / "slide.tif", image, metadata={"axes": "CYX", **sizes}, **options)
    tifffile.imwrite(folder / "label.tif", label, metadata={"axes": "YX", **sizes}, **options)
    refs = [inspect_tiff(folder / name)[0] for name in ("slide.tif", "label.tif")]
    return ManifestCase("x", Case("x", (refs[0],), refs[1]), 0, "x", {"image": "0" * 64, "label": "1" * 64})


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[int]]:
    """Takes every image for large from now on, and returns how many bytes are read at a time."""

    def begin() -> list[int]:
        monkeypatch.setattr("unet_med.io.cases.LARGE_BYTES", 0)
        monkeypatch.setattr("unet_med.volume._BAND_BYTES", 2**12)
        monkeypatch.setattr("unet_med.transforms.resample._LABEL_VOXELS", 700)
        monkeypatch.setattr("unet_med.io.objects.boxes._BLOCK", {2: 16, 3: 8})
        return watched_reads(monkeypatch)

    return begin


@pytest.mark.parametrize(
    "changes", [{}, {"preprocess__crop_to_nonzero": True}, {"preprocess__spacing_mm": [1.5e-3, 0.8e-3]}]
)
def test_a_large_case_is_prepared_as_any_other(tiny_bundle, tmp_path: Path, large, changes) -> None:
    bundle = load_bundle(tiny_bundle(dims=2, channels=2, sampling__foreground_share=0.0, **changes))
    case = _slide(tmp_path)

    def prepared(name: str) -> CachedCase:
        return prepare_cases([case], bundle.config, bundle.labels, tmp_path / name, lambda some, _: some).cases[0]

    usual = prepared("usual")
    read = large()
    found = prepared("large")
    assert 0 < max(read) <= 150 * 70 * 4 / 8  # neither the image nor its label as a whole
    assert np.allclose(found.image(), usual.image(), atol=1e-4)
    assert np.array_equal(found.label(), usual.label()) and found.labels == usual.labels
    places = found.foreground()
    assert np.array_equal(np.bincount(places[:, 0]), np.bincount(usual.foreground()[:, 0]))
    assert len(np.unique(places, axis=0)) == len(places)
    assert np.array_equal(np.asarray(usual.label())[tuple(places[:, 1:].T)], places[:, 0])
    samples = [PatchDataset([one], bundle.config)[5] for one in (usual, found)]
    assert np.allclose(samples[0]["image"], samples[1]["image"], atol=1e-3)
    assert np.array_equal(samples[0]["label"], samples[1]["label"])


@pytest.mark.parametrize("ignored", [None, 200])
def test_objects_of_a_large_case_are_prepared_as_any_other(tiny_bundle, tmp_path: Path, large, ignored) -> None:
    bundle = load_bundle(tiny_bundle(dims=2, task="instance", ignore_label=ignored))
    image = picture((60, 90))[0]
    objects = np.zeros((60, 90), np.uint16)
    for number, (row, column) in enumerate(np.ndindex(5, 6), start=1):
        objects[12 * row + 1 : 12 * row + 12, 15 * column : 15 * column + 14 - row] = number
    if ignored is not None:
        objects[20:40, 30:50] = ignored
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="minisblack")
    tifffile.imwrite(tmp_path / "b.tif", objects, photometric="minisblack", tile=(16, 16))
    refs = [inspect_tiff(tmp_path / name)[0] for name in ("a.tif", "b.tif")]
    classes = {number: 1 + number % 2 for number in range(1, 31)}
    known = Case("x", (refs[0],), refs[1], instances=True, classes=classes, unlabelled=ignored)
    case = ManifestCase("x", known, 0, "x", {"image": "0" * 64, "label": "1" * 64})

    def prepared(name: str) -> CachedCase:
        return prepare_cases([case], bundle.config, bundle.labels, tmp_path / name, lambda some, _: some).cases[0]

    usual = prepared("usual").arrays()
    read = large()
    found = prepared("large")
    assert 0 < max(read) <= 60 * 90 * 2 / 2
    assert {"label", "border", "distance"} < usual.keys() == found.arrays().keys()
    for name, array in found.arrays().items():
        assert np.allclose(array, usual[name], atol=1e-5), name
    whole = np.where(objects == (ignored or 0), 0, objects).T
    assert np.array_equal(np.load(found.folder / "objects.npy"), whole)
    assert sorted(set(found.foreground()[:, 0].tolist())) == ([1, 2] if ignored is None else [ANNOTATED, 1, 2])


def test_a_large_case_with_a_wrong_label_leaves_nothing_behind(tiny_bundle, tmp_path: Path, large) -> None:
    bundle = load_bundle(tiny_bundle(dims=2, channels=2))
    case = _slide(tmp_path, wrong=7)
    large()
    with pytest.raises(NothingUsableError, match="holds \\[7\\]"):
        prepare_cases([case], bundle.config, bundle.labels, tmp_path / "cache", lambda some, _: some)
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize(("instances", "ignore"), [(False, None), (False, 2), (True, None)])
def test_a_large_case_is_planned_with_as_any_other(tmp_path: Path, large, instances: bool, ignore) -> None:
    case = replace(_slide(tmp_path).case, instances=instances)
    usual = fingerprint([case], 3, ignore=ignore)
    read = large()
    assert fingerprint([case], 3, ignore=ignore) == usual
    assert 0 < max(read) <= 150 * 70 * 4 / 8
    assert (usual.objects is not None) == instances
    assert usual.cases[0].shape == (70, 150) and len(usual.channels) == 2


@pytest.mark.parametrize("ignored", [None, 3])
@pytest.mark.parametrize("shape", [(50, 41), (9, 20, 31)])
def test_positions_are_chosen_evenly_from_the_whole_label(monkeypatch, shape, ignored) -> None:
    """As numpy chooses from all indices at once."""
    monkeypatch.setattr(data, "_SLAB_VOXELS", 130)
    monkeypatch.setattr(data, "_FOREGROUND_VOXELS", 200)
    label = np.random.default_rng(0).choice([0, 1, 2, 3], shape, p=[0.6, 0.35, 0.02, 0.03]).astype(np.uint8)
    rows = [np.zeros((0, 1 + label.ndim), dtype=np.int32)]
    for value in [1, 2, 3] if ignored is None else [1, 2, ANNOTATED]:
        flat = np.flatnonzero(label != ignored if value == ANNOTATED else label == value)
        if len(flat) > 200:
            flat = np.random.default_rng(abs(value)).choice(flat, 200, replace=False)
        places = np.stack(np.unravel_index(np.sort(flat), label.shape), axis=1)
        rows.append(np.hstack([np.full((len(places), 1), value), places]))
    found = data._positions(label, ignored)
    assert found.dtype == np.int32
    assert np.array_equal(found, np.concatenate(rows))


def test_labels_of_no_voxel_have_no_position() -> None:
    assert data._positions(np.zeros((5, 4), np.uint8), None).shape == (0, 3)
