"""Pictures of objects: neighbours in different colours, the truth beside, classes and unlabelled regions told apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from unet_med.errors import InputRefusedError
from unet_med.labels import LabelMap
from unet_med.overlays import object_colours, object_preview
from unet_med.overlays.objects import NEAR_PIXELS
from unet_med.phantoms import make_nuclei

NUCLEI = LabelMap.from_names({"background": 0, "nucleus": 1})
KINDS = LabelMap.from_names({"background": 0, "live": 1, "dead": 2})


@settings(max_examples=60, deadline=None)
@given(arrays(np.uint16, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12), elements=st.integers(0, 20)))
def test_near_objects_have_different_colours(objects: np.ndarray) -> None:
    colours = object_colours([objects])
    assert set(colours) == set(np.unique(objects[objects > 0]).tolist())
    places = np.argwhere(objects > 0)
    for one in places:
        for other in places[np.abs(places - one).max(axis=1) <= NEAR_PIXELS]:
            a, b = int(objects[tuple(one)]), int(objects[tuple(other)])
            assert a == b or colours[a] != colours[b]


def test_an_object_has_one_colour_in_all_planes() -> None:
    first, second = np.array([[1, 2, 0]]), np.array([[1, 3, 2]])
    colours = object_colours([first, second])
    assert len({colours[1], colours[2], colours[3]}) == 3


def halves() -> np.ndarray:
    objects = np.zeros((512, 512), np.uint16)
    objects[100:200, 100:300], objects[200:300, 100:300] = 4, 7
    return objects


def test_outlines_are_those_of_the_objects() -> None:
    objects = halves()
    picture = object_preview(np.zeros((512, 512)), objects, None, NUCLEI)[:512]
    colours = object_colours([objects.T])
    for number, columns in ((4, (100, 199)), (7, (200, 299))):
        line = (picture == np.array(colours[number], np.uint8)).all(axis=-1)
        rows, found = np.nonzero(line)
        assert (found.min(), found.max(), rows.min(), rows.max()) == (*columns, 100, 299)
        assert not line[150, columns[0] + 20]  # filled in a paler colour
        assert picture[150, columns[0] + 20].any()
    assert not picture[50].any()


def test_classes_give_the_outlines_their_colours() -> None:
    objects = halves()
    picture = object_preview(np.zeros((512, 512)), objects, None, KINDS, {4: 2, 7: 1})[:512]
    live, dead = (np.array(label.colour, np.uint8) for label in KINDS.labels)
    assert (picture[150, 100] == dead).all()
    assert (picture[150, 299] == live).all()
    unknown = object_preview(np.zeros((512, 512)), objects, None, KINDS, {4: 2})[:512]
    assert (unknown[150, 299] == 120).all()


def test_the_truth_stands_beside_or_below() -> None:
    wide, high = np.zeros((300, 100)), np.zeros((100, 300))
    for image in (wide, high):
        objects = (image + 1).astype(np.uint16)
        alone = object_preview(image, objects, None, NUCLEI)
        both = object_preview(image, objects, None, NUCLEI, truth=objects)
        grown = [b > 1.5 * a for a, b in zip(alone.shape[:2], both.shape[:2], strict=True)]
        assert grown == [image is wide, image is high]


def test_what_nobody_labelled_is_shaded_and_no_object() -> None:
    objects = halves()
    objects[400:] = 65535
    picture = object_preview(np.zeros((512, 512)), objects, None, replace(NUCLEI, ignored=65535))[:512]
    shaded = (picture == 120).all(axis=-1)
    assert 0.2 < shaded[:, 400:].mean() < 0.5
    assert not shaded[:, :400].any()


def test_volumes_and_colour_pictures_and_nothing_are_drawn() -> None:
    objects = np.zeros((20, 30, 8), np.uint16)
    objects[5:10, 5:20, 2:6], objects[10:15, 5:20, 2:6] = 1, 2
    picture = object_preview(np.zeros(objects.shape), objects, (1, 1, 2), NUCLEI, truth=objects, orientation="RAS")
    assert picture.shape[1] > 800
    for image in (np.zeros((3, 9, 7), np.uint8), np.full((9, 7), np.nan), np.zeros((1, 1))):
        shape = image.shape[-2:]
        assert object_preview(image, np.zeros(shape, np.uint16), None, NUCLEI).shape[2] == 3


def test_many_nuclei_are_drawn_apart() -> None:
    image, objects, pixel_um = make_nuclei(0, 0)
    picture = object_preview(image.T, objects.T, (pixel_um / 1000,) * 2, NUCLEI, truth=objects.T)
    assert picture.shape[1] > 2 * 512 or picture.shape[0] > 2 * 400


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputRefusedError, match="do not fit"):
        object_preview(np.zeros((4, 4)), np.zeros((5, 4), np.uint16), None, NUCLEI)
    with pytest.raises(InputRefusedError, match="true objects"):
        object_preview(np.zeros((4, 4)), np.zeros((4, 4), np.uint16), None, NUCLEI, truth=np.zeros((4, 5), np.uint16))
