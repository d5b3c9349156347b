"""The mask of a first stage as channels, and the faults that training makes in it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from unet_med.transforms import prior as prior_module
from unet_med.transforms.prior import Prior, damaged, one_hot, reshaped


def mask_of(seed: int, shape: tuple[int, ...] = (18, 20, 16), labels: int = 3) -> np.ndarray:
    """Some boxes, one over the other."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, dtype=np.uint8)
    for label in rng.integers(1, labels + 1, 6):
        corner = [int(rng.integers(0, n - 3)) for n in shape]
        mask[tuple(slice(c, c + int(rng.integers(2, 7))) for c in corner)] = label
    return mask


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_one_channel_for_each_label_but_background(dtype: type) -> None:
    mask = mask_of(0).astype(dtype)
    found = one_hot(mask, 3)
    assert found.shape == (3, *mask.shape)
    for label in (1, 2, 3):
        assert np.array_equal(found[label - 1].numpy(), mask == label)


@given(axis=st.integers(0, 2), cut=st.integers(1, 15))
@settings(max_examples=20, deadline=None)
def test_rows_are_those_of_the_whole(axis: int, cut: int) -> None:
    mask = mask_of(1)
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(2, *mask.shape)).astype(np.float32))
    prior, size = Prior(mask, 3), mask.shape[axis]
    parts = [
        prior.joined(image.narrow(axis + 1, start, stop - start), axis, start, stop)
        for start, stop in ((0, cut), (cut, size))
    ]
    assert torch.equal(torch.cat(parts, axis + 1), torch.cat([image, one_hot(mask, 3).float()]))


def ball(radius: int) -> np.ndarray:
    grid = np.mgrid[(slice(-radius, radius + 1),) * 3]
    return np.asarray((grid**2).sum(0) <= radius**2)


@pytest.mark.parametrize("radius", [1, 2, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_shapes_change_as_scipy_changes_them(radius: int, seed: int) -> None:
    inside = np.pad(mask_of(seed) > 0, 2 * radius + 1)
    for kind, reference in (
        ("dilate", ndimage.binary_dilation),
        ("erode", ndimage.binary_erosion),
        ("open", ndimage.binary_opening),
        ("close", ndimage.binary_closing),
    ):
        assert np.array_equal(reshaped(inside, kind, radius), reference(inside, ball(radius))), kind


def test_nothing_shrinks_from_the_border_of_a_patch() -> None:
    full, empty = np.ones((5, 6, 7), dtype=bool), np.zeros((5, 6, 7), dtype=bool)
    for kind in ("dilate", "erode", "open", "close"):
        assert reshaped(full, kind, 3).all()
        assert not reshaped(empty, kind, 3).any()


@pytest.fixture
def _always(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RESHAPED", "COMPONENT_LOST", "LABEL_SHARE"):
        monkeypatch.setattr(prior_module, name, 1.0)


@pytest.mark.usefixtures("_always")
def test_a_label_that_is_reshaped_is_so_by_a_ball_in_the_whole_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prior_module, "COMPONENT_LOST", 0.0)
    for seed in range(12):
        mask = mask_of(seed, labels=1)
        rng = np.random.default_rng(seed)
        found = damaged(mask, 1, np.random.default_rng(seed))
        rng.random(), rng.permutation(1), rng.random()
        kind, radius = str(rng.choice(prior_module._KINDS)), int(rng.integers(1, 9))
        assert np.array_equal(found == 1, reshaped(mask == 1, kind, radius)), (kind, radius)


@pytest.mark.usefixtures("_always")
def test_one_component_is_lost_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prior_module, "RESHAPED", 0.0)
    mask = np.zeros((12, 12, 12), dtype=np.uint8)
    mask[1:3, 1:3, 1:3], mask[8:10, 8:10, 8:10], mask[1:3, 8:10, 1:3] = 1, 1, 2
    found = damaged(mask, 2, np.random.default_rng(0))
    assert (found == 1).sum() == 8
    assert (found == 2).sum() == 0
    assert ((found == mask) | (found == 0)).all()
    mask[...] = 1
    assert (damaged(mask, 2, np.random.default_rng(0)) == 1).all()  # too large a part of the patch


def test_most_patches_stay_as_they_are_and_the_mask_itself_always() -> None:
    mask = mask_of(2)
    kept = mask.copy()
    changed = [not np.array_equal(damaged(mask, 3, np.random.default_rng(seed)), mask) for seed in range(200)]
    assert np.array_equal(mask, kept)
    assert 0.25 < np.mean(changed) < 0.6


@given(seed=st.integers(0, 10_000), state=st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_only_known_labels_come_out_and_the_same_ones_every_time(seed: int, state: int) -> None:
    mask = mask_of(seed)
    found = damaged(mask, 3, np.random.default_rng(state))
    assert found.dtype == mask.dtype
    assert set(np.unique(found)) <= set(np.unique(mask)) | {0}
    assert np.array_equal(found, damaged(mask, 3, np.random.default_rng(state)))
