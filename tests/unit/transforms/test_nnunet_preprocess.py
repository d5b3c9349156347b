"""Preprocessing as nnU-Net does it: axes as stored, filled masks, slices on their own, values within their range."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.transform import resize

from unet_med.config import PipelineConfig, parse_config
from unet_med.errors import ConfigError
from unet_med.geometry import Geometry, reorient
from unet_med.transforms.preprocess import Preprocessor, network_axes
from unet_med.volume import Volume


def config(spacing: list[float] | None = None, *channels: dict[str, Any], **more: Any) -> PipelineConfig:
    section = {
        "spacing_mm": spacing,
        "normalisation": list(channels) or [{"scheme": "none"}],
        "crop_to_nonzero": False,
        "resampling": "nnunet",
        "orientation": "stored",
        **more,
    }
    return parse_config({"name": "test", "preprocess": section}, "test")


def volume(shape: tuple[int, ...], spacing: tuple[float, ...], seed: int = 0) -> Volume:
    """Edges that a spline overshoots."""
    rng = np.random.default_rng(seed)
    image = np.where(ndimage.gaussian_filter(rng.random(shape), 1.5) > 0.5, 200.0, -100.0) + rng.normal(0, 1, shape)
    return Volume(image[np.newaxis].astype(np.float32), Geometry.from_spacing(shape, spacing))


def by_skimage(
    image: npt.NDArray[np.float32], shape: tuple[int, ...], coarse: int | None = None
) -> npt.NDArray[np.float64]:
    """nnU-Net's resampling by its definition: scikit-image, slice by slice where one axis is coarse."""
    how = {"order": 3, "mode": "edge", "anti_aliasing": False}
    if coarse is None:
        return np.asarray(resize(image.astype(np.float64), shape, **how))
    flat = tuple(n for axis, n in enumerate(shape) if axis != coarse)
    slices = [resize(one.astype(np.float64), flat, **how) for one in np.moveaxis(image, coarse, 0)]
    place = (np.arange(shape[coarse]) + 0.5) * (image.shape[coarse] / shape[coarse]) - 0.5
    nearest = np.floor(place + 0.5).astype(int).clip(0, image.shape[coarse] - 1)
    return np.moveaxis(np.stack(slices)[nearest], 0, coarse)


@pytest.mark.parametrize(
    ("spacing", "wanted", "coarse"),
    [
        ((1.0, 1.0, 1.0), [0.7, 1.3, 0.9], None),
        ((1.0, 1.0, 4.0), [0.8, 1.25, 3.0], 2),
        ((5.0, 1.0, 1.0), [2.5, 1.3, 0.8], 0),
        ((1.0, 1.0, 2.0), [0.8, 6.0, 1.25], 1),
        ((1.0, 6.0, 6.0), [1.0, 4.0, 4.0], None),
    ],
)
def test_images_are_resampled_as_by_nnunet(spacing: tuple[float, ...], wanted: list[float], coarse: int | None) -> None:
    """The last one: two axes that are equally coarse are interpolated like all others."""
    image = volume((12, 14, 16), spacing)
    prepared = Preprocessor(config(wanted)).prepare(image)
    expected = by_skimage(image.array[0], prepared.geometry.shape, coarse)
    np.testing.assert_allclose(prepared.array[0], expected, atol=2e-3)
    overshooting = Preprocessor(config(wanted, resampling="plain")).prepare(image).array
    assert overshooting.max() > prepared.array.max() + 1


@settings(max_examples=25, deadline=None)
@given(
    axis=st.integers(0, 2),
    cut=st.integers(1, 9),
    coarse=st.sampled_from([(1.0, 1.0, 1.0), (1.0, 1.0, 4.0), (4.0, 1.0, 1.0)]),
    seed=st.integers(0, 99),
)
def test_a_slab_is_the_same_as_that_part_of_the_whole(
    axis: int, cut: int, coarse: tuple[float, ...], seed: int
) -> None:
    prepared = Preprocessor(config([1.25, 0.75, 1.5])).prepare(volume((10, 11, 12), coarse, seed))
    whole = torch.from_numpy(prepared.array)
    size = whole.shape[axis + 1]
    stop = min(cut, size)
    for first, last in ((0, stop), (stop - 1, size)):
        rows = prepared.slab(axis, first, last)
        torch.testing.assert_close(rows, whole.narrow(axis + 1, first, last - first), rtol=1e-5, atol=1e-3)


def test_logits_go_back_by_the_nearest_slice_where_one_axis_is_coarse() -> None:
    def back(spacing: tuple[float, ...], wanted: list[float], **more: Any) -> tuple[int, ...]:
        return Preprocessor(config(wanted, **more)).prepare(volume((12, 14, 16), spacing)).back

    assert back((1.0, 1.0, 2.5), [1.0, 1.0, 3.0]) == (1, 1, 1)
    assert back((1.0, 1.0, 4.0), [1.0, 1.0, 3.5]) == (1, 1, 0)
    assert back((1.0, 1.0, 4.0), [1.0, 1.0, 1.0]) == (1, 1, 0)
    assert back((1.0, 1.0, 4.0), [1.0, 1.0, 3.5], resampling="plain") == (1, 1, 1)


@pytest.mark.parametrize("axes", [(2, 1, 0), (0, 2, 1), (1, 2, 0)])
@pytest.mark.parametrize("orientation", ["stored", "RAS", "LPS"])
def test_axes_are_ordered_for_the_network_and_back(axes: tuple[int, ...], orientation: str) -> None:
    affine = np.array([[0, -2.0, 0, 9], [1.0, 0, 0, 3], [0, 0, -3.0, 5], [0, 0, 0, 1]])
    image = np.arange(4 * 5 * 6, dtype=np.float32).reshape(1, 4, 5, 6)
    settings_ = config(None, axes=axes, orientation=orientation)
    prepared = Preprocessor(settings_).prepare(Volume(image, Geometry((4, 5, 6), affine)))
    towards_ras = image[0].transpose(1, 0, 2)[::-1, :, ::-1]
    turned = {"stored": image[0], "RAS": towards_ras, "LPS": towards_ras[::-1, ::-1]}[orientation]
    np.testing.assert_array_equal(prepared.array[0], turned.transpose(axes))
    assert prepared.geometry.shape == prepared.array.shape[1:]
    labels = np.zeros((4, 5, 6), dtype=np.uint8)
    reorient(labels, prepared.order, prepared.flips)[...] = prepared.array[0]
    np.testing.assert_array_equal(labels, image[0])
    index = np.array([[1, 2, 1]])
    world = prepared.geometry.to_world(index)
    value = prepared.array[0][tuple(index[0])]
    np.testing.assert_allclose(world[0], Geometry((4, 5, 6), affine).to_world(np.argwhere(image[0] == value)[0]))


def test_a_picture_has_no_third_axis() -> None:
    assert network_axes(Geometry((4, 5)), config(axes=(1, 0, 2)).preprocess) == ((1, 0), (False, False))


def test_an_orientation_is_stored_or_three_letters() -> None:
    for wrong in ("ARS", "RA", "ras", "as it is"):
        with pytest.raises(ConfigError, match="orientation"):
            config(orientation=wrong)


def test_axes_must_be_an_order() -> None:
    with pytest.raises(ConfigError, match="no order of 0, 1 and 2"):
        config(axes=(0, 0, 1))


def head_with_holes() -> npt.NDArray[np.float32]:
    """A ball of tissue in nothing, with an enclosed hole, and a channel that is 0 in half of it."""
    grid = np.stack(np.meshgrid(*[np.arange(16)] * 3, indexing="ij")) - 7.5
    radius = np.sqrt((grid**2).sum(0))
    tissue = np.where((radius < 7) & (radius > 2), 100 + 10 * grid[0], 0)
    return np.stack([tissue, np.where(grid[1] > 0, tissue / 2, 0)]).astype(np.float32)


@pytest.mark.parametrize("inside", ["all", "nonzero", "filled"])
def test_mean_and_deviation_are_of_the_voxels_that_count(inside: str) -> None:
    image = head_with_holes()
    found = (image != 0).any(axis=0)
    mask = {"all": np.ones_like(found), "nonzero": found, "filled": ndimage.binary_fill_holes(found)}[inside]
    assert inside == "all" or mask.sum() < mask.size
    channel = {"scheme": "zscore", "inside": inside}
    settings_ = config(None, channel, channel, crop_to_nonzero=True)
    prepared = Preprocessor(settings_).prepare(Volume(image, Geometry.from_spacing((16,) * 3, (1.0,) * 3)))
    box = prepared.box
    for number, values in enumerate(image):
        cropped, kept = values[box], mask[box]
        expected = np.where(kept, (cropped - cropped[kept].mean()) / cropped[kept].std(), 0)
        np.testing.assert_allclose(prepared.array[number], expected, atol=1e-4)


def test_a_filled_mask_does_not_depend_on_the_order_in_memory() -> None:
    image = head_with_holes()
    channel = {"scheme": "zscore", "inside": "filled"}
    preprocessor = Preprocessor(config(None, channel, channel))
    geometry = Geometry.from_spacing((16,) * 3, (1.0,) * 3)
    plain = preprocessor.prepare(Volume(image, geometry)).array
    other = preprocessor.prepare(Volume(np.asfortranarray(image), geometry)).array
    np.testing.assert_allclose(other, plain, atol=1e-5)


def test_holes_of_a_picture_are_no_holes() -> None:
    ring = np.zeros((1, 9, 9), dtype=np.float32)
    ring[:, 2:7, 2:7] = np.arange(25).reshape(5, 5) + 1
    ring[:, 4, 4] = 0
    prepared = Preprocessor(config(None, {"scheme": "zscore", "inside": "filled"})).prepare(
        Volume(ring, Geometry((9, 9)))
    )
    assert prepared.array[0, 4, 4] == 0


def test_rescaling_goes_from_0_to_1() -> None:
    image = volume((6, 7, 8), (1.0, 1.0, 1.0))
    array = Preprocessor(config(None, {"scheme": "rescale"})).prepare(image).array
    assert (array.min(), array.max()) == (0, 1)
    spread = float(np.ptp(image.array))
    np.testing.assert_allclose(array, (image.array - image.array.min()) / spread, atol=1e-6)
