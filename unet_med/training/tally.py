"""How well a network does on the very patches that it learns from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unet_med.labels import LabelMap
from unet_med.metrics import dice_iou, structures
from unet_med.metrics.voxels import counts_of
from unet_med.training.accelerate import Output
from unet_med.training.validation import mean_scores


class Tally:
    """Counts the voxels of the patches of an epoch by their true label and the one that was predicted.

    The weights move and the patches are augmented while it counts, so that its Dice is a little lower than that of
    the same cases after the epoch. Far above that of held-out cases, it says that the network learns cases by heart.

    Args:
        labels: What is learnt.

    Attributes:
        table: Voxels by true and by predicted label, background first.
    """

    def __init__(self, labels: LabelMap) -> None:
        self._labels = labels
        self._kinds = len(labels.labels) + 1
        self.table: npt.NDArray[np.int64] = np.zeros((self._kinds, self._kinds), dtype=np.int64)

    def count(self, output: Output, target: Tensor) -> Tensor:
        """Returns the table of some samples as one row of numbers (kinds * kinds), on their device.

        Args:
            output: What the network says of them: logits (N, outputs, *patch), with deep supervision the finest first.
            target: (N, *patch) true labels; what is no label is not counted.
        """
        logits = (output[0] if isinstance(output, tuple) else output).detach()
        joint = target * self._kinds + self._predicted(logits, target)
        return torch.bincount(joint.flatten(), minlength=self._kinds**2)[: self._kinds**2]

    def add(self, row: Sequence[float]) -> None:
        """Adds a row of :meth:`count`."""
        self.table += np.rint(np.asarray(row, dtype=np.float64)).astype(np.int64).reshape(self.table.shape)

    def close(self) -> dict[str, float]:
        """Returns the scores of what was counted, and begins anew."""
        scores = mean_scores([dice_iou(counts_of(self.table, self._labels))], list(structures(self._labels)))
        self.table[:] = 0
        return {f"train/{name.removeprefix('val/')}": value for name, value in scores.items()}

    def _predicted(self, logits: Tensor, target: Tensor) -> Tensor:
        if not self._labels.regions:
            return logits[:, : self._labels.class_outputs].argmax(dim=1)
        found = torch.zeros_like(target)
        for value, region in zip(self._labels.region_values(), logits.unbind(1), strict=False):
            found.masked_fill_(region > 0, value)
        return found
