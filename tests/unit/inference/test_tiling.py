"""How windows are run: how many, on what, and averaged over which flips."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unet_med.inference.tiling import sliding_window_logits


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class _Counting:
    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(batch.shape))
        return batch


@pytest.mark.parametrize("shape", [(8, 9, 10), (10, 10, 10)])
def test_an_image_of_one_window_costs_one_forward(shape: tuple[int, ...]) -> None:
    network = _Counting()
    sliding_window_logits(torch.randn(1, *shape), network, (10, 10, 10), 1)
    assert network.shapes == [(1, 1, 10, 10, 10)]


def test_windows_are_run_in_batches() -> None:
    network = _Counting()
    sliding_window_logits(torch.randn(1, 20, 20), network, (10, 10), 1, window_batch=4)
    assert [shape[0] for shape in network.shapes] == [4, 4, 1]


def test_a_2d_network_goes_through_a_volume_slice_by_slice() -> None:
    network = _Counting()
    image = torch.randn(2, 10, 8, 5)
    logits = sliding_window_logits(image, network, (10, 8), 2, window_batch=2)
    assert [shape[0] for shape in network.shapes] == [2, 2, 1]
    assert torch.equal(logits, image)


def test_small_images_are_padded_with_zero_or_mirrored() -> None:
    seen: list[torch.Tensor] = []

    def network(batch: torch.Tensor) -> torch.Tensor:
        seen.append(batch.clone())
        return batch[..., 1:-1, 1:-1] if batch.shape[-1] == 6 else batch

    image = torch.arange(1.0, 7.0).reshape(1, 2, 3)
    sliding_window_logits(image, network, (4, 4), 1)
    assert torch.equal(seen[0][0, 0], torch.nn.functional.pad(image[0], (0, 1, 1, 1)))
    sliding_window_logits(image, network, (4, 4), 1, context=1)
    assert np.array_equal(seen[1][0, 0].numpy(), np.pad(image[0].numpy(), ((2, 2), (1, 2)), mode="reflect"))


def test_flips_are_undone_before_they_are_averaged() -> None:
    calls: list[int] = []

    def lopsided(batch: torch.Tensor) -> torch.Tensor:
        calls.append(len(batch))
        return batch.roll(1, dims=2)

    image = torch.randn(1, 6, 5)
    logits = sliding_window_logits(image, lopsided, (6, 5), 1, mirror_axes=(0, 1))
    expected = (image.roll(1, dims=1) + image.roll(-1, dims=1)) / 2
    assert len(calls) == 4
    assert torch.allclose(logits, expected)


def test_a_symmetric_network_makes_symmetric_masks() -> None:
    torch.manual_seed(0)
    convolution = torch.nn.Conv3d(1, 2, 3, padding=1)
    image = torch.randn(1, 17, 12, 9)
    options = {"mirror_axes": (0, 1, 2)}
    with torch.no_grad():
        one = sliding_window_logits(image, convolution, (8, 8, 8), 2, **options)
        other = sliding_window_logits(image.flip(1, 3), convolution, (8, 8, 8), 2, **options).flip(1, 3)
    assert torch.allclose(one, other, atol=1e-5)


def test_half_precision_is_summed_in_single() -> None:
    convolution = torch.nn.Conv2d(1, 2, 3, padding=1)
    types: list[torch.dtype] = []

    def network(batch: torch.Tensor) -> torch.Tensor:
        out = convolution(batch)
        types.append(out.dtype)
        return out

    logits = sliding_window_logits(torch.randn(1, 12, 12), network, (8, 8), 2, precision=torch.bfloat16)
    assert set(types) == {torch.bfloat16}
    assert logits.dtype == torch.float32
    assert not logits.requires_grad


def test_another_number_of_axes_is_an_error() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        sliding_window_logits(torch.randn(1, 4, 4), torch.nn.Identity(), (4, 4, 4), 1)
