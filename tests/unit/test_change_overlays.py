"""Pictures of two label images: the same planes for both, through the place where they differ most."""

from __future__ import annotations

import numpy as np
import pytest

from unet_med.errors import InputRefusedError
from unet_med.labels import LabelMap
from unet_med.overlays.changes import change_preview, side_by_side

LABELS = LabelMap.from_names({"background": 0, "liver": 1})
ORANGE = np.array(LABELS.labels[0].colour)
ADDED, REMOVED, OTHER = (
    np.rint(0.45 * np.array(colour)).astype(int) for colour in ((0, 158, 115), (213, 94, 0), (240, 228, 66))
)
"""On black, where 45 % of a colour is shown."""


def _has(picture: np.ndarray, colour: np.ndarray) -> bool:
    return bool((picture == colour.astype(np.uint8)).all(axis=-1).any())


def _large_and_changed() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A black volume; a large label that stays, and a small one far from it that only the second mask has."""
    first = np.zeros((40, 40, 30), np.uint8)
    first[2:20, 2:20, 2:12] = 1
    second = first.copy()
    second[30:36, 30:36, 22:28] = 1
    return np.zeros(first.shape, np.float32), first, second


def test_volumes_are_cut_where_the_masks_differ() -> None:
    image, first, second = _large_and_changed()
    one, other = side_by_side(image, first, second, (1, 1, 1), LABELS, orientation="RAS")
    assert one.shape == other.shape
    assert (one != other).any(axis=-1).sum() > 100
    body = slice(0, 300), slice(0, 420)
    assert not _has(one[body], ORANGE), "the large label does not reach this plane"
    assert _has(other[body], ORANGE)


def test_the_truth_is_dashed_in_both() -> None:
    image, first, second = _large_and_changed()
    pictures = side_by_side(image, first, second, (1, 1, 1), LABELS, truth=second)
    without = side_by_side(image, first, second, (1, 1, 1), LABELS)
    white = np.array((255, 255, 255))
    for shown, plain in zip(pictures, without, strict=True):
        assert _has(shown[:420], white), "above the legend"
        assert not _has(plain, white)


def test_what_was_added_removed_and_renamed_has_its_colour() -> None:
    labels = LabelMap.from_names({"background": 0, "liver": 1, "spleen": 2})
    image = np.zeros((60, 50), np.float32)
    before, after = np.zeros((2, 60, 50), np.uint8)
    before[5:20, 5:20] = 1
    after[5:20, 30:45] = 1
    before[30:50, 5:25], after[30:50, 5:25] = 1, 2
    picture = change_preview(image, before, after, None, labels)
    for colour in (ADDED, REMOVED, OTHER):
        assert _has(picture, colour)
    same = change_preview(image, after, after, None, labels)
    for colour in (ADDED, REMOVED, OTHER):
        assert not _has(same, colour)
    assert _has(same, np.array(labels.labels[1].colour)), "outlines are drawn all the same"


def test_objects_that_stayed_are_outlined_only() -> None:
    objects = LabelMap.from_names({"background": 0, "cell": 1}, objects=True)
    before = np.zeros((40, 40), np.uint16)
    before[2:12, 2:12], before[20:30, 20:30] = 1, 2
    after = before.copy()
    after[after == 2] = 3
    picture = change_preview(np.zeros((40, 40), np.float32), before, after, None, objects)
    assert _has(picture, OTHER) and not _has(picture, ADDED) and not _has(picture, REMOVED)
    assert _has(picture, np.array(objects.labels[0].colour))


def test_shapes_that_do_not_fit_are_refused() -> None:
    image, first, second = _large_and_changed()
    with pytest.raises(InputRefusedError, match="fit"):
        side_by_side(image[1:], first, second, None, LABELS)
