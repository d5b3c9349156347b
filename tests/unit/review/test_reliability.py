"""Calibration is counted right: of honest probabilities, of boastful ones, of parts put together."""

from __future__ import annotations

import json

import numpy as np
import pytest

from unet_med.review.reliability import BINS, LEAST, Reliability


def _honest(seed: int = 0, size: int = 40_000) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    chances = random.uniform(0, 1, (2, size)).astype(np.float32)
    return chances, random.uniform(0, 1, chances.shape) < chances


def test_honest_probabilities_have_no_error() -> None:
    found = Reliability(("a", "b"))
    found.add(*_honest())
    assert set(found.errors()) == {"a", "b"}
    assert max(found.errors().values()) < 0.02
    middle = found.said / found.voxels
    assert np.all(np.abs(middle[:, 1:] - (np.arange(1, BINS) + 0.5) / BINS) < 0.01)


def test_boasting_is_an_error_of_as_much() -> None:
    found = Reliability(("a",))
    found.add(np.full((1, 1000), 0.95, np.float32), np.arange(1000)[None] % 2 == 0)
    assert found.errors()["a"] == pytest.approx(0.45, abs=1e-6)


def test_unlikely_voxels_and_absent_structures_are_left_out() -> None:
    found = Reliability(("a", "b"))
    found.add(np.array([[LEAST / 2, 1.0], [0.0, 0.0]], np.float32), np.array([[False, True], [False, False]]))
    assert found.voxels.sum() == 1
    assert found.errors() == {"a": 0.0}


def test_parts_are_counted_as_the_whole() -> None:
    chances, truths = _honest(size=999)
    whole, first, second = (Reliability(("a", "b")) for _ in range(3))
    whole.add(chances, truths)
    first.add(chances[:, :300], truths[:, :300])
    second.add(chances[:, 300:], truths[:, 300:])
    together = first.joined(Reliability.from_json(json.loads(json.dumps(second.to_json()))))
    assert together.names == whole.names
    np.testing.assert_allclose(together.said, whole.said)
    np.testing.assert_array_equal(together.true, whole.true)
    assert together.errors() == pytest.approx(whole.errors())
