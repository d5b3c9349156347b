"""What training makes small where a teacher has an opinion, too (Hinton, Vinyals and Dean, arXiv 1503.02531, 2015).

The *teacher* term is the divergence (Kullback and Leibler) of the chances that the network gives to the labels of a
voxel from those that the teacher gives, the mean over voxels: 0 where they agree.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unet_med.labels import LabelMap
from unet_med.losses.objects import ObjectLoss
from unet_med.losses.segmentation import SegmentationLoss, level_shares, nearest


class TaughtLoss(nn.Module):
    """A loss of the truth and the teacher term; all levels of deep supervision have both.

    Processes that share a batch use it as they use ``truth``.

    Args:
        truth: What compares the network with the truth.
        labels: What is learnt.
        weight: Share of the teacher term, 0 to 1; the rest is the truth's.
    """

    def __init__(self, truth: SegmentationLoss | ObjectLoss, labels: LabelMap, weight: float) -> None:
        super().__init__()
        self.truth = truth
        self.weight = weight
        self._labels = labels
        self._told: Tensor | None = None

    @property
    def parts(self) -> dict[str, float]:
        """The unweighted terms of the last call, averaged over the levels as the loss is."""
        return self.truth.parts | ({} if self._told is None else {"teacher": float(self._told)})

    def forward(
        self,
        logits: Tensor | Sequence[Tensor],
        target: Tensor,
        weight: Tensor | None = None,
        *,
        teacher: Tensor,
        **beside: Tensor,
    ) -> Tensor:
        """Returns the loss, a finite scalar for finite logits.

        Args:
            logits: (N, outputs, *s), or several of them, finest first; each coarser level counts half as much.
            target: (N, *s) int64 labels.
            weight: As for ``truth``.
            teacher: (N, labels, *s) float32 in [0, 1]: how likely each label is, background left out. Voxels that
                nobody labelled count as all others do.
            beside: What else ``truth`` needs.
        """
        levels = (logits,) if isinstance(logits, Tensor) else tuple(logits)
        told: Tensor = levels[0].new_zeros((), dtype=torch.float32)
        for share, level in zip(level_shares(len(levels)), levels, strict=True):
            said = nearest(teacher.flatten(0, 1), level.shape[2:]).reshape(*teacher.shape[:2], *level.shape[2:])
            told = told + share * self._divergence(level.float(), said)
        self._told = told.detach()
        truth: Tensor = self.truth(levels, target, weight, **beside)
        return (1 - self.weight) * truth + self.weight * told

    def _divergence(self, logits: Tensor, said: Tensor) -> Tensor:
        places, own = log_chances(logits, self._labels)
        said = said[:, places].clamp(0, 1)
        said = torch.cat([(1 - said.sum(1, keepdim=True)).clamp(0, 1), said], dim=1)
        return (torch.xlogy(said, said) - said * own).sum(1).mean()


def log_chances(logits: Tensor, labels: LabelMap) -> tuple[list[int], Tensor]:
    """Returns the logarithms of the chances of background and labels; the chances of a voxel have the sum 1.

    Regions are painted from the outermost to the innermost one; see
    :func:`unet_med.inference.chances.label_chances`.

    Args:
        logits: (N, outputs, *s) float32.
        labels: What the outputs mean.

    Returns:
        The places of the labels among all: those that an output can lead to; and (N, 1 + places, *s) float32,
        background first.
    """
    if not labels.regions:
        return list(range(len(labels.labels))), F.log_softmax(logits[:, : labels.class_outputs], dim=1)
    places = {label.index: place for place, label in enumerate(labels.labels)}
    inside, outside = F.logsigmoid(logits), F.logsigmoid(-logits)
    beyond = outside.flip(1).cumsum(1).flip(1)  # outside of a region and of all that are painted over it
    own = inside + F.pad(beyond[:, 1:], [0, 0] * (logits.dim() - 2) + [0, 1])
    return [places[value] for value in labels.region_values()], torch.cat([beyond[:, :1], own], dim=1)
