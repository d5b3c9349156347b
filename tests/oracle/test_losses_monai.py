"""Our losses against MONAI's."""

from __future__ import annotations

import pytest
import torch
from monai.losses import DiceCELoss, DiceFocalLoss, DiceLoss, FocalLoss, TverskyLoss
from torch.nn import functional as F

from unet_med.config import Loss
from unet_med.labels import LabelMap
from unet_med.losses import build_loss

LABELS = LabelMap.from_names({"a": 1, "b": 2, "c": 3})
REGIONS = LabelMap.from_names({"a": 1, "b": 2, "c": 3}, {"whole": [1, 2, 3], "core": [2, 3]})
WEIGHTS = (0.2, 1.0, 2.0, 0.8)


def batch(labels: LabelMap, dims: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, labels, and the target as MONAI takes it."""
    torch.manual_seed(dims)
    logits = torch.randn(3, labels.outputs, *(6, 7, 5)[:dims], requires_grad=True)
    target = torch.randint(0, 4, (3, *logits.shape[2:]))
    target[0] = 0
    if labels.regions:
        return logits, target, torch.stack([target >= 1, target >= 2], dim=1).float()
    return logits, target, F.one_hot(target, 4).movedim(-1, 1).float()


def same(ours: torch.Tensor, theirs: torch.Tensor, logits: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["dice", "jaccard", "tversky"])
@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["softmax", "regions"])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("dims", [2, 3])
def test_overlap_terms(kind: str, labels: LabelMap, batched: bool, background: bool, dims: int) -> None:
    logits, target, theirs = batch(labels, dims)
    config = Loss(kind=kind, class_weights=None, batch_dice=batched, include_background=background)
    options = {
        "include_background": background or bool(labels.regions),
        "softmax": not labels.regions,
        "sigmoid": bool(labels.regions),
        "batch": batched,
    }
    loss = (
        TverskyLoss(alpha=config.tversky_alpha, beta=config.tversky_beta, **options)
        if kind == "tversky"
        else DiceLoss(jaccard=kind == "jaccard", **options)
    )
    same(build_loss(config, labels)(logits, target), loss(logits, theirs), logits)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_focal(gamma: float) -> None:
    logits, target, theirs = batch(LABELS)
    ours = build_loss(Loss(kind="focal", focal_gamma=gamma, class_weights=WEIGHTS), LABELS)(logits, target)
    loss = FocalLoss(gamma=gamma, weight=WEIGHTS, use_softmax=True)(logits, theirs)
    same(ours, loss * LABELS.outputs, logits)  # MONAI divides by the number of outputs as well
    logits, target, theirs = batch(REGIONS)
    ours = build_loss(Loss(kind="focal", focal_gamma=gamma, class_weights=(0.5, 2.0)), REGIONS)(logits, target)
    same(ours, FocalLoss(gamma=gamma, weight=(0.5, 2.0))(logits, theirs), logits)


def test_the_default_on_regions() -> None:
    logits, target, theirs = batch(REGIONS)
    ours = build_loss(Loss(class_weights=None), REGIONS)(logits, target)
    same(ours, DiceFocalLoss(sigmoid=True, batch=True)(logits, theirs), logits)


def test_dice_and_cross_entropy() -> None:
    logits, target, theirs = batch(LABELS)
    ours = build_loss(Loss(kind="dice_ce", class_weights=None, include_background=True), LABELS)(logits, target)
    same(ours, DiceCELoss(softmax=True, batch=True)(logits, theirs), logits)
    logits, target, theirs = batch(REGIONS)
    ours = build_loss(Loss(kind="cross_entropy", class_weights=None), REGIONS)(logits, target)
    same(ours, F.binary_cross_entropy_with_logits(logits, theirs), logits)
