"""Of images larger than memory every n-th voxel is looked at, and all values."""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np
import pytest
import tifffile
from healthy_sets import manifest_of, tissue, write_tissues
from large_images import WatchedSource, picture, watched_reads

from unet_med.doctoring import examine, thinning
from unet_med.doctoring.looking import look
from unet_med.doctoring.thinning import middle, thinned
from unet_med.geometry import Geometry
from unet_med.volume import Volume, lazily


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Takes every picture for large, and returns how many bytes are read at a time."""
    monkeypatch.setattr("unet_med.io.cases.LARGE_BYTES", 0)
    monkeypatch.setattr("unet_med.volume._BAND_BYTES", 2**12)
    monkeypatch.setattr(thinning, "LOOKED_VOXELS", 96 * 96 // 4)
    monkeypatch.setattr(thinning, "_PART_VOXELS", 96 * 10)
    return watched_reads(monkeypatch)


@pytest.mark.parametrize("shape", [(50, 31), (9, 14, 23)])
@pytest.mark.parametrize("step", [1, 2, 5])
def test_every_nth_voxel_is_where_it_was(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], step: int) -> None:
    monkeypatch.setattr(thinning, "_PART_VOXELS", 200)
    geometry = Geometry.from_spacing(shape, (0.5, 0.25, 2.0)[: len(shape)])
    image = picture(shape, channels=2)
    index = (slice(None), *[slice(None, None, step)] * len(shape))
    for array in (image, lazily(WatchedSource(image)).array):
        found = thinned(Volume(array, geometry), step)
        assert np.array_equal(found.array, image[index])
        last = np.array(found.geometry.shape) - 1
        assert np.allclose(found.geometry.to_world(last), geometry.to_world(step * last))


def test_the_middle_is_as_large_as_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thinning, "LOOKED_VOXELS", 1000)
    region = middle(Geometry((400, 100)))
    assert 800 < prod(part.stop - part.start for part in region) <= 1000
    assert [part.start + part.stop for part in region] == pytest.approx([400, 100], abs=1)
    assert middle(Geometry((20, 30))) == (slice(0, 20), slice(0, 30))


def test_faults_of_large_pictures_are_found_without_holding_them(tmp_path: Path, large: list[int]) -> None:
    folder = write_tissues(tmp_path / "set", cases=6)
    tifffile.imwrite(folder / "images/p2.tif", np.full((96, 96), 7, np.uint8), photometric="minisblack")
    tifffile.imwrite(folder / "labels/p3.tif", np.zeros((96, 96), np.uint8), photometric="minisblack")
    manifest = manifest_of(folder, tmp_path / "m.json")
    large.clear()
    found = examine(manifest)
    assert {(finding.kind, finding.case) for finding in found} == {("constant", "p2"), ("empty", "p3")}
    assert 0 < max(large) <= 96 * 96 / 2


def test_equal_images_are_known_however_they_are_stored_and_read(tmp_path: Path, monkeypatch, large) -> None:
    folder = write_tissues(tmp_path / "set", cases=2)
    image = tissue(0)[0]
    tifffile.imwrite(folder / "images/p1.tif", image.astype(np.uint16), tile=(32, 32), photometric="minisblack")
    cases = manifest_of(folder, tmp_path / "m.json").training
    cells = {2: (1, 1)}
    hashes = {look(case, cells, None).image for case in cases}
    monkeypatch.undo()
    assert hashes == {look(case, cells, None).image for case in cases} and len(hashes) == 1
    other = image.copy()
    other[95, 94] += 1
    tifffile.imwrite(folder / "images/p1.tif", other, photometric="minisblack")
    assert len({look(case, cells, None).image for case in cases}) == 2


def test_objects_of_a_large_picture_are_measured_in_its_middle(tmp_path: Path, large: list[int]) -> None:
    folder = tmp_path / "set"
    for name in ("a", "b"):
        objects = np.zeros((96, 96), np.uint16)
        objects[40:50, 40:52], objects[44:60, 60:66], objects[2:6, 2:6] = 1, 2, 3
        for kind, values in (("images", tissue(ord(name))[0]), ("labels", objects)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(folder / kind / f"{name}.tif", values, photometric="minisblack")
    case = manifest_of(folder, tmp_path / "m.json", task="instance").training[0]
    large.clear()
    found = look(case, {2: (1, 1)}, None)
    assert found.objects is not None and found.scan is not None
    assert found.scan.values == (0, 1, 2, 3)
    assert found.objects.numbers.tolist() == [1, 2] and found.objects.voxels.tolist() == [120, 96]
    assert found.objects.image_voxels == 96 * 96
    assert 0 < max(large) <= 96 * 96
