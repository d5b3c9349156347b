"""Large label images: tiles, levels, and what other libraries find in them."""

from __future__ import annotations

import errno
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from unet_med.errors import InputRefusedError, MachineError
from unet_med.geometry import Geometry
from unet_med.io.export import label_tiff
from unet_med.io.export.mask import ExportOptions
from unet_med.io.mapped import let_go, mapped
from unet_med.io.sinks import ome_zarr, open_mask_sink, pyramid, tiled_tiff
from unet_med.io.sinks.pyramid import commonest_of_four, levels_of
from unet_med.labels import LabelMap
from unet_med.volume import ArraySource, Volume

LABELS = LabelMap.from_names({"background": 0, "cell": 1, "debris": 2})


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small pictures have many tiles and several levels."""
    monkeypatch.setattr(pyramid, "SMALLEST_SIDE", 40)
    monkeypatch.setattr(pyramid, "_BAND_VALUES", 1000)
    monkeypatch.setattr(tiled_tiff, "TILE", 16)
    monkeypatch.setattr(label_tiff, "TILED_PIXELS", 1000)
    monkeypatch.setattr(ome_zarr, "CHUNK", 32)


def _pages(shape: tuple[int, ...], dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3, shape).astype(dtype)


@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 3)))
@settings(max_examples=60, deadline=None)
def test_a_level_holds_the_commonest_label_of_each_four(picture: np.ndarray) -> None:
    padded = np.pad(picture, [(0, n % 2) for n in picture.shape], mode="edge")
    found = commonest_of_four(picture)
    for row, column in np.ndindex(found.shape):
        four = padded[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].ravel().tolist()
        assert found[row, column] == Counter(four).most_common(1)[0][0]  # of equals the first


@pytest.mark.parametrize("shape", [(150, 61), (2, 90, 130)])
def test_levels_are_made_in_bands(tmp_path: Path, shape: tuple[int, ...]) -> None:
    pages = _pages(shape)
    with levels_of(pages, tmp_path / "part.tif") as levels:
        assert [level.shape[-2:] for level in levels] == _halves(shape[-2:])
        for finer, coarser in pairwise(levels):
            for lead in np.ndindex(shape[:-2]):
                assert np.array_equal(coarser[lead], commonest_of_four(finer[lead]))
    assert list(tmp_path.iterdir()) == []


def _halves(size: tuple[int, ...]) -> list[tuple[int, ...]]:
    sizes = [size]
    while max(sizes[-1]) > 40:
        sizes.append(tuple(-(-n // 2) for n in sizes[-1]))
    return sizes


@pytest.mark.parametrize(
    ("shape", "frames", "spacing", "axes"),
    [((61, 150), 1, (0.5e-3, 0.25e-3), "YX"), ((61, 90), 3, None, "TYX"), ((50, 45, 4), 1, None, "ZYX")],
)
def test_a_large_mask_is_a_pyramid_that_tifffile_reads(tmp_path: Path, shape, frames, spacing, axes) -> None:
    source = _Film(Geometry.from_spacing(shape, spacing), frames)
    sink = open_mask_sink(source, tmp_path / "slide", LABELS, work=tmp_path / "work")
    labels = [_pages(shape[::-1]).T for _ in range(frames)]
    for frame, one in enumerate(labels):
        sink.labels_of(frame)[...] = one
    path, sidecar = sink.close()
    assert json.loads(sidecar.read_text())["checks"]["levels"] == len(_halves(shape[:2]))
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        assert file.is_bigtiff and file.is_ome and series.axes == axes and series.keyframe.is_tiled
        assert [level.shape[-2:] for level in series.levels] == _halves(shape[1::-1])
        stored = series.asarray()
        assert np.array_equal(stored if frames > 1 else stored[None], [one.T for one in labels])
        assert np.array_equal(series.levels[1].asarray().reshape(-1), _half_of(stored).reshape(-1))
        if spacing is not None:
            assert 'PhysicalSizeX="0.5"' in file.ome_metadata and 'PhysicalSizeY="0.25"' in file.ome_metadata
    assert sorted(one.name for one in tmp_path.iterdir()) == ["slide.json", "slide.tif", "work"]


def _half_of(stored: np.ndarray) -> np.ndarray:
    pages = stored.reshape(-1, *stored.shape[-2:])
    return np.stack([commonest_of_four(page) for page in pages])


class _Film(ArraySource):
    """Several pictures of one grid, of which only the grid matters."""

    def __init__(self, geometry: Geometry, frames: int) -> None:
        super().__init__("film", Volume(np.zeros((1, *geometry.shape), np.uint8), geometry))
        object.__setattr__(self, "count", frames)

    @property
    def frames(self) -> int:
        return self.count


def test_levels_are_made_once_to_be_written_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    halved: list[tuple[int, ...]] = []
    true_halve = pyramid._halve

    def counted(finer: np.ndarray, coarser: np.ndarray) -> None:
        halved.append(coarser.shape)
        true_halve(finer, coarser)

    monkeypatch.setattr(pyramid, "_halve", counted)
    source = ArraySource("slide", Volume(np.zeros((1, 61, 150), np.uint8), Geometry((61, 150))))
    sink = open_mask_sink(source, tmp_path / "slide", LABELS, options=ExportOptions(("label-tiff", "ome-zarr")))
    sink.labels_of()[...] = _pages((150, 61)).T
    sink.close()
    assert halved == 2 * _halves((150, 61))[1:]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["slide.json", "slide.ome.zarr", "slide.tif"]
    with pytest.raises(KeyError), levels_of(_pages((150, 61)), tmp_path / "part", keep=True):
        raise KeyError
    assert not (tmp_path / "part.levels").exists()


@pytest.mark.parametrize("wrong", [(0, 0), (60, 149), (33, 70)])
def test_a_pixel_that_does_not_read_back_is_noticed(tmp_path: Path, wrong: tuple[int, int]) -> None:
    pages = _pages((61, 150))
    changed = pages.copy()
    changed[wrong] += 1
    with levels_of(pages, tmp_path / "part") as levels:
        tiled_tiff.save_tiled_tiff(tmp_path / "a.tif", levels, "YX", None)
        ome_zarr.save_ome_zarr(tmp_path / "a.ome.zarr", levels, "YX", None, LABELS)
        assert tiled_tiff.check_tiled_tiff(tmp_path / "a.tif", levels, "YX", "case")["passed"]
        assert ome_zarr.check_ome_zarr(tmp_path / "a.ome.zarr", levels, "YX", "case")["passed"]
        with pytest.raises(InputRefusedError, match="voxels"):
            tiled_tiff.check_tiled_tiff(tmp_path / "a.tif", [changed, *levels[1:]], "YX", "case")
        with pytest.raises(InputRefusedError, match="voxels"):
            ome_zarr.check_ome_zarr(tmp_path / "a.ome.zarr", [changed, *levels[1:]], "YX", "case")


@pytest.mark.parametrize(("version", "zarr_format"), [("0.4", 2), ("0.5", 3)])
@pytest.mark.parametrize(("shape", "axes", "dtype"), [((61, 150), "YX", "uint8"), ((3, 60, 45), "ZYX", "uint32")])
def test_labels_as_ome_zarr(tmp_path: Path, version, zarr_format, shape, axes, dtype) -> None:
    pages = _pages(shape, dtype)
    spacing = (0.5e-3, 0.25e-3, 2e-3)[: len(shape)]
    with levels_of(pages, tmp_path / "part") as levels:
        ome_zarr.save_ome_zarr(tmp_path / "mask", levels, axes, spacing, LABELS, version)
        record = ome_zarr.check_ome_zarr(tmp_path / "mask", levels, axes, "case")
    assert record["levels"] == len(_halves(shape[-2:]))
    group = zarr.open_group(str(tmp_path / "mask" / "labels" / "mask"), mode="r")
    assert group.metadata.zarr_format == zarr_format
    said = dict(group.attrs) if version == "0.4" else dict(group.attrs)["ome"]
    assert [one["label-value"] for one in said["image-label"]["colors"]] == [1, 2]
    assert [one["name"] for one in said["image-label"]["properties"]] == ["cell", "debris"]
    scales = said["multiscales"][0]
    assert (scales.get("version") or said["version"]) == version
    assert [axis["name"] for axis in scales["axes"]] == list(axes.lower())
    assert scales["axes"][-1]["unit"] == "micrometer"
    scale, shift = (step[kind] for step, kind in zip(*_second_level(scales), strict=True))
    assert scale[-2:] == [0.5, 1.0]  # rows are Y
    assert shift[-2:] == [0.125, 0.25]  # the middle of two pixels
    assert np.array_equal(group["0"][...], pages)
    upper = zarr.open_group(str(tmp_path / "mask"), mode="r")
    root = dict(upper.attrs) if version == "0.4" else dict(upper.attrs)["ome"]
    assert np.array_equal(upper[root["multiscales"][0]["datasets"][0]["path"]][...], pages)


def _second_level(scales):
    return scales["datasets"][1]["coordinateTransformations"], ("scale", "translation")


def test_a_mask_in_a_file_is_gone_on_with(tmp_path: Path) -> None:
    source = ArraySource("case", Volume(np.zeros((1, 30, 20), np.uint8), Geometry((30, 20))))
    first = open_mask_sink(source, tmp_path / "a", LABELS, work=tmp_path / "work")
    first.labels_of()[:, :7] = 2
    second = open_mask_sink(source, tmp_path / "a", LABELS, work=tmp_path / "work")
    assert (second.labels_of()[:, :7] == 2).all() and not second.labels_of()[:, 7:].any()
    second.write((slice(0, 5), slice(0, 5)), np.full((5, 5), 70000))
    assert second.labels_of().dtype == np.uint32
    assert (second.labels_of()[5:, :7] == 2).all() and (second.labels_of()[:5, :5] == 70000).all()
    assert np.array_equal(tifffile.imread(second.close()[0]).T, second.labels_of())


def _takes_no_place(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, "no place")

    monkeypatch.setattr("os.posix_fallocate", refuse, raising=False)


def test_a_full_disk_is_known_before_anything_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _takes_no_place(monkeypatch, errno.ENOSPC)
    for _ in range(2):  # the second start finds no file that it would take for a whole one
        with pytest.raises(MachineError, match="disk full"):
            mapped(tmp_path / "a.npy", (300, 50), "uint16")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_file_system_that_takes_no_place_at_once_is_used_all_the_same(tmp_path: Path, monkeypatch, code: int) -> None:
    _takes_no_place(monkeypatch, code)
    assert not mapped(tmp_path / "a.npy", (300, 50), "uint16").any()


def test_a_mapped_array_keeps_what_memory_lets_go(tmp_path: Path) -> None:
    array = mapped(tmp_path / "a.npy", (300, 50), "uint16")
    view = array[10:200].T
    view[...] = 7
    let_go(view)
    assert (view == 7).all() and not array[200:].any()
    assert np.array_equal(mapped(tmp_path / "a.npy", (300, 50), "uint16"), array)
    assert not mapped(tmp_path / "a.npy", (300, 51), "uint16").any()
    let_go(np.zeros(5))
