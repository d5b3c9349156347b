"""Resampling: the function of scipy and of torch, the same from any slab, labels without new values."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch.nn import functional as F

from unet_med.transforms import resample
from unet_med.transforms.resample import GridChange, resample_labels, spline_rows, spline_support

ORDERS: tuple[resample.Order, ...] = (0, 1, 3)
RANGE_SHARE = 2e-6
"""Accepted error as a share of the range of the values: a few roundings of float32."""

sizes = st.integers(1, 45)
grids = st.sampled_from([2, 3]).flatmap(
    lambda ndim: st.tuples(st.tuples(*[sizes] * ndim), st.tuples(*[st.integers(1, 70)] * ndim))
)


def noise(shape: tuple[int, ...], seed: int = 0, channels: int = 2) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(40, 10, (channels, *shape)).astype(np.float32)


def by_scipy(image: npt.NDArray[np.float32], shape: tuple[int, ...], order: int) -> npt.NDArray[np.float64]:
    zoom = [wanted / own for wanted, own in zip(shape, image.shape[1:], strict=True)]
    return np.stack(
        [ndimage.zoom(one.astype(float), zoom, order=order, mode="nearest", grid_mode=True) for one in image]
    )


def by_torch(image: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    mode = "trilinear" if len(shape) == 3 else "bilinear"
    return F.interpolate(image.double()[None], size=shape, mode=mode, align_corners=False)[0].float()


@pytest.mark.parametrize("order", ORDERS)
@settings(max_examples=40, deadline=None)
@given(shapes=grids, seed=st.integers(0, 99))
def test_the_function_is_scipys(
    order: resample.Order, shapes: tuple[tuple[int, ...], tuple[int, ...]], seed: int
) -> None:
    source, target = shapes
    image = noise(source, seed)
    ours = GridChange(source, target, order).whole(torch.from_numpy(image)).numpy()
    error = np.abs(ours - by_scipy(image, target, order)).max()
    assert error <= (0 if order == 0 else RANGE_SHARE * np.ptp(image) + 1e-5)


def test_large_grids_are_computed_chunk_by_chunk_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    image = noise((70, 30, 20), channels=1)
    monkeypatch.setattr(resample, "_CHUNK_VALUES", 1)
    change = GridChange((70, 30, 20), (130, 41, 37), 3)
    assert len(list(change.chunks())) == 5
    ours = change.whole(torch.from_numpy(image)).numpy()
    assert np.abs(ours - by_scipy(image, change.target, 3)).max() < RANGE_SHARE * np.ptp(image)


@pytest.mark.parametrize("order", ORDERS)
@settings(max_examples=30, deadline=None)
@given(shapes=grids, data=st.data())
def test_slabs_are_the_parts_of_the_whole(
    order: resample.Order, shapes: tuple[tuple[int, ...], tuple[int, ...]], data: st.DataObject
) -> None:
    source, target = shapes
    coarse = data.draw(st.sampled_from([None, *range(len(source))]))
    change = GridChange(source, target, order, coarse)
    image = torch.from_numpy(noise(source))
    whole = change.whole(image)
    axis = data.draw(st.integers(0, len(target) - 1))
    cuts = sorted({0, target[axis], *data.draw(st.lists(st.integers(0, target[axis]), max_size=4))})
    slabs = []
    for start, stop in pairwise(cuts):
        lo, hi = change.support(axis, start, stop)
        slabs.append(change.slab(image.narrow(axis + 1, lo, hi - lo), axis, start, stop))
    difference = (torch.cat(slabs, axis + 1) - whole).abs().max()
    assert float(difference) <= 1e-6 * float(image.max() - image.min()) + 2**-17  # two roundings of values up to 80


def test_a_support_is_no_wider_than_the_splines_reach() -> None:
    assert GridChange((100, 1), (200, 1), 1).support(0, 50, 52) == (24, 27)
    assert GridChange((100, 1), (200, 1), 0).support(0, 50, 52) == (25, 26)
    lo, hi = GridChange((100, 1), (200, 1), 3).support(0, 100, 102)
    assert 20 < hi - lo < 40


def test_a_constant_image_stays_constant() -> None:
    change = GridChange((13, 9, 30), (29, 4, 31), 3)
    torch.testing.assert_close(change.whole(torch.full((1, 13, 9, 30), 7.0)), torch.full((1, 29, 4, 31), 7.0))


def test_the_coarse_axis_takes_whole_slices() -> None:
    image = torch.from_numpy(noise((6, 7, 4)))
    change = GridChange((6, 7, 4), (6, 7, 8), 3, coarse=2)
    assert torch.equal(change.whole(image), image.repeat_interleave(2, dim=3))


def test_autocast_does_not_coarsen_it() -> None:
    image = torch.from_numpy(noise((20, 21, 22)))
    change = GridChange((20, 21, 22), (30, 31, 32), 3)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        reduced = change.whole(image), spline_rows(image, 1, 1, 0, 20, 30, 0, 30)
    assert torch.equal(reduced[0], change.whole(image))
    assert torch.equal(reduced[1], spline_rows(image, 1, 1, 0, 20, 30, 0, 30))


def test_equal_grids_give_the_image_itself() -> None:
    image = torch.from_numpy(noise((5, 6)))
    assert GridChange((5, 6), (5, 6), 3).whole(image) is image


@settings(max_examples=60, deadline=None)
@given(shapes=grids, data=st.data())
def test_linear_rows_are_those_of_torch_from_their_support_alone(
    shapes: tuple[tuple[int, ...], tuple[int, ...]], data: st.DataObject
) -> None:
    source, target = shapes
    image = torch.from_numpy(noise(source))
    axis = data.draw(st.integers(1, len(source)))
    own, wanted = source[axis - 1], target[axis - 1]
    start = data.draw(st.integers(0, wanted - 1))
    stop = data.draw(st.integers(start + 1, wanted))
    lo, hi = spline_support(1, wanted, own, start, stop)
    rows = spline_rows(image.narrow(axis, lo, hi - lo), axis, 1, lo, own, wanted, start, stop)
    shape = tuple(wanted if place + 1 == axis else size for place, size in enumerate(source))
    expected = by_torch(image, shape).narrow(axis, start, stop - start)
    torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-5)


def test_linear_rows_of_equal_sizes_are_a_view() -> None:
    image = torch.from_numpy(noise((9, 8)))
    rows = spline_rows(image[:, 2:8], 1, 1, 2, 9, 9, 3, 6)
    assert torch.equal(rows, image[:, 3:6])
    assert rows.untyped_storage().data_ptr() == image.untyped_storage().data_ptr()


def test_memory_beyond_the_result_is_a_few_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    plain = resample.empty

    def counted(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
        taken.append(prod(shape))
        return plain(shape, device)

    monkeypatch.setattr(resample, "empty", counted)
    monkeypatch.setattr(resample, "_CHUNK_VALUES", 2**16)
    change = GridChange((160, 20, 20), (320, 40, 40), 3)
    change.whole(torch.zeros(3, 160, 20, 20))
    assert taken[0] == 3 * prod(change.target)
    assert sum(taken[1:]) < 0.2 * prod(change.target)


def by_shares(labels: npt.NDArray[np.integer], shape: tuple[int, ...]) -> tuple[npt.NDArray, npt.NDArray[np.bool_]]:
    """The definition: every label's share as a volume of its own; and where the best two are not equal."""
    values = np.unique(labels)
    masks = torch.stack([torch.from_numpy((labels == value).astype(np.float32)) for value in values])
    shares = by_torch(masks, shape)
    if len(values) == 1:
        return values[shares.argmax(0).numpy()], np.ones(shape, dtype=bool)
    best = shares.topk(2, dim=0).values
    return values[shares.argmax(0).numpy()], ((best[0] - best[1]) > 1e-5).numpy()


@settings(max_examples=60, deadline=None)
@given(shapes=grids, count=st.integers(1, 9), seed=st.integers(0, 99), chunk=st.sampled_from([1, 300, 2**20]))
def test_the_largest_share_of_labels_wins(
    shapes: tuple[tuple[int, ...], tuple[int, ...]], count: int, seed: int, chunk: int
) -> None:
    source, target = shapes
    labels = np.random.default_rng(seed).integers(0, count, source).astype(np.uint16) * 7
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resample, "_LABEL_VOXELS", chunk)
        patch.setattr(resample, "_MIXED_VOXELS", 1000)
        ours = resample_labels(labels, target)
    expected, clear = by_shares(labels, target)
    assert ours.dtype == labels.dtype
    np.testing.assert_array_equal(ours[clear], expected[clear])
    assert set(np.unique(ours)) <= set(np.unique(labels))


def test_equal_shares_go_to_the_smallest_label() -> None:
    assert resample_labels(np.array([[5, 2]]), (1, 1)).item() == 2
    assert resample_labels(np.array([[2, 5], [9, 7]]), (1, 1)).item() == 2
    np.testing.assert_array_equal(resample_labels(np.array([[0, 1]]), (1, 3)), [[0, 0, 1]])
