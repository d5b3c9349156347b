"""Border and distance of objects, against what their definitions say voxel by voxel."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_med.instances.target_parts import write_targets
from unet_med.instances.targets import ObjectTargets, object_targets


def depths(objects: np.ndarray, edges: tuple[float, ...]) -> np.ndarray:
    """Distance of each voxel to the nearest one of another value; infinity where there is none."""
    places = np.array(list(np.ndindex(objects.shape)), dtype=np.float64)
    away = np.sqrt((((places[:, None] - places[None]) * np.array(edges)) ** 2).sum(-1))
    same = objects.ravel()[:, None] == objects.ravel()[None]
    return np.where(same, np.inf, away).min(axis=1).reshape(objects.shape)


def by_definition(objects: np.ndarray, edges: tuple[float, ...], width: float) -> ObjectTargets:
    depth = depths(objects, edges)
    distance, border = np.zeros(objects.shape), np.zeros(objects.shape)
    for number in np.unique(objects[objects > 0]):
        own = objects == number
        deepest = depth[own].max()
        distance[own] = 1.0 if np.isinf(deepest) else depth[own] / deepest
    for place in np.argwhere(objects > 0):
        outer = depth[tuple(place)] <= width
        beside, near = ((1,) * objects.ndim, tuple(int(np.ceil((width + 1) / edge)) for edge in edges))
        others = [_other_within(objects, place, reach) for reach in (beside, near)]
        border[tuple(place)] = 2 if others[0] or (outer and others[1]) else outer
    return ObjectTargets(border.astype(np.uint8), np.rint(distance * 255).astype(np.uint8))


def _other_within(objects: np.ndarray, place: np.ndarray, reach: tuple[int, ...]) -> bool:
    box = tuple(slice(max(0, at - n), at + n + 1) for at, n in zip(place, reach, strict=True))
    return any(value not in (0, objects[tuple(place)]) for value in objects[box].ravel())


@settings(deadline=None)
@given(
    shape=st.sampled_from([(6, 5), (1, 6), (9, 7), (4, 5, 3), (1, 4, 4)]),
    seed=st.integers(0, 2**32 - 1),
    long_edge=st.sampled_from([1.0, 2.5]),
    width=st.sampled_from([1.0, 1.5, 2.0]),
)
def test_targets_are_what_their_definitions_say(
    shape: tuple[int, ...], seed: int, long_edge: float, width: float
) -> None:
    rng = np.random.default_rng(seed)
    objects = np.array([0, 1, 7, 300], dtype=np.uint16)[rng.integers(0, rng.integers(1, 5), shape)]
    edges = (1.0,) * (objects.ndim - 1) + (long_edge,)
    spacing = tuple(0.3 * edge for edge in edges)
    found, expected = object_targets(objects, spacing, width), by_definition(objects, edges, width)
    np.testing.assert_array_equal(found.border, expected.border)
    assert np.abs(found.distance.astype(int) - expected.distance).max(initial=0) <= 1  # rounding of the last step


def test_a_disc_is_deepest_in_its_middle_whatever_touches_it() -> None:
    i, j = np.mgrid[:40, :60]
    one, two = ((i - 20) ** 2 + (j - centre) ** 2 < 81 for centre in (18, 36))
    alone = object_targets(np.where(one, 5, 0))
    both = object_targets(np.where(one, 5, np.where(two, 9, 0)))
    np.testing.assert_array_equal(alone.distance[one], both.distance[one])
    assert np.unravel_index(alone.distance.argmax(), one.shape) == (20, 18)
    assert both.distance[20, 36] == 255
    assert set(np.unique(alone.border)) == {0, 1}
    np.testing.assert_array_equal(alone.border > 0, (both.border > 0) & one)
    assert both.border[20, 26:29].tolist() == [2, 0, 2]  # the last of one, a gap, and the first of the other
    assert both.border[20, 10] == 1


@pytest.mark.parametrize("axis", [0, 1])
def test_an_object_that_the_image_cuts_off_has_no_border_there(axis: int) -> None:
    objects = np.zeros((20, 20), dtype=np.uint8)
    objects[4:16, 4:16] = 1
    whole = object_targets(objects)
    cut = object_targets(np.take(objects, range(10, 20), axis=axis))
    assert np.take(cut.border, 0, axis=axis)[8] == 0
    assert np.take(cut.distance, 0, axis=axis)[9] == 255
    np.testing.assert_array_equal(cut.border, np.take(whole.border, range(10, 20), axis=axis))


def test_targets_turn_and_mirror_with_the_objects() -> None:
    objects = np.random.default_rng(0).integers(0, 4, (9, 7, 5)).repeat(3, 0).repeat(3, 1).repeat(2, 2)
    found = object_targets(objects, (1.0, 1.0, 3.0))
    for flips in product([1, -1], repeat=3):
        turned = (slice(None, None, flips[0]), slice(None, None, flips[1]), slice(None, None, flips[2]))
        again = object_targets(objects[turned], (1.0, 1.0, 3.0))
        np.testing.assert_array_equal(again.border, found.border[turned])
        np.testing.assert_array_equal(again.distance, found.distance[turned])


def test_an_object_that_fills_the_image_has_no_border_and_is_deep_everywhere() -> None:
    found = object_targets(np.full((4, 5), 3))
    assert not found.border.any()
    assert (found.distance == 255).all()
    nothing = object_targets(np.zeros((4, 5), dtype=np.uint8))
    assert not nothing.border.any()
    assert not nothing.distance.any()


@settings(deadline=None, max_examples=60)
@given(
    shape=st.sampled_from([(13, 9), (1, 12), (7, 6, 5)]),
    seed=st.integers(0, 2**32 - 1),
    long_edge=st.sampled_from([1.0, 2.5]),
    width=st.sampled_from([1.0, 2.0]),
    side=st.sampled_from([2, 3, 5]),
)
def test_targets_in_parts_are_those_of_the_whole(
    shape: tuple[int, ...], seed: int, long_edge: float, width: float, side: int
) -> None:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 4, tuple(-(-n // 3) for n in shape)).astype(np.uint16) * 70
    objects = coarse
    for axis, n in enumerate(shape):
        objects = objects.repeat(3, axis).take(range(n), axis)
    objects = np.where(rng.random(shape) < 0.1, 5, objects)
    spacing = (0.3,) * (len(shape) - 1) + (0.3 * long_edge,)
    expected = object_targets(objects, spacing, width)
    found = ObjectTargets(*(np.zeros(shape, np.uint8) for _ in range(2)))
    write_targets(objects, found, spacing, width, side)
    np.testing.assert_array_equal(found.border, expected.border)
    np.testing.assert_array_equal(found.distance, expected.distance)
