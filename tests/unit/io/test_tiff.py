"""TIFF in: by the axes a file declares, or by --axes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from unet_med.errors import InputRefusedError
from unet_med.io.source import IntakeOptions, SourceRef
from unet_med.io.tiff import TiffSource, inspect_tiff, pixels


def _array(shape: tuple[int, ...], dtype: str = "uint16") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 250, shape).astype(dtype)


def _one(path: Path, **options: object) -> SourceRef:
    (ref,) = inspect_tiff(path, IntakeOptions(**options))
    return ref


def _strips_read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Page and number of each strip or tile that is read from now on."""
    read: list[tuple[int, int]] = []
    stored = pixels._bytes
    monkeypatch.setattr(
        pixels,
        "_bytes",
        lambda file, page, number: read.append((page.index, number)) or stored(file, page, number),
    )
    return read


def _frames(ref: SourceRef) -> np.ndarray:
    source = TiffSource(ref)
    return np.stack([source.read(frame=frame).array for frame in range(source.frames)])


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "float32", "float64", "bool"])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_grey_pictures(tmp_path: Path, dtype: str, compression: str | None, byteorder: str) -> None:
    array = _array((5, 7), dtype)
    packing = None if dtype == "bool" else compression
    tifffile.imwrite(tmp_path / "a.tif", array, compression=packing, byteorder=byteorder, photometric="minisblack")
    ref = _one(tmp_path / "a.tif")
    assert (ref.axes, ref.shape, ref.channels, ref.frames) == ("YX", (5, 7), 1, 1)
    volume = TiffSource(ref).read()
    assert volume.array.dtype == ref.dtype == ("uint8" if dtype == "bool" else dtype)
    np.testing.assert_array_equal(volume.array[0], array.T)
    assert not volume.geometry.is_calibrated


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_colour_pictures(tmp_path: Path, planar: str, dtype: str, tile: tuple[int, int] | None) -> None:
    array = _array((3, 20, 35), dtype)
    stored = array if planar == "separate" else array.transpose(1, 2, 0)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar, tile=tile, compression="zlib")
    ref = _one(tmp_path / "a.tif")
    assert (ref.axes, ref.channels) == ("SYX" if planar == "separate" else "YXS", 3)
    assert ref.shape == stored.shape
    np.testing.assert_array_equal(TiffSource(ref).read().array, array.transpose(0, 2, 1))
    part = TiffSource(ref).read((slice(3, 9), slice(1, 2)))
    np.testing.assert_array_equal(part.array, array[:, 1:2, 3:9].transpose(0, 2, 1))


def test_three_planes_without_photometric_are_rgb(tmp_path: Path) -> None:
    array = _array((3, 20, 35), "uint8")
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", metadata=None)
    assert _one(tmp_path / "a.tif").channels == 3


def test_alpha_is_dropped_with_a_note(tmp_path: Path) -> None:
    array = _array((20, 35, 4), "uint8")
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", extrasamples=["unassalpha"])
    ref = _one(tmp_path / "a.tif")
    assert (ref.channels, ref.shape) == (3, (20, 35, 4))
    assert any("alpha" in note for note in ref.notes)
    np.testing.assert_array_equal(TiffSource(ref).read().array, array[..., :3].transpose(2, 1, 0))


@pytest.mark.parametrize("kind", ["imagej", "ome", "shaped"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_declared_stacks(tmp_path: Path, kind: str, compression: str | None) -> None:
    array = _array((3, 4, 2, 5, 7))
    path = tmp_path / ("a.ome.tif" if kind == "ome" else "a.tif")
    tifffile.imwrite(
        path,
        array,
        imagej=kind == "imagej",
        ome=kind == "ome",
        metadata={"axes": "TZCYX"},
        photometric="minisblack",
        compression=None if kind == "imagej" else compression,
    )
    ref = _one(path)
    assert (ref.axes, ref.shape) == ("TZCYX", (3, 4, 2, 5, 7))
    assert (ref.frames, ref.channels, ref.geometry.shape) == (3, 2, (7, 5, 4))
    np.testing.assert_array_equal(_frames(ref), array.transpose(0, 2, 4, 3, 1))
    region = (slice(1, 6), slice(0, 2), slice(2, 4))
    part = TiffSource(ref).read(region, 1)
    np.testing.assert_array_equal(part.array, array.transpose(0, 2, 4, 3, 1)[(1, slice(None), *region)])
    second = _one(path, channels=("1",))
    np.testing.assert_array_equal(_frames(second), array.transpose(0, 2, 4, 3, 1)[:, 1:])


def test_only_the_pages_of_the_frame_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "a.tif", _array((6, 5, 7)), metadata={"axes": "TYX"}, compression="zlib")
    ref = _one(tmp_path / "a.tif")
    read = _strips_read(monkeypatch)
    TiffSource(ref).read(frame=4)
    assert {page for page, _ in read} == {4}


def test_an_undeclared_stack_needs_axes(tmp_path: Path) -> None:
    array = _array((6, 5, 7))
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack")
    ref = _one(tmp_path / "a.tif")
    assert not ref.usable
    assert "--axes" in ref.reason
    assert ref.shape == (6, 5, 7)
    volume = _one(tmp_path / "a.tif", axes="ZYX")
    assert (volume.geometry.shape, volume.read_as) == ((7, 5, 6), {"axes": "ZYX"})
    np.testing.assert_array_equal(TiffSource(volume).read().array[0], array.T)
    for letter in "TI":
        film = _one(tmp_path / "a.tif", axes=f"{letter}yx")
        assert (film.frames, film.geometry.shape, film.axes) == (6, (7, 5), f"{letter}YX")
        np.testing.assert_array_equal(_frames(film)[:, 0], array.transpose(0, 2, 1))
    assert _one(tmp_path / "a.tif", axes="CYX").channels == 6
    for wrong in ("YX", "TZYX", "ZZX", "QYX", "ZCT"):
        assert not _one(tmp_path / "a.tif", axes=wrong).usable, wrong


def test_axes_need_not_name_the_samples(tmp_path: Path) -> None:
    array = _array((6, 5, 7, 3), "uint8")
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb")
    ref = _one(tmp_path / "a.tif", axes="TYX")
    assert (ref.axes, ref.frames, ref.channels) == ("TYXS", 6, 3)
    np.testing.assert_array_equal(_frames(ref), array.transpose(0, 3, 2, 1))


def test_axes_are_not_used_where_the_file_declares_its_own(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", _array((6, 5, 7)), imagej=True, metadata={"axes": "ZYX"})
    assert _one(tmp_path / "a.tif", axes="TYX").axes == "ZYX"
    tifffile.imwrite(tmp_path / "b.tif", _array((5, 7)))
    assert _one(tmp_path / "b.tif", axes="TYX").axes == "YX"


@pytest.mark.parametrize(
    ("unit", "mm"), [("um", 1e-3), ("micron", 1e-3), ("\\u00B5m", 1e-3), ("mm", 1.0), ("nm", 1e-6), ("pixel", None)]
)
def test_imagej_pixel_size(tmp_path: Path, unit: str, mm: float | None) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif",
        _array((4, 5, 7)),
        imagej=True,
        resolution=(2.0, 4.0),
        metadata={"axes": "ZYX", "unit": unit, "spacing": 3.0},
    )
    spacing = _one(tmp_path / "a.tif").geometry.spacing_mm
    assert spacing == (None if mm is None else pytest.approx((0.5 * mm, 0.25 * mm, 3.0 * mm)))


@pytest.mark.parametrize(("unit", "mm"), [("\u00b5m", 1e-3), ("nm", 1e-6), ("mm", 1.0), ("pixel", None)])
def test_ome_pixel_size(tmp_path: Path, unit: str, mm: float | None) -> None:
    sizes = {f"PhysicalSize{letter}": value for letter, value in zip("XYZ", (0.5, 0.25, 3.0), strict=True)}
    units = {f"PhysicalSize{letter}Unit": unit for letter in "XYZ"}
    metadata = {"axes": "ZYX"} | sizes | units
    tifffile.imwrite(tmp_path / "a.ome.tif", _array((4, 5, 7)), metadata=metadata)
    spacing = _one(tmp_path / "a.ome.tif").geometry.spacing_mm
    assert spacing == (None if mm is None else pytest.approx((0.5 * mm, 0.25 * mm, 3.0 * mm)))


def test_a_depth_that_is_unknown_leaves_a_volume_uncalibrated(tmp_path: Path) -> None:
    metadata = {"axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    tifffile.imwrite(tmp_path / "a.ome.tif", _array((4, 5, 7)), metadata=metadata)
    ref = _one(tmp_path / "a.ome.tif")
    assert not ref.geometry.is_calibrated
    assert any("in plane only" in note for note in ref.notes)


@pytest.mark.parametrize("dpi", [72, 300])
def test_dots_per_inch_are_no_calibration_but_pixel_size_is(tmp_path: Path, dpi: int) -> None:
    tifffile.imwrite(tmp_path / "a.tif", _array((5, 7)), resolution=(dpi, dpi), resolutionunit="INCH")
    assert not _one(tmp_path / "a.tif").geometry.is_calibrated
    ref = _one(tmp_path / "a.tif", pixel_size_mm=(0.001, 0.002))
    assert ref.geometry.spacing_mm == (0.001, 0.002)
    assert ref.read_as == {"pixel_size_mm": [0.001, 0.002]}
    assert not _one(tmp_path / "a.tif", pixel_size_mm=(-1.0, 1.0)).usable


def test_a_declared_pixel_size_wins(tmp_path: Path) -> None:
    metadata = {"axes": "YX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    tifffile.imwrite(tmp_path / "a.ome.tif", _array((5, 7)), metadata=metadata)
    ref = _one(tmp_path / "a.ome.tif", pixel_size_mm=(1.0, 1.0))
    assert ref.geometry.spacing_mm == (0.0005, 0.0005)
    assert any("--pixel-size is not used" in note for note in ref.notes)


def test_several_series_are_several_sources(tmp_path: Path) -> None:
    first, second = _array((5, 7)), _array((2, 9, 4))
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
        file.write(first, metadata={"axes": "YX"}, photometric="minisblack")
        file.write(second, metadata={"axes": "ZYX"}, photometric="minisblack")
    refs = inspect_tiff(tmp_path / "a.ome.tif")
    assert [(ref.id, ref.axes, ref.shape) for ref in refs] == [("a-s1", "YX", (5, 7)), ("a-s2", "ZYX", (2, 9, 4))]
    np.testing.assert_array_equal(TiffSource(refs[1]).read().array[0], second.T)


def test_channel_names_of_ome_choose_channels(tmp_path: Path) -> None:
    array = _array((2, 5, 7))
    metadata = {"axes": "CYX", "Channel": {"Name": ["DAPI", "GFP"]}}
    tifffile.imwrite(tmp_path / "a.ome.tif", array, metadata=metadata, photometric="minisblack")
    ref = _one(tmp_path / "a.ome.tif", channels=("GFP",))
    np.testing.assert_array_equal(TiffSource(ref).read().array[0], array[1].T)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("pages", [1, 5])
def test_truncated_files_are_refused(tmp_path: Path, compression: str | None, pages: int) -> None:
    array = _array((pages, 64, 70)) if pages > 1 else _array((64, 70))
    axes = "TYX" if pages > 1 else "YX"
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, array, metadata={"axes": axes}, compression=compression, photometric="minisblack")
    raw = path.read_bytes()
    for share in (0.95, 0.5, 0.02):
        path.write_bytes(raw[: int(len(raw) * share)])
        refs = inspect_tiff(path)
        if all(ref.usable for ref in refs):
            with pytest.raises(InputRefusedError):
                _frames(refs[0])
        assert str(tmp_path) not in "".join(ref.reason for ref in refs)


def test_a_truncated_imagej_stack_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, _array((8, 64, 70)), imagej=True, metadata={"axes": "ZYX"})
    path.write_bytes(path.read_bytes()[: 5 * 64 * 70 * 2])
    assert not _one(path).usable


def test_an_absurd_size_is_refused_not_allocated(tmp_path: Path) -> None:
    for compression in (None, "zlib"):
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, _array((64, 70)), compression=compression, metadata=None)
        with tifffile.TiffFile(path, mode="r+b") as file:
            for name in ("ImageWidth", "ImageLength", "RowsPerStrip"):
                file.pages[0].tags[name].overwrite(4_000_000)
        assert not _one(path).usable


@pytest.mark.parametrize(("compression", "side"), [("zlib", 20_000), ("lzw", 30_000), ("packbits", 5_000)])
def test_a_page_cannot_hold_more_than_its_compression_allows(tmp_path: Path, compression: str, side: int) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((1000, 1000), np.uint8), compression=compression, metadata=None)
    assert _one(path).usable
    with tifffile.TiffFile(path, mode="r+b") as file:
        for name in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            file.pages[0].tags[name].overwrite(side)
    assert "claims" in _one(path).reason


def test_cmyk_and_complex_numbers_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", _array((8, 9, 4), "uint8"), photometric="separated")
    assert "colours" in _one(tmp_path / "a.tif").reason
    tifffile.imwrite(tmp_path / "b.tif", _array((8, 9), "complex64"))
    assert "real numbers" in _one(tmp_path / "b.tif").reason


@pytest.mark.parametrize("content", [b"", b"II*\x00", b"II*\x00\xff\xff\xff\x00", b"no image at all"])
def test_what_is_no_tiff_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tif").write_bytes(content)
    ref = _one(tmp_path / "a.tif")
    assert not ref.usable
    assert str(tmp_path) not in ref.reason
