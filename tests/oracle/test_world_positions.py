"""SimpleITK and nibabel find everything we write where it belongs, however the image was stored."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from unet_med.geometry import Geometry, reorient
from unet_med.io.itk import ItkSource, inspect_itk
from unet_med.io.nifti import NiftiSource, inspect_nifti
from unet_med.io.sinks import open_mask_sink, write_image
from unet_med.labels import LabelMap
from unet_med.volume import ArraySource, ImageSource, Volume

LABELS = LabelMap.from_names({"background": 0, "a": 1, "b": 2, "c": 3})
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_euler("xyz", (17, -23, 41), degrees=True).as_matrix() * [0.7, 0.9, 2.5]
OBLIQUE[:3, 3] = [-83.2, 41.7, 12.9]
STRAIGHT = np.diag([0.7, 0.9, 2.5, 1.0])


def _asymmetric() -> tuple[np.ndarray, Geometry]:
    """Three boxes of different size and place: no turn or mirror maps them onto themselves."""
    array = np.zeros((9, 11, 13), np.uint8)
    array[1:3, 1:5, 1:4] = 1
    array[5:9, 2:4, 6:8] = 2
    array[0:2, 8:11, 9:13] = 3
    return array, Geometry(array.shape, OBLIQUE)


def _centroids_by_itk(path: Path) -> np.ndarray:
    image = SimpleITK.ReadImage(str(path))
    shapes = SimpleITK.LabelShapeStatisticsImageFilter()
    shapes.Execute(SimpleITK.Cast(image, SimpleITK.sitkUInt16))
    return np.array([shapes.GetCentroid(label) for label in shapes.GetLabels()])


def _mask_of(source: ImageSource, folder: Path) -> Path:
    """Writes a mask that is the stored image itself, as a perfect network would."""
    sink = open_mask_sink(source, folder / "mask", LABELS)
    sink.write(None, source.read().array[0].astype(np.uint8))
    return sink.close()[0]


@pytest.mark.parametrize("affine", [OBLIQUE, STRAIGHT], ids=["oblique", "straight"])
@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_48_ways_to_store_one_image_are_one_image_in_the_world(
    tmp_path: Path, order: tuple[int, ...], affine: np.ndarray
) -> None:
    array, _ = _asymmetric()
    grid = Geometry(array.shape, affine)
    nib.save(nib.Nifti1Image(array, affine), tmp_path / "reference.nii")
    expected = _centroids_by_itk(tmp_path / "reference.nii")
    for flips in product((False, True), repeat=3):
        stored = np.ascontiguousarray(reorient(array, order, flips))
        turned = grid.reoriented(order, flips)
        nib.save(nib.Nifti1Image(stored, turned.affine), tmp_path / "stored.nii.gz")
        source = NiftiSource(inspect_nifti(tmp_path / "stored.nii.gz")[0])
        np.testing.assert_allclose(_centroids_by_itk(_mask_of(source, tmp_path)), expected, atol=1e-3)
        by_array = ArraySource("a", Volume(stored[np.newaxis], turned))
        np.testing.assert_allclose(_centroids_by_itk(_mask_of(by_array, tmp_path)), expected, atol=1e-3)


@pytest.mark.parametrize("suffix", ["mha", "nrrd", "nii.gz"])
def test_files_written_by_simpleitk_are_read_where_it_put_them(tmp_path: Path, suffix: str) -> None:
    array, grid = _asymmetric()
    image = SimpleITK.GetImageFromArray(array.T)
    lps = grid.to_lps()
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    path = tmp_path / f"a.{suffix}"
    SimpleITK.WriteImage(image, str(path))
    nifti = suffix == "nii.gz"
    source = NiftiSource(inspect_nifti(path)[0]) if nifti else ItkSource(inspect_itk(path)[0])
    np.testing.assert_allclose(source.geometry.corners(), grid.corners(), atol=1e-3)
    np.testing.assert_array_equal(source.read().array[0], array)
    np.testing.assert_allclose(_centroids_by_itk(_mask_of(source, tmp_path)), _centroids_by_itk(path), atol=1e-3)


def test_images_are_written_where_they_were(tmp_path: Path) -> None:
    array, grid = _asymmetric()
    source = ArraySource("a", Volume(array[np.newaxis].astype(np.float32) * 1.5, grid))
    path = write_image(source, tmp_path / "a")[0][0]
    itk = SimpleITK.ReadImage(str(path))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(itk).T, source.volume.array[0])
    np.testing.assert_allclose(
        np.array(itk.TransformIndexToPhysicalPoint((8, 1, 12))) * [-1, -1, 1], grid.to_world([8, 1, 12]), atol=1e-3
    )
    np.testing.assert_allclose(nib.load(path).affine, OBLIQUE, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(0.0005, 9.0)] * 3),
    origin=st.tuples(*[st.floats(-900, 900)] * 3),
    mirrored=st.booleans(),
)
def test_any_rectangular_grid_survives_writing(
    tmp_path_factory: pytest.TempPathFactory,
    angles: tuple[float, ...],
    spacing: tuple[float, ...],
    origin: tuple[float, ...],
    mirrored: bool,
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * np.array(spacing)
    affine[:3, 3] = origin
    if mirrored:
        affine[:3, 1] *= -1
    array, _ = _asymmetric()
    source = ArraySource("a", Volume(array[np.newaxis], Geometry(array.shape, affine)))
    sink = open_mask_sink(source, tmp_path_factory.mktemp("grid") / "a", LABELS)
    sink.write(None, array)
    written = sink.close()[0]
    assert sink.checks["readers"] == ["nibabel", "SimpleITK"]
    again = NiftiSource(inspect_nifti(written)[0])
    tolerance = max(1e-3, 1e-6 * float(np.abs(source.geometry.corners()).max()))
    np.testing.assert_allclose(again.geometry.corners(), source.geometry.corners(), atol=tolerance)
