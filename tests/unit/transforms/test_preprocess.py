"""The network's grid: right place, right values, and the way back."""

from __future__ import annotations

import itertools
import tracemalloc
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from unet_med.config import PipelineConfig, parse_config
from unet_med.errors import InputRefusedError, ModelError
from unet_med.geometry import Geometry, reorient, undo_reorient
from unet_med.transforms import resample
from unet_med.transforms.preprocess import Prepared, Preprocessor
from unet_med.volume import Volume


def config(
    scheme: str = "zscore", spacing: list[float] | None = None, crop: bool = False, **more: object
) -> PipelineConfig:
    channel = {"scheme": scheme, **more}
    return parse_config(
        {"name": "test", "preprocess": {"spacing_mm": spacing, "normalisation": [channel], "crop_to_nonzero": crop}},
        "test",
    )


def linear_volume(geometry: Geometry) -> Volume:
    """Every voxel's value is 2x + 3y + 5z of its place in mm."""
    index = np.stack(np.meshgrid(*map(np.arange, geometry.shape), indexing="ij"), axis=-1)
    world = geometry.to_world(index)
    return Volume((world @ np.array([2.0, 3.0, 5.0])[: world.shape[-1]])[None].astype(np.float32), geometry)


def oriented(order: tuple[int, ...], signs: tuple[int, ...], sizes: tuple[int, ...] = (9, 8, 7)) -> Geometry:
    affine = np.eye(4)
    affine[:3, :3] = 0
    spacing = (1.0, 1.5, 2.0)
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, axis] = sign * spacing[world]
    affine[:3, 3] = (-7, 4, 11)
    return Geometry(tuple(sizes[world] for world in order), affine)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
def test_every_axis_order_and_flip_gives_the_same_ras_image(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    volume = linear_volume(oriented(order, signs))
    prepared = Preprocessor(config("none")).prepare(volume)
    assert prepared.geometry.orientation == "RAS"
    assert prepared.array.shape == (1, 9, 8, 7)
    expected = linear_volume(prepared.geometry).array
    np.testing.assert_allclose(prepared.array, expected, atol=1e-4)


def test_resampled_values_lie_where_the_new_grid_says() -> None:
    volume = linear_volume(oriented((2, 0, 1), (-1, 1, -1), (30, 28, 26)))
    prepared = Preprocessor(config("none", [1.0, 1.0, 1.0])).prepare(volume)
    assert prepared.array.shape[1:] == (30, 42, 52)
    expected = linear_volume(prepared.geometry).array
    inner = (slice(None),) + (slice(12, -12),) * 3  # away from the border, where splines ring
    np.testing.assert_allclose(prepared.array[inner], expected[inner], atol=0.05)


def test_labels_go_to_the_network_with_the_image_and_back_to_their_own_voxels() -> None:
    rng = np.random.default_rng(0)
    geometry = oriented((1, 2, 0), (-1, -1, 1))
    label = (ndimage.gaussian_filter(rng.random(geometry.shape), 1.5) > 0.5).astype(np.uint8)
    preprocessor = Preprocessor(config("none"))
    prepared = preprocessor.prepare(Volume(label[None], geometry))
    on_grid = preprocessor.prepare_label(label, prepared)
    np.testing.assert_array_equal(on_grid, prepared.array[0])
    np.testing.assert_array_equal(undo_reorient(on_grid, prepared.order, prepared.flips), label)


def test_what_is_zero_around_the_image_is_cropped_away() -> None:
    array = np.zeros((1, 10, 8, 6), dtype=np.float32)
    array[0, 2:7, 1:6, 1:4] = np.random.default_rng(1).random((5, 5, 3)) + 1
    prepared = Preprocessor(config(crop=True)).prepare(Volume(array, Geometry.from_spacing((10, 8, 6), (1, 1, 1))))
    assert prepared.box == (slice(2, 7), slice(1, 6), slice(1, 4))
    assert prepared.array.shape == (1, 5, 5, 3)
    np.testing.assert_allclose(prepared.geometry.to_world((0, 0, 0)), (2, 1, 1))


def test_label_resampling_keeps_volume_and_invents_no_value() -> None:
    geometry = Geometry.from_spacing((20, 20, 10), (1.0, 1.0, 2.0))
    label = np.zeros((20, 20, 10), dtype=np.uint8)
    label[5:15, 5:15, 3:7] = 2
    preprocessor = Preprocessor(config("none", [1.0, 1.0, 1.0]))
    prepared = preprocessor.prepare(Volume(np.ones((1, 20, 20, 10), dtype=np.float32), geometry))
    resampled = preprocessor.prepare_label(label, prepared)
    assert set(np.unique(resampled)) == {0, 2}
    assert (resampled == 2).sum() == pytest.approx((label == 2).sum() * 2, rel=0.02)


def test_zscore_and_ct_numbers() -> None:
    geometry = Geometry((30, 20))
    array = np.random.default_rng(3).normal(100, 20, (1, 30, 20)).astype(np.float32)
    prepared = Preprocessor(config()).prepare(Volume(array, geometry))
    assert prepared.array.mean() == pytest.approx(0, abs=1e-4)
    assert prepared.array.std() == pytest.approx(1, abs=1e-3)
    ct = Preprocessor(config("ct", window=(80.0, 120.0), mean=100.0, sd=10.0)).prepare(Volume(array, geometry))
    np.testing.assert_allclose(ct.array, (array.clip(80, 120) - 100) / 10, rtol=1e-5)


def test_a_constant_image_is_refused() -> None:
    with pytest.raises(InputRefusedError, match="same value everywhere"):
        Preprocessor(config()).prepare(Volume(np.full((1, 8, 8), 7.0, dtype=np.float32), Geometry((8, 8))))


def test_another_number_of_channels_is_refused() -> None:
    with pytest.raises(ModelError, match="made for 1 channels, the image has 3"):
        Preprocessor(config()).prepare(Volume(np.ones((3, 8, 8), dtype=np.float32), Geometry((8, 8))))


def test_millimetres_are_never_invented() -> None:
    array = np.random.default_rng(0).random((1, 8, 8)).astype(np.float32)
    with pytest.raises(InputRefusedError, match="pixel size"):
        Preprocessor(config(spacing=[1.0, 1.0])).prepare(Volume(array, Geometry((8, 8))))


def test_thick_slices_are_taken_whole() -> None:
    geometry = Geometry.from_spacing((12, 12, 4), (1.0, 1.0, 5.0))
    array = np.random.default_rng(0).random((1, 12, 12, 4)).astype(np.float32)
    prepared = Preprocessor(config("none", [1.0, 1.0, 2.5])).prepare(Volume(array, geometry))
    assert prepared.array.shape == (1, 12, 12, 8)
    np.testing.assert_allclose(prepared.array[..., 0::2], array, atol=1e-6)
    np.testing.assert_allclose(prepared.array[..., 1::2], array, atol=1e-6)


def by_the_book(volume: Volume, prepared: Prepared, scheme: str, crop: bool) -> npt.NDArray[np.float64]:
    """The whole image at once in float64: turn, crop, normalise, then scipy's splines."""
    image = reorient(volume.array, prepared.order, prepared.flips)[(slice(None), *prepared.box)].astype(np.float64)
    inside = (image != 0).any(axis=0) if crop else np.ones(image.shape[1:], dtype=bool)
    kept = volume.geometry.reoriented(prepared.order, prepared.flips).crop(prepared.box)
    coarse = None
    for geometry in (prepared.geometry, kept):
        spacing = geometry.spacing_mm or (1.0,)
        coarse = int(np.argmax(spacing)) if len(spacing) == 3 and max(spacing) / min(spacing) > 3 else coarse
    done = []
    for channel in image:
        values = channel
        if scheme == "percentile":
            values = values.clip(*np.percentile(values, (0.5, 99.5)))
        if scheme != "none":
            values = np.where(inside, (values - values[inside].mean()) / values[inside].std(), 0)
        shape = prepared.geometry.shape
        if coarse is not None:
            at = (np.arange(shape[coarse]) + 0.5) * values.shape[coarse] / shape[coarse]
            values = values.take(np.floor(at).astype(int), axis=coarse)
        zoom = [wanted / own for wanted, own in zip(shape, values.shape, strict=True)]
        if values.shape != shape:
            values = ndimage.zoom(values, zoom, order=3, mode="nearest", grid_mode=True)
        done.append(values)
    return np.stack(done)


@st.composite
def volumes(draw: st.DrawFn) -> Volume:
    """One or two channels of any dtype and orientation with a border of zeros."""
    ndim = draw(st.sampled_from([2, 3]))
    shape = tuple(draw(st.tuples(*[st.integers(6, 20)] * ndim)))
    spacing = draw(st.tuples(*[st.sampled_from([0.5, 0.8, 1.0, 1.3])] * (ndim - 1), st.sampled_from([1.0, 2.0, 5.0])))
    dtype = draw(st.sampled_from(["<i2", ">i2", "u1", "f4", "f8"]))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    array = rng.normal(100, 20, (draw(st.integers(1, 2)), *shape))
    array[(slice(None), slice(0, 2))] = 0
    geometry = Geometry.from_spacing(shape, spacing)
    if ndim == 3:
        order = tuple(draw(st.permutations(range(3))))
        flips = draw(st.tuples(*[st.booleans()] * 3))
        return Volume(reorient(array.astype(dtype), order, flips), geometry.reoriented(order, flips))
    return Volume(array.astype(dtype), geometry)


@settings(max_examples=80, deadline=None)
@given(
    volume=volumes(),
    spacing=st.none()
    | st.tuples(st.sampled_from([0.6, 1.0]), st.sampled_from([0.7, 1.0]), st.sampled_from([1.0, 3.2])),
    scheme=st.sampled_from(["zscore", "percentile", "none"]),
    crop=st.booleans(),
    data=st.data(),
)
def test_slabs_and_the_whole_are_the_pipeline_by_the_book(
    volume: Volume, spacing: tuple[float, ...] | None, scheme: str, crop: bool, data: st.DataObject
) -> None:
    pipeline = parse_config(
        {
            "name": "test",
            "preprocess": {
                "spacing_mm": spacing and list(spacing),
                "normalisation": [{"scheme": scheme}] * volume.channels,
                "crop_to_nonzero": crop,
            },
        },
        "test",
    )
    stored = volume.array.copy()
    prepared = Preprocessor(pipeline).prepare(volume)
    with patch.object(resample, "_CHUNK_VALUES", 1):
        whole = prepared.array
    expected = by_the_book(volume, prepared, scheme, crop)
    assert whole.shape == expected.shape == (volume.channels, *prepared.geometry.shape)
    tolerance = 1e-5 * np.ptp(expected)
    np.testing.assert_allclose(whole, expected, rtol=0, atol=tolerance)
    axis = data.draw(st.integers(0, prepared.geometry.ndim - 1))
    size = prepared.geometry.shape[axis]
    cuts = sorted({0, size, *data.draw(st.lists(st.integers(0, size), max_size=3))})
    slabs = torch.cat([prepared.slab(axis, *rows) for rows in itertools.pairwise(cuts)], dim=axis + 1)
    np.testing.assert_allclose(slabs.numpy(), whole, rtol=0, atol=tolerance)
    if prepared.geometry.shape == tuple(part.stop - part.start for part in prepared.box):
        np.testing.assert_array_equal(slabs.numpy(), whole)
    np.testing.assert_array_equal(volume.array, stored)


@pytest.mark.parametrize(("scheme", "crop"), [("zscore", True), ("percentile", False)])
def test_neither_preparing_nor_a_slab_copies_the_volume(scheme: str, crop: bool) -> None:
    shape = (256, 192, 128)
    stored = np.random.default_rng(0).integers(1, 4000, (1, *shape), dtype=np.int16)
    whole, slab = 4 * stored.size, 4 * 16 * 192 * 128
    preprocessor = Preprocessor(config(scheme, [1.0, 1.0, 1.0], crop))
    volume = Volume(stored, Geometry.from_spacing(shape, (1.0, 1.0, 1.25)))
    tracemalloc.start()
    try:
        prepared = preprocessor.prepare(volume)
        assert tracemalloc.get_traced_memory()[1] < 0.3 * whole
        tracemalloc.reset_peak()
        assert prepared.slab(0, 96, 112).shape == (1, 16, 192, 160)
        assert tracemalloc.get_traced_memory()[1] < 4 * slab
    finally:
        tracemalloc.stop()
