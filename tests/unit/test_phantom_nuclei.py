"""Volumes of nuclei: the same again, each in one piece, touching, and read with their voxel size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from healthy_sets import manifest_of
from scipy import ndimage

from unet_med.doctoring import examine
from unet_med.phantoms import best_threshold_dice, make_nuclei_3d, write_phantoms_nuclei

SMALL = (20, 48, 56)


@pytest.mark.parametrize("seed", range(3))
def test_each_nucleus_is_whole_and_some_touch(seed: int) -> None:
    volume, objects = make_nuclei_3d(seed, 0, SMALL)
    assert volume.shape == objects.shape == SMALL
    count = int(objects.max())
    assert sorted(np.unique(objects)) == list(range(count + 1))
    assert count >= 8
    assert all(ndimage.label(objects == n, np.ones((3, 3, 3)))[1] == 1 for n in range(1, count + 1))
    assert ndimage.label(objects > 0)[1] < 0.8 * count
    again, _ = make_nuclei_3d(seed, 0, SMALL)
    np.testing.assert_array_equal(again, volume)
    assert not np.array_equal(make_nuclei_3d(seed, 1, SMALL)[0], volume)


def test_a_threshold_finds_the_nuclei_but_not_all_of_them() -> None:
    volume, objects = make_nuclei_3d(0, 0, SMALL)
    assert 0.7 < best_threshold_dice([volume], [objects > 0], [])[0] < 0.95


def test_a_set_of_volumes_is_read_with_its_voxel_size(tmp_path: Path) -> None:
    found = write_phantoms_nuclei(tmp_path / "set", cases=2, unlabelled=1)
    manifest = manifest_of(tmp_path / "set", tmp_path / "m.json")
    assert (manifest.task, len(manifest.training), len(manifest.test)) == ("instance", 2, 1)
    assert len(found.truth) == 1
    case = manifest.training[0].case
    volume, objects = make_nuclei_3d(0, 0)
    np.testing.assert_array_equal(case.read().array[0], volume.transpose(2, 1, 0))
    np.testing.assert_array_equal(case.read_label(), objects.transpose(2, 1, 0))
    assert case.geometry.spacing_mm == pytest.approx((0.0005, 0.0005, 0.001))
    assert examine(manifest) == []
