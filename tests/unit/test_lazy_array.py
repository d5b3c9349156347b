"""Images that are not in memory behave like arrays that are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from large_images import WatchedSource, picture

from unet_med import volume
from unet_med.geometry import reorient
from unet_med.volume import LazyArray, bands, lazily


@st.composite
def _views(draw):
    """An image, how it is turned, and how it is cut."""
    ndim = draw(st.sampled_from([2, 3]))
    shape = tuple(draw(st.integers(1, 12)) for _ in range(ndim))
    order = tuple(draw(st.permutations(range(ndim))))
    flips = tuple(draw(st.booleans()) for _ in range(ndim))
    cuts = [tuple(sorted((draw(st.integers(0, n)), draw(st.integers(0, n))))) for n in (shape[a] for a in order)]
    return shape, order, flips, tuple(slice(*cut, draw(st.sampled_from([None, 1, 2]))) for cut in cuts)


@given(_views(), st.sampled_from([1, 64, 2**26]))
@settings(max_examples=150, deadline=None)
def test_views_are_those_of_the_array(view, band_bytes) -> None:
    shape, order, flips, cuts = view
    array = picture(shape, channels=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(volume, "_BAND_BYTES", band_bytes)
        lazy = LazyArray(WatchedSource(array))
    for one, other in ((lazy, array), (lazy[..., :-1], array[..., :-1])):
        mine, its = reorient(one, order, flips), reorient(other, order, flips)
        assert mine.shape == its.shape
        assert np.array_equal(np.asarray(mine), its)
        part = mine[(slice(None), *cuts)]
        assert part.shape == its[(slice(None), *cuts)].shape
        assert np.array_equal(np.array(part, dtype=np.float32), its[(slice(None), *cuts)])


def test_a_pass_in_the_order_of_the_file_reads_everything_once(monkeypatch) -> None:
    monkeypatch.setattr(volume, "_BAND_BYTES", 8 * 300 * 2)
    source = WatchedSource(picture((300, 200)))
    lazy = lazily(source).array
    source.reads.clear()
    for start in range(0, 200, 6):
        assert np.array_equal(np.asarray(lazy[:, :, start : start + 6]), source.array[:, :, start : start + 6])
    assert source.reads == [8 * 300] * 25


def test_a_small_region_is_read_alone() -> None:
    source = WatchedSource(picture((300, 200)))
    lazy = lazily(source).array
    source.reads.clear()
    assert np.array_equal(np.asarray(lazy[:, 10:20, 30:50]), source.array[:, 10:20, 30:50])
    assert source.reads == [200]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_bands_follow_the_order_of_memory_and_hold_everything(order) -> None:
    image = picture((7, 30, 5), channels=2).transpose(0, *(axis + 1 for axis in order))
    found = np.zeros_like(image)
    for axis, start, band in bands(image, 40):
        assert axis == order.index(0)  # the first axis as it was made is the slowest
        found[(slice(None),) * (axis + 1) + (slice(start, start + band.shape[axis + 1]),)] = band
    assert np.array_equal(found, image)


def test_only_slices_cut_it() -> None:
    lazy = LazyArray(WatchedSource(picture((30, 20))))
    for index in (0, (slice(None), 3), (slice(0, 1),)):
        with pytest.raises(TypeError, match="cut by slices"):
            lazy[index]


def test_what_was_read_cannot_be_changed_by_mistake() -> None:
    part = np.asarray(LazyArray(WatchedSource(picture((30, 20))))[:, :, :5])
    with pytest.raises(ValueError, match="read-only"):
        part[...] = 0
