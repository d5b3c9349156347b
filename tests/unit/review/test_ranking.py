"""The order of labelling: against its definition, computed the long way round."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_med.bundle import load_bundle
from unet_med.geometry import Geometry
from unet_med.inference.predictor import Predictor
from unet_med.inference.quality.assessment import Assessment
from unet_med.inference.quality.calibration import Estimate
from unet_med.review.explaining.view import prepared_for
from unet_med.review.ranking import NOT_KNOWN, case_uncertainty, image_features, ranked
from unet_med.volume import Volume

pytestmark = pytest.mark.usefixtures("one_thread")


def images(seed: int, count: int, features: int = 4) -> tuple[list[float], np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(0.1, 1.0, count).tolist(), rng.normal(0, 1, (count, features)) * [1, 10, 0.1, 5][:features]


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(0, 4))
def test_each_has_the_largest_product_of_those_left(seed: int, count: int, labelled: int) -> None:
    unsure, features = images(seed, count)
    others = images(seed + 1, labelled)[1] if labelled else None
    order = ranked(unsure, features, others)
    assert sorted(one.place for one in order) == list(range(count))
    together = features if others is None else np.concatenate([features, others])
    spread = together.std(axis=0)
    scaled = together / np.where(spread > 0, spread, 1)
    before = list(range(count, count + labelled))
    largest = 0.0
    for position, one in enumerate(order):
        left = [later.place for later in order[position:]]
        if not before:
            diversity = dict.fromkeys(left, 1.0)
        else:
            distance = {n: min(float(np.linalg.norm(scaled[n] - scaled[b])) for b in before) for n in left}
            largest = largest or max(distance.values())
            diversity = {n: distance[n] / largest if largest else 0.0 for n in left}
        assert one.diversity == pytest.approx(diversity[one.place], abs=1e-9)
        assert one.uncertainty == unsure[one.place]
        assert one.score == pytest.approx(max(unsure[n] * diversity[n] for n in left), abs=1e-9)
        before.append(one.place)


def test_a_copy_comes_last() -> None:
    unsure, features = images(3, 6)
    doubled = ranked([*unsure, 1.0, 0.99], np.concatenate([features, features[:1], features[:1]]))
    assert doubled[0].place == 6, "the one that is most unsure"
    assert {one.place for one in doubled[-2:]} == {0, 7}
    assert all(one.diversity == 0 for one in doubled[-2:])


def test_what_is_labelled_already_is_not_needed_again() -> None:
    unsure, features = images(4, 5)
    order = ranked(unsure, features, features[[2]])
    assert order[-1].place == 2
    assert order[-1].diversity == 0
    assert max(one.diversity for one in order) == 1.0


def test_of_equal_images_the_unsure_ones_come_first() -> None:
    order = ranked([0.2, 0.9, 0.5], np.ones((3, 4)))
    assert [one.place for one in order] == [1, 2, 0]
    assert [one.diversity for one in order] == [1.0, 0.0, 0.0]
    assert ranked([], np.zeros((0, 3))) == []


def test_units_of_features_do_not_count() -> None:
    unsure, features = images(5, 8)
    other = ranked(unsure, features * [1e3, 1e-3, 7, 1] + [0, 5, -3, 1])
    assert [one.place for one in other] == [one.place for one in ranked(unsure, features)]


def features_of(**dice: float | None) -> dict[str, dict[str, float | None]]:
    return {name: {"expected_dice": value, "edge_doubt": 0.1, "mirror_dice": None} for name, value in dice.items()}


def test_uncertainty_of_a_case() -> None:
    nothing = Assessment()
    assert case_uncertainty(nothing, [features_of(a=0.9, b=0.5)])[0] == pytest.approx(0.3)
    assert "Dice of b" in case_uncertainty(nothing, [features_of(a=0.9, b=0.5)])[1]
    assert case_uncertainty(nothing, [features_of(a=0.9, b=None)])[0] == pytest.approx(0.1)
    assert case_uncertainty(nothing, [features_of(a=0.9), features_of(a=0.7)])[0] == pytest.approx(0.2)
    assert case_uncertainty(nothing, [features_of(a=None, b=None)])[0] == NOT_KNOWN
    predicted = Assessment(predicted_dice={"a": Estimate(0.4, 0.2, 0.6)})
    assert case_uncertainty(predicted, [features_of(a=0.9)])[0] == pytest.approx(0.35)
    missing = Assessment(predicted_dice={"a": Estimate(0.0, 0.0, 0.0)})
    assert case_uncertainty(missing, [features_of(a=None)])[0] == 1.0
    apart = Assessment(agreement={"a": 0.3})
    unsure, why = case_uncertainty(apart, [features_of(a=0.9), features_of(a=0.9)])
    assert unsure == pytest.approx(0.7)
    assert "agree" in why


@pytest.mark.parametrize(("dims", "shape"), [(2, (40, 33)), (3, (40, 20, 18)), (2, (20, 18, 12))])
def test_what_an_image_is_like(tiny_bundle: Callable[..., Path], dims: int, shape: tuple[int, ...]) -> None:
    from unet_med.bundle import Bundle
    from unet_med.networks import build_network

    bundle = load_bundle(tiny_bundle(dims=dims))
    network = build_network(bundle.config.network, dims, 1, 3)
    bundle = Bundle(bundle.config, bundle.labels, bundle.channels, network.state_dict(), {}, "r")
    model = Predictor([bundle], "cpu").models[0]

    def described(scale: float, seed: int) -> np.ndarray:
        array = np.random.default_rng(seed).normal(100, 20, (1, *shape)).astype(np.float32)
        array[0, : shape[0] // 2] *= scale
        return image_features(
            model, prepared_for(model, Volume(array, Geometry.from_spacing(shape, (1.0,) * len(shape))))
        )

    same, again, other = described(1.0, 0), described(1.0, 0), described(5.0, 0)
    assert same.shape == (4,), "mean and deviation of two features"
    assert np.array_equal(same, again)
    assert not np.allclose(same, other)
    assert np.linalg.norm(same - described(1.0, 1)) < np.linalg.norm(same - other)
