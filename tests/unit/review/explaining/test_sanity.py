"""Evidence that can say no: curves and correlations of maps that are known to be good, and of some that are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from unet_med.bundle import load_bundle
from unet_med.geometry import Geometry
from unet_med.inference.predictor import Predictor
from unet_med.review.explaining.explanation import explain_labels, receptive_field
from unet_med.review.explaining.heat import Blocks, occlusion
from unet_med.review.explaining.sanity import (
    RANDOM_ORDERS,
    Deletion,
    Randomised,
    deleted,
    deletion_orders,
    hottest_first,
    nearest_first,
    randomised,
    steps,
    untrained,
)
from unet_med.review.explaining.view import View, prepared_for
from unet_med.volume import Volume

pytestmark = pytest.mark.usefixtures("one_thread")


def spot(shape: tuple[int, ...], where: tuple[slice, ...]) -> Volume:
    array = np.random.default_rng(0).normal(0, 0.1, (1, *shape)).astype(np.float32)
    array[0] -= 5
    array[(0, *where)] += 40
    return Volume(array, Geometry.from_spacing(shape, (2.0, 1.0, 1.0)[: len(shape)]))


def test_areas_by_hand() -> None:
    found = Deletion((0.0, 0.5, 1.0), (0.8, 0.0, 0.0), (0.8, 0.4, 0.0), ((0.8, 0.8, 0.0), (0.8, 0.4, 0.4)))
    assert found.area == pytest.approx(0.25)
    assert found.near_area == pytest.approx(0.5)
    assert found.random_areas == pytest.approx((0.75, 0.625))
    assert found.is_shown
    assert not Deletion(found.shares, found.random[1], found.near, found.random).is_shown


def test_a_map_like_that_of_an_untrained_network_is_not_shown() -> None:
    heat = np.random.default_rng(0).random(200)
    others = [np.random.default_rng(seed).random(200) for seed in (1, 2)]
    assert randomised(heat, others).is_shown
    assert not randomised(heat, [*others, heat**3]).is_shown
    assert not randomised(heat, [*others, -heat]).is_shown, "its mirror image tells as much"
    assert randomised(heat, [heat**3]).correlations == (pytest.approx(1.0),)
    assert randomised(heat, [np.zeros(200)]).correlations == (None,)
    assert randomised(np.zeros(200), others).correlations == (None, None)
    assert not Randomised((0.2, None, -0.6)).is_shown


def test_untrained_networks_differ_from_each_other_and_are_the_same_again(tiny_bundle: Callable[..., Path]) -> None:
    model = Predictor([load_bundle(tiny_bundle())], "cpu").models[0]
    state = torch.random.get_rng_state()
    first, again, other = (untrained(model, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert list(first) == list(model.network.state_dict())
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["encoder.0.0.0.weight"], other["encoder.0.0.0.weight"])
    assert not untrained(model, 1).training


def test_orders_of_blocks() -> None:
    heat = np.array([0.0, 3.0, 0.0, 5.0, -1.0])
    assert hottest_first(heat, 0).tolist()[:2] == [3, 1]
    assert hottest_first(heat, 0).tolist()[-1] == 4
    assert len({tuple(hottest_first(heat, seed)) for seed in range(20)}) == 2, "equal ones in random order"
    blocks = Blocks.of((20, 20), (1.0, 1.0), 2.0)
    orders = deletion_orders(blocks, 0)
    assert len({tuple(order) for order in orders}) == RANDOM_ORDERS
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert steps(blocks) == [0, 2, 5, 10, 20, 35, 50, 75, 100]
    assert steps(Blocks.of((2, 2), (1.0, 1.0), 1.0)) == [0, 1, 2, 3, 4]


def test_blocks_by_their_distance_in_mm(tiny_bundle: Callable[..., Path]) -> None:
    model = Predictor([load_bundle(tiny_bundle(dims=2))], "cpu").models[0]
    volume = spot((12, 12), (slice(4, 6), slice(4, 6)))
    view = View.at(model, prepared_for(model, volume), (6, 6))
    mask = np.zeros((12, 12), dtype=bool)
    mask[4:6, 4:6] = True
    blocks = Blocks.of((12, 12), (1.0, 1.0), 2.0)
    heat = nearest_first(view, blocks, mask)
    away = ndimage.distance_transform_edt(~mask, sampling=(2.0, 1.0))
    assert heat.argmax() == 2 * 6 + 2
    np.testing.assert_allclose(heat, [-away[region].mean() for region in blocks.regions()])


def test_what_is_hidden_first_is_lost_first(tiny_bundle: Callable[..., Path]) -> None:
    model = Predictor([load_bundle(tiny_bundle(dims=2))], "cpu", mirror=False).models[0]
    view = View.at(model, prepared_for(model, spot((16, 16), (slice(4, 8), slice(8, 12)))), (8, 8))
    mask = view.found() == 1
    blocks = Blocks.of((16, 16), (1.0, 1.0), 2.0)
    (heat,) = occlusion(view, blocks, [mask], [0])
    best, worst = (deleted(view, blocks, hottest_first(sign * heat, 0), [mask], [0])[:, 0] for sign in (1, -1))
    assert best[0] == worst[0]
    assert best[-1] == worst[-1]
    counts = steps(blocks)
    assert best[counts.index(4)] < worst[counts.index(32)], "four blocks are all of it; half of the others are nothing"


def test_a_label_is_explained_with_its_evidence(tiny_bundle: Callable[..., Path]) -> None:
    """A network that sees single voxels: occlusion marks the spot and nothing else, on the image's own grid."""
    predictor = Predictor([load_bundle(tiny_bundle())], "cpu", mirror=False)
    model = predictor.models[0]
    volume = spot((14, 16, 12), (slice(4, 8), slice(8, 12), slice(2, 6)))
    labels = predictor.predict(volume).labels
    told: list[str] = []

    def progress(items, what):
        told.append(what)
        return items

    found = explain_labels(model, prepared_for(model, volume), labels, [1, 0], edge=4.0, seed=5, progress=progress)
    assert [one.place for one in found] == [0], "the other label is not there"
    (one,) = found
    assert np.array_equal(one.mask, labels == 1)
    assert one.block == (4.0, 4.0, 4.0)
    assert set(one.maps) == {"gradcam", "occlusion"}
    occluded = one.maps["occlusion"]
    assert occluded.values.shape == volume.geometry.shape
    inside = occluded.values > 1e-6
    assert inside[one.mask].all()
    assert not inside[ndimage.distance_transform_edt(~one.mask) > 8].any()
    assert occluded.deletion.is_shown
    assert occluded.deletion.map[0] == pytest.approx(one.confidence)
    assert len(occluded.randomised.correlations) == 3
    assert one.maps["gradcam"].values.max() <= 1.0 + 1e-6
    assert len(told) == 3
    again = explain_labels(model, prepared_for(model, volume), labels, [0], edge=4.0, seed=5)
    assert again[0].maps["occlusion"].deletion == occluded.deletion
    assert again[0].maps["occlusion"].randomised == occluded.randomised


def test_receptive_fields_in_voxels_and_mm(tiny_bundle: Callable[..., Path]) -> None:
    model = Predictor([load_bundle(tiny_bundle())], "cpu").models[0]
    field = receptive_field(model, (1.0, 1.0, 2.0), seed=0)
    assert field["effective_voxels"] == [1, 1, 1]
    assert min(field["untrained_voxels"]) > 1
    assert field["theoretical_mm"] == [n * s for n, s in zip(field["theoretical_voxels"], (1, 1, 2), strict=True)]
    assert "theoretical_mm" not in receptive_field(model, None, seed=0)
