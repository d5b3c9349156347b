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


def without_holes(labels: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Fills the components of background that one label alone surrounds; all are found before any is filled."""
    filled = labels.copy()
    components, count = ndimage.label(labels == 0)
    wanted = {label.index for label in LABELS.labels if label.name in names}
    around = np.pad(labels.astype(int), [(1, 1) if size > 1 else (0, 0) for size in labels.shape], constant_values=-1)
    inner = tuple(slice(1, -1) if size > 1 else slice(None) for size in labels.shape)
    for number in range(1, count + 1):
        hole = np.zeros(around.shape, dtype=bool)
        hole[inner] = components == number
        shell = np.unique(around[ndimage.binary_dilation(hole) & ~hole])
        if len(shell) == 1 and shell[0] in wanted:
            filled[components == number] = shell[0]
    return filled


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
    return without_holes(cleaned, asked.fill_holes)


@settings(max_examples=150, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=3),
    slab=st.integers(1, 200),
    minimum=st.integers(0, 6),
    keep=st.sets(st.sampled_from(["a", "b", "c"])),
    fill=st.sets(st.sampled_from(["a", "b", "c"])),
    foreground=st.floats(0.1, 0.98),
    kinds=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_slabs_leave_no_trace(
    shape: list[int], slab: int, minimum: int, keep: set[str], fill: set[str], foreground: float, kinds: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(1, 1 + kinds, shape, dtype=np.uint8) * (rng.random(shape) < foreground)
    labels = np.flip(labels, axis=int(rng.integers(len(shape)))).transpose(rng.permutation(len(shape)))
    asked = Postprocess(keep_largest=sorted(keep), fill_holes=sorted(fill), minimum_voxels=minimum)
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


@pytest.mark.parametrize("shape", [(12, 13), (7, 8, 9)])
@pytest.mark.parametrize("seed", range(5))
def test_holes_of_a_single_label_are_those_of_scipy(shape: tuple[int, ...], seed: int) -> None:
    labels = (np.random.default_rng(seed).random(shape) < (0.6 if len(shape) == 2 else 0.8)).astype(np.uint8)
    with patch.object(postprocess, "_SLAB_VOXELS", 50):
        found = postprocess_labels(labels, Postprocess(fill_holes=["a"]), LABELS)
    np.testing.assert_array_equal(found, ndimage.binary_fill_holes(labels))
    assert (found != labels).any()


def test_a_hole_between_two_labels_and_one_that_holds_another_label_stay() -> None:
    labels = np.zeros((9, 9), dtype=np.uint8)
    labels[1:8, 1:8] = 1
    labels[2, 2] = 0  # a hole of a
    labels[4:7, 4:7] = 0  # around b: not surrounded by a alone
    labels[5, 5] = 2
    filled = postprocess_labels(labels, Postprocess(fill_holes=["a", "b"]), LABELS)
    labels[2, 2] = 1
    np.testing.assert_array_equal(filled, labels)


def test_a_picture_in_a_volume_is_filled_as_a_picture_and_a_tunnel_is_no_hole() -> None:
    ring = np.ones((5, 5), dtype=np.uint8)
    ring[2, 2] = 0
    asked = Postprocess(fill_holes=["a"])
    assert postprocess_labels(ring[..., None], asked, LABELS).all()
    tunnel = np.stack([ring, ring], axis=-1)
    np.testing.assert_array_equal(postprocess_labels(tunnel, asked, LABELS), tunnel)


def test_what_is_removed_from_a_hole_is_filled() -> None:
    labels = np.ones((7, 7), dtype=np.uint8)
    labels[2:5, 2:5] = 0
    labels[3, 3] = 2
    assert (postprocess_labels(labels, Postprocess(fill_holes=["a"], minimum_voxels=2), LABELS) == 1).all()


def test_an_unknown_label_is_refused() -> None:
    for asked in (Postprocess(keep_largest=["d"]), Postprocess(fill_holes=["d"])):
        with pytest.raises(ConfigError, match="no label is called 'd'"):
            postprocess_labels(np.ones((3, 4), dtype=np.uint8), asked, LABELS)


def test_a_longer_mask_takes_no_more_memory() -> None:
    asked = Postprocess(keep_largest=["a"], minimum_voxels=20, fill_holes=["a"])
    peaks = []
    for length in (24, 192):
        labels = np.zeros((128, 128, length), dtype=np.uint8, order="F")
        labels[20:100, 20:100] = 1
        labels[110:120, 110:120, ::3] = 1
        with patch.object(postprocess, "_SLAB_VOXELS", 128 * 128 * 4):
            peaks.append(peak_bytes(lambda labels=labels: postprocess_labels(labels, asked, LABELS, out=labels)))
    assert peaks[1] < 1.15 * peaks[0]
