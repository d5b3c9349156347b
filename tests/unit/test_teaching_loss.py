"""What a student learns of its teacher, against torch's own divergence and the chances that prediction reports."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from unet_med.config import Loss
from unet_med.inference.chances import label_chances
from unet_med.labels import LabelMap
from unet_med.losses import TaughtLoss, build_loss
from unet_med.losses.teaching import log_chances

NAMES = {"background": 0, "a": 1, "b": 2, "c": 3}
LABELS = LabelMap.from_names(NAMES)
REGIONS = LabelMap.from_names(NAMES, {"whole": [1, 2, 3], "core": [2, 3], "inner": [3]})
SOME = LabelMap.from_names(NAMES, {"whole": [1, 2, 3], "inner": [3]})
OBJECTS = LabelMap.from_names(NAMES, objects=True)
KINDS = pytest.mark.parametrize("labels", [LABELS, REGIONS, SOME], ids=["softmax", "regions", "some"])
SHAPE = (2, 6, 8)


def drawn(labels: LabelMap, seed: int, scale: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((SHAPE[0], labels.outputs, *SHAPE[1:]), generator=generator) * scale


def said(labels: LabelMap, logits: torch.Tensor) -> torch.Tensor:
    """What a teacher with these outputs says: (N, labels, *s)."""
    return torch.from_numpy(np.stack([label_chances(one, labels) for one in logits]))


def loss_of(labels: LabelMap, weight: float, **changes: object) -> TaughtLoss:
    loss = build_loss(Loss(kind="dice_ce", class_weights=None, teacher_weight=weight, **changes), labels)
    assert isinstance(loss, TaughtLoss)
    return loss


@KINDS
def test_chances_are_those_that_prediction_reports(labels: LabelMap) -> None:
    logits = drawn(labels, 0)
    places, found = log_chances(logits, labels)
    torch.testing.assert_close(found.exp()[:, 1:], said(labels, logits)[:, places])
    torch.testing.assert_close(found.exp().sum(1), torch.ones(SHAPE))
    torch.testing.assert_close(found.exp()[:, 0], 1 - said(labels, logits).sum(1), rtol=0, atol=1e-6)


@KINDS
def test_it_is_the_divergence_of_the_labels(labels: LabelMap) -> None:
    truth = torch.zeros(SHAPE, dtype=torch.int64)
    teacher, student = said(labels, drawn(labels, 1)), drawn(labels, 2)
    theirs = torch.cat([1 - teacher.sum(1, keepdim=True), teacher], 1).movedim(1, -1)
    own = said(labels, student)
    ours = torch.cat([1 - own.sum(1, keepdim=True), own], 1).movedim(1, -1)
    small = 1e-12  # of a label that no output leads to
    expected = kl_divergence(Categorical(theirs.clamp_min(small)), Categorical(ours.clamp_min(small))).mean()
    torch.testing.assert_close(loss_of(labels, 1.0)(student, truth, teacher=teacher), expected, rtol=1e-4, atol=1e-6)


@KINDS
def test_a_teacher_who_says_the_same_is_no_loss(labels: LabelMap) -> None:
    logits, truth = drawn(labels, 3).requires_grad_(), torch.ones(SHAPE, dtype=torch.int64)
    teacher = said(labels, logits.detach())
    loss = loss_of(labels, 1.0)(logits, truth, teacher=teacher)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert abs(float(loss.detach())) < 1e-5
    assert float(gradient.abs().max()) < 1e-6


@KINDS
def test_both_have_their_share_and_are_told(labels: LabelMap) -> None:
    logits, truth = drawn(labels, 4), torch.randint(0, 4, SHAPE, generator=torch.Generator().manual_seed(0))
    teacher = said(labels, drawn(labels, 5))
    alone = build_loss(Loss(kind="dice_ce", class_weights=None), labels)
    far = loss_of(labels, 1.0)(logits, truth, teacher=teacher)
    loss = loss_of(labels, 0.25)
    torch.testing.assert_close(loss(logits, truth, teacher=teacher), 0.75 * alone(logits, truth) + 0.25 * far)
    assert loss.parts == pytest.approx(alone.parts | {"teacher": float(far)})


def test_every_level_learns() -> None:
    fine = drawn(LABELS, 6)
    coarse = fine[:, :, ::2, ::2].clone()
    teacher = said(LABELS, drawn(LABELS, 7))
    truth = torch.zeros(SHAPE, dtype=torch.int64)
    loss = loss_of(LABELS, 1.0)
    # of a grid of half the size, the voxel nearest to a centre between two is the second
    parts = [loss(fine, truth, teacher=teacher), loss(coarse, truth[:, 1::2, 1::2], teacher=teacher[:, :, 1::2, 1::2])]
    both = loss((fine, coarse), truth, teacher=teacher)
    torch.testing.assert_close(both, (2 * parts[0] + parts[1]) / 3)


@KINDS
@pytest.mark.parametrize("scale", [0.0, 200.0])
def test_certain_ones_are_finite(labels: LabelMap, scale: float) -> None:
    logits = drawn(labels, 8, scale).requires_grad_()
    teacher = said(labels, drawn(labels, 9, scale))
    loss = loss_of(labels, 0.5)(logits, torch.zeros(SHAPE, dtype=torch.int64), teacher=teacher)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert bool(loss.isfinite())
    assert bool(gradient.isfinite().all())


def test_the_teacher_speaks_of_voxels_that_nobody_labelled() -> None:
    labels = LabelMap.from_names(NAMES, ignored=9)
    logits, truth = drawn(labels, 10).requires_grad_(), torch.full(SHAPE, 9)
    loss = loss_of(labels, 0.5)(logits, truth, teacher=said(labels, drawn(labels, 11)))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert float(gradient.abs().min()) > 0


def test_of_objects_it_speaks_of_their_classes() -> None:
    logits = drawn(OBJECTS, 12).requires_grad_()
    truth, nothing = torch.zeros(SHAPE, dtype=torch.int64), torch.zeros(SHAPE)
    teacher = said(OBJECTS, drawn(OBJECTS, 13))
    loss = loss_of(OBJECTS, 1.0)(logits, truth, teacher=teacher, border=nothing.long(), distance=nothing)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert float(gradient[:, :4].abs().min()) > 0
    assert float(gradient[:, 4:].abs().max()) == 0
