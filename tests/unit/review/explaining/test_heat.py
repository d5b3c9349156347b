"""Heat maps against what is known of networks that can be computed by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_med.bundle import Bundle, load_bundle
from unet_med.geometry import Geometry
from unet_med.inference.predictor import Predictor
from unet_med.networks import build_network
from unet_med.review.explaining.heat import MOST_BLOCKS, Blocks, grad_cam, hidden, occlusion
from unet_med.review.explaining.view import View, prepared_for
from unet_med.volume import Volume

pytestmark = pytest.mark.usefixtures("one_thread")


def view_of(bundle: Bundle, shape: tuple[int, ...], seed: int = 0) -> View:
    array = np.random.default_rng(seed).normal(100, 20, (1, *shape)).astype(np.float32)
    model = Predictor([bundle], "cpu", mirror=False).models[0]
    prepared = prepared_for(model, Volume(array, Geometry.from_spacing(shape, (1.0,) * len(shape))))
    return View.at(model, prepared, [n // 2 for n in shape])


SHAPES = st.lists(st.integers(1, 40), min_size=2, max_size=3)
SPACING = st.floats(0.05, 8.0)


@settings(deadline=None)
@given(SHAPES, st.data())
def test_blocks_are_a_partition(shape: list[int], data: st.DataObject) -> None:
    spacing = [data.draw(SPACING) for _ in shape]
    blocks = Blocks.of(shape, spacing, data.draw(st.floats(0.05, 50.0)))
    covered = np.zeros(shape, dtype=int)
    for number, region in enumerate(blocks.regions(), start=1):
        assert not covered[region].any()
        covered[region] = number
    assert covered.all()
    assert covered.max() == len(blocks)
    values = np.arange(len(blocks), dtype=float)
    assert np.array_equal(blocks.painted(values), covered - 1)
    np.testing.assert_allclose(blocks.means(covered), values + 1)


@settings(deadline=None)
@given(SHAPES, st.data())
def test_few_blocks_are_few_and_no_larger_than_need_be(shape: list[int], data: st.DataObject) -> None:
    spacing = [data.draw(SPACING) for _ in shape]
    assert 1 <= len(Blocks.few(shape, spacing)) <= MOST_BLOCKS


def test_blocks_have_the_edge_that_was_asked_for() -> None:
    assert Blocks.of((40, 40, 10), (1.0, 0.5, 4.0), 10.0).shape == (4, 2, 4)
    assert Blocks.of((3, 3), (1.0, 1.0), 0.1).shape == (3, 3)
    assert Blocks.few((100, 100), (1.0, 1.0)).shape == (10, 10)  # of 8 they would be 144


def test_what_is_hidden_holds_the_mean() -> None:
    image = torch.arange(24.0).reshape(2, 3, 4)
    changed = hidden(image, [(slice(0, 2), slice(1, 3))])
    assert (changed[0, :2, 1:3] == image[0].mean()).all()
    assert (changed[1, :2, 1:3] == image[1].mean()).all()
    assert (changed != image).sum() == 8
    assert torch.equal(hidden(image, []), image)


def test_occlusion_of_a_network_that_sees_one_voxel(tiny_bundle: Callable[..., Path]) -> None:
    """Hiding where the label is not changes nothing, and what is lost in parts adds up to what is lost in all."""
    view = view_of(load_bundle(tiny_bundle(dims=2)), (14, 12))
    found = view.found()
    mask = (found == 1) & (np.arange(14)[:, None] < 7)
    blocks = Blocks.of((14, 12), (1.0, 1.0), 3.0)
    (lost,) = occlusion(view, blocks, [mask], [0])
    shares = blocks.means(mask)
    assert np.abs(lost[shares == 0]).max() < 1e-6
    assert (lost[shares > 0] > 0).all()
    (before,), (after,) = view.confidences([view.image, hidden(view.image, blocks.regions())], [mask], [0])
    assert lost.sum() == pytest.approx(before - after, rel=1e-4)


def test_grad_cam_at_the_head_is_its_logits(tiny_bundle: Callable[..., Path]) -> None:
    """Before a 1x1 convolution the weights are the head's own: the map is the logit without bias, where positive."""
    bundle = load_bundle(tiny_bundle(dims=2))
    network = {"kind": "dilated", "norm": "none", "features": [3, 5], "strides": [[1, 1]] * 2, "kernels": [[3, 3]] * 2}
    config = bundle.config.replacing(
        {f"network.{key}": value for key, value in (network | {"dilations": [1, 2]}).items()}
    )
    torch.manual_seed(3)
    state = build_network(config.network, 2, 1, 3).state_dict()
    view = view_of(Bundle(config, bundle.labels, bundle.channels, state, {}, "s"), (14, 12))
    mask = np.zeros((14, 12), dtype=bool)
    mask[3:9, 2:7] = True
    for place in (0, 1):
        logits = view.logits([view.image])[0, place + 1].numpy() - float(state["heads.0.bias"][place + 1])
        expected = np.maximum(logits, 0) * mask.sum() / 16**2  # the gradient is averaged over the whole window
        np.testing.assert_allclose(grad_cam(view, mask, place), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("dims", "shape"), [(2, (40, 13)), (3, (20, 11, 16)), (2, (15, 12, 3))])
def test_grad_cam_lies_on_what_the_view_reads(
    tiny_bundle: Callable[..., Path], dims: int, shape: tuple[int, ...]
) -> None:
    bundle = load_bundle(tiny_bundle(dims=dims))
    torch.manual_seed(0)
    state = build_network(bundle.config.network, dims, 1, 3).state_dict()
    view = view_of(Bundle(bundle.config, bundle.labels, bundle.channels, state, {}, "r"), shape)
    mask = np.ones(view.found().shape, dtype=bool)
    heat = grad_cam(view, mask, 0)
    assert heat.shape == tuple(part.stop - part.start for part in view.region)
    assert heat.min() >= 0
    assert all(parameter.grad is None for parameter in view.network.parameters())


def test_grad_cam_is_where_the_features_are(tiny_bundle: Callable[..., Path]) -> None:
    """A bottleneck that copies the image through, of which one corner is bright: the map is hot there."""
    bundle = load_bundle(tiny_bundle(dims=2))
    state = {key: value.clone() for key, value in bundle.state.items()}
    for key in ("encoder.1.0.0.weight", "encoder.1.1.0.weight"):
        state[key].zero_()
        state[key][0, 0, 1, 1] = 1.0
    state["upsampling.0.convolution.weight"].fill_(0.1)
    array = np.zeros((1, 16, 16), dtype=np.float32)
    array[0, 10:14, 2:6] = 50.0
    model = Predictor([Bundle(bundle.config, bundle.labels, bundle.channels, state, {}, "c")], "cpu").models[0]
    prepared = prepared_for(model, Volume(array, Geometry.from_spacing((16, 16), (1.0, 1.0))))
    view = View.at(model, prepared, (8, 8))
    heat = grad_cam(view, view.found() == 1, 0)
    row, column = np.unravel_index(int(heat.argmax()), heat.shape)
    assert 9 <= row <= 14
    assert 1 <= column <= 6
    assert heat[:6].max() < 0.05 * heat.max()
