"""Laws that hold for every grid: turning, cropping and regridding never move anything in the world."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from unet_med.geometry import Geometry, reorient, undo_reorient

_ORDERS = list(permutations(range(3)))
_FLIPS = list(product((False, True), repeat=3))
_lengths = st.tuples(*[st.integers(1, 7)] * 3)


@st.composite
def grids(draw: st.DrawFn) -> Geometry:
    shape = draw(_lengths)
    spacing = draw(st.tuples(*[st.floats(0.05, 8.0)] * 3))
    angles = draw(st.tuples(*[st.floats(-180.0, 180.0)] * 3))
    origin = draw(st.tuples(*[st.floats(-500.0, 500.0)] * 3))
    mirror = draw(st.sampled_from([1.0, -1.0]))
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * np.array(spacing) * [1, 1, mirror]
    affine[:3, 3] = origin
    return Geometry(shape, affine)


def _all_indices(shape: tuple[int, ...]) -> np.ndarray:
    return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)


@settings(max_examples=150, deadline=None)
@given(grids(), st.sampled_from(_ORDERS), st.sampled_from(_FLIPS))
def test_reorienting_moves_no_voxel(grid: Geometry, order: tuple[int, ...], flips: tuple[bool, ...]) -> None:
    world = np.moveaxis(grid.to_world(_all_indices(grid.shape)), -1, 0)
    turned = grid.reoriented(order, flips)
    found = np.moveaxis(turned.to_world(_all_indices(turned.shape)), -1, 0)
    np.testing.assert_allclose(found, reorient(world, order, flips), atol=1e-6)


@settings(max_examples=150, deadline=None)
@given(_lengths, st.sampled_from(_ORDERS), st.sampled_from(_FLIPS), st.integers(0, 2))
def test_undo_is_the_inverse_of_reorient(
    shape: tuple[int, ...], order: tuple[int, ...], flips: tuple[bool, ...], lead: int
) -> None:
    array = np.arange(np.prod(shape) * 2**lead).reshape((2,) * lead + shape)
    np.testing.assert_array_equal(undo_reorient(reorient(array, order, flips), order, flips), array)


@settings(max_examples=100, deadline=None)
@given(grids())
def test_canonical_axes_always_lead_to_ras(grid: Geometry) -> None:
    assert grid.reoriented(*grid.canonical_axes()).orientation == "RAS"


@settings(max_examples=150, deadline=None)
@given(grids(), st.data())
def test_a_crop_is_a_part_of_the_same_world(grid: Geometry, data: st.DataObject) -> None:
    starts = [data.draw(st.integers(0, n - 1)) for n in grid.shape]
    stops = [data.draw(st.integers(start + 1, n)) for start, n in zip(starts, grid.shape, strict=True)]
    region = tuple(slice(a, b) for a, b in zip(starts, stops, strict=True))
    part = grid.crop(region)
    world = grid.to_world(_all_indices(grid.shape))[region]
    np.testing.assert_allclose(part.to_world(_all_indices(part.shape)), world, atol=1e-6)


@settings(max_examples=150, deadline=None)
@given(grids(), _lengths)
def test_with_shape_covers_the_same_box(grid: Geometry, shape: tuple[int, ...]) -> None:
    other = grid.with_shape(shape)
    assert other.shape == shape
    for corner in product((0, 1), repeat=3):
        faces = [[n - 0.5 if far else -0.5 for far, n in zip(corner, g.shape, strict=True)] for g in (grid, other)]
        np.testing.assert_allclose(grid.to_world(faces[0]), other.to_world(faces[1]), atol=1e-6)
    back = other.with_shape(grid.shape)
    np.testing.assert_allclose(back.affine, grid.affine, atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(grids())
def test_lps_and_back_is_exact(grid: Geometry) -> None:
    np.testing.assert_array_equal(Geometry.from_lps(grid.shape, grid.to_lps()).affine, grid.affine)
