"""Exact outlines: polygons that are valid, and that give back the objects when they are filled."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from unet_med.io.objects.boxes import boxes_of, whole_objects
from unet_med.io.objects.drawn import filled
from unet_med.io.objects.outlines import outlines, signed_area

PICTURES = hnp.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 3))


def _painted(found: dict[int, list[list[np.ndarray]]], shape: tuple[int, int]) -> np.ndarray:
    labels = np.zeros(shape, dtype=np.int64)
    for number, polygons in found.items():
        mask, (i, j) = filled(polygons, shape)
        part = labels[i : i + mask.shape[0], j : j + mask.shape[1]]
        assert not part[mask].any()
        part[mask] = number
    return labels


@settings(max_examples=200, deadline=None)
@given(PICTURES)
def test_outlines_are_valid_and_give_back_every_pixel(labels: np.ndarray) -> None:
    found = outlines(labels)
    assert np.array_equal(_painted(found, labels.shape), labels)
    for number, polygons in found.items():
        assert len(polygons) == ndimage.label(labels == number)[1]
        assert sum(signed_area(ring) for rings in polygons for ring in rings) == (labels == number).sum()
        for rings in polygons:
            assert [signed_area(ring) > 0 for ring in rings] == [True] + [False] * (len(rings) - 1)
            for ring in rings:
                assert len(np.unique(ring, axis=0)) == len(ring) >= 4
                sides = np.roll(ring, -1, axis=0) - ring
                assert ((sides != 0).sum(axis=1) == 1).all()
                assert ((sides != 0) != (np.roll(sides, -1, axis=0) != 0)).all()  # no corner that is none


def test_a_ring_that_touches_itself_is_an_outline_and_a_hole() -> None:
    labels = np.ones((4, 4), dtype=np.uint8)
    labels[1, 1] = labels[0, 0] = 0  # the hole touches the outside at a corner
    ((outline, hole),) = outlines(labels)[1]
    assert (signed_area(outline), signed_area(hole)) == (15.0, -1.0)
    labels = np.eye(3, dtype=np.uint8)
    assert [len(rings) for rings in outlines(labels)[1]] == [1, 1, 1]


def test_a_part_of_a_picture_has_its_outlines_in_place() -> None:
    labels = np.zeros((30, 30), dtype=np.uint16)
    labels[12:15, 20:26] = 9
    (((ring,),),) = outlines(labels[10:, 15:], (10, 15)).values()
    assert sorted(map(tuple, ring.tolist())) == [(12, 20), (12, 26), (15, 20), (15, 26)]


@settings(max_examples=60, deadline=None)
@given(PICTURES, st.integers(1, 5))
def test_objects_are_found_and_seen_whole_block_by_block(labels: np.ndarray, side: int) -> None:
    boxes = boxes_of(labels, side)
    slices = ndimage.find_objects(labels)
    assert boxes.numbers.tolist() == [number for number, box in enumerate(slices, 1) if box]
    assert [boxes.region(place) for place in range(len(boxes))] == [box for box in slices if box]
    seen = np.zeros_like(labels)
    for region, values, members in whole_objects(labels, boxes, side):
        assert set(np.unique(values)) - {0} == set(boxes.numbers[members])
        assert not seen[region][values > 0].any()
        seen[region] += values
    assert np.array_equal(seen, labels)
