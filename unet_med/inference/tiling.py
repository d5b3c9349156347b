"""Overlapping windows, blended with a Gaussian weight.

The window places, the step and the width of the weight follow nnU-Net (Isensee et al., Nature Methods 2021). The
weight of a window is a product of one weight for each axis, and so is the sum of all weights at a voxel; each axis
is therefore normalised on its own before anything is added, and no second image of weights is held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice, product

import torch
import torch.nn.functional as F

LogitsFunction = Callable[[torch.Tensor], torch.Tensor]


def window_starts(size: int, window: int, overlap: float) -> list[int]:
    """Returns where windows begin along one axis: the first at 0, the last ending at ``size``, evenly spread.

    Args:
        size: Voxels along the axis, at least ``window``.
        window: Voxels of a window.
        overlap: Share of a window that the next one covers at least, in [0, 1).
    """
    if size <= window:
        return [0]
    step = max(1.0, window * (1.0 - overlap))
    count = -int(-(size - window) // step) + 1
    return [round(index * (size - window) / (count - 1)) for index in range(count)]


def gaussian_weight(window: Sequence[int], sigma: float) -> torch.Tensor:
    """Returns the blending weight of a window: a Gaussian, 1 at its centre.

    Args:
        window: Voxels along each axis.
        sigma: Standard deviation in window lengths (nnU-Net: 1/8).

    Returns:
        float32 of shape ``window``, in (0, 1].
    """
    weight = torch.ones(())
    for size in window:
        weight = weight[..., None] * _gaussian(size, sigma)
    return weight.clamp_min(torch.finfo(torch.float32).tiny)


def sliding_window_logits(
    image: torch.Tensor,
    network: LogitsFunction,
    window: Sequence[int],
    outputs: int,
    overlap: float = 0.5,
    sigma: float = 0.125,
    context: Sequence[int] | int = 0,
    mirror_axes: Sequence[int] = (),
    device: torch.device | str = "cpu",
    precision: torch.dtype = torch.float32,
    window_batch: int = 1,
) -> torch.Tensor:
    """Computes the logits of a whole image window by window.

    An image smaller than the window is padded: with 0 (the mean of a normalised image) for padded networks, by
    reflection for networks with ``context``, whose borders are always reflected (the overlap tiles of U-Net 2015).
    A 2-D window on a (C, I, J, K) image goes through K slice by slice.

    Args:
        image: (C, I, J[, K]) float32, normalised.
        network: Maps (N, C, *(window + 2 * context)) to logits (N, outputs, *window); in evaluation mode.
        window: Voxels of a window along each axis of the network (2 or 3).
        outputs: Channels of the logits.
        overlap: Share of a window that the next one covers, in [0, 1).
        sigma: Width of the blending weight in window lengths.
        context: Voxels that the network needs beyond each side of the window.
        mirror_axes: Axes (of the window) over whose flips logits are averaged.
        device: Where the network computes.
        precision: bfloat16 or float16 for autocast; float32 for none.
        window_batch: Windows in one forward pass.

    Returns:
        (outputs, I, J[, K]) float32 on the CPU.
    """
    window = tuple(int(n) for n in window)
    dims = len(window)
    borders = (int(context),) * dims if isinstance(context, int) else tuple(int(n) for n in context)
    slices = image.movedim(-1, 0) if image.ndim == dims + 2 else image[None]
    if slices.ndim != dims + 2:
        raise ValueError(f"a {dims}-D window does not fit an image of shape {tuple(image.shape)}")
    layout = _Layout.of(tuple(slices.shape[2:]), window, overlap, sigma)
    padded = _pad(slices, layout.before, layout.after, borders)
    run = _forward(network, tuple(mirror_axes), torch.device(device), precision)
    size = tuple(slices.shape[2:])
    total = torch.zeros((slices.shape[0], outputs, *size), dtype=torch.float32)
    with torch.inference_mode():
        for jobs in _batches(slices.shape[0], layout.places, window_batch):
            batch = torch.stack([layout.read(padded[index], place, borders) for index, place in jobs])
            for (index, place), logits in zip(jobs, run(batch).to("cpu", torch.float32), strict=True):
                layout.add(total[index], logits, place)
    return total.movedim(0, -1) if image.ndim == dims + 2 else total[0]


@dataclass(frozen=True)
class _Layout:
    """Where windows lie in the padded image, and how much each counts at each voxel."""

    size: tuple[int, ...]
    window: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    weights: tuple[dict[int, torch.Tensor], ...]
    places: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, size: tuple[int, ...], window: tuple[int, ...], overlap: float, sigma: float) -> _Layout:
        missing = [max(0, w - n) for n, w in zip(size, window, strict=True)]
        before = tuple(m // 2 for m in missing)
        after = tuple(m - m // 2 for m in missing)
        starts = [window_starts(n + m, w, overlap) for n, m, w in zip(size, missing, window, strict=True)]
        weights = tuple(
            _normalised(n + m, w, s, sigma) for n, m, w, s in zip(size, missing, window, starts, strict=True)
        )
        return cls(size, window, before, after, weights, tuple(product(*starts)))

    def read(self, padded: torch.Tensor, place: tuple[int, ...], borders: tuple[int, ...]) -> torch.Tensor:
        """The part of the padded image that the network needs for this window; a view."""
        for axis, (start, size, border) in enumerate(zip(place, self.window, borders, strict=True), start=1):
            padded = padded.narrow(axis, start, size + 2 * border)
        return padded

    def add(self, total: torch.Tensor, logits: torch.Tensor, place: tuple[int, ...]) -> None:
        """Adds the weighted logits of one window where it covers the image."""
        weight = torch.ones(())
        for axis, start in enumerate(place):
            first = max(0, start - self.before[axis])
            stop = min(self.size[axis], start - self.before[axis] + self.window[axis])
            offset = self.before[axis] - start
            total = total.narrow(axis + 1, first, stop - first)
            logits = logits.narrow(axis + 1, first + offset, stop - first)
            weight = weight[..., None] * self.weights[axis][start][first + offset : stop + offset]
        total.addcmul_(logits, weight)


def _gaussian(size: int, sigma: float) -> torch.Tensor:
    position = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    exponent = -0.5 * (position / (size * sigma)) ** 2
    return torch.exp(exponent.clamp_min(-60.0)).to(torch.float32)


def _normalised(size: int, window: int, starts: list[int], sigma: float) -> dict[int, torch.Tensor]:
    """For each window along one axis its share of every voxel: the shares of a voxel sum to 1."""
    gaussian = _gaussian(window, sigma).double()
    total = torch.zeros(size, dtype=torch.float64)
    for start in starts:
        total[start : start + window] += gaussian
    return {start: (gaussian / total[start : start + window]).float() for start in starts}


def _pad(slices: torch.Tensor, before: Sequence[int], after: Sequence[int], borders: Sequence[int]) -> torch.Tensor:
    if any(borders):
        for axis, (left, right, border) in enumerate(zip(before, after, borders, strict=True), start=2):
            index = _reflected(slices.shape[axis], left + border, right + border, slices.device)
            slices = slices.index_select(axis, index)
        return slices
    if not any(before) and not any(after):
        return slices
    amounts = [n for pair in reversed(list(zip(before, after, strict=True))) for n in pair]
    return F.pad(slices, amounts)


def _reflected(size: int, before: int, after: int, device: torch.device) -> torch.Tensor:
    """Indices that mirror an axis at its end voxels, as often as needed."""
    index = torch.arange(-before, size + after, device=device)
    if size == 1:
        return torch.zeros_like(index)
    index = index.remainder(2 * (size - 1))
    return torch.where(index < size, index, 2 * (size - 1) - index)


def _batches(slices: int, places: Sequence[tuple[int, ...]], size: int) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
    jobs = product(range(slices), places)
    while batch := list(islice(jobs, max(1, size))):
        yield batch


def _forward(
    network: LogitsFunction, mirror_axes: tuple[int, ...], device: torch.device, precision: torch.dtype
) -> LogitsFunction:
    """Returns the forward pass of a batch: moved to the device, cast, and averaged over flips."""
    flips = [axes for count in range(len(mirror_axes) + 1) for axes in combinations(mirror_axes, count)]

    def run(batch: torch.Tensor) -> torch.Tensor:
        layout = torch.channels_last_3d if batch.ndim == 5 else torch.channels_last
        batch = batch.to(device, torch.float32).contiguous(memory_format=layout)
        total: torch.Tensor | None = None
        with torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
            for axes in flips:
                turn = [axis + 2 for axis in axes]
                logits = network(batch.flip(turn) if turn else batch).float()
                logits = logits.flip(turn) if turn else logits
                total = logits if total is None else total + logits
        if total is None:
            raise ValueError("no forward pass was made")
        return total / len(flips) if len(flips) > 1 else total

    return run
