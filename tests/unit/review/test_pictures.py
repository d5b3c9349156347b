"""Sheets of slices hold the numbers of labels without loss."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unet_med.geometry import Geometry
from unet_med.review.pictures import jpeg, sheets, small
from unet_med.review.view import view_of


def decoded(source: str) -> np.ndarray:
    head, _, content = source.partition(",")
    assert head in ("data:image/png;base64", "data:image/webp;base64", "data:image/jpeg;base64")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def numbers(source: str, wide: bool) -> np.ndarray:
    """As the viewer's script puts them together."""
    values = decoded(source).astype(np.int64)
    return values[..., 0] + 256 * values[..., 1] + 65536 * values[..., 2] if wide else values


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(*[st.integers(1, 9)] * 3),
    st.sampled_from([1, 200, 255, 256, 70_000, 2**24 - 1]),
    st.integers(0, 10**6),
)
def test_every_number_comes_back_where_it_was(shape: tuple[int, int, int], highest: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, other = rng.integers(0, highest + 1, shape), rng.integers(0, 3, shape)
    view = view_of(None, labels, Geometry(shape), other)
    laid = sheets(view)
    assert laid.wide == (max(labels.max(), other.max()) > 255)
    width, height, count = shape
    for source, expected in ((laid.labels, labels), (laid.reference, other)):
        sheet = numbers(source, laid.wide)
        for z in range(count):
            left, top = z % laid.columns * width, z // laid.columns * height
            assert (expected[:, :, z] == sheet[top : top + height, left : left + width].T).all()


def test_images_are_nearly_kept() -> None:
    ramp = np.linspace(0, 1000, 40 * 30 * 6, dtype=np.float32).reshape(40, 30, 6)
    view = view_of(ramp[None], np.zeros(ramp.shape, np.uint8), Geometry(ramp.shape))
    laid = sheets(view)
    sheet = decoded(laid.images[0]).astype(float).mean(axis=-1)
    first = sheet[:30, :40].T
    assert np.abs(first - view.images[0][:, :, 0]).mean() < 4
    assert laid.reference == ""


def test_a_small_picture_shows_the_slice_with_most_labels_in_true_proportions() -> None:
    labels = np.zeros((40, 20, 5), np.uint8)
    labels[10:30, 5:15, 3] = 1
    view = view_of(None, labels, Geometry.from_spacing((40, 20, 5), (1.0, 2.0, 1.0)))
    drawn = small(view, lambda number: (250, 0, 0), 80)
    assert drawn.size == (80, 80)
    picture = decoded(drawn.source).astype(int)
    assert picture[40, 40, 0] > 80 > 40 > picture[40, 40, 1]
    assert picture[2, 2].max() < 30


def test_a_preview_becomes_jpeg() -> None:
    file = io.BytesIO()
    Image.fromarray(np.full((7, 9, 3), 200, np.uint8)).save(file, "PNG")
    content, size = jpeg(file.getvalue())
    assert size == (9, 7)
    assert Image.open(io.BytesIO(content)).format == "JPEG"
    with pytest.raises(OSError, match="identify"):
        jpeg(b"no picture")
