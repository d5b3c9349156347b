"""Statistics without a copy of the image: equal to NumPy's of the whole, whatever the dtype and memory order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_med.config import ChannelNormalisation
from unet_med.errors import InputRefusedError
from unet_med.transforms import intensity
from unet_med.transforms.intensity import Intensity, measure, nonzero_box

DTYPES = ("<i2", ">i2", "u1", "<u2", "<i4", "<f4", ">f4", "<f8", ">f8")
shapes = st.one_of(st.tuples(*[st.integers(2, 12)] * 2), st.tuples(*[st.integers(2, 9)] * 3))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intensity, "_CHUNK_VOXELS", 60)


@st.composite
def images(draw: st.DrawFn) -> npt.NDArray:
    """(C, *s) of any dtype, axes exchanged and flipped, with zeros at places and not constant."""
    shape = (draw(st.integers(1, 3)), *draw(shapes))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    values = rng.normal(90, 30, shape).clip(1, 255)
    if dtype.kind in "if":
        values *= rng.choice([-1, 1], shape)
    values[:, rng.random(shape[1:]) < draw(st.sampled_from([0.0, 0.4, 0.95]))] = 0
    values[:, (0,) * (len(shape) - 1)] = 0
    values[(slice(None), *(0,) * (len(shape) - 1))] = 77
    order = draw(st.permutations(range(len(shape))))
    array = np.empty([shape[axis] for axis in order], dtype=dtype).transpose(np.argsort(order))
    array[...] = values
    flips = [slice(None, None, draw(st.sampled_from([1, -1]))) for _ in shape]
    return array[tuple(flips)]


def plain(image: npt.NDArray, settings: ChannelNormalisation, nonzero_only: bool) -> npt.NDArray[np.float64]:
    """Normalisation by the book, of the whole image in float64."""
    inside = (image != 0).any(axis=0) if nonzero_only else np.ones(image.shape[1:], dtype=bool)
    channels = []
    for channel in image.astype(np.float32).astype(np.float64):
        values = channel
        if settings.scheme == "percentile":
            low, high = np.percentile(values, (0.5, 99.5))
            values = values.clip(low, high) if high > low else values
        values = (values - values[inside].mean()) / max(values[inside].std(), 1e-8)
        channels.append(np.where(inside, values, 0))
    return np.stack(channels)


@pytest.mark.parametrize("scheme", ["zscore", "percentile"])
@settings(max_examples=80, deadline=None)
@given(image=images(), nonzero_only=st.booleans())
def test_normalised_values_are_those_of_the_whole_image(scheme: str, image: npt.NDArray, nonzero_only: bool) -> None:
    settings_ = ChannelNormalisation.model_validate({"scheme": scheme})
    varied = all(len(np.unique(channel)) > 1 for channel in image)
    if not varied:
        with pytest.raises(InputRefusedError):
            measure(image, [settings_] * len(image), nonzero_only)
        return
    expected = plain(image, settings_, nonzero_only)
    values = torch.from_numpy(image.astype(np.float32, order="C"))
    outside = (values == 0).all(dim=0)
    for channel, one in zip(values, measure(image, [settings_] * len(image), nonzero_only), strict=True):
        one.apply_(channel, outside)
    if np.abs(expected).max() < 1e3:  # else the deviation inside is nothing but rounding
        np.testing.assert_allclose(values.numpy(), expected, atol=1e-4, rtol=1e-5)


@settings(max_examples=80, deadline=None)
@given(image=images())
def test_the_box_holds_exactly_what_is_not_zero(image: npt.NDArray) -> None:
    places = np.argwhere((image != 0).any(axis=0))
    expected = tuple(slice(int(a), int(b) + 1) for a, b in zip(places.min(0), places.max(0), strict=True))
    assert nonzero_box(image) == expected


def test_the_box_of_nothing_is_everything() -> None:
    assert nonzero_box(np.zeros((2, 3, 4), dtype=np.int16)) == (slice(0, 3), slice(0, 4))


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=200),
    share=st.floats(0, 1),
)
def test_quantiles_are_exact(values: list[float], share: float) -> None:
    image = np.array(values, dtype=np.float32).reshape(1, -1, 1)
    channel = intensity._Channel(image, 0, nonzero_only=False)
    expected = np.quantile(image.astype(np.float64), [share, 0.005, 0.995])
    ours = intensity.quantiles(channel, [share, 0.005, 0.995])
    np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-40)


def test_channels_that_do_not_need_it_are_not_measured() -> None:
    constant = np.full((1, 4, 4), 3.0)
    assert measure(constant, [ChannelNormalisation(scheme="none")], nonzero_only=False) == (Intensity(),)
    values = torch.arange(4.0)
    Intensity().apply_(values, None)
    assert values.tolist() == [0, 1, 2, 3]


def test_a_large_offset_does_not_spoil_the_deviation() -> None:
    image = (1e6 + np.arange(1000).reshape(1, 10, 100) % 7).astype(np.float32)
    (found,) = measure(image, [ChannelNormalisation(scheme="zscore")], nonzero_only=False)
    assert found.sd == pytest.approx(float(image.std(dtype=np.float64)), rel=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    image = np.arange(100, dtype=np.float32).reshape(1, 10, 10)
    image[0, 9, 9] = bad
    with pytest.raises(InputRefusedError, match="channel 0 holds values that are not finite"):
        measure(image, [ChannelNormalisation(scheme="percentile")], nonzero_only=False)


def test_what_a_window_cuts_off_may_be_infinite() -> None:
    ct = ChannelNormalisation(scheme="ct", window=(-100.0, 100.0), mean=0.0, sd=50.0)
    image = np.array([[[-np.inf, 0.0, 50.0]]])
    (found,) = measure(image, [ct], nonzero_only=False)
    values = torch.tensor([-torch.inf, 0.0, 50.0])
    found.apply_(values, None)
    assert values.tolist() == [-2, 0, 1]
