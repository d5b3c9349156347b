"""What a network says of objects at each voxel: probability of each class, of a border, and the distance to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unet_med.labels import OBJECT_OUTPUTS

if TYPE_CHECKING:
    import torch

FloatMap = npt.NDArray[np.float32]

_EXTRA = len(OBJECT_OUTPUTS)
_STEPS = 255


@dataclass(frozen=True, eq=False)
class ObjectMaps:
    """What objects are cut out of.

    Attributes:
        classes: (1 + n, *shape) float32 in [0, 1], the probability of the background and of each class; their sum is 1
            (after :meth:`from_stored` to the rounding of a byte).
        border: (*shape) float32 in [0, 1], the probability that a voxel lies on the border of an object.
        distance: (*shape) float32 in [0, 1], the distance to the border divided by the largest of the object.
    """

    classes: FloatMap
    border: FloatMap
    distance: FloatMap

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        return self.border.shape

    @property
    def channels(self) -> int:
        """Rows of :meth:`stored`: background, classes, border, distance."""
        return len(self.classes) + _EXTRA

    @classmethod
    def from_logits(cls, logits: torch.Tensor | npt.NDArray[np.floating[Any]]) -> ObjectMaps:
        """Makes maps from the outputs of a network.

        Args:
            logits: (1 + n + 2, *shape), finite: background and classes (softmax), border and distance (sigmoid).
        """
        import torch  # cutting out stored maps needs none of it

        values = torch.as_tensor(logits).float()
        classes, extra = values[:-_EXTRA].softmax(0), values[-_EXTRA:].sigmoid()
        return cls(classes.cpu().numpy(), extra[0].cpu().numpy(), extra[1].cpu().numpy())

    @classmethod
    def from_stored(cls, stored: npt.NDArray[np.uint8]) -> ObjectMaps:
        """Makes maps from what :meth:`stored` returned; no value is off by more than half a step of 1/255."""
        values = stored.astype(np.float32) / np.float32(_STEPS)
        return cls(values[:-_EXTRA], values[-2], values[-1])

    def stored(self) -> npt.NDArray[np.uint8]:
        """Returns all maps in 255 steps, (channels, *shape) uint8."""
        values = np.empty((self.channels, *self.shape), dtype=np.uint8)
        for row, one in zip(values, (*self.classes, self.border, self.distance), strict=True):
            row[...] = np.rint(one * np.float32(_STEPS))
        return values
