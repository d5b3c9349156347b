"""LoadImage with our reader gives our voxels and our affine, and a refusal stays one."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
from monai.transforms import LoadImage, LoadImaged

from unet_med.errors import InputRefusedError, UsageError
from unet_med.io.discover import discover, open_source
from unet_med.io.monai_reader import UnetMedReader
from unet_med.io.source import IntakeOptions

_SPEC = importlib.util.spec_from_file_location("dicom_writer", Path(__file__).parents[2] / "dicom_writer.py")
w = importlib.util.module_from_spec(_SPEC)
sys.modules["dicom_writer"] = w
_SPEC.loader.exec_module(w)


def load(path: Path, **kwargs: object) -> object:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*nvImageCodec")  # MONAI says it for every reader
        return LoadImage(reader=UnetMedReader(), **kwargs)(path)


@pytest.fixture
def series(tmp_path: Path) -> Path:
    w.write(tmp_path / "series", w.Series().slices())
    return tmp_path / "series"


def test_same_voxels_and_affine_as_our_own_read(series: Path, tmp_path: Path) -> None:
    affine = np.array([[0.0, -2.0, 0.0, 5.0], [1.0, 0.0, 0.0, -7.0], [0.0, 0.0, 3.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    nib.save(nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), affine), tmp_path / "a.nii.gz")
    tifffile.imwrite(
        tmp_path / "z.ome.tif",
        np.arange(60, dtype=np.uint16).reshape(3, 4, 5),
        photometric="minisblack",
        metadata={"axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25, "PhysicalSizeZ": 2.0},
    )
    for path in (series, tmp_path / "a.nii.gz", tmp_path / "z.ome.tif"):
        own = open_source(discover(path).sources[0]).read()
        image = load(path)
        assert np.array_equal(image.numpy(), own.array[0])
        assert np.allclose(image.affine.numpy(), own.geometry.affine, atol=1e-12)
        assert image.meta["space"] == "RAS"
        assert tuple(image.meta["spatial_shape"]) == own.geometry.shape
        assert np.allclose(image.meta["original_affine"], own.geometry.affine)
        assert load(path, ensure_channel_first=True).shape == own.array.shape


def test_agrees_with_monais_own_reader_on_nifti(tmp_path: Path) -> None:
    affine = np.array([[0.0, -2.0, 0.0, 5.0], [1.0, 0.0, 0.0, -7.0], [0.0, 0.0, 3.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    nib.save(nib.Nifti1Image(np.arange(60, dtype=np.float32).reshape(3, 4, 5), affine), tmp_path / "a.nii")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*nvImageCodec")
        theirs = LoadImage(reader="NibabelReader")(tmp_path / "a.nii")
    ours = load(tmp_path / "a.nii")
    assert np.array_equal(ours.numpy(), theirs.numpy())
    assert np.allclose(ours.affine, theirs.affine)


def test_colour_pictures_keep_their_channels_first(tmp_path: Path) -> None:
    values = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    tifffile.imwrite(tmp_path / "c.tif", values, photometric="rgb")
    image = load(tmp_path / "c.tif")
    assert np.array_equal(image.numpy(), values.transpose(2, 1, 0))
    assert image.affine.shape == (3, 3)
    assert load(tmp_path / "c.tif", ensure_channel_first=True).shape == (3, 5, 4)


def test_files_of_one_grid_become_channels(series: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    w.write(other, w.Series(number=2).slices())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*nvImageCodec")
        loader = LoadImaged("image", reader=UnetMedReader, ensure_channel_first=True)
        assert loader({"image": [str(series), str(other)]})["image"].shape == (2, 9, 7, 6)
    w.write(other, w.Series(number=2, step=3.0).slices())
    with pytest.raises(InputRefusedError, match="one grid"):
        load([series, other])


def test_a_refusal_is_not_passed_on_to_readers_that_load_it_wrong(series: Path) -> None:
    (series / "IM0002.dcm").unlink()
    with pytest.raises(InputRefusedError, match="1 slice is missing"):
        load(series)


def test_two_series_in_a_folder_are_a_choice(series: Path) -> None:
    w.write(series / "more", w.Series(number=2).slices())
    with pytest.raises(UsageError, match="2 images"):
        load(series)
    reader = UnetMedReader(options=IntakeOptions(series=("s002",)))
    assert reader.get_data(reader.read(series))[0].shape == (9, 7, 6)


def test_suffixes_do_not_matter(series: Path) -> None:
    reader = UnetMedReader()
    assert reader.verify_suffix(series)
    assert reader.verify_suffix([series / "IM0001.dcm"])
    assert not reader.verify_suffix(series / "gone")
