"""The mask of a cascade's first stage, as the second one sees it: one channel for each label.

In training the mask is damaged at random as in nnU-Net (Isensee et al., Nature Methods 18, 203-211, 2021), so that the
second stage corrects the first one rather than repeating it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

IntArray = npt.NDArray[np.integer[Any]]
BoolArray = npt.NDArray[np.bool_]

RESHAPED = 0.4
"""Of the patches, how many have labels that grow, shrink, lose their thin parts or their gaps."""
COMPONENT_LOST = 0.2
"""Of the patches, how many have labels that lose a connected component."""
LABEL_SHARE = 0.5
"""Of the labels of such a patch, how many that happens to."""
LARGEST_RADIUS = 8
"""Of the balls that labels are reshaped by, in voxels; the smallest is 1."""
LARGEST_LOST = 0.15
"""A component of a larger share of the patch is never lost."""


@dataclass(frozen=True, eq=False)
class Prior:
    """The mask of a first stage on the network's grid.

    Attributes:
        mask: (*s) label values, 0 for background.
        labels: How many labels there are beside background.
    """

    mask: IntArray
    labels: int

    def joined(self, rows: torch.Tensor, axis: int, start: int, stop: int) -> torch.Tensor:
        """Returns the rows from ``start`` to ``stop`` of an image, (C, *s), followed by the channels of the mask."""
        part = self.mask[(slice(None),) * axis + (slice(start, stop),)]
        return torch.cat([rows, one_hot(part, self.labels).to(rows.device, rows.dtype)])


def one_hot(mask: IntArray, labels: int) -> torch.Tensor:
    """Returns (labels, *s) bool: where each label but background is."""
    values = np.arange(1, labels + 1).reshape(-1, *(1,) * mask.ndim)
    return torch.from_numpy(np.asarray(mask[None] == values))


def damaged(mask: IntArray, labels: int, rng: np.random.Generator) -> IntArray:
    """Returns a patch of a mask with the faults that a first stage may make; most patches stay as they are.

    Args:
        mask: (*s) label values.
        labels: How many labels there are beside background.
        rng: What happens is a function of its state.
    """
    changed = mask.copy()
    if rng.random() < RESHAPED:
        for label in _chosen(labels, rng):
            kind, radius = rng.choice(_KINDS), int(rng.integers(1, LARGEST_RADIUS + 1))
            _reshape(changed, label, str(kind), radius)
    if rng.random() < COMPONENT_LOST:
        for label in _chosen(labels, rng):
            _lose_component(changed, label, rng)
    return changed


def _chosen(labels: int, rng: np.random.Generator) -> list[int]:
    """Some labels, in random order."""
    return [int(label) for label in 1 + rng.permutation(labels) if rng.random() < LABEL_SHARE]


_KINDS = ("dilate", "erode", "open", "close")


def _reshape(mask: IntArray, label: int, kind: str, radius: int) -> None:
    """Changes one label in place; where it grows it takes the place of others."""
    whole = mask == label
    if not whole.any():
        return
    box = tuple(
        slice(max(part.start - radius - 1, 0), part.stop + radius + 1)
        for part in ndimage.find_objects(whole.astype(np.uint8))[0]
    )
    before = whole[box]
    after = reshaped(before, kind, radius)
    place = mask[box]
    place[before & ~after] = 0
    place[after] = label


def reshaped(inside: BoolArray, kind: str, radius: int) -> BoolArray:
    """Returns a shape after ``dilate``, ``erode``, ``open`` or ``close`` by a ball of ``radius`` voxels.

    What lies beyond the border is not known: nothing grows in from there, and nothing shrinks.
    """
    if kind == "dilate":
        return _grown(inside, radius)
    if kind == "erode":
        return ~_grown(~inside, radius)
    if kind == "open":
        return _grown(~_grown(~inside, radius), radius)
    return ~_grown(~_grown(inside, radius), radius)


def _grown(inside: BoolArray, radius: int) -> BoolArray:
    """Everything at most ``radius`` voxels away from the shape; distances spare a large structuring element."""
    if not inside.any():
        return inside
    return np.asarray(ndimage.distance_transform_edt(~inside) <= radius)


def _lose_component(mask: IntArray, label: int, rng: np.random.Generator) -> None:
    """Removes one connected component of a label in place, if there is one that is not too large."""
    components, count = ndimage.label(mask == label, structure=np.ones((3,) * mask.ndim))
    sizes = np.bincount(components.ravel(), minlength=count + 1)[1:]
    small = 1 + np.flatnonzero(sizes < LARGEST_LOST * mask.size)
    if len(small):
        mask[components == int(rng.choice(small))] = 0
