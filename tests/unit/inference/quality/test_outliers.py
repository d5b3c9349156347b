"""Images unlike those of training are named, and images like them are not."""

from __future__ import annotations

import json
from itertools import permutations, product

import numpy as np
import pytest
from scipy import ndimage

from unet_med.config import parse_config
from unet_med.geometry import Geometry, reorient
from unet_med.inference.quality.outliers import (
    META_KEY,
    Typical,
    joined_typical_meta,
    traits,
    typical_meta,
)
from unet_med.transforms.preprocess import Preprocessor
from unet_med.volume import Volume

SHAPE = (24, 20, 12)
CONFIG = parse_config(
    {
        "name": "t",
        "dims": 3,
        "channels": ["a"],
        "labels": {"background": 0, "x": 1},
        "preprocess": {"spacing_mm": None, "normalisation": [{"scheme": "zscore"}], "crop_to_nonzero": False},
    },
    "t",
)


def _image(seed: int, noise: float = 5.0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """A bright ball of about the same size in a dark box, with a gain of its own."""
    random = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    ball = ((grid - np.array(shape) / 2) ** 2).sum(-1) < random.uniform(5.5, 6.5) ** 2
    image = ndimage.gaussian_filter(100.0 * ball, 0.8) + random.normal(0, noise * random.uniform(0.9, 1.1), shape)
    return (random.uniform(0.5, 20) * image).astype(np.float32)[None]


def _seen(image: np.ndarray, spacing: tuple[float, ...] | None = (1.0, 1.0, 2.0)) -> dict[str, float]:
    prepared = Preprocessor(CONFIG).prepare(Volume(image, Geometry.from_spacing(image.shape[1:], spacing)))
    return traits(prepared.reference, prepared.geometry.shape, lambda row: prepared.slab(0, row, row + 1)[:, 0].numpy())


def _spacing(seed: int) -> tuple[float, ...]:
    return (1.0, 1.0, float(np.random.default_rng(seed).uniform(1.8, 2.2)))


@pytest.fixture(scope="module")
def typical() -> Typical:
    return Typical.of([_seen(_image(seed), _spacing(seed)) for seed in range(40)])


def test_images_like_those_of_training_are_nothing_unusual(typical: Typical) -> None:
    flagged = [typical.unusual(_seen(_image(seed), _spacing(seed))) for seed in range(1000, 1100)]
    assert sum(map(bool, flagged)) <= 5


@pytest.mark.parametrize(
    ("change", "spacing", "words"),
    [
        (lambda image: image, (3.0, 1.0, 2.0), "voxels of 3 mm from left to right, 1 in training"),
        (lambda image: image[:, :, :9].copy(), (1.0, 1.0, 2.0), "9 mm from back to front, 20 in training"),
        (lambda image: -image, (1.0, 1.0, 2.0), "brightest 5 % of the intensities at"),
        (lambda image: image + np.random.default_rng(0).normal(0, image.std(), image.shape), None, "noisier"),
        (lambda image: ndimage.gaussian_filter(image, (0, 2, 2, 2)), (1.0, 1.0, 2.0), "smoother or more blurred"),
    ],
)
def test_what_is_unusual_is_named(typical: Typical, change, spacing, words: str) -> None:
    image = change(_image(2000)).astype(np.float32)
    found = typical.unusual(_seen(image, spacing or (1.0, 1.0, 2.0)))
    assert any(words in sentence for sentence in found), found


def test_an_image_without_a_pixel_size(typical: Typical) -> None:
    assert typical.unusual(_seen(_image(2000), None)) == ["no pixel size; all images of training had one"]


def test_a_picture_where_training_saw_volumes(typical: Typical) -> None:
    assert "another number of axes than in training" in typical.unusual(_seen(_image(1, shape=(24, 20)), (1.0, 1.0)))


def test_gain_and_offset_make_no_difference() -> None:
    image = _image(3)
    assert _seen(image * 7 + 1000) == pytest.approx(_seen(image), abs=1e-4)


def test_the_order_of_axes_makes_no_difference() -> None:
    image, geometry = _image(4), Geometry.from_spacing(SHAPE, (0.5, 1.0, 2.0))
    expected = None
    for order, flips in product(permutations(range(3)), product([False, True], repeat=3)):
        stored = Volume(np.ascontiguousarray(reorient(image, order, flips)), geometry.reoriented(order, flips))
        prepared = Preprocessor(CONFIG).prepare(stored)
        found = traits(prepared.reference, prepared.geometry.shape, lambda row, p=prepared: p.array[:, row])
        expected = expected or found
        assert found == pytest.approx(expected, abs=1e-5)


def test_training_and_prediction_measure_the_same() -> None:
    config = CONFIG.replacing({"preprocess.spacing_mm": [1.5, 1.0, 1.5]})
    volume = Volume(_image(5), Geometry.from_spacing(SHAPE, (1.0, 1.0, 2.0)))
    prepared = Preprocessor(config).prepare(volume)
    seen = traits(prepared.reference, prepared.geometry.shape, lambda row: prepared.slab(0, row, row + 1)[:, 0].numpy())
    array = prepared.array
    cached = traits(volume.geometry, array.shape[1:], lambda row: array[:, row])
    assert seen == pytest.approx(cached, abs=1e-3)
    assert {name.partition("/")[0] for name in seen} == {
        *("spacing", "extent", "dark", "middle", "bright", "roughness"),
    }


def test_several_channels_are_told_apart() -> None:
    both = [np.concatenate([_image(seed), _image(seed + 100)]) for seed in range(20)]
    geometry = Geometry.from_spacing(SHAPE, (1.0, 1.0, 2.0))
    known = Typical.from_json(typical_meta((geometry, image / image.std()) for image in both))
    spoilt = both[0] / both[0].std()
    spoilt[1] += 50
    found = known.unusual(traits(geometry, SHAPE, lambda row: spoilt[:, row]))
    assert found
    assert all("of channel 1" in sentence for sentence in found)


_DRAWS = {
    "normal": lambda random, size: random.normal(size=size),
    "heavy tails": lambda random, size: random.standard_t(3, size=size),
    "skewed": lambda random, size: random.exponential(size=size),
    "two groups": lambda random, size: np.where(random.random(size) < 0.1, 5.0, 0.0) + random.normal(0, 0.1, size),
}


@pytest.mark.parametrize("cases", [5, 10, 18, 19, 60, 200])
@pytest.mark.parametrize("draw", _DRAWS)
def test_at_most_one_in_twenty_is_a_false_alarm(draw: str, cases: int) -> None:
    random = np.random.default_rng(cases)
    kinds = ("spacing", "extent", "dark", "middle", "bright", "roughness")
    names = [f"{kind}/{number}" for kind in kinds for number in range(2)]
    alarms = []
    for _ in range(300):
        values = _DRAWS[draw](random, (cases + 1, len(names)))
        rows = [dict(zip(names, row, strict=True)) for row in values.tolist()]
        alarms.append(bool(Typical.of(rows[:-1]).unusual(rows[-1])))
    assert np.mean(alarms) <= 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / len(alarms))


def test_what_lies_far_outside_is_found_however_many_cases_there_are() -> None:
    random = np.random.default_rng(0)
    for cases in (5, 19, 100):
        rows = [{"middle/0": float(value)} for value in random.normal(size=cases)]
        assert Typical.of(rows).unusual({"middle/0": 30.0})


def test_equal_cases_leave_room_for_trifles() -> None:
    known = Typical.of([{"spacing/0": 0.0}] * 30)
    assert known.unusual({"spacing/0": float(np.log(1.04))}) == []
    assert known.unusual({"spacing/0": float(np.log(1.2))}) == ["voxels of 1.2 mm along axis I, 1 in training"]


@pytest.mark.parametrize("cases", [0, 1, 4])
def test_too_few_cases_say_nothing(cases: int) -> None:
    known = Typical.of([{"middle/0": 0.0}] * cases)
    assert known.limit is None
    assert known.unusual({"middle/0": 99.0}) == []


def test_what_is_stored_says_the_same(typical: Typical) -> None:
    stored = json.loads(json.dumps(typical.to_json(), allow_nan=False))
    assert Typical.from_json(stored) == typical
    assert len(json.dumps(stored)) < 2000


@pytest.mark.parametrize(
    "data",
    [None, 3, {}, {"schema": 2}, {"schema": 1, "cases": 3, "limit": None}]
    + [{"schema": 1, "cases": 3, "limit": 1, "traits": traits} for traits in ([], {"x/0": [0, 1, 1]}, {"dark/0": [0]})],
)
def test_anything_else_says_nothing(data: object) -> None:
    assert Typical.from_json(data) is None


def test_an_ensemble_knows_the_cases_of_all_members() -> None:
    rows = [{"middle/0": float(n)} for n in range(20)]
    halves = [{META_KEY: Typical.of(part).to_json()} for part in (rows[:12], rows[8:])]
    known = Typical.from_json(joined_typical_meta(halves, 20))
    assert (known.cases, known.traits["middle/0"].low, known.traits["middle/0"].high) == (20, 0.0, 19.0)
    assert not any(known.unusual(row) for row in rows)
    assert known.unusual({"middle/0": 60.0})
    assert joined_typical_meta([halves[0], {}], 20) is None
