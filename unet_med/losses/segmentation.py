"""What training makes small where voxels have a class.

A loss has up to two terms: an *overlap* term that compares whole structures (Dice, Jaccard, Tversky) and a *pixel*
term that judges each voxel (cross-entropy, focal, the border-weighted cross-entropy of 2015). Exclusive labels are
a softmax over background and labels; overlapping regions have a sigmoid each.

The definitions are MONAI's (``DiceLoss``, ``TverskyLoss``, ``FocalLoss``, ``DiceCELoss``; the tests compare with them),
with two differences. The softmax and the one-hot target are made once for both terms, which takes a fraction of the
time. The focal term of exclusive labels is a mean over voxels, as cross-entropy is; MONAI's is the mean over voxels
*and* outputs, which makes it weaker the more labels there are.

Voxels that nobody labelled (``ignore_label``) count nowhere: every loss is what it would be if they did not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn

from unet_med.config import Loss
from unet_med.errors import ConfigError
from unet_med.labels import LabelMap

SMOOTH = 1e-5
"""Added to numerator and denominator of overlap terms, so that an absent structure has a finite loss."""

REACH_SIGMAS = 6.0
"""Distance at which the border weight has fallen below 2e-8 of its height; nothing farther is computed."""

_NO_WEIGHT = 1e-12
"""Sums of weights below are those of nothing at all; its inverse still is a finite number after loss scaling."""


class _Terms(NamedTuple):
    overlap: str | None
    pixel: str | None


_KINDS = {
    "dice": _Terms("dice", None),
    "jaccard": _Terms("jaccard", None),
    "tversky": _Terms("tversky", None),
    "focal": _Terms(None, "focal"),
    "cross_entropy": _Terms(None, "cross_entropy"),
    "border_cross_entropy": _Terms(None, "cross_entropy"),
    "dice_focal": _Terms("dice", "focal"),
    "dice_ce": _Terms("dice", "cross_entropy"),
}


Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over the processes that share a batch, and is differentiable."""


class SegmentationLoss(nn.Module):
    """Overlap and pixel terms over all levels of deep supervision; call it as :meth:`forward` says.

    Where processes share a batch, each calls it with its own samples. The sums that the loss is made of then go through
    ``reduce``, so that the *mean* over the processes of the values, and of the gradients, is that of the whole batch.
    """

    membership: Tensor
    class_weights: Tensor

    def __init__(self, loss: Loss, labels: LabelMap, reduce: Reduce | None = None) -> None:
        super().__init__()
        self.reduce = reduce
        self.config = loss
        self.terms = _KINDS[loss.kind]
        self.exclusive = not labels.regions
        self.ignored = labels.ignored
        # A Tversky index of which false positives and false negatives weigh (1/2, 1/2) is Dice, (1, 1) is Jaccard.
        self.penalties = {"dice": (0.5, 0.5), "jaccard": (1.0, 1.0), "tversky": (loss.tversky_alpha, loss.tversky_beta)}
        self.register_buffer("membership", _membership(labels), persistent=False)
        self.register_buffer("class_weights", _class_weights(loss, labels), persistent=False)
        self._parts: dict[str, Tensor] = {}

    @property
    def parts(self) -> dict[str, float]:
        """The unweighted terms of the last call, averaged over the levels as the loss is."""
        return {name: float(value) for name, value in self._parts.items()}

    def forward(self, logits: Tensor | Sequence[Tensor], target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Returns the loss, a finite scalar for finite logits.

        Args:
            logits: (N, outputs, *s), or several of them, finest first; each coarser level counts half as much.
            target: (N, *s) int64 labels, 0 is background; what the label map ignores does not count.
            weight: (N, *s) float32 >= 0 or ``None``; added to the class weight of each voxel in the pixel term
                (Ronneberger et al. 2015, eq. 2; see :func:`border_weight_map`).
        """
        levels = (logits,) if isinstance(logits, Tensor) else tuple(logits)
        self._parts = {}
        total = levels[0].new_zeros((), dtype=torch.float32)
        for share, level in zip(level_shares(len(levels)), levels, strict=True):
            shape = level.shape[2:]
            fine = weight if weight is None else nearest(weight, shape)
            for name, value, factor in self._level(level.float(), nearest(target, shape), fine):
                total = total + share * factor * value
                self._parts[name] = self._parts.get(name, 0.0) + share * value.detach()
        return total

    def _level(self, logits: Tensor, target: Tensor, weight: Tensor | None) -> list[tuple[str, Tensor, float]]:
        """Returns name, value and weight of each term."""
        both = self.terms.overlap is not None and self.terms.pixel is not None
        known = None if self.ignored is None else target != self.ignored
        target = target if known is None else target.masked_fill(~known, 0)
        truth = F.embedding(target, self.membership).movedim(-1, 1)
        log_p = F.log_softmax(logits, dim=1) if self.exclusive else F.logsigmoid(logits)
        found: list[tuple[str, Tensor, float]] = []
        if self.terms.overlap is not None:
            value = self._overlap(log_p.exp(), truth, known, self.terms.overlap)
            found.append((self.terms.overlap, value, self.config.dice_weight if both else 1.0))
        if self.terms.pixel is not None:
            weights = self._voxel_weights(target, weight, known)
            surprise = self._surprise(logits, log_p, target, truth)
            if self.terms.pixel == "focal":
                value = self._focal(surprise, weights, known)
            else:
                value = weighted_mean(surprise, weights, self.reduce)
            found.append((self.terms.pixel, value, self.config.pixel_weight if both else 1.0))
        return found

    def _overlap(self, p: Tensor, truth: Tensor, known: Tensor | None, kind: str) -> Tensor:
        """Returns 1 - Tversky index (Salehi et al. 2017), the mean over structures (and samples)."""
        if self.exclusive and not self.config.include_background:
            p, truth = p[:, 1:], truth[:, 1:]
        if known is not None:
            p, truth = p * known[:, None], truth * known[:, None]
        axes = [axis for axis in range(p.dim()) if axis != 1 and (axis != 0 or self.config.batch_dice)]
        sums = torch.stack([(p * truth).sum(axes), p.sum(axes), truth.sum(axes)])
        hits, found, real = self.reduce(sums) if self.reduce and self.config.batch_dice else sums
        false_positive_weight, false_negative_weight = self.penalties[kind]
        misses = false_positive_weight * (found - hits) + false_negative_weight * (real - hits)
        # MONAI counts 2 TP in Dice and Jaccard and TP in Tversky; the smoothing is relative to that.
        smooth = SMOOTH if kind == "tversky" else SMOOTH / 2
        values: Tensor = 1 - (hits + smooth) / (hits + misses + smooth)
        if self.config.batch_dice:
            return values.mean()
        return values.sum() / _over_processes(values.new_tensor(values.numel()), self.reduce)

    def _surprise(self, logits: Tensor, log_p: Tensor, target: Tensor, truth: Tensor) -> Tensor:
        """Returns -log of the probability given to what is true: (N, *s), or (N, regions, *s) for regions."""
        if self.exclusive:
            return -log_p.gather(1, target[:, None])[:, 0]
        # log(1 - sigmoid(x)) = log sigmoid(x) - x
        return (1 - truth) * logits - log_p

    def _voxel_weights(self, target: Tensor, weight: Tensor | None, known: Tensor | None) -> Tensor:
        """Returns the weight of each surprise, broadcastable to it; 0 where nothing is known."""
        if self.exclusive:
            weights = self.class_weights[target]
        else:
            weights = self.class_weights.view(1, -1, *[1] * (target.dim() - 1))
            weight, known = (None if one is None else one[:, None] for one in (weight, known))
        weights = weights if weight is None else weights + weight
        return weights if known is None else weights * known

    def _focal(self, surprise: Tensor, weights: Tensor, known: Tensor | None) -> Tensor:
        """Returns the focal loss (Lin et al. 2017): what is already known well counts little."""
        gamma = self.config.focal_gamma
        if gamma != 0:
            # Below gamma 1 the power has no slope at 0, where the loss itself is flat.
            doubt = (-torch.expm1(-surprise)).clamp_min(1e-7)
            weights = doubt.pow(gamma) * weights
        count = surprise.new_tensor(surprise.numel())
        if known is not None:
            count = known.sum(dtype=torch.float32) * (surprise.numel() / known.numel())
        return (surprise * weights).sum() / _over_processes(count, self.reduce).clamp_min(_NO_WEIGHT)


def weighted_mean(values: Tensor, weights: Tensor, reduce: Reduce | None) -> Tensor:
    """Returns the weighted mean over all processes that share a batch; 0 where nothing has weight.

    Args:
        values: Any shape.
        weights: >= 0, of a shape that can be expanded to that of ``values``.
        reduce: See :class:`SegmentationLoss`.
    """
    weights = weights.expand_as(values)
    return (values * weights).sum() / _over_processes(weights.sum(), reduce).clamp_min(_NO_WEIGHT)


def _over_processes(normaliser: Tensor, reduce: Reduce | None) -> Tensor:
    """Returns the mean of a normaliser over the processes that share a batch."""
    if reduce is None:
        return normaliser
    total, processes = reduce(torch.stack([normaliser, torch.ones_like(normaliser)])).unbind()
    return total / processes


def level_shares(levels: int) -> list[float]:
    """Returns how much each level of deep supervision counts, the finest first; their sum is 1."""
    shares = [0.5**level for level in range(levels)]
    return [share / sum(shares) for share in shares]


def nearest(target: Tensor, shape: Sequence[int]) -> Tensor:
    """Returns ``target`` (N, *s) at the voxels nearest to the centres of a coarser grid of the same extent."""
    for axis, (size, wanted) in enumerate(zip(target.shape[1:], shape, strict=True), start=1):
        if size != wanted:
            centres = (torch.arange(wanted, device=target.device) * 2 + 1) * size // (2 * wanted)
            target = target.index_select(axis, centres)
    return target


def _membership(labels: LabelMap) -> Tensor:
    """Returns (labels + 1, outputs) float32: which outputs are 1 for a label."""
    if not labels.labels:
        raise ConfigError("there is no label to learn", "labels", "name at least one label besides background")
    if not labels.regions:
        return torch.eye(len(labels.labels) + 1)
    table = torch.zeros(len(labels.labels) + 1, len(labels.regions))
    for output, (_, members) in enumerate(labels.regions):
        table[list(members), output] = 1.0
    return table


def _class_weights(loss: Loss, labels: LabelMap) -> Tensor:
    """Returns (outputs,) float32."""
    weights = loss.class_weights
    if weights is None:
        return torch.ones(labels.outputs)
    if weights == "auto":
        raise ConfigError("class_weights is still 'auto'", "loss", "resolve the pipeline with `unet-med plan`")
    if len(weights) != labels.outputs or max(weights) <= 0:
        raise ConfigError(
            f"class_weights {list(weights)} do not fit {labels.outputs} outputs",
            "loss",
            "give one number >= 0 for each output" + ("" if labels.regions else ", background first"),
        )
    return torch.tensor(weights, dtype=torch.float32)


def border_weight_map(
    objects: npt.NDArray[np.integer], w0: float = 10.0, sigma_voxels: float = 5.0
) -> npt.NDArray[np.float32]:
    """Returns weights that force a network to learn the gaps between touching objects.

    ``w0 * exp(-(d1 + d2)**2 / (2 * sigma**2))`` where d1 and d2 are the distances of a background voxel to the
    nearest and to the second-nearest object (Ronneberger et al. 2015, eq. 2, without its class weights, which the
    loss adds). Inside objects, and where there are fewer than two objects, it is 0.

    Args:
        objects: (I, J[, K]) integers, 0 is background, each object has its own number.
        w0: Height of the map.
        sigma_voxels: Its width in voxels.

    Returns:
        (I, J[, K]) float32, >= 0.
    """
    nearest = np.full(objects.shape, np.inf, dtype=np.float32)
    second = nearest.copy()
    reach = int(np.ceil(REACH_SIGMAS * sigma_voxels))
    values, compact = np.unique(objects, return_inverse=True)
    compact = compact.reshape(objects.shape) + int(values[0] != 0)
    for number, box in enumerate(ndimage.find_objects(compact), start=1):
        if box is None:
            continue
        around = tuple(slice(max(0, s.start - reach), s.stop + reach) for s in box)
        distance = ndimage.distance_transform_edt(compact[around] != number).astype(np.float32)
        closest, next_closest = nearest[around], second[around]
        np.minimum(next_closest, np.maximum(closest, distance), out=next_closest)
        np.minimum(closest, distance, out=closest)
    weights = w0 * np.exp(-((nearest + second) ** 2) / (2 * sigma_voxels**2))
    return np.where(objects == 0, weights, 0).astype(np.float32)
