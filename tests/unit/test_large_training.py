"""Large images are learnt from without being read as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from large_images import picture

from unet_med import data
from unet_med.bundle import load_bundle
from unet_med.data import ANNOTATED, CachedCase, prepare_cases
from unet_med.io.cases import Case
from unet_med.io.tiff import inspect_tiff
from unet_med.io.tiff.source import TiffSource
from unet_med.manifest import ManifestCase
from unet_med.patches import PatchDataset
from unet_med.planning import fingerprint


def _slide(folder: Path) -> ManifestCase:
    """Two channels and their labels, in tiles."""
    image = picture((150, 70), channels=2)
    label = (image[0] > 1300).astype(np.uint8) + (image[0] > 1700)
    options: dict[str, Any] = {"ome": True, "photometric": "minisblack", "tile": (32, 32)}
    tifffile.imwrite(folder / "slide.tif", image, metadata={"axes": "CYX"}, **options)
    tifffile.imwrite(folder / "label.tif", label, metadata={"axes": "YX"}, **options)
    refs = [inspect_tiff(folder / name)[0] for name in ("slide.tif", "label.tif")]
    return ManifestCase("x", Case("x", (refs[0],), refs[1]), 0, "x", {"image": "0" * 64, "label": "1" * 64})


@pytest.mark.parametrize("changes", [{}, {"preprocess__crop_to_nonzero": True}])
def test_a_large_case_is_prepared_as_any_other(tiny_bundle, tmp_path: Path, monkeypatch, changes) -> None:
    bundle = load_bundle(tiny_bundle(dims=2, channels=2, **changes))
    case = _slide(tmp_path)

    def prepared(name: str) -> CachedCase:
        return prepare_cases([case], bundle.config, bundle.labels, tmp_path / name, lambda some, _: some).cases[0]

    usual = prepared("usual")
    monkeypatch.setattr("unet_med.io.cases.LARGE_BYTES", 0)
    monkeypatch.setattr("unet_med.volume._BAND_BYTES", 2**12)
    read: list[int] = []
    true_read = TiffSource.read

    def watched(self: Any, *places: Any, **named: Any) -> Any:
        found = true_read(self, *places, **named)
        read.append(found.array.nbytes)
        return found

    monkeypatch.setattr(TiffSource, "read", watched)
    large = prepared("large")
    assert max(read) <= 150 * 70 * 2  # the label, as a whole; never the image
    assert np.allclose(large.image(), usual.image(), atol=1e-5)
    assert np.array_equal(large.label(), usual.label())
    assert np.array_equal(large.foreground(), usual.foreground())
    samples = [PatchDataset([one], bundle.config)[5] for one in (usual, large)]
    assert np.allclose(samples[0]["image"], samples[1]["image"], atol=1e-4)


def test_a_large_case_is_planned_with_as_any_other(tmp_path: Path, monkeypatch) -> None:
    case = _slide(tmp_path).case
    usual = fingerprint([case], 3)
    monkeypatch.setattr("unet_med.io.cases.LARGE_BYTES", 0)
    monkeypatch.setattr("unet_med.volume._BAND_BYTES", 2**12)
    large = fingerprint([case], 3)
    assert large == usual
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
