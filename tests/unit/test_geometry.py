"""The grid: what it says of itself, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from unet_med.errors import InputRefusedError
from unet_med.geometry import Geometry, reorient, undo_reorient

OBLIQUE = np.array(
    [
        [0.8 * np.cos(0.3), -0.9 * np.sin(0.3), 0.0, -31.0],
        [0.8 * np.sin(0.3), 0.9 * np.cos(0.3), 0.0, 12.5],
        [0.0, 0.0, 2.5, 700.0],
        [0.0, 0.0, 0.0, 1.0],
    ]
)


def test_shapes_become_plain_integers_and_affines_cannot_be_changed() -> None:
    geometry = Geometry((np.int64(3), np.int64(4)), np.eye(3))
    assert geometry.shape == (3, 4)
    assert all(type(n) is int for n in geometry.shape)
    with pytest.raises(ValueError, match="read-only"):
        geometry.affine[0, 0] = 2.0


@pytest.mark.parametrize("shape", [(4,), (1, 2, 3, 4), (0, 5), (3, -1, 2)])
def test_impossible_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputRefusedError):
        Geometry(shape)


def test_broken_affines_are_refused() -> None:
    singular = np.diag([1.0, 0.0, 1.0, 1.0])
    infinite = np.eye(4)
    infinite[0, 3] = np.inf
    for affine in (singular, infinite, np.eye(3)):
        with pytest.raises(InputRefusedError):
            Geometry((2, 2, 2), affine)


def test_voxels_of_nanometres_are_no_fault() -> None:
    assert Geometry.from_spacing((512, 512, 30), (4e-6, 4e-6, 5e-5)).spacing_mm == (4e-6, 4e-6, 5e-5)


def test_spacing_volume_and_orientation() -> None:
    geometry = Geometry((10, 11, 12), OBLIQUE)
    assert geometry.spacing_mm == pytest.approx((0.8, 0.9, 2.5))
    assert geometry.voxel_ml == pytest.approx(0.8 * 0.9 * 2.5 / 1000)
    assert geometry.orientation == "RAS"
    assert Geometry((2, 2, 2), np.diag([-1.0, -1.0, 1.0, 1.0])).orientation == "LPS"
    assert geometry.shear < 1e-12


def test_an_uncalibrated_image_has_no_millimetres() -> None:
    geometry = Geometry((5, 6))
    assert not geometry.is_calibrated
    assert geometry.spacing_mm is None
    assert geometry.voxel_ml is None
    assert geometry.affine_4x4 is None
    assert geometry.orientation == ""
    with pytest.raises(InputRefusedError):
        geometry.to_lps()
    with pytest.raises(InputRefusedError):
        geometry.resampled((1.0, 1.0))


def test_shear_is_the_largest_cosine_between_axes() -> None:
    affine = np.eye(4)
    affine[0, 2] = 0.5
    assert Geometry((4, 4, 4), affine).shear == pytest.approx(0.5 / np.hypot(0.5, 1.0))


def test_lps_there_and_back() -> None:
    geometry = Geometry((10, 11, 12), OBLIQUE)
    again = Geometry.from_lps(geometry.shape, geometry.to_lps())
    np.testing.assert_allclose(again.affine, geometry.affine, atol=1e-12)
    assert geometry.to_lps()[0, 3] == 31.0
    assert geometry.to_lps()[2, 3] == 700.0


def test_a_picture_lies_in_the_plane_zero_of_its_4x4() -> None:
    geometry = Geometry((4, 5), np.array([[0.5, 0, 7], [0, 0.25, 8], [0, 0, 1.0]]))
    expected = np.array([[0.5, 0, 0, 7], [0, 0.25, 0, 8], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    np.testing.assert_array_equal(geometry.affine_4x4, expected)


def test_same_grid_needs_shape_and_corners() -> None:
    geometry = Geometry((10, 11, 12), OBLIQUE)
    shifted = OBLIQUE.copy()
    shifted[0, 3] += 0.0005
    assert geometry.same_grid(Geometry((10, 11, 12), shifted))
    shifted[0, 3] += 0.01
    assert not geometry.same_grid(Geometry((10, 11, 12), shifted))
    assert not geometry.same_grid(Geometry((10, 11, 13), OBLIQUE))
    assert not geometry.same_grid(Geometry((10, 11, 12)))


def test_resampling_keeps_the_outer_faces() -> None:
    geometry = Geometry((10, 11, 12), OBLIQUE)
    coarse = geometry.resampled((1.6, 1.8, 5.0))
    assert coarse.shape == (5, 6, 6)
    for grid in (geometry, coarse):
        np.testing.assert_allclose(grid.to_world([-0.5] * 3), geometry.to_world([-0.5] * 3), atol=1e-9)
        faces = np.array(grid.shape) - 0.5
        np.testing.assert_allclose(grid.to_world(faces), geometry.to_world(np.array(geometry.shape) - 0.5), atol=1e-9)


def test_canonical_axes_turn_any_order_to_ras() -> None:
    affine = np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = -2.0, 3.0, -4.0, 1.0
    geometry = Geometry((3, 4, 5), affine)
    assert geometry.orientation == "IRP"
    order, flips = geometry.canonical_axes()
    turned = geometry.reoriented(order, flips)
    assert turned.orientation == "RAS"
    array = np.arange(60).reshape(3, 4, 5)
    back = undo_reorient(reorient(array, order, flips), order, flips)
    np.testing.assert_array_equal(back, array)


def test_crop_moves_the_first_voxel() -> None:
    geometry = Geometry((10, 11, 12), OBLIQUE)
    part = geometry.crop((slice(2, 5), slice(None), slice(7, None)))
    assert part.shape == (3, 11, 5)
    np.testing.assert_allclose(part.to_world([0, 0, 0]), geometry.to_world([2, 0, 7]))
