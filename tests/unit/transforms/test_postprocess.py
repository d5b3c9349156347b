"""Components removed slab by slab, exactly as from the whole image."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
from allocations import peak_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from unet_med.config import Postprocess
from unet_med.errors import ConfigError
from unet_med.labels import LabelMap
from unet_med.transforms import postprocess
from unet_med.transforms.postprocess import postprocess_labels

LABELS = LabelMap.from_names({"background": 0, "a": 1, "b": 2, "c": 3})


def of_the_whole(labels: np.ndarray, asked: Postprocess) -> np.ndarray:
    """The same by scipy on the whole image, one label after the other."""
    cleaned = np.array(labels, order="C")
    for label in LABELS.labels:
        components, count = ndimage.label(cleaned == label.index)
        sizes = np.bincount(components.ravel(), minlength=count + 1)
        sizes[0] = 0
        drop = sizes < asked.minimum_voxels
        if label.name in asked.keep_largest:
            drop |= np.arange(count + 1) != int(sizes.argmax())
        drop[0] = False
        cleaned[drop[components]] = 0
    return cleaned


@settings(max_examples=150, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=3),
    slab=st.integers(1, 200),
    minimum=st.integers(0, 6),
    keep=st.sets(st.sampled_from(["a", "b", "c"])),
    foreground=st.floats(0.1, 0.9),
    seed=st.integers(0, 2**32 - 1),
)
def test_slabs_leave_no_trace(
    shape: list[int], slab: int, minimum: int, keep: set[str], foreground: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(1, 4, shape, dtype=np.uint8) * (rng.random(shape) < foreground)
    labels = np.flip(labels, axis=int(rng.integers(len(shape)))).transpose(rng.permutation(len(shape)))
    asked = Postprocess(keep_largest=sorted(keep), minimum_voxels=minimum)
    with patch.object(postprocess, "_SLAB_VOXELS", slab):
        found = postprocess_labels(labels, asked, LABELS)
    np.testing.assert_array_equal(found, of_the_whole(labels, asked))


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_first_of_equal_components_stays(order: str) -> None:
    labels = np.zeros((9, 9, 9), dtype=np.uint8, order=order)
    labels[0, 8, 6:8] = labels[8, 0, 0:2] = labels[4, 4, 4:6] = 1
    with patch.object(postprocess, "_SLAB_VOXELS", 81):
        found = postprocess_labels(labels, Postprocess(keep_largest=["a"]), LABELS)
    np.testing.assert_array_equal(np.argwhere(found), [[0, 8, 6], [0, 8, 7]])


def test_a_component_that_winds_through_slabs_is_one() -> None:
    labels = np.zeros((8, 5, 8), dtype=np.uint16)
    labels[:, 0, 0] = labels[:, 4, 0] = labels[7, :, 0] = 300  # a U that joins only at its far end
    labels[0, 2, 4:8] = 300
    many = LabelMap.from_names({"background": 0} | {f"n{n}": n for n in range(1, 301)})
    with patch.object(postprocess, "_SLAB_VOXELS", 40):
        found = postprocess_labels(labels, Postprocess(keep_largest=["n300"], minimum_voxels=3), many)
    assert np.count_nonzero(found) == 8 + 8 + 3
    assert not found[0, 2].any()


def test_it_works_in_place_or_into_another_array() -> None:
    labels = np.random.default_rng(2).integers(0, 3, (7, 8, 9), dtype=np.uint8)
    asked = Postprocess(keep_largest=["b"], minimum_voxels=3)
    meant, before = of_the_whole(labels, asked), labels.copy()
    np.testing.assert_array_equal(postprocess_labels(labels, asked, LABELS), meant)
    np.testing.assert_array_equal(labels, before)
    other = np.full(labels.shape[::-1], 9, dtype=np.uint16).T
    assert postprocess_labels(labels, asked, LABELS, out=other) is other
    np.testing.assert_array_equal(other, meant)
    np.testing.assert_array_equal(labels, before)
    assert postprocess_labels(labels, asked, LABELS, out=labels) is labels
    np.testing.assert_array_equal(labels, meant)


def test_nothing_is_copied_when_nothing_is_asked_for() -> None:
    labels = np.ones((3, 4), dtype=np.uint8)
    assert postprocess_labels(labels, Postprocess(), LABELS) is labels
    other = np.zeros((3, 4), dtype=np.uint8)
    np.testing.assert_array_equal(postprocess_labels(labels, Postprocess(), LABELS, out=other), labels)


def test_an_unknown_label_is_refused() -> None:
    with pytest.raises(ConfigError, match="no label is called 'd'"):
        postprocess_labels(np.ones((3, 4), dtype=np.uint8), Postprocess(keep_largest=["d"]), LABELS)


def test_a_longer_mask_takes_no_more_memory() -> None:
    asked = Postprocess(keep_largest=["a"], minimum_voxels=20)
    peaks = []
    for length in (24, 192):
        labels = np.zeros((128, 128, length), dtype=np.uint8, order="F")
        labels[20:100, 20:100] = 1
        labels[110:120, 110:120, ::3] = 1
        with patch.object(postprocess, "_SLAB_VOXELS", 128 * 128 * 4):
            peaks.append(peak_bytes(lambda labels=labels: postprocess_labels(labels, asked, LABELS, out=labels)))
    assert peaks[1] < 1.15 * peaks[0]
