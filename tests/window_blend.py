"""A whole image through a window stream, for tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from unet_med.inference.stream import WindowStream, finished_rows, mirrored
from unet_med.inference.tiling import window_axes


@dataclass
class TensorRows:
    """A tensor (C, *s) as an image that is read slab by slab; remembers what was read."""

    image: torch.Tensor

    def __post_init__(self) -> None:
        self.read: list[tuple[int, int]] = []

    def slab(self, axis: int, start: int, stop: int, device: torch.device | None = None) -> torch.Tensor:
        self.read.append((start, stop))
        return self.image.narrow(axis + 1, start, stop - start)


def blended(
    image: torch.Tensor | TensorRows,
    run: Callable[[torch.Tensor], torch.Tensor],
    window: Sequence[int],
    channels: int,
    *,
    overlap: float = 0.5,
    sigma: float = 0.125,
    context: Sequence[int] | int = 0,
    mirror_axes: Sequence[int] = (),
    batch: int = 1,
    along: int = 0,
    skip: Callable[[Sequence[torch.Tensor]], Sequence[bool]] | None = None,
    slices: int = 1,
) -> torch.Tensor:
    """Returns the blended output (channels, *s), with ``skip`` one channel more."""
    rows = image if isinstance(image, TensorRows) else TensorRows(image)
    size = tuple(rows.image.shape[1:])
    borders = (context,) * len(window) if isinstance(context, int) else tuple(context)
    axes = window_axes(size, window, overlap, sigma, borders, slices)
    stream = WindowStream(rows, axes, along, mirrored(run, mirror_axes), channels, len(window), batch, skip=skip)
    found = [values.clone() for _, _, values in finished_rows(stream)]
    assert stream.ready == size[along]
    return torch.cat(found, dim=along + 1)
