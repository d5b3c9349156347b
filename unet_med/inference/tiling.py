"""Where overlapping windows lie along an image, and how much each counts at each voxel.

The window places, the step and the width of the weight follow nnU-Net (Isensee et al., Nature Methods 2021). The
weight of a window is a product of one weight for each axis, and so is the sum of all weights at a voxel; each axis
is therefore normalised on its own before anything is added, and no second image of weights is held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

import torch
import torch.nn.functional as F

Centre = Literal["middle", "voxel"]

_ROUNDING = 1e-9
"""28 voxels are 5 steps of 8 * (1 - 0.3), not a little more."""


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
    count = ceil((size - window) / step - _ROUNDING) + 1
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


@dataclass(frozen=True, eq=False)
class WindowAxis:
    """The windows of an image along one of its axes.

    An axis shorter than the window has one window, which reaches over both of its ends.

    Attributes:
        size: Voxels of the image.
        window: Voxels that a window puts out.
        border: Voxels that a window reads beyond each of its ends. Where they lie outside of the image they are
            mirrored (the overlap tiles of U-Net 2015); without a border there are zeros, the mean of a normalised
            image.
        starts: First voxel of each window; negative where it lies outside of the image.
        shares: For each window float32 (its voxels inside of the image,): its share of each; the shares of a voxel
            sum to 1.
    """

    size: int
    window: int
    border: int
    starts: tuple[int, ...]
    shares: tuple[torch.Tensor, ...]

    @classmethod
    def of(
        cls, size: int, window: int, overlap: float, sigma: float, border: int = 0, centre: Centre = "middle"
    ) -> WindowAxis:
        """Lays windows over ``size`` voxels; ``overlap``, ``sigma`` and ``centre`` as in :func:`window_axes`."""
        missing = max(0, window - size)
        starts = [start - missing // 2 for start in window_starts(size + missing, window, overlap)]
        gaussian = _gaussian(window, sigma, centre).double()
        total = torch.zeros(size + missing, dtype=torch.float64)
        for start in starts:
            total[start + missing // 2 :][:window] += gaussian
        shares = []
        for start in starts:
            share = (gaussian / total[start + missing // 2 :][:window]).float()
            shares.append(share[max(0, -start) : size - start].clone())
        return cls(size, window, border, tuple(starts), tuple(shares))

    @classmethod
    def singly(cls, size: int, border: int = 0) -> WindowAxis:
        """Takes every voxel on its own: the slices of a volume for a 2-D network, which may see their neighbours."""
        return cls(size, 1, border, tuple(range(size)), (torch.ones(1),) * size)

    def inside(self, number: int) -> tuple[int, int]:
        """Returns the first voxel of the image that window ``number`` covers, and the one after the last."""
        start = self.starts[number]
        return max(0, start), min(self.size, start + self.window)

    def support(self, number: int) -> tuple[int, int]:
        """Returns which voxels of the image window ``number`` reads, as a range."""
        if not self.border:
            return self.inside(number)
        index = self._mirrored(number)
        return int(index.min()), int(index.max()) + 1

    def read(self, image: torch.Tensor, axis: int, number: int, offset: int) -> torch.Tensor:
        """Returns what window ``number`` reads along ``axis`` of a part of the image that begins at ``offset``."""
        if self.border:
            first, length = self.starts[number] - self.border, self.window + 2 * self.border
            if first >= 0 and first + length <= self.size:
                return image.narrow(axis, first - offset, length)
            return image.index_select(axis, (self._mirrored(number) - offset).to(image.device))
        first, stop = self.inside(number)
        image = image.narrow(axis, first - offset, stop - first)
        before = first - self.starts[number]
        after = self.window - before - (stop - first)
        if not before and not after:
            return image
        return F.pad(image, [0, 0] * (image.ndim - 1 - axis) + [before, after])

    def trimmed(self, output: torch.Tensor, axis: int, number: int) -> torch.Tensor:
        """Returns the part of a window's output that lies inside of the image."""
        first, stop = self.inside(number)
        return output.narrow(axis, first - self.starts[number], stop - first)

    def _mirrored(self, number: int) -> torch.Tensor:
        """Indices mirrored at the end voxels of the axis, as often as needed."""
        first = self.starts[number] - self.border
        index = torch.arange(first, first + self.window + 2 * self.border)
        if self.size == 1:
            return torch.zeros_like(index)
        index = index.remainder(2 * (self.size - 1))
        return torch.where(index < self.size, index, 2 * (self.size - 1) - index)


def window_axes(
    size: Sequence[int],
    window: Sequence[int],
    overlap: float,
    sigma: float,
    context: Sequence[int],
    slices: int = 1,
    centre: Centre = "middle",
) -> tuple[WindowAxis, ...]:
    """Lays windows over a picture or a volume; a 2-D window goes through a volume slice by slice.

    Args:
        size: Voxels of the image along each axis.
        window: Voxels of a window along each axis of the network; one axis less than the image is allowed.
        overlap: Share of a window that the next one covers at least, in [0, 1).
        sigma: Width of the blending weight in window lengths.
        context: Voxels that the network reads beyond each side of a window, for each of its axes.
        slices: Neighbouring slices that a 2-D network sees of a volume, the one it labels in the middle.
        centre: Where the blending weight is 1: in the middle of a window, or at its voxel ``window // 2`` (nnU-Net).

    Raises:
        ValueError: when the window has another number of axes.
    """
    if len(size) not in (len(window), len(window) + 1):
        raise ValueError(f"a {len(window)}-D window does not fit an image of shape {tuple(size)}")
    sides = zip(size, window, context, strict=False)
    axes = [WindowAxis.of(n, w, overlap, sigma, border, centre) for n, w, border in sides]
    return (*axes, *(WindowAxis.singly(n, slices // 2) for n in size[len(window) :]))


def _gaussian(size: int, sigma: float, centre: Centre = "middle") -> torch.Tensor:
    middle = size // 2 if centre == "voxel" else (size - 1) / 2
    position = torch.arange(size, dtype=torch.float64) - middle
    exponent = -0.5 * (position / (size * sigma)) ** 2
    return torch.exp(exponent.clamp_min(-60.0)).to(torch.float32)
