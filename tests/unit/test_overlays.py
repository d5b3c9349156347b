"""Pictures with outlines: the right planes, the right way round, the right colours."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
from allocations import peak_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_med.errors import InputRefusedError
from unet_med.geometry import Geometry, reorient
from unet_med.labels import LabelMap
from unet_med.overlays import outline_preview
from unet_med.overlays.planes import centre_voxel

LABELS = LabelMap.from_names({"background": 0, "liver": 1, "spleen": 2})
ORANGE, BLUE = (np.array(label.colour) for label in LABELS.labels)


def _patient() -> tuple[np.ndarray, np.ndarray]:
    """RAS volume: bright on the patient's right, front and top; the liver is right, the spleen left."""
    shape = (40, 30, 20)
    i, j, k = np.indices(shape)
    image = 100.0 * (i > 20) + 40.0 * (j > 15) + 20.0 * (k > 10)
    labels = np.zeros(shape, dtype=np.uint8)
    labels[28:36, 10:20, 5:15] = 1
    labels[5:9, 12:18, 8:12] = 2
    return image, labels


def _has(picture: np.ndarray, colour: np.ndarray) -> np.ndarray:
    return (picture == colour.astype(np.uint8)).all(axis=-1)


def test_the_patients_right_is_on_the_left() -> None:
    image, labels = _patient()
    picture = outline_preview(image, labels, (1, 1, 1), LABELS, orientation="RAS")
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    axial = picture[:300, :420]
    assert np.argwhere(_has(axial, ORANGE))[:, 1].mean() < 210 < np.argwhere(_has(axial, BLUE))[:, 1].mean()
    assert axial[100, 30].mean() > axial[100, 390].mean()
    front = axial[5:60, 10:200].mean()
    assert front > axial[260:300, 10:200].mean()


def test_what_the_map_ignores_is_not_drawn() -> None:
    image, labels = _patient()
    truth = labels.copy()
    truth[:, :5] = 255
    sparse = replace(LABELS, ignored=255)
    plain = outline_preview(image, labels, (1, 1, 1), LABELS, truth=labels, orientation="RAS")
    assert np.array_equal(outline_preview(image, labels, (1, 1, 1), sparse, truth=truth, orientation="RAS"), plain)


def test_every_way_of_storing_gives_the_same_picture() -> None:
    image, labels = _patient()
    geometry = Geometry.from_spacing(image.shape, (1.0, 1.3, 2.0))
    labels[28:37, 10:21, 5:16] = 1  # an odd number of voxels: the centroid is one
    body = outline_preview(image, labels, geometry.spacing_mm, LABELS, orientation=geometry.orientation)
    for order, flips in product(permutations(range(3)), product([False, True], repeat=3)):
        stored = geometry.reoriented(order, flips)
        picture = outline_preview(
            reorient(image, order, flips),
            reorient(labels, order, flips),
            stored.spacing_mm,
            LABELS,
            orientation=stored.orientation,
        )
        assert picture.shape == body.shape
        differs = (picture != body).any(axis=-1)
        assert differs.mean() < 0.003, (order, flips)  # the slice numbers in the corners count along the stored axes


def test_voxels_keep_their_proportions() -> None:
    labels = np.zeros((50, 50, 10), dtype=np.uint8)
    labels[20:30, 20:30, 4:6] = 1
    picture = outline_preview(labels.astype(float), labels, (1, 1, 5), LABELS)
    first = picture[:420, :420]
    rows, columns = np.nonzero(_has(first, ORANGE))
    assert abs((rows.max() - rows.min()) - (columns.max() - columns.min())) <= 1
    middle = picture[:420, 426:846]
    rows, columns = np.nonzero(_has(middle, ORANGE))
    assert abs((rows.max() - rows.min()) - (columns.max() - columns.min())) <= 2  # 10 x 1 mm and 2 x 5 mm


def test_a_picture_is_shown_whole_with_columns_first() -> None:
    image = np.zeros((600, 300))
    labels = np.zeros((600, 300), dtype=np.uint8)
    labels[500:560, 20:60] = 1
    picture = outline_preview(image, labels, None, LABELS)
    rows, columns = np.nonzero(_has(picture[:300], ORANGE))
    assert (rows.min(), rows.max()) == (20, 59)
    assert (columns.min(), columns.max()) == (500, 559)


def test_colour_pictures_keep_their_colours() -> None:
    image = np.zeros((3, 512, 512), dtype=np.uint8)
    image[0] = 200
    image[1, :256] = 90
    picture = outline_preview(image, np.zeros((512, 512), dtype=np.uint8), None, LABELS)
    assert picture[100, 100].tolist() == [200, 90, 0]
    assert picture[100, 400].tolist() == [200, 0, 0]


def test_the_reference_is_dashed_white() -> None:
    labels = np.zeros((512, 512), dtype=np.uint8)
    truth = labels.copy()
    truth[100:200, 100:200] = 2
    picture = outline_preview(labels + 0.0, labels, None, LABELS, truth=truth)[:512]
    edge = _has(picture, np.array([255, 255, 255]))[100, 100:200]
    assert 0.3 < edge.mean() < 0.7


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_images_that_show_nothing_are_drawn(value: float) -> None:
    image = np.full((12, 13, 14), value)
    picture = outline_preview(image, np.zeros(image.shape, dtype=np.uint8), None, LABELS)
    assert picture.shape[2] == 3


def test_one_voxel_and_thin_images_are_drawn() -> None:
    for shape in ((1, 1), (1, 1, 1), (300, 1), (2, 2000, 1)):
        picture = outline_preview(np.zeros(shape), np.ones(shape, dtype=np.uint8), None, LABELS)
        assert max(picture.shape) < 3000


def test_many_labels_are_not_all_listed() -> None:
    many = LabelMap.from_names({f"structure {n}": n for n in range(1, 61)})
    labels = (np.arange(80 * 80).reshape(80, 80) % 61).astype(np.uint8)
    assert outline_preview(labels + 0.0, labels, None, many).shape[0] < 900


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputRefusedError, match="do not fit"):
        outline_preview(np.zeros((4, 4)), np.zeros((5, 4), dtype=np.uint8), None, LABELS)
    with pytest.raises(InputRefusedError, match="reference"):
        outline_preview(
            np.zeros((4, 4)), np.zeros((4, 4), dtype=np.uint8), None, LABELS, truth=np.zeros((4, 5), dtype=np.uint8)
        )


@settings(max_examples=80, deadline=None)
@given(st.tuples(*[st.integers(1, 7)] * 3), st.permutations(range(3)), st.integers(0, 2**32 - 1))
def test_planes_go_through_the_voxel_nearest_to_the_middle_of_the_largest_label(
    shape: tuple[int, int, int], order: list[int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    labels = (rng.integers(0, 3, shape) * rng.integers(0, 2, shape)).astype(np.uint8).transpose(order)
    centre = centre_voxel([labels])
    counts = np.bincount(labels.ravel(), minlength=3)
    if not labels.any():
        assert centre == tuple(n // 2 for n in labels.shape)
        return
    largest = 1 + int(counts[1:].argmax())
    points = np.argwhere(labels == largest)
    distances = ((points - points.mean(axis=0)) ** 2).sum(axis=1)
    assert labels[centre] == largest
    assert ((centre - points.mean(axis=0)) ** 2).sum() == pytest.approx(distances.min())


def test_a_preview_of_a_longer_volume_takes_little_more_memory() -> None:
    peaks = []
    for length in (16, 128):
        labels = np.zeros((160, 160, length), dtype=np.uint8, order="F")
        labels[30:130, 30:130] = 1
        image = np.zeros(labels.shape, dtype=np.int16, order="F")
        peaks.append(
            peak_bytes(lambda image=image, labels=labels: outline_preview(image, labels, None, LABELS, labels))
        )
    assert peaks[1] < peaks[0] + 0.3 * labels.size
