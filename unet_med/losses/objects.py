"""What training makes small where objects are told apart: beside the loss of the classes, border and distance.

The *border* term is a weighted binary cross-entropy and a Dice loss, as borders are few among many voxels. The
*distance* term is the divergence (Kullback and Leibler) of what the network says from the truth, both taken for the
probability of a coin: 0 where they agree. Voxels within objects and those outside make one half of it each, for
otherwise it would fade with the share of an image that objects cover.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unet_med.config import Instances, Loss
from unet_med.labels import OBJECT_OUTPUTS, LabelMap
from unet_med.losses.segmentation import SMOOTH, Reduce, SegmentationLoss, level_shares, nearest, weighted_mean

_TOUCHING = 2
"""Code of border voxels between objects that touch; see :class:`unet_med.instances.targets.ObjectTargets`."""


class ObjectLoss(nn.Module):
    """The loss of the classes, of borders and of distances, over all levels of deep supervision.

    Processes that share a batch use it as they use :class:`SegmentationLoss`.
    """

    def __init__(self, loss: Loss, instances: Instances, labels: LabelMap, reduce: Reduce | None = None) -> None:
        super().__init__()
        self.classes = SegmentationLoss(loss, replace(labels, objects=False), reduce)
        self.instances = instances
        self.ignored = labels.ignored
        self._parts: dict[str, Tensor] = {}

    @property
    def reduce(self) -> Reduce | None:
        """Sums over the processes that share a batch."""
        return self.classes.reduce

    @property
    def parts(self) -> dict[str, float]:
        """The unweighted terms of the last call, averaged over the levels as the loss is."""
        return self.classes.parts | {name: float(value) for name, value in self._parts.items()}

    def forward(
        self,
        logits: Tensor | Sequence[Tensor],
        target: Tensor,
        weight: Tensor | None = None,
        *,
        border: Tensor,
        distance: Tensor,
    ) -> Tensor:
        """Returns the loss, a finite scalar for finite logits.

        Args:
            logits: (N, outputs, *s), or several of them, finest first; each coarser level counts half as much.
            target: (N, *s) int64 classes, 0 is background; what the label map ignores does not count.
            weight: As in :meth:`SegmentationLoss.forward`.
            border: (N, *s) integers: 1 on the border of an object, 2 where another object touches it, 0 elsewhere.
            distance: (N, *s) float32 in [0, 1]: to the border, divided by the object's largest.
        """
        levels = (logits,) if isinstance(logits, Tensor) else tuple(logits)
        extra = len(OBJECT_OUTPUTS)
        total: Tensor = self.classes([level[:, :-extra] for level in levels], target, weight)
        self._parts = {}
        for share, level in zip(level_shares(len(levels)), levels, strict=True):
            truths = (nearest(truth, level.shape[2:]) for truth in (target, border, distance))
            for name, value, factor in self._level(level[:, -extra:].float(), *truths):
                total = total + share * factor * value
                self._parts[name] = self._parts.get(name, torch.zeros_like(value)) + share * value.detach()
        return total

    def _level(
        self, logits: Tensor, target: Tensor, border: Tensor, distance: Tensor
    ) -> list[tuple[str, Tensor, float]]:
        """Returns name, value and weight of each term."""
        known = torch.ones_like(distance) if self.ignored is None else (target != self.ignored).float()
        own = target > 0
        return [
            ("border", self._border(logits[:, 0], border, known), self.instances.border_weight),
            ("distance", self._distance(logits[:, 1], distance, own, known), self.instances.distance_weight),
        ]

    def _border(self, logits: Tensor, border: Tensor, known: Tensor) -> Tensor:
        truth = (border > 0).float()
        weights = known * torch.where(border == _TOUCHING, self.instances.touching_weight, 1.0)
        surprise = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        p, truth = logits.sigmoid() * weights, truth * weights
        sums = torch.stack([(p * (border > 0)).sum(), p.sum() + truth.sum()])
        hits, both = self.reduce(sums) if self.reduce else sums
        overlap: Tensor = 1 - (2 * hits + SMOOTH) / (both + SMOOTH)
        return weighted_mean(surprise, weights, self.reduce) + overlap

    def _distance(self, logits: Tensor, distance: Tensor, own: Tensor, known: Tensor) -> Tensor:
        distance = distance.clamp(0, 1)  # interpolation may leave it by a rounding
        surprise = F.binary_cross_entropy_with_logits(logits, distance, reduction="none")
        least = -(torch.xlogy(distance, distance) + torch.xlogy(1 - distance, 1 - distance))
        inside, outside = (weighted_mean(surprise - least, known * part, self.reduce) for part in (own, ~own))
        return (inside + outside) / 2
