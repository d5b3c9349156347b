"""Heat maps of a view: where a network takes a label from.

* Seg-Grad-CAM (Vinogradova, Dibrov and Myers, AAAI 2020; Grad-CAM: Selvaraju et al., ICCV 2017): the features of the
  deepest level, weighted by how much the label's logits, summed over its mask, grow with each.
* Occlusion (Zeiler and Fergus, ECCV 2014): how much less likely the label becomes, within its mask, when a block is
  hidden: replaced by the mean of each channel over the view.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unet_med.labels import LabelMap
from unet_med.networks import Segmenter
from unet_med.review.explaining.view import BoolArray, FloatArray, View
from unet_med.volume import Region

MOST_BLOCKS = 128
"""Of a view; each is a forward pass for every network that is asked."""
_STEPS = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
_LINEAR: dict[int, str] = {2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True, eq=False)
class Blocks:
    """Blocks of about equal edges that together are a region.

    Attributes:
        bounds: For each axis where blocks begin, and where the last one ends, in voxels of the region.
    """

    bounds: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, shape: Sequence[int], spacing: Sequence[float], edge: float) -> Blocks:
        """Divides a region evenly.

        Args:
            shape: Voxels of the region along each axis.
            spacing: Of its grid, in mm (or 1).
            edge: Of a block along each axis, in mm (or voxels); blocks are a little longer or shorter.
        """
        counts = (min(n, max(1, round(n * step / edge))) for n, step in zip(shape, spacing, strict=True))
        return cls(
            tuple(tuple(n * i // count for i in range(count + 1)) for n, count in zip(shape, counts, strict=True))
        )

    @classmethod
    def few(cls, shape: Sequence[int], spacing: Sequence[float]) -> Blocks:
        """Returns the smallest blocks of a round edge that are not more than :data:`MOST_BLOCKS`."""
        power = 10.0 ** np.floor(np.log10(min(spacing)))
        while True:
            for step in _STEPS:
                found = cls.of(shape, spacing, float(step * power))
                if len(found) <= MOST_BLOCKS:
                    return found
            power *= 10.0

    def __len__(self) -> int:
        return prod(len(ends) - 1 for ends in self.bounds)

    @property
    def shape(self) -> tuple[int, ...]:
        """Blocks along each axis."""
        return tuple(len(ends) - 1 for ends in self.bounds)

    def regions(self) -> Iterator[Region]:
        """Yields the voxels of each block; the last axis runs fastest."""
        for ends in product(*map(pairwise, self.bounds)):
            yield tuple(slice(first, last) for first, last in ends)

    def painted(self, values: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Gives each voxel of the region the value of its block, (blocks,) to (*region)."""
        grid = np.asarray(values, dtype=np.float32).reshape(self.shape)
        for axis, ends in enumerate(self.bounds):
            grid = np.repeat(grid, np.diff(ends), axis=axis)
        return grid

    def means(self, grid: npt.NDArray[Any]) -> FloatArray:
        """Returns the mean of each block, (*region) to (blocks,)."""
        sums = grid.astype(np.float64)
        for axis, ends in enumerate(self.bounds):
            sums = np.add.reduceat(sums, ends[:-1], axis=axis)
        return np.asarray(sums.ravel() / [prod(part.stop - part.start for part in region) for region in self.regions()])


def hidden(image: Tensor, regions: Iterable[Region]) -> Tensor:
    """Returns a copy of an image (C, *region) in which parts hold nothing but the mean of each channel."""
    mean = image.flatten(1).mean(dim=1).view(-1, *[1] * (image.ndim - 1))
    copy = image.clone()
    for region in regions:
        copy[(slice(None), *region)] = mean
    return copy


def occlusion(
    view: View,
    blocks: Blocks,
    masks: Sequence[BoolArray],
    places: Sequence[int],
    network: Segmenter | None = None,
    tell: Iterable[Region] | None = None,
) -> FloatArray:
    """Returns for each block how much less likely labels become within their masks when it is hidden.

    Args:
        view: Where it is looked.
        blocks: Of the view's region.
        masks: (*inside) for each label, none empty.
        places: Which label of the map each one is, from 0.
        network: Looks in place of the view's own.
        tell: The blocks' regions, wrapped so that somebody sees how far it is.

    Returns:
        (labels, blocks) of probability; below 0 where a block speaks against the label.
    """
    (base,) = view.confidences([view.image], masks, places, network)
    images = (hidden(view.image, [region]) for region in (blocks.regions() if tell is None else tell))
    return np.asarray(base[:, None] - view.confidences(images, masks, places, network).T)


def grad_cam(view: View, mask: BoolArray, place: int, network: Segmenter | None = None) -> npt.NDArray[np.float32]:
    """Returns the Seg-Grad-CAM map of a label over the view's region, (*region) from 0.

    Args:
        view: Where it is looked.
        mask: (*inside) where the label was found.
        place: Which label of the map it is, from 0.
        network: Looks in place of the view's own.
    """
    network = network or view.network
    x = view.entering(view.image)[None].requires_grad_()
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> None:
        kept.append(output)

    handle = network.deepest.register_forward_hook(keep)
    try:
        logits = view.trimmed(network(x))[0, _output_of(view.labels, place)]
    finally:
        handle.remove()
    features = kept[0]
    (gradient,) = torch.autograd.grad(logits[torch.from_numpy(mask).to(logits.device)].sum(), features)
    weights = gradient.mean(dim=tuple(range(2, gradient.ndim)), keepdim=True)
    heat = (weights * features.detach()).sum(dim=1, keepdim=True).relu()
    return _over_region(view, heat, network.deepest_strides)


def _output_of(labels: LabelMap, place: int) -> int:
    """Which output of the network stands for a label: its own, or the region that it is painted for."""
    index = labels.labels[place].index
    return labels.region_values().index(index) if labels.regions else index


def _over_region(view: View, heat: Tensor, strides: Sequence[int]) -> npt.NDArray[np.float32]:
    """Brings (1, 1, *coarse) to the voxels that the view reads; what lies beyond the coarse grid is 0."""
    fine = [n * stride for n, stride in zip(heat.shape[2:], strides, strict=True)]
    grid = F.interpolate(heat, fine, mode=_LINEAR[len(fine)], align_corners=False)[0, 0].cpu().numpy()
    for n, axis in enumerate(view.axes[: grid.ndim]):
        lost = (axis.window + 2 * axis.border - grid.shape[n]) // 2
        first = axis.starts[0] - axis.border + lost
        grid = _cut(grid, n, first, view.region[n])
    if view.is_flat:
        depth = view.region[-1].stop - view.region[-1].start
        grid = np.repeat(grid[..., None], depth, axis=-1)
    return np.ascontiguousarray(grid, dtype=np.float32)


def _cut(grid: npt.NDArray[Any], axis: int, first: int, wanted: slice) -> npt.NDArray[Any]:
    """Returns the rows ``wanted`` of a grid whose first row is number ``first``; rows it does not have are 0."""
    last = first + grid.shape[axis]
    before, after = max(0, first - wanted.start), max(0, wanted.stop - last)
    own = (slice(None),) * axis + (slice(max(0, wanted.start - first), max(0, wanted.stop - first)),)
    width = [(before, after) if n == axis else (0, 0) for n in range(grid.ndim)]
    return np.pad(grid[own], width)
