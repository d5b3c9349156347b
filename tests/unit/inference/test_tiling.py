"""How windows are run: how many, on what, and averaged over which flips."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from window_blend import TensorRows, blended

from unet_med.inference.stream import WindowStream, rolling_values
from unet_med.inference.tiling import window_axes, window_starts

pytestmark = pytest.mark.usefixtures("one_thread")


class _Counting:
    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(batch.shape))
        return batch


@pytest.mark.parametrize("shape", [(8, 9, 10), (10, 10, 10)])
def test_an_image_of_one_window_costs_one_forward(shape: tuple[int, ...]) -> None:
    network = _Counting()
    blended(torch.randn(1, *shape), network, (10, 10, 10), 1)
    assert network.shapes == [(1, 1, 10, 10, 10)]


def test_windows_are_run_in_batches() -> None:
    network = _Counting()
    blended(torch.randn(1, 20, 50), network, (10, 10), 1, batch=4)
    assert [shape[0] for shape in network.shapes] == 3 * [4, 4, 1]


def test_a_2d_network_goes_through_a_volume_slice_by_slice() -> None:
    network = _Counting()
    image = torch.randn(2, 10, 8, 5)
    logits = blended(image, network, (10, 8), 2, batch=2)
    assert [shape[0] for shape in network.shapes] == [2, 2, 1]
    assert torch.equal(logits, image)


def test_small_images_are_padded_with_zero_or_mirrored() -> None:
    seen: list[torch.Tensor] = []

    def network(batch: torch.Tensor) -> torch.Tensor:
        seen.append(batch.clone())
        return batch[..., 1:-1, 1:-1] if batch.shape[-1] == 6 else batch

    image = torch.arange(1.0, 7.0).reshape(1, 2, 3)
    blended(image, network, (4, 4), 1)
    assert torch.equal(seen[0][0, 0], torch.nn.functional.pad(image[0], (0, 1, 1, 1)))
    blended(image, network, (4, 4), 1, context=1)
    assert np.array_equal(seen[1][0, 0].numpy(), np.pad(image[0].numpy(), ((2, 2), (1, 2)), mode="reflect"))


def test_flips_are_undone_before_they_are_averaged() -> None:
    calls: list[int] = []

    def lopsided(batch: torch.Tensor) -> torch.Tensor:
        calls.append(len(batch))
        return batch.roll(1, dims=2)

    image = torch.randn(1, 6, 5)
    logits = blended(image, lopsided, (6, 5), 1, mirror_axes=(0, 1))
    expected = (image.roll(1, dims=1) + image.roll(-1, dims=1)) / 2
    assert len(calls) == 4
    assert torch.allclose(logits, expected)


def test_a_symmetric_network_makes_symmetric_masks() -> None:
    torch.manual_seed(0)
    convolution = torch.nn.Conv3d(1, 2, 3, padding=1)
    image = torch.randn(1, 17, 12, 9)
    options = {"mirror_axes": (0, 1, 2)}
    with torch.no_grad():
        one = blended(image, convolution, (8, 8, 8), 2, **options)
        other = blended(image.flip(1, 3), convolution, (8, 8, 8), 2, **options).flip(1, 3)
    assert torch.allclose(one, other, atol=1e-5)


def test_what_is_computed_needs_no_gradient() -> None:
    convolution = torch.nn.Conv2d(1, 2, 3, padding=1)
    assert not blended(torch.randn(1, 12, 12), convolution, (8, 8), 2).requires_grad


@pytest.mark.parametrize("along", [0, 1, 2])
def test_every_row_of_the_image_is_read_once_in_order(along: int) -> None:
    rows = TensorRows(torch.randn(1, 23, 19, 31))
    assert torch.allclose(blended(rows, lambda batch: batch, (8, 8, 8), 1, along=along), rows.image, atol=1e-6)
    assert rows.read[0][0] == 0
    assert all(stop == start for (_, stop), (start, _) in zip(rows.read[:-1], rows.read[1:], strict=True))
    assert rows.read[-1][1] == rows.image.shape[along + 1]


def test_what_is_held_does_not_grow_with_the_length() -> None:
    def held(length: int) -> int:
        axes = window_axes((40, 32, length), (16, 16, 16), 0.5, 0.125, (0, 0, 0))
        stream = WindowStream(TensorRows(torch.zeros(1, 40, 32, length)), axes, 2, lambda batch: batch, 1, 3)
        most = 0
        while not stream.is_finished:
            stream.advance(max(0, stream.ready - 1))
            most = max(most, stream._held.numel())
        assert most == rolling_values(axes, 2, 1)
        return most

    assert held(400) == held(50)


def test_skipped_windows_count_with_no_weight() -> None:
    image = torch.cat([torch.zeros(1, 30, 12), torch.ones(1, 30, 12)], dim=1)
    calls: list[int] = []

    def network(batch: torch.Tensor) -> torch.Tensor:
        calls.append(len(batch))
        return batch + 1.0

    found = blended(image, network, (8, 8), 1, skip=lambda windows: [not bool(window.any()) for window in windows])
    values, gaps = found
    assert set(gaps.unique().tolist()) == {0.0, 1.0}
    assert len(calls) < 14 * 2
    assert not gaps[30:].any()
    assert not values[gaps > 0].any()
    computed = gaps == 0
    assert torch.allclose(values[computed], image[0][computed] + 1.0, atol=1e-5)


def test_without_a_gap_skipping_changes_nothing() -> None:
    image = torch.randn(1, 30, 17)
    convolution = torch.nn.Conv2d(1, 2, 3, padding=1)
    plain = blended(image, convolution, (8, 8), 2)
    assert torch.equal(blended(image, convolution, (8, 8), 2, skip=lambda windows: [False] * len(windows))[:2], plain)


def test_steps_that_fit_exactly_are_not_one_more() -> None:
    assert window_starts(36, 8, 0.3) == [0, 6, 11, 17, 22, 28]
    assert window_starts(9, 2, 0.3) == [0, 1, 3, 4, 6, 7]


def test_another_number_of_axes_is_an_error() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        blended(torch.randn(1, 4, 4), torch.nn.Identity(), (4, 4, 4), 1)


@pytest.mark.parametrize("along", [0, 1, 2])
@pytest.mark.parametrize(("depth", "slices"), [(7, 3), (4, 5), (2, 7), (1, 3)])
def test_a_2d_network_sees_the_neighbours_of_a_slice(along: int, depth: int, slices: int) -> None:
    image, seen = torch.randn(2, 9, 8, depth), []

    def network(batch: torch.Tensor) -> torch.Tensor:
        seen.append(batch.shape[1])
        return batch

    found = blended(image, network, (6, 8), 2 * slices, along=along, batch=3, slices=slices)
    reach = slices // 2
    mode = "reflect" if depth > 1 else "edge"
    wide = np.pad(image.numpy(), [(0, 0)] * 3 + [(reach, reach)], mode=mode)
    expected = [wide[channel, ..., shift : shift + depth] for channel in range(2) for shift in range(slices)]
    assert set(seen) == {2 * slices}
    torch.testing.assert_close(found, torch.from_numpy(np.stack(expected)))
