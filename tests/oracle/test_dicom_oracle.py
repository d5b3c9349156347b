"""Our DICOM intake against SimpleITK and dcm2niix."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import dcm2niix
import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from pydicom.uid import MRImageStorage

from unet_med.geometry import Geometry, reorient
from unet_med.io.discover import discover, open_source
from unet_med.volume import Volume

_SPEC = importlib.util.spec_from_file_location("dicom_writer", Path(__file__).parents[1] / "dicom_writer.py")
w = importlib.util.module_from_spec(_SPEC)
sys.modules["dicom_writer"] = w
_SPEC.loader.exec_module(w)


def ours(folder: Path) -> Volume:
    return open_source(discover(folder).sources[0]).read()


def by_simpleitk(folder: Path) -> Volume:
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    array = SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0)
    return Volume(array[np.newaxis], Geometry.from_lps(array.shape, affine))


def by_dcm2niix(folder: Path, out: Path) -> Volume:
    out.mkdir(exist_ok=True)
    subprocess.run(
        [dcm2niix.bin, "-b", "n", "-z", "n", "-f", "x", "-o", str(out), str(folder)], check=True, capture_output=True
    )
    image = nib.load(next(out.glob("*.nii")))
    array = np.asarray(image.get_fdata())
    return Volume(array[np.newaxis], Geometry(array.shape, image.affine))


def assert_same(first: Volume, second: Volume, tolerance: float) -> None:
    """Same voxels in the same place, however the axes are stored."""
    a, b = (
        (reorient(v.array, *v.geometry.canonical_axes()), v.geometry.reoriented(*v.geometry.canonical_axes()))
        for v in (first, second)
    )
    assert a[1].same_grid(b[1], 2e-3), np.abs(a[1].affine - b[1].affine).max()
    assert np.abs(a[0] - b[0]).max() <= tolerance


@pytest.mark.parametrize("angles", [(0, 0, 0), (10, -20, 30), (90, 0, 0), (80, 100, -170)])
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_phantom_series(tmp_path: Path, angles: tuple[float, ...], modality: str) -> None:
    series = w.Series(turn=w.rotation(*angles), modality=modality)
    if modality == "MR":
        series.sop_class = MRImageStorage
    w.write(tmp_path / "s", series.slices())
    assert_same(ours(tmp_path / "s"), by_simpleitk(tmp_path / "s"), 1e-4)
    assert_same(ours(tmp_path / "s"), by_dcm2niix(tmp_path / "s", tmp_path / "out"), 1e-3)


@pytest.mark.parametrize(
    "name",
    [
        "dicom_ct_head/series",
        "dicom_mr_hippocrop/Study1_13_HCropVolume",
        "dicom2nifti/siemens/anatomical/001/series",
        "dicom2nifti/philips/anatomical/001/series",
        "sts_tumour/dicom/STS_025/CT/image",
        "sts_tumour/dicom/STS_025/MR_T1/image",
        "dicom2nifti/generic/compressed_jpegls/001/series",
    ],
)
def test_real_series(name: str, shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shared_data(name)
    refs = discover(folder).sources
    if "no decoder" in refs[0].reason:
        pytest.skip("no JPEG-LS decoder is installed")
    mine = ours(folder)
    assert_same(mine, by_simpleitk(folder), 1e-3)
    assert_same(mine, by_dcm2niix(folder, tmp_path / "out"), 1e-3)
