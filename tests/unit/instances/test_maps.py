"""Maps of objects: what is made of a network's outputs, and kept in a byte for each value."""

import numpy as np
import torch

from unet_med.instances.maps import ObjectMaps


def _logits(seed: int = 0) -> torch.Tensor:
    return torch.randn(5, 6, 7, generator=torch.Generator().manual_seed(seed)) * 3


def test_maps_are_softmax_of_the_classes_and_sigmoids_of_border_and_distance() -> None:
    logits = _logits()
    maps = ObjectMaps.from_logits(logits)
    assert np.allclose(maps.classes, torch.softmax(logits[:3], 0).numpy())
    assert np.allclose(maps.border, torch.sigmoid(logits[3]).numpy())
    assert np.allclose(maps.distance, torch.sigmoid(logits[4]).numpy())
    assert maps.shape == (6, 7)
    assert maps.channels == 5
    assert {maps.classes.dtype, maps.border.dtype, maps.distance.dtype} == {np.dtype(np.float32)}


def test_logits_of_half_precision_and_arrays_give_the_same_maps() -> None:
    logits = _logits().to(torch.bfloat16)
    half, array = ObjectMaps.from_logits(logits), ObjectMaps.from_logits(logits.float().numpy())
    assert np.array_equal(half.classes, array.classes)
    assert np.array_equal(half.distance, array.distance)


def test_stored_maps_come_back_to_half_a_step_and_then_exactly() -> None:
    maps = ObjectMaps.from_logits(_logits())
    stored = maps.stored()
    assert stored.shape == (5, 6, 7)
    assert stored.dtype == np.uint8
    back = ObjectMaps.from_stored(stored)
    for mine, theirs in ((back.classes, maps.classes), (back.border, maps.border), (back.distance, maps.distance)):
        assert np.abs(mine - theirs).max() <= 0.5 / 255 + 1e-6
    assert np.array_equal(back.stored(), stored)
