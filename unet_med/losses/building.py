"""The loss of a task."""

from __future__ import annotations

from unet_med.config import Instances, Loss
from unet_med.labels import LabelMap
from unet_med.losses.objects import ObjectLoss
from unet_med.losses.segmentation import Reduce, SegmentationLoss
from unet_med.losses.teaching import TaughtLoss


def build_loss(
    loss: Loss, labels: LabelMap, reduce: Reduce | None = None, instances: Instances | None = None
) -> SegmentationLoss | ObjectLoss | TaughtLoss:
    """Builds the loss for a task.

    Args:
        loss: Resolved (``class_weights`` is no ``auto``); with a ``teacher_weight`` it compares with a teacher, too.
        labels: Says how many outputs there are, whether they overlap, and whether objects are told apart.
        reduce: Where processes share a batch, sums over them; see :class:`SegmentationLoss`.
        instances: How much the terms of objects weigh; ``None``: as much as in a pipeline that says nothing.

    Raises:
        ConfigError: if the class weights do not fit the outputs.
    """
    truth: SegmentationLoss | ObjectLoss
    if labels.objects:
        truth = ObjectLoss(loss, instances or Instances(), labels, reduce)
    else:
        truth = SegmentationLoss(loss, labels, reduce)
    return TaughtLoss(truth, labels, loss.teacher_weight) if loss.teacher_weight else truth
