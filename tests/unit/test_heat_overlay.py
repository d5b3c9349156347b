"""Heat maps over their image: the right colours in the right places."""

from __future__ import annotations

import numpy as np
import pytest

from unet_med.errors import InputRefusedError
from unet_med.overlays import heat_preview


def _orange(picture: np.ndarray) -> np.ndarray:
    return (picture[..., 0].astype(int) - picture[..., 2] > 60) & (picture[..., 1] < picture[..., 0])


def _blue(picture: np.ndarray) -> np.ndarray:
    return picture[..., 2].astype(int) - picture[..., 0] > 60


def test_what_speaks_for_a_label_is_orange_and_what_speaks_against_it_blue() -> None:
    image = np.random.default_rng(0).normal(0, 1, (64, 64))
    heat, mask = np.zeros((64, 64)), np.zeros((64, 64), dtype=bool)
    heat[8:16, 40:48], heat[40:48, 8:16] = 0.02, -0.02
    mask[24:32, 24:32] = True
    picture = heat_preview(image, heat, mask, None, "spot")
    scale = picture.shape[1] / 64
    body = picture[: round(64 * scale)]
    rows, columns = np.nonzero(_orange(body))
    assert (columns / scale >= 7.25).all()
    assert (columns / scale <= 16.75).all()
    assert (rows / scale >= 39.25).all()
    assert (rows / scale <= 48.75).all()
    rows, columns = np.nonzero(_blue(body))
    assert abs(columns.mean() / scale - 44) < 0.5
    assert abs(rows.mean() / scale - 12) < 0.5
    white = (body == 255).all(axis=-1)
    assert white[round(28 * scale), round(24 * scale) :][: round(2 * scale)].any()
    assert not white[round(28 * scale), round(27 * scale) : round(29 * scale)].any(), "an outline, not a patch"
    assert picture.shape[0] > body.shape[0], "a legend lies below"


def test_a_volume_is_cut_through_the_label() -> None:
    shape = (30, 24, 18)
    mask = np.zeros(shape, dtype=bool)
    mask[20:24, 4:8, 13:15] = True
    heat = np.where(mask, 1.0, 0.0)
    picture = heat_preview(np.zeros(shape), heat, mask, (1.0, 1.0, 2.0), "spot", "RAS")
    assert all(_orange(picture[:, first : first + 300]).any() for first in (0, 426, 852))


def test_nothing_to_show() -> None:
    image = np.random.default_rng(0).normal(0, 1, (32, 32))
    picture = heat_preview(image, np.zeros((32, 32)), np.zeros((32, 32), dtype=bool), None, "spot")
    assert not _orange(picture).any()
    assert not _blue(picture).any()


def test_a_map_of_another_image_is_refused() -> None:
    with pytest.raises(InputRefusedError, match="heat of shape"):
        heat_preview(np.zeros((32, 32)), np.zeros((31, 32)), np.zeros((32, 32), dtype=bool), None, "spot")
