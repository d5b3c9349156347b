"""Entropies against their formulas, and samples that must come back the right way round."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from unet_med.bundle import Bundle, load_bundle
from unet_med.geometry import Geometry, reorient
from unet_med.inference.predictor import Predictor
from unet_med.review.explaining.uncertainty import (
    entropy,
    mirrored_axes,
    of_dropout,
    of_members,
    of_mirrors,
    uncertainty,
)
from unet_med.volume import Volume

pytestmark = pytest.mark.usefixtures("one_thread")


def volume_of(shape: tuple[int, ...]) -> Volume:
    array = np.random.default_rng(0).normal(100, 20, (1, *shape)).astype(np.float32)
    return Volume(array, Geometry.from_spacing(shape, (1.0, 0.8, 2.5)[: len(shape)]))


def chances_of(seed: int, labels: int, sharpness: float) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(0, sharpness, (labels + 1, 4, 5))
    chances = np.exp(logits - logits.max(axis=0))
    return (chances / chances.sum(axis=0))[1:].astype(np.float32)


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(1, 5), st.floats(0.0, 100.0))
def test_entropy_is_that_of_all_labels_and_background(seed: int, labels: int, sharpness: float) -> None:
    chances = chances_of(seed, labels, sharpness)
    whole = np.concatenate([1 - chances.sum(axis=0, keepdims=True), chances]).clip(0)
    expected = stats.entropy(whole, axis=0) / math.log(labels + 1)
    np.testing.assert_allclose(entropy(chances), expected, atol=1e-4)


@settings(deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=2, max_size=6), st.integers(1, 3), st.floats(0.0, 30.0))
def test_disagreement_is_a_part_of_it(seeds: list[int], labels: int, sharpness: float) -> None:
    samples = [chances_of(seed, labels, sharpness) for seed in seeds]
    found = uncertainty(iter(samples))
    assert found is not None
    assert found.samples == len(seeds)
    np.testing.assert_allclose(found.entropy, entropy(np.mean(samples, axis=0)), atol=1e-4)
    own = np.mean([entropy(one) for one in samples], axis=0)
    np.testing.assert_allclose(found.disagreement, np.maximum(found.entropy - own, 0), atol=1e-4)
    assert (found.disagreement <= found.entropy + 1e-6).all()
    if len(set(seeds)) == 1:
        assert found.disagreement.max() < 1e-4


def test_two_that_contradict_each_other() -> None:
    yes, no = np.ones((1, 2, 2), np.float32), np.zeros((1, 2, 2), np.float32)
    found = uncertainty([yes, no])
    assert found is not None
    np.testing.assert_allclose(found.entropy, 1.0, atol=1e-6)
    np.testing.assert_allclose(found.disagreement, 1.0, atol=1e-6)
    unsure = uncertainty([yes / 2, yes / 2])
    assert unsure is not None
    np.testing.assert_allclose(unsure.entropy, 1.0, atol=1e-6)
    np.testing.assert_allclose(unsure.disagreement, 0.0, atol=1e-6)


def test_one_sample_tells_nothing() -> None:
    assert uncertainty([]) is None
    assert uncertainty([np.ones((1, 2, 2), np.float32)]) is None


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_mirrored_copies_come_back_the_right_way_round(
    tiny_bundle: Callable[..., Path], order: tuple[int, ...]
) -> None:
    """A network that sees single voxels says the same of a mirrored image, in its mirrored place."""
    bundle = load_bundle(tiny_bundle(augment__mirror_axes=[0, 2], training__precision="fp32"))
    volume, flips = volume_of((9, 12, 7)), (True, False, False)
    stored = Volume(
        np.ascontiguousarray(reorient(volume.array, order, flips)), volume.geometry.reoriented(order, flips)
    )
    assert set(mirrored_axes(bundle, stored)) == {order.index(0), order.index(2)}
    expected = Predictor([bundle], "cpu", mirror=False).predict(stored, probabilities=True).probabilities
    samples = list(of_mirrors([bundle], stored, "cpu"))
    assert len(samples) == 4
    for sample in samples:
        np.testing.assert_allclose(sample, expected, atol=1e-4)


def test_kinds_that_do_not_exist(tiny_bundle: Callable[..., Path]) -> None:
    bundle = load_bundle(tiny_bundle(augment__mirror_axes=[]))
    assert list(of_mirrors([bundle], volume_of((8, 8, 8)), "cpu")) == []
    assert list(of_members([bundle], volume_of((8, 8, 8)), "cpu")) == []
    assert list(of_dropout([bundle], volume_of((8, 8, 8)), "cpu", 3)) == []


def test_members_speak_for_themselves(tiny_bundle: Callable[..., Path]) -> None:
    one = load_bundle(tiny_bundle(postprocess__minimum_voxels=10**6))
    state = {key: value.clone() for key, value in one.state.items()}
    state["heads.0.weight"][1, 0] = -3.0
    other = Bundle(one.config, one.labels, one.channels, state, {}, "other")
    volume = volume_of((9, 12, 7))
    samples = list(of_members([one, other], volume, "cpu"))
    assert samples[0].shape == (2, 9, 12, 7)
    assert samples[0].any(), "what post-processing removes is not certain"
    assert not np.allclose(samples[0], samples[1])
    found = uncertainty(samples)
    assert found is not None
    assert found.disagreement.max() > 0.05


def test_dropout_is_left_on_and_leaves_no_trace(tiny_bundle: Callable[..., Path]) -> None:
    bundle = load_bundle(tiny_bundle(network__dropout=0.5, postprocess__keep_largest=["bright"]))
    state = {key: value.clone() for key, value in bundle.state.items()}
    for key in ("encoder.1.0.0.weight", "encoder.1.1.0.weight"):
        state[key][0, 0, 1, 1, 1] = 1.0
    state["upsampling.0.convolution.weight"].fill_(1.0)
    bundle = Bundle(bundle.config, bundle.labels, bundle.channels, state, {}, "d")
    volume = volume_of((9, 12, 7))
    before = torch.random.get_rng_state()
    samples, again = (list(of_dropout([bundle], volume, "cpu", 3)) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert len(samples) == 3
    assert not np.allclose(samples[0], samples[1])
    assert all(np.array_equal(first, second) for first, second in zip(samples, again, strict=True))
