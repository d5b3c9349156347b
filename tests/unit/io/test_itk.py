"""NRRD and MetaImage in."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from allocations import peak_bytes

from unet_med.errors import InputRefusedError
from unet_med.io.itk import ItkSource, inspect_itk
from unet_med.io.source import IntakeOptions, SourceRef

SUFFIXES = ("mha", "mhd", "nrrd", "nhdr")
NRRD = b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 3 4 5\nencoding: raw\n"


def _one(path: Path, options: IntakeOptions | None = None) -> SourceRef:
    (ref,) = inspect_itk(path, options or IntakeOptions())
    return ref


def _image(shape: tuple[int, ...], *, vector: bool = False) -> SimpleITK.Image:
    values = np.random.default_rng(0).integers(-500, 500, shape).astype(np.int16)
    image = SimpleITK.GetImageFromArray(values, isVector=vector)
    dims = image.GetDimension()
    image.SetSpacing((0.5, 0.6, 2.0)[:dims])
    image.SetOrigin((1.0, 2.0, 3.0)[:dims])
    if dims == 3:
        image.SetDirection((0, -1, 0, 1, 0, 0, 0, 0, -1))
    return image


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("packed", [False, True])
def test_volumes_are_read_in_ras(tmp_path: Path, suffix: str, packed: bool) -> None:
    image = _image((4, 5, 6))
    path = tmp_path / f"a.{suffix}"
    SimpleITK.WriteImage(image, str(path), useCompression=packed)
    ref = _one(path)
    assert (ref.axes, ref.shape, ref.channels, ref.dtype) == ("IJK", (6, 5, 4), 1, "int16")
    assert ref.kind == ("nrrd" if suffix in ("nrrd", "nhdr") else "mha")
    assert len(ref.files) == (2 if suffix in ("mhd", "nhdr") else 1)
    volume = ItkSource(ref).read()
    np.testing.assert_array_equal(volume.array[0], SimpleITK.GetArrayFromImage(image).T)
    for index in [(0, 0, 0), (5, 1, 3)]:
        lps = np.array(image.TransformIndexToPhysicalPoint(index))
        np.testing.assert_allclose(volume.geometry.to_world(index), lps * [-1, -1, 1], atol=1e-9)
    region = (slice(1, 4), slice(2, 3), slice(0, 4))
    part = ItkSource(ref).read(region)
    np.testing.assert_array_equal(part.array, volume.array[(slice(None), *region)])


@pytest.mark.parametrize("suffix", ["mha", "nrrd"])
def test_vectors_are_channels(tmp_path: Path, suffix: str) -> None:
    image = _image((4, 5, 6, 3), vector=True)
    path = tmp_path / f"a.{suffix}"
    SimpleITK.WriteImage(image, str(path))
    ref = _one(path)
    assert (ref.axes, ref.shape, ref.channels) == ("CIJK", (3, 6, 5, 4), 3)
    stored = SimpleITK.GetArrayFromImage(image).transpose(3, 2, 1, 0)
    np.testing.assert_array_equal(ItkSource(ref).read().array, stored)
    chosen = _one(path, IntakeOptions(channels=("2", "0")))
    assert (chosen.channels, chosen.read_as) == (2, {"channels": ["2", "0"]})
    np.testing.assert_array_equal(ItkSource(chosen).read().array, stored[[2, 0]])
    assert "no channel 7" in _one(path, IntakeOptions(channels=("7",))).reason


def test_pictures_stay_flat(tmp_path: Path) -> None:
    image = _image((5, 6))
    SimpleITK.WriteImage(image, str(tmp_path / "a.mha"))
    ref = _one(tmp_path / "a.mha")
    assert (ref.axes, ref.shape, ref.geometry.ndim) == ("IJ", (6, 5), 2)
    assert ref.geometry.spacing_mm == (0.5, 0.6)
    np.testing.assert_allclose(ref.geometry.to_world([2, 1]), [-2.0, -2.6])


def test_four_axes_are_refused(tmp_path: Path) -> None:
    image = SimpleITK.GetImageFromArray(np.zeros((2, 3, 4, 5), np.uint8), isVector=False)
    SimpleITK.WriteImage(image, str(tmp_path / "a.mha"))
    assert "several volumes" in _one(tmp_path / "a.mha").reason


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("packed", [False, True])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str, packed: bool) -> None:
    path = tmp_path / f"a.{suffix}"
    SimpleITK.WriteImage(_image((14, 15, 16)), str(path), useCompression=packed)
    ref = _one(path)
    data = ref.files[-1]
    data.write_bytes(data.read_bytes()[:-300])
    if not packed:
        assert "truncated" in _one(path).reason
    with pytest.raises(InputRefusedError, match="truncated") as caught:
        ItkSource(ref).read()
    assert str(tmp_path) not in str(caught.value)


def test_a_missing_data_file_is_said(tmp_path: Path) -> None:
    SimpleITK.WriteImage(_image((4, 5, 6)), str(tmp_path / "a.mhd"))
    (tmp_path / "a.raw").unlink()
    assert not _one(tmp_path / "a.mhd").usable


def test_no_spacing_means_uncalibrated(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    path.write_bytes(NRRD + b"\n" + bytes(60))
    ref = _one(path)
    assert ref.usable
    assert not ref.geometry.is_calibrated
    given = _one(path, IntakeOptions(pixel_size_mm=(0.1, 0.2, 0.3)))
    assert given.geometry.spacing_mm == (0.1, 0.2, 0.3)
    assert given.read_as == {"pixel_size_mm": [0.1, 0.2, 0.3]}


def test_ras_headers_and_units(tmp_path: Path) -> None:
    space = b"space: right-anterior-superior\nspace directions: (2,0,0) (0,3,0) (0,0,4)\nspace origin: (7,8,9)\n"
    path = tmp_path / "a.nrrd"
    path.write_bytes(NRRD + space + b"\n" + bytes(60))
    np.testing.assert_allclose(_one(path).geometry.affine, [[2, 0, 0, 7], [0, 3, 0, 8], [0, 0, 4, 9], [0, 0, 0, 1]])
    path.write_bytes(NRRD + space + b'space units: "um" "um" "um"\n\n' + bytes(60))
    assert _one(path).geometry.spacing_mm == (0.002, 0.003, 0.004)


def test_a_sheared_grid_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    space = b"space: left-posterior-superior\nspace directions: (1,0,0) (0.5,1,0) (0,0,2)\n\n"
    path.write_bytes(NRRD + space + bytes(60))
    assert "sheared" in _one(path).reason


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
def test_what_is_no_image_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no image at all")
    ref = _one(tmp_path / name)
    assert not ref.usable
    assert str(tmp_path) not in ref.reason


def test_reading_makes_no_copy_and_outlives_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    image = _image((40, 50, 60))
    SimpleITK.WriteImage(image, str(path))
    source = ItkSource(_one(path))
    arrays = []
    assert peak_bytes(lambda: arrays.append(source.read().array[0])) < arrays[0].nbytes / 2
    gc.collect()
    others = [source.read().array[0] for _ in range(3)]  # would reuse the memory if it were free
    others[0][...] = 0
    np.testing.assert_array_equal(arrays[0], SimpleITK.GetArrayFromImage(image).T)
