"""Objects of real pictures, whatever their truth is stored in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from object_sets import save, write_masks

from unet_med.doctoring import examine
from unet_med.io.discover import discover
from unet_med.manifest import BuildOptions, build_manifest, load_manifest, save_manifest

Shared = Callable[[str], Path]
NAMES = ("00071198d059", "00ae65c1c663", "0a7d30b25235", "0b0d577159f0", "1400420310c9")
"""Two sizes in grey, one more with touching nuclei, a large one with few, and a stained one."""


@pytest.fixture
def bowl(shared_data: Shared, tmp_path: Path) -> Path:
    """Pictures of nuclei with one mask for each, as they were published."""
    folder = shared_data("dsb2018_nuclei")
    for name in NAMES:
        save(tmp_path / f"bowl/{name}/images/{name}.png", tifffile.imread(folder / f"images/{name}.tif"))
        write_masks(tmp_path / f"bowl/{name}/masks", tifffile.imread(folder / f"labels/{name}.tif"))
    return tmp_path / "bowl"


def test_masks_of_the_bowl_are_the_label_images_made_of_them(bowl: Path, shared_data: Shared, tmp_path: Path) -> None:
    folder = shared_data("dsb2018_nuclei")
    index = BuildOptions(group_by=str(folder / "index.csv"), folds=2)
    report = build_manifest(bowl, discover(bowl), index, "bowl")
    save_manifest(report.manifest, tmp_path / "m.json")
    manifest = load_manifest(tmp_path / "m.json")
    assert (manifest.task, len(manifest.training)) == ("instance", len(NAMES))
    assert "4 grey pictures among 1 in colour: each grey one is read as three equal channels" in report.notes
    for case in manifest.training:
        stored = tifffile.imread(folder / f"labels/{case.id}.tif")
        _, compact = np.unique(stored, return_inverse=True)
        np.testing.assert_array_equal(case.case.read_label().T, compact.reshape(stored.shape))
        assert case.case.read().channels == 3
    assert examine(manifest) == []
