"""OME-Zarr of both versions: axes, names, sizes, smaller copies, only the chunks that are needed, what is refused."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from unet_med.errors import InputRefusedError
from unet_med.identity import file_sha256
from unet_med.io.discover import discover, open_source, restore_ref
from unet_med.io.levels import smaller
from unet_med.io.ome_zarr import inspect_zarr
from unet_med.io.source import IntakeOptions, SourceRef

VERSIONS = [2, 3]


def _array(shape: tuple[int, ...], dtype: str = "uint16") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 250, shape).astype(dtype)


def _write(
    path: Path,
    array: np.ndarray,
    version: int = 3,
    axes: str = "yx",
    scale: Sequence[float] = (0.25, 0.5),
    units: dict[str, str] | None = None,
    names: Sequence[str] = (),
    levels: int = 1,
    chunks: int = 16,
    **more: Any,
) -> Path:
    """Writes an OME-Zarr image whose smaller copies take each second pixel."""
    group = zarr.create_group(path, zarr_format=version)
    units = {"z": "micrometer", "y": "micrometer", "x": "micrometer"} if units is None else units
    types = {"t": "time", "c": "channel"}
    datasets = []
    for level in range(levels):
        step = {letter: 2**level if letter in "yx" else 1 for letter in axes}
        part = np.ascontiguousarray(array[tuple(slice(None, None, step[letter]) for letter in axes)])
        group.create_array(str(level), data=part, chunks=tuple(min(chunks, n) for n in part.shape), **more)
        sizes = [size * step[letter] for letter, size in zip(axes, scale, strict=True)]
        datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": sizes}]})
    told = [
        {"name": letter, "type": types.get(letter, "space")} | ({"unit": units[letter]} if letter in units else {})
        for letter in axes
    ]
    content: dict[str, Any] = {"multiscales": [{"axes": told, "datasets": datasets, "version": "0.4"}]}
    if names:
        content["omero"] = {"channels": [{"label": name} for name in names]}
    group.attrs.update({"ome": content} if version == 3 else content)
    return path


def _one(path: Path, **options: Any) -> SourceRef:
    (ref,) = inspect_zarr(path, IntakeOptions(**options))
    return ref


@pytest.mark.parametrize("version", VERSIONS)
def test_an_image_of_all_axes(tmp_path: Path, version: int) -> None:
    array = _array((2, 3, 4, 40, 50))
    units = {"t": "minute", "z": "micrometer", "y": "micrometer", "x": "nanometer"}
    scale, names = (5, 1, 2, 0.5, 250), ("DAPI", "GFP", "RFP")
    _write(tmp_path / "cells.ome.zarr", array, version, "tczyx", scale, units, names, levels=2)
    (ref,) = discover(tmp_path).sources
    assert (ref.id, ref.kind, ref.axes, ref.shape) == ("cells", "zarr", "TCZYX", array.shape)
    assert (ref.channel_names, ref.frames, ref.seconds_per_frame) == (names, 2, 300)
    assert ref.geometry.spacing_mm == pytest.approx((0.00025, 0.0005, 0.002))
    expected = array.transpose(0, 1, 4, 3, 2)
    source = pickle.loads(pickle.dumps(open_source(ref)))
    for frame in range(2):
        np.testing.assert_array_equal(source.read(frame=frame).array, expected[frame])
    region = (slice(3, 20), slice(5, 30), slice(1, 3))
    np.testing.assert_array_equal(source.read(region, 1).array, expected[(1, slice(None), *region)])
    copy = smaller(ref, 25)
    assert copy.shape == (2, 3, 4, 20, 25)
    np.testing.assert_array_equal(open_source(copy).read(frame=1).array, expected[1][:, ::2, ::2])
    chosen = _one(tmp_path / "cells.ome.zarr", channels=("rfp", "DAPI"))
    np.testing.assert_array_equal(open_source(chosen).read(frame=1).array, expected[1][[2, 0]])
    again = restore_ref({"id": chosen.id, "read": dict(chosen.read_as)}, chosen.files)
    assert again.channel_names == ("RFP", "DAPI")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "uint32", "float32", "float64"])
def test_values_come_as_stored(tmp_path: Path, version: int, dtype: str) -> None:
    array = _array((20, 30)).astype(dtype)
    ref = _one(_write(tmp_path / "a.zarr", array, version))
    values = open_source(ref).read().array[0]
    assert str(values.dtype) == ref.dtype == ("uint8" if dtype == "bool" else dtype)
    np.testing.assert_array_equal(values, array.T)


def test_shards_and_other_codecs(tmp_path: Path) -> None:
    array = _array((64, 64))
    sharded = _write(tmp_path / "a.zarr", array, 3, chunks=16, shards=(32, 32))
    plain = _write(tmp_path / "b.zarr", array, 2, compressors=None)
    for path in (sharded, plain):
        np.testing.assert_array_equal(
            open_source(_one(path)).read((slice(9, 50), slice(0, 64))).array[0], array.T[9:50]
        )


@pytest.mark.parametrize("version", VERSIONS)
def test_only_the_chunks_of_a_region_are_read(tmp_path: Path, version: int) -> None:
    array = _array((64, 64))
    path = _write(tmp_path / "a.zarr", array, version)
    source = open_source(_one(path))
    kept = "c/0/1" if version == 3 else "0.1"
    for chunk in [
        one for one in (path / "0").rglob("*") if one.is_file() and not one.name.endswith(("json", "zarray"))
    ]:
        if not chunk.as_posix().endswith(f"/0/{kept}") and ".zattrs" not in chunk.name:
            chunk.write_bytes(b"damaged")
    np.testing.assert_array_equal(source.read((slice(16, 32), slice(2, 9))).array[0], array.T[16:32, 2:9])
    with pytest.raises(InputRefusedError, match="damaged"):
        source.read((slice(16, 33), slice(2, 9)))


def test_pictures_that_are_stored_with_five_axes_are_pictures(tmp_path: Path) -> None:
    array = _array((1, 1, 1, 20, 30))
    ref = _one(_write(tmp_path / "a.zarr", array, 2, "tczyx", (1, 1, 1, 0.5, 0.5)))
    assert (ref.axes, ref.shape, ref.geometry.shape) == ("YX", (20, 30), (30, 20))
    np.testing.assert_array_equal(open_source(ref).read().array[0], array[0, 0, 0].T)


def test_a_size_without_a_unit_is_unknown(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.zarr", _array((20, 30)), units={})
    assert not _one(path).geometry.is_calibrated
    assert "no pixel size" in _one(path).notes
    assert _one(path, pixel_size_mm=(0.001, 0.002)).geometry.spacing_mm == (0.001, 0.002)


def test_the_oldest_versions_name_no_axes(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.zarr", _array((2, 3, 1, 20, 30)), 2, "tczyx", (1, 1, 1, 1, 1))
    attributes = json.loads((path / ".zattrs").read_text())
    del attributes["multiscales"][0]["axes"]
    del attributes["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    (path / ".zattrs").write_text(json.dumps(attributes))
    ref = _one(path)
    assert (ref.axes, ref.shape, ref.geometry.is_calibrated) == ("TCYX", (2, 3, 20, 30), False)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_array_without_axes_needs_them_given(tmp_path: Path, version: int) -> None:
    array = _array((4, 20, 30))
    zarr.create_array(tmp_path / "a.zarr", data=array, zarr_format=version)
    (ref,) = discover(tmp_path).sources
    assert not ref.usable
    assert "--axes" in ref.reason
    (ref,) = discover(tmp_path, IntakeOptions(axes="TYX")).sources
    np.testing.assert_array_equal(open_source(ref).read(frame=3).array[0], array[3].T)


def test_plates_and_collections_give_their_images(tmp_path: Path) -> None:
    for well in ("A/1/0", "A/1/1", "B/2/0"):
        _write(tmp_path / "plate.zarr" / well, _array((20, 30)), 2)
    for group in ("plate.zarr", "plate.zarr/A", "plate.zarr/A/1"):
        (tmp_path / group / ".zgroup").write_text('{"zarr_format": 2}')
    _write(tmp_path / "converted.zarr" / "0", _array((20, 30)), 3)
    _write(tmp_path / "labels.zarr" / "labels" / "cells", _array((20, 30)), 3)
    image = _write(tmp_path / "image.zarr", _array((20, 30)), 3)
    _write(image / "labels" / "nuclei", _array((20, 30)), 3)
    found = discover(tmp_path)
    names = ["converted", "image", "labels", "plate_A_1_0", "plate_A_1_1", "plate_B_2_0"]
    assert sorted(ref.id for ref in found.sources) == names
    assert not found.skipped
    assert any("nuclei" in note for ref in found.sources if ref.id == "image" for note in ref.notes)
    (label,) = discover(image / "labels" / "nuclei").sources
    assert (label.id, label.usable) == ("image", True)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_sum_of_a_folder_is_that_of_its_contents(tmp_path: Path, version: int) -> None:
    one = _write(tmp_path / "a.zarr", _array((40, 50)), version)
    shutil.copytree(one, tmp_path / "b.zarr")
    assert file_sha256(one) == file_sha256(tmp_path / "b.zarr")
    other = _write(tmp_path / "c.zarr", _array((40, 50)) + 1, version)
    assert file_sha256(one) != file_sha256(other)


# ---- what is refused ----------------------------------------------------------------------------------------------


def _edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda array: array.update(filters=[{"id": "pickle", "protocol": 5}]), "stored with pickle"),
        (lambda array: array.update(compressor={"id": "jpeg2k"}), "stored with jpeg2k"),
        (lambda array: array.update(dtype="|O"), "real numbers"),
        (lambda array: array.update(dtype="<c8"), "real numbers"),
        (lambda array: array.update(shape=[4_000_000, 4_000_000]), "claims"),
        (lambda array: array.update(chunks=[4_000_000, 4_000_000]), "chunks of"),
        (lambda array: array.update(shape=[20]), "makes no sense"),
        (lambda array: array.update(shape=[20, -3]), "makes no sense"),
        (lambda array: array.update(shape=[20, True]), "makes no sense"),
        (lambda array: array.update(chunks=[0, 16]), "makes no sense"),
        (lambda array: array.update(shape=[2, 20, 30], chunks=[1, 16, 16]), "axes"),
    ],
)
def test_arrays_that_are_not_safe_are_refused_unopened(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _write(tmp_path / "a.zarr", _array((20, 30)), 2)
    _edit(path / "0" / ".zarray", change)
    monkeypatch.setattr(zarr, "open_array", None)
    ref = _one(path)
    assert not ref.usable
    assert word in ref.reason
    assert str(tmp_path) not in ref.reason


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda array: array.update(codecs=[{"name": "bytes"}, {"name": "numcodecs.pickle"}]), "numcodecs.pickle"),
        (lambda array: array.update(storage_transformers=[{"name": "x"}]), "storage_transformers"),
        (lambda array: array.update(data_type="string"), "real numbers"),
        (lambda array: array.update(codecs=None), "stored with"),
        (
            lambda array: array.update(
                codecs=[{"name": "sharding_indexed", "configuration": {"codecs": [{"name": "vlen-utf8"}]}}]
            ),
            "vlen-utf8",
        ),
        (lambda array: array.update(node_type="group"), "missing"),
    ],
)
def test_arrays_of_the_new_version_too(tmp_path: Path, change: Callable[[dict[str, Any]], object], word: str) -> None:
    path = _write(tmp_path / "a.zarr", _array((20, 30)), 3)
    _edit(path / "0" / "zarr.json", change)
    ref = _one(path)
    assert not ref.usable
    assert word in ref.reason


@pytest.mark.parametrize("where", ["../other", "/etc", "a\\b", ""])
def test_arrays_that_lie_elsewhere_are_refused(tmp_path: Path, where: str) -> None:
    path = _write(tmp_path / "a.zarr", _array((20, 30)), 2)
    _edit(path / ".zattrs", lambda one: one["multiscales"][0]["datasets"][0].update(path=where))
    assert "elsewhere" in _one(path).reason


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"multiscales": 3}', '{"multiscales": [{"axes": 3}]}'])
def test_damaged_metadata_are_refused(tmp_path: Path, text: str) -> None:
    path = _write(tmp_path / "a.zarr", _array((20, 30)), 2)
    (path / ".zattrs").write_text(text)
    (ref,) = discover(tmp_path).sources
    assert not ref.usable
