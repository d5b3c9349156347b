"""PNG and JPEG in."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from unet_med.errors import InputRefusedError
from unet_med.io.picture import PictureSource, inspect_picture
from unet_med.io.source import IntakeOptions, SourceRef


def _array(shape: tuple[int, ...], dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape).astype(dtype)


def _one(path: Path, **options: object) -> SourceRef:
    (ref,) = inspect_picture(path, IntakeOptions(**options))
    return ref


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("samples", [1, 2, 3, 4])
def test_png_of_any_depth(tmp_path: Path, dtype: str, samples: int) -> None:
    array = _array((5, 7, samples) if samples > 1 else (5, 7), dtype)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(array))
    ref = _one(tmp_path / "a.png")
    channels = 1 if samples < 3 else 3
    assert (ref.kind, ref.channels, ref.geometry.shape) == ("png", channels, (7, 5))
    assert ref.axes == ("YX" if samples == 1 else "YXS")
    assert ref.shape == array.shape
    assert not ref.geometry.is_calibrated
    volume = PictureSource(ref).read()
    assert volume.array.dtype == ref.dtype == dtype
    expected = array.reshape(5, 7, samples)[..., :channels].transpose(2, 1, 0)
    np.testing.assert_array_equal(volume.array, expected)
    part = PictureSource(ref).read((slice(2, 6), slice(1, 3)))
    np.testing.assert_array_equal(part.array, expected[:, 2:6, 1:3])
    if samples in (2, 4) and dtype == "uint8":
        assert any("transparency" in note for note in ref.notes)


def test_black_and_white(tmp_path: Path) -> None:
    bits = _array((5, 7)) > 127
    Image.fromarray(bits).save(tmp_path / "a.png")
    np.testing.assert_array_equal(PictureSource(_one(tmp_path / "a.png")).read().array[0], bits.T)


def test_a_palette_is_colour_for_images_and_numbers_for_labels(tmp_path: Path) -> None:
    indices = _array((5, 7)) % 4
    image = Image.fromarray(indices)
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    assert image.mode == "P"
    image.save(tmp_path / "a.png")
    ref = _one(tmp_path / "a.png")
    assert ref.channels == 3
    source = PictureSource(ref)
    np.testing.assert_array_equal(source.read().array[0], 255 * (indices.T == 1))
    np.testing.assert_array_equal(source.read_indices()[0], indices.T)


@pytest.mark.parametrize("depth", [2, 4])
def test_few_grey_levels_are_numbers_for_labels(tmp_path: Path, depth: int) -> None:
    rows = [[0, 1, 2, 3], [3, 2, 1, 0]]
    per_byte = 8 // depth
    packed = b""
    for row in rows:
        line = b"\x00"
        for start in range(0, 4, per_byte):
            line += bytes([sum(v << (8 - depth * (n + 1)) for n, v in enumerate(row[start : start + per_byte]))])
        packed += line

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 4, 2, depth, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(packed)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    np.testing.assert_array_equal(PictureSource(_one(tmp_path / "a.png")).read_indices()[0], np.array(rows).T)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg(tmp_path: Path, mode: str) -> None:
    array = np.full((16, 24) if mode == "L" else (16, 24, 3), 77, np.uint8)
    Image.fromarray(array).save(tmp_path / "a.jpg")
    ref = _one(tmp_path / "a.jpg")
    assert (ref.kind, ref.channels) == ("jpeg", 1 if mode == "L" else 3)
    assert PictureSource(ref).read().array.shape == (ref.channels, 24, 16)


def test_the_rotation_mark_of_a_camera_is_noted_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((16, 24), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    ref = _one(tmp_path / "a.jpg")
    assert ref.geometry.shape == (24, 16)
    assert any("orientation 6" in note for note in ref.notes)


def test_cmyk_and_animations_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((16, 24, 4), np.uint8), mode=None).convert("CMYK").save(tmp_path / "a.jpg")
    assert "CMYK" in _one(tmp_path / "a.jpg").reason
    frames = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (0, 100, 200)]
    frames[0].save(tmp_path / "b.png", save_all=True, append_images=frames[1:])
    assert "animation" in _one(tmp_path / "b.png").reason


def test_truncated_pictures_are_refused(tmp_path: Path) -> None:
    array = _array((40, 50, 3))
    Image.fromarray(array).save(tmp_path / "a.png")
    Image.fromarray(array).save(tmp_path / "a.jpg")
    for name in ("a.png", "a.jpg"):
        raw = (tmp_path / name).read_bytes()
        for size in (len(raw) - 20, len(raw) // 2, 30, 3, 0):
            (tmp_path / name).write_bytes(raw[:size])
            ref = _one(tmp_path / name)
            if ref.usable:
                with pytest.raises(InputRefusedError):
                    PictureSource(ref).read()
            assert str(tmp_path) not in ref.reason


def test_an_absurd_size_is_refused_not_allocated(tmp_path: Path) -> None:
    Image.fromarray(_array((40, 50))).save(tmp_path / "a.png")
    raw = bytearray((tmp_path / "a.png").read_bytes())
    raw[16:24] = struct.pack(">II", 60_000, 60_000)
    raw[29:33] = struct.pack(">I", zlib.crc32(raw[12:29]))
    (tmp_path / "a.png").write_bytes(raw)
    assert "claims" in _one(tmp_path / "a.png").reason


def test_a_picture_too_large_for_its_format_is_told_what_to_do(tmp_path: Path, monkeypatch) -> None:
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(tmp_path / "a.png")
    assert inspect_picture(tmp_path / "a.png")[0].usable
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 35)
    (ref,) = inspect_picture(tmp_path / "a.png")
    assert not ref.usable and "too many pixels" in ref.reason and "TIFF with tiles" in ref.reason


def test_pixel_size_and_channels_by_hand(tmp_path: Path) -> None:
    array = _array((5, 7, 3))
    Image.fromarray(array).save(tmp_path / "a.png")
    ref = _one(tmp_path / "a.png", pixel_size_mm=(0.001,), channels=("2",))
    assert ref.geometry.spacing_mm == (0.001, 0.001)
    assert ref.read_as == {"channels": ["2"], "pixel_size_mm": [0.001, 0.001]}
    np.testing.assert_array_equal(PictureSource(ref).read().array, array[..., 2].T[np.newaxis])
