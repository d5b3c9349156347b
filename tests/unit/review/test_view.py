"""What a page shows of a case: hung as on a screen, few enough voxels, and numbered as they are stored."""

from __future__ import annotations

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import block_reduce

from unet_med.errors import InputRefusedError
from unet_med.geometry import Geometry
from unet_med.review import view
from unet_med.review.view import view_of

TURNS = [(order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]


def _affine(order: tuple[int, ...], signs: tuple[int, ...], spacing: tuple[float, ...]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, axis] = sign * spacing[axis]
    return affine


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(TURNS), st.tuples(*[st.integers(1, 6)] * 3), st.integers(0, 9))
def test_a_volume_is_hung_as_nibabel_turns_it(turn, shape, seed) -> None:
    """Towards right, front and head, then each axis the other way: a screen runs to the left, to the back and down."""
    rng = np.random.default_rng(seed)
    image, labels = rng.integers(0, 256, shape).astype(np.uint8), rng.integers(0, 4, shape).astype(np.uint8)
    affine = _affine(*turn, (1.0, 1.5, 3.0))
    seen = view_of(image[None], labels, Geometry(shape, affine), labels)
    turned = nib.as_closest_canonical(nib.Nifti1Image(labels, affine))
    expected = np.asarray(turned.dataobj)[::-1, ::-1, ::-1]
    assert (seen.labels == expected).all()
    assert seen.reference is not None
    assert (seen.reference == expected).all()
    assert seen.sizes == pytest.approx([float(size) for size in turned.header.get_zooms()])
    assert seen.letters == "RLAPSI"
    assert seen.is_volume
    grey = np.asarray(nib.as_closest_canonical(nib.Nifti1Image(image, affine)).dataobj)[::-1, ::-1, ::-1]
    order = np.argsort(grey.ravel(), kind="stable")
    assert (np.diff(seen.images[0].ravel()[order].astype(int)) >= 0).all()  # the brighter one is not shown darker


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(TURNS), st.tuples(*[st.integers(1, 14)] * 3), st.integers(1, 400))
def test_slices_are_numbered_as_they_are_stored(turn, shape, room) -> None:
    """Each voxel holds the number of its slice along one stored axis; the page must call the slice by it."""
    order, signs = turn
    geometry = Geometry(shape, _affine(order, signs, (1.0, 2.0, 0.7)))
    before = dict(view.MOST_VOXELS)
    view.MOST_VOXELS[3] = room
    try:
        for axis in range(3):
            along = [-1 if other == axis else 1 for other in range(3)]
            numbers = np.broadcast_to(np.arange(1, shape[axis] + 1).reshape(along), shape)
            seen = view_of(None, np.ascontiguousarray(numbers), geometry)
            shown = order[axis]
            told = seen.axes[shown]
            assert told.stored == shape[axis]
            for place in range(seen.labels.shape[shown]):
                values = np.unique(np.moveaxis(seen.labels, shown, 0)[place])
                assert values.tolist() == [min(told.stored, max(1, told.first + told.step * place))]
            assert seen.labels.size <= room
    finally:
        view.MOST_VOXELS.update(before)


def test_fewer_voxels_are_means_of_blocks_and_the_finest_axes_give_way_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(view.MOST_VOXELS, 3, 8 * 12 * 5)
    image = np.random.default_rng(0).normal(size=(16, 24, 5)).astype(np.float32)
    seen = view_of(image[None], np.zeros(image.shape, np.uint8), Geometry.from_spacing(image.shape, (1.0, 1.0, 5.0)))
    assert seen.labels.shape == (8, 12, 5)
    expected = block_reduce(image[::-1, ::-1, ::-1], (2, 2, 1), np.mean)
    low, high = seen.windows[0]
    grey = ((expected - low) / (high - low)).clip(0, 1) * 255
    assert np.abs(seen.images[0] - grey).max() <= 0.51
    assert seen.sizes == (2.0, 2.0, 5.0)


def test_a_picture_is_one_slice_and_keeps_its_colours() -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 30, 20)).astype(np.uint8)
    seen = view_of(image, np.ones((30, 20), np.uint16), Geometry((30, 20)))
    assert seen.through == ""
    assert not seen.is_calibrated
    assert len(seen.images) == 1
    assert (seen.images[0][:, :, 0] == image.transpose(1, 2, 0)).all()


def test_channels_of_a_volume_are_told_apart() -> None:
    image = np.random.default_rng(0).normal(size=(6, 5, 4, 3))
    geometry = Geometry.from_spacing((5, 4, 3), (1.0, 1.0, 1.0))
    seen = view_of(image, np.zeros((5, 4, 3), np.uint8), geometry, names=["T1", "T2", "a", "b", "c", "d"])
    assert seen.names == ("T1", "T2", "a", "b")
    assert len(seen.images) == len(seen.windows) == view.MOST_CHANNELS
    assert view_of(image[:2], np.zeros((5, 4, 3), np.uint8), geometry).names == ("channel 1", "channel 2")


def test_a_movie_is_as_many_slices_as_it_has_frames() -> None:
    labels = np.zeros((6, 5, 4), np.uint8)
    labels[2, 3, 1] = 7
    seen = view_of(None, labels, Geometry.from_spacing((6, 5), (0.001, 0.001)))
    assert (seen.through, seen.labels.shape, seen.centre()) == ("frame", (6, 5, 4), (2, 3, 1))
    assert seen.axes[2] == view.Axis(1, 1, 4)
    assert seen.letters == ""


@pytest.mark.parametrize(("labelled", "window"), [(-800, (-1350, 150)), (40, (-160, 240)), (700, (-500, 1300))])
def test_ct_is_shown_in_the_window_of_what_is_labelled(labelled: int, window: tuple[float, float]) -> None:
    image = np.full((6, 6, 6), -1000.0, np.float32)
    image[0] = 1200.0
    labels = np.zeros(image.shape, np.uint8)
    labels[2:4, 2:4, 2:4] = 1
    image[labels > 0] = labelled
    geometry = Geometry.from_spacing(image.shape, (1.0, 1.0, 1.0))
    assert view_of(image[None], labels, geometry).windows == (window,)
    assert view_of(image[None], labels, geometry, modality="MR").windows != (window,)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9))
def test_the_first_look_is_at_the_label(seed: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    labels = (rng.random((7, 6, 5)) < 0.1) * rng.integers(1, most + 1, (7, 6, 5))
    seen = view_of(None, labels, Geometry((7, 6, 5)))
    assert labels[seen.centre()] > 0 or not labels.any()
    assert sorted(seen.centres()) == np.unique(labels[labels > 0]).tolist()
    for number, (x, y, z) in seen.centres().items():
        assert labels[x, y, z] == number
        assert (labels[:, :, z] == number).sum() == (labels == number).sum(axis=(0, 1)).max()


def test_arrays_that_come_thinned_keep_their_sizes_and_numbers() -> None:
    seen = view_of(None, np.ones((5, 4), np.uint8), Geometry.from_spacing((13, 10), (0.5, 0.5)), thin=3)
    assert seen.sizes[:2] == (1.5, 1.5)
    assert seen.axes[0] == view.Axis(1, 3, 13)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputRefusedError, match="do not fit"):
        view_of(np.zeros((1, 5, 4)), np.zeros((4, 5), np.uint8), Geometry((5, 4)))
