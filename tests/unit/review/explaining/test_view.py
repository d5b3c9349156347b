"""A window on its own says what prediction says of it; maps of it find their way back to the image."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unet_med.bundle import Bundle, load_bundle
from unet_med.geometry import Geometry, reorient
from unet_med.inference.predictor import Predictor
from unet_med.networks import build_network
from unet_med.review.explaining.view import View, on_image, prepared_for
from unet_med.volume import Volume

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSIC = {
    "network.style": "classic",
    "network.norm": "none",
    "network.activation": "relu",
    "network.downsampling": "maxpool",
    "network.upsampling": "transposed",
}


def volume_of(shape: tuple[int, ...], seed: int = 0) -> Volume:
    array = np.random.default_rng(seed).normal(100, 20, (1, *shape)).astype(np.float32)
    return Volume(array, Geometry.from_spacing(shape, (1.0, 0.8, 2.5)[: len(shape)]))


def random_weights(bundle: Bundle, **changes: Any) -> Bundle:
    config = bundle.config.replacing(changes)
    torch.manual_seed(0)
    return Bundle(config, bundle.labels, bundle.channels, build_network(config.network, 2, 1, 3).state_dict(), {}, "r")


@pytest.mark.parametrize(
    ("dims", "shape", "classic"),
    [
        (2, (15, 11), False),
        (3, (13, 16, 9), False),
        (2, (12, 10, 4), False),
        (2, (15, 11), True),
        (2, (12, 10, 4), True),
    ],
)
def test_of_a_small_image_it_says_what_prediction_says(
    tiny_bundle: Callable[..., Path], dims: int, shape: tuple[int, ...], classic: bool
) -> None:
    bundle = load_bundle(tiny_bundle(dims=dims, training__precision="fp32"))
    if classic:
        bundle = random_weights(bundle, **CLASSIC)
    predictor, volume = Predictor([bundle], "cpu", mirror=False), volume_of(shape)
    expected = predictor.predict(volume).labels
    model = predictor.models[0]
    prepared = prepared_for(model, volume)
    view = View.at(model, prepared, [n // 2 for n in shape])
    found = on_image(prepared, view.inside, view.found().astype(np.float32))
    inside = (slice(None), slice(None), shape[2] // 2) if dims < len(shape) else ...
    assert np.array_equal(found[inside], expected[inside])
    assert len(np.unique(expected[inside])) > 1


def test_it_stays_within_the_image(tiny_bundle: Callable[..., Path]) -> None:
    model = Predictor([load_bundle(tiny_bundle(dims=2))], "cpu").models[0]
    prepared = prepared_for(model, volume_of((40, 9)))
    places = {0: (0, 16), 20: (12, 28), 39: (24, 40)}
    for centre, (first, stop) in places.items():
        view = View.at(model, prepared, (centre, 4))
        assert view.inside == (slice(first, stop), slice(0, 9)) == view.region
        assert view.image.shape == (1, 16, 9)
        assert view.entering(view.image).shape == (1, 16, 16)


def test_a_map_goes_back_however_the_image_is_stored(tiny_bundle: Callable[..., Path]) -> None:
    model = Predictor([load_bundle(tiny_bundle(preprocess__spacing_mm=[1.0, 1.0, 1.0]))], "cpu").models[0]
    volume = volume_of((9, 12, 7))
    prepared = prepared_for(model, volume)
    region = tuple(slice(2, n - 2) for n in prepared.geometry.shape)
    values = np.random.default_rng(1).random([part.stop - part.start for part in region]).astype(np.float32)
    expected = on_image(prepared, region, values)
    assert expected.shape == (9, 12, 7)
    assert not expected[:, :, 0].any()  # its middle, at 1.25 mm, lies between voxels that hold nothing
    for order, flips in product(permutations(range(3)), product([False, True], repeat=3)):
        stored = Volume(
            np.ascontiguousarray(reorient(volume.array, order, flips)), volume.geometry.reoriented(order, flips)
        )
        found = on_image(prepared_for(model, stored), region, values)
        np.testing.assert_allclose(found, reorient(expected, order, flips), atol=1e-5)


def test_confidences_are_those_of_the_probabilities(tiny_bundle: Callable[..., Path]) -> None:
    bundle = load_bundle(tiny_bundle(dims=2, training__precision="fp32"))
    predictor, volume = Predictor([bundle], "cpu", mirror=False), volume_of((14, 12))
    prediction = predictor.predict(volume, probabilities=True)
    view = View.at(predictor.models[0], prepared_for(predictor.models[0], volume), (7, 6))
    masks = [prediction.labels == 1, prediction.labels == 2]
    assert prediction.probabilities is not None
    expected = [chances[mask].mean() for chances, mask in zip(prediction.probabilities, masks, strict=True)]
    found = view.confidences([view.image, view.image * 0], masks, [0, 1])
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)
    assert found.shape == (2, 2)
    assert not np.allclose(found[1], expected)
