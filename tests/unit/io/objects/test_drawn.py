"""Objects drawn by hand become a label image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import points_in_poly

from unet_med.errors import InputRefusedError
from unet_med.io.objects.drawn import DrawnObject, filled, paint

SQUARE = np.array([[1, 2], [4, 2], [4, 6], [1, 6]])


def _object(start: tuple[int, int], shape: tuple[int, int], **what: object) -> DrawnObject:
    return DrawnObject(np.ones(shape, dtype=bool), start, **what)


def test_a_pixel_belongs_to_an_outline_when_its_centre_does() -> None:
    mask, start = filled([[SQUARE]], (10, 10))
    assert (start, mask.shape, mask.all()) == ((1, 2), (3, 4), True)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(3, 9))
def test_any_polygon_is_filled_as_its_centres_say(seed: int, corners: int) -> None:
    points = np.random.default_rng(seed).uniform(-4, 16, (corners, 2))
    found = filled([[points]], (12, 9))
    mask = np.zeros((12, 9), dtype=bool)
    if found is not None:
        mask[found[1][0] :, found[1][1] :][: found[0].shape[0], : found[0].shape[1]] = found[0]
    centres = np.argwhere(np.ones((12, 9))) + 0.5
    assert np.array_equal(mask.ravel(), points_in_poly(centres, points))


def test_holes_are_empty_and_polygons_are_united() -> None:
    hole = np.array([[2, 3], [3, 3], [3, 5], [2, 5]])
    mask, _ = filled([[SQUARE, hole], [SQUARE + 2]], (10, 10))
    expected = np.zeros((5, 6), dtype=bool)
    expected[0:3, 0:4] = True
    expected[1, 1:3] = False
    expected[2:5, 2:6] = True
    assert np.array_equal(mask, expected)


def test_what_lies_beyond_the_picture_is_cut_off_without_memory_for_it() -> None:
    mask, start = filled([[(SQUARE - 3) * 1e9]], (6, 7))
    assert (start, mask.shape) == ((0, 0), (6, 7))
    assert filled([[SQUARE + 100]], (6, 7)) is None
    assert filled([[SQUARE * 0.01]], (6, 7)) is None


def test_a_coordinate_that_is_no_number_is_refused() -> None:
    with pytest.raises(InputRefusedError, match="no number"):
        filled([[SQUARE * np.nan]], (6, 7))


def test_the_smaller_of_two_overlapping_objects_is_seen() -> None:
    large, small = _object((0, 0), (6, 6), kind="cell"), _object((4, 4), (3, 3), kind="nucleus")
    for objects in ([large, small], [small, large]):
        painted = paint(objects, (8, 8))
        on_top = objects.index(small) + 1
        assert (painted.labels[4:7, 4:7] == on_top).all()
        assert painted.overlapping == 4
        assert painted.kinds == {place: one.kind for place, one in enumerate(objects, 1)}
        assert painted.hidden == ()
    twins = paint([large, large], (8, 8))
    assert len(twins.hidden) == 1
    assert twins.labels.dtype == np.uint16


def test_pieces_of_one_number_are_one_object() -> None:
    pieces = [
        _object((0, 0), (2, 2), number=7, z=1),
        _object((0, 1), (2, 2), number=7, z=2),
        _object((5, 5), (1, 1), z=0),
    ]
    painted = paint(pieces, (8, 8, 4))
    assert np.unique(painted.labels).tolist() == [0, 1, 2]
    assert [int((painted.labels[..., k] == 1).sum()) for k in range(4)] == [0, 4, 4, 0]
    assert painted.labels[5, 5].tolist() == [2, 0, 0, 0]
    assert painted.overlapping == 0


def test_frames_show_what_was_drawn_on_them() -> None:
    objects = [_object((0, 0), (1, 1), t=0), _object((2, 2), (1, 1), position=1), _object((4, 4), (1, 1))]
    seen = [np.flatnonzero(paint(objects, (5, 5), frame).labels.diagonal()).tolist() for frame in range(3)]
    assert seen == [[0, 4], [2, 4], [4]]


def test_outlines_of_another_image_are_refused() -> None:
    with pytest.raises(InputRefusedError, match="outside"):
        paint([_object((3, 3), (4, 4))], (5, 5))
    with pytest.raises(InputRefusedError, match="outside"):
        paint([_object((0, 0), (1, 1), z=4)], (5, 5, 4))
