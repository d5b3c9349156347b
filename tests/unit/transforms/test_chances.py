"""How likely labels are, on the grid of the network: where their labels are."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_med.config import parse_config
from unet_med.geometry import Geometry
from unet_med.transforms.preprocess import Preprocessor
from unet_med.volume import Volume

SIZES = st.integers(1, 9)
SPACINGS = st.sampled_from([0.5, 0.8, 1.0, 1.3, 2.0])


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(SIZES, SIZES, SIZES),
    own=st.tuples(SPACINGS, SPACINGS, SPACINGS),
    wanted=st.tuples(SPACINGS, SPACINGS, SPACINGS),
    signs=st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3),
    order=st.permutations(range(3)),
    crop=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_the_likeliest_label_is_the_one_that_labels_are_resampled_to(
    shape: tuple[int, ...],
    own: tuple[float, ...],
    wanted: tuple[float, ...],
    signs: tuple[float, ...],
    order: list[int],
    crop: bool,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, shape).astype(np.uint8)
    image = rng.integers(0, 2, shape) * rng.uniform(1, 2, shape)
    image.flat[0] = 1.0  # not all of it is cropped away
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) * signs * own)[:, order]
    preprocess = {
        "spacing_mm": list(wanted),
        "normalisation": [{"scheme": "none"}],
        "crop_to_nonzero": crop,
    }
    preprocessor = Preprocessor(parse_config({"name": "test", "preprocess": preprocess}, "test"))
    volume = Volume(image[None].astype(np.float32), Geometry(shape, affine))
    prepared = preprocessor.prepare(volume)
    certain = np.stack([label == 1, label == 2]).astype(np.float32)
    found = preprocessor.prepare_chances(certain, prepared)
    assert found.shape == (2, *prepared.geometry.shape)
    assert found.min() > -1e-5
    assert found.sum(0).max() < 1 + 1e-5
    every = np.concatenate([1 - found.sum(0, keepdims=True), found])
    first, second = np.sort(every, axis=0)[-1], np.sort(every, axis=0)[-2]
    clear = first - second > 1e-4
    np.testing.assert_array_equal(every.argmax(0)[clear], preprocessor.prepare_label(label, prepared)[clear])
