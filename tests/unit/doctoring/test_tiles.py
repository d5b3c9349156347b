"""Tiles of one picture are put together again, other pictures are not."""

from __future__ import annotations

import numpy as np
import pytest
from healthy_sets import tissue
from scipy import ndimage

from unet_med.doctoring.tiles import edges, neighbours


def joined(*pictures: np.ndarray) -> list[tuple[int, int, str]]:
    """Pictures are (rows, columns), as they are stored."""
    return sorted(neighbours([edges(picture.T.astype(np.float32)) for picture in pictures], lambda one, other: True))


@pytest.mark.parametrize("seed", range(6))
def test_four_tiles_of_one_picture(seed: int) -> None:
    whole = tissue(seed, (256, 320))[0]
    tiles = [whole[:128, :160], whole[:128, 160:], whole[128:, :160], whole[128:, 160:]]
    others = [tissue(seed + 20_000 * number, (128, 160))[0] for number in (1, 2, 3)]
    assert joined(*tiles, *others) == [(0, 1, "right"), (0, 2, "bottom"), (1, 3, "bottom"), (2, 3, "right")]


@pytest.mark.parametrize("seed", [223, *range(10)])
def test_pictures_with_uneven_light_and_a_few_bright_things_are_no_tiles(seed: int) -> None:
    """Edges that agree by chance: the same slope of light, and one nucleus somewhere."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:128, :128]
    pictures = []
    for _ in range(12):
        things = np.zeros((128, 128))
        for row, column in random.integers(0, 128, (6, 2)):
            things[(rows - row) ** 2 + (columns - column) ** 2 < random.integers(5, 9) ** 2] = random.uniform(60, 120)
        smooth = ndimage.gaussian_filter(things, 1.5) + 0.4 * rows + 20
        pictures.append(random.poisson(smooth).astype(np.float32))
    assert joined(*pictures) == []


def test_small_and_flat_pictures_and_volumes_have_no_edges_to_compare() -> None:
    assert edges(np.zeros((20, 200), np.float32)) is None
    assert edges(np.zeros((64, 64, 40), np.float32)) is None
    flat = np.full((64, 64), 9, np.uint8)
    assert joined(flat, flat, tissue(0, (64, 64))[0]) == []


def test_only_pairs_that_matter_are_named() -> None:
    whole = tissue(3, (96, 192))[0]
    halves = [edges(half.T.astype(np.float32)) for half in np.split(whole, 2, axis=1)]
    assert list(neighbours(halves, lambda one, other: False)) == []
