"""Stains of tissue: amounts as another library finds them, changed and put together again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage import color

from unet_med.config import Augment
from unet_med.transforms.stains import StainChange, Tint, draw_stains, with_stains

STILL = StainChange((1.0, 1.0, 1.0), (0.0, 0.0, 0.0))


def tissue(seed: int = 0) -> tuple[np.ndarray, torch.Tensor, Tint]:
    """A picture of some haematoxylin and eosin (3, *s) in [0, 1], as it is prepared, and how it goes back."""
    amounts = np.random.default_rng(seed).uniform(0, 0.04, (20, 30, 3)) * (1.0, 1.0, 0.0)
    light = color.hed2rgb(amounts).transpose(2, 0, 1)
    mean, sd = light.mean(axis=(1, 2)) * 255, light.std(axis=(1, 2)) * 255
    prepared = (light * 255 - mean[:, None, None]) / sd[:, None, None]
    return light, torch.from_numpy(prepared.astype(np.float32)), Tint(tuple(mean), tuple(sd), 255.0)


def as_light(prepared: torch.Tensor, tint: Tint) -> np.ndarray:
    mean, sd = (np.array(values)[:, None, None] for values in (tint.mean, tint.sd))
    return (prepared.numpy() * sd + mean) / tint.white


def test_amounts_are_scaled_as_by_scikit_image() -> None:
    light, prepared, tint = tissue()
    change = StainChange((1.3, 0.6, 1.0), (0.0, 0.0, 0.0))
    expected = color.hed2rgb(color.rgb2hed(light.transpose(1, 2, 0)) * change.factors).transpose(2, 0, 1)
    np.testing.assert_allclose(as_light(with_stains(prepared, change, tint), tint), expected, atol=2e-3)
    assert np.abs(expected - light).max() > 0.05


def test_a_shift_adds_the_same_density_everywhere() -> None:
    light, prepared, tint = tissue()
    darker = as_light(with_stains(prepared, StainChange((1.0, 1.0, 1.0), (0.2, 0.0, 0.0)), tint), tint)
    added = np.log(light) - np.log(darker)
    np.testing.assert_allclose(added.reshape(3, -1).std(axis=1), 0.0, atol=1e-4)
    ratios = added.mean(axis=(1, 2)) / added[0].mean()
    np.testing.assert_allclose(ratios, np.array([0.65, 0.70, 0.29]) / 0.65, rtol=1e-3)


def test_no_change_and_grey_pictures_stay_as_they_are() -> None:
    _, prepared, tint = tissue()
    torch.testing.assert_close(with_stains(prepared, STILL, tint), prepared, atol=1e-3, rtol=1e-3)
    grey = prepared[:1].expand(3, -1, -1)
    changed = with_stains(grey, StainChange((1.3, 0.6, 1.0), (0.1, 0.0, 0.0)), tint)
    assert torch.equal(changed, grey)


def test_white_stays_white_and_nothing_becomes_infinite() -> None:
    _, prepared, tint = tissue()
    extremes = prepared.clone()
    column = torch.tensor(tint.mean).reshape(3, 1), torch.tensor(tint.sd).reshape(3, 1)
    extremes[:, 0] = (255.0 - column[0]) / column[1]
    extremes[:, 1] = (0.0 - column[0]) / column[1]
    changed = with_stains(extremes, StainChange((1.3, 1.3, 1.3), (0.0, 0.0, 0.0)), tint)
    assert torch.isfinite(changed).all()
    np.testing.assert_allclose(as_light(changed, tint)[:, 0], 1.0, atol=1e-3)


def test_draws_follow_probability_and_ranges() -> None:
    settings = Augment(stain_probability=0.5, stain_factor=(0.9, 1.2), stain_shift=(-0.1, 0.0))
    drawn = [draw_stains(settings, np.random.default_rng(seed)) for seed in range(400)]
    changed = [one for one in drawn if one is not None]
    assert len(changed) == pytest.approx(200, abs=60)
    factors, shifts = (np.array([getattr(one, name) for one in changed]) for name in ("factors", "shifts"))
    assert 0.9 <= factors.min() < 0.93 < 1.17 < factors.max() <= 1.2
    assert -0.1 <= shifts.min() < -0.09 < -0.01 < shifts.max() <= 0.0
    assert draw_stains(Augment(), np.random.default_rng(0)) is None
