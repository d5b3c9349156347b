"""The loss where objects are told apart: its terms by their definitions, with and without what is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from unet_med.config import Instances, Loss
from unet_med.labels import LabelMap
from unet_med.losses import ObjectLoss, build_loss

LABELS = LabelMap.from_names({"background": 0, "a": 1, "b": 2}, objects=True)
OPTIONS = Loss(kind="dice_ce", class_weights=None)
Truth = dict[str, torch.Tensor]


def truth(seed: int = 0, shape: tuple[int, ...] = (2, 8, 9)) -> tuple[torch.Tensor, Truth]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 3, shape, generator=generator)
    own = target > 0
    border = torch.randint(0, 3, shape, generator=generator) * own
    distance = torch.rand(shape, generator=generator) * own
    return target, {"border": border, "distance": distance}


def certain(target: torch.Tensor, beside: Truth) -> torch.Tensor:
    """Logits that say the truth."""
    classes = F.one_hot(target, 3).movedim(-1, 1).float() * 80
    border = (beside["border"] > 0).float() * 80 - 40
    distance = torch.logit(beside["distance"], eps=1e-9)
    return torch.cat([classes, border[:, None], distance[:, None]], dim=1)


def test_the_truth_costs_nothing_and_its_opposite_much() -> None:
    target, beside = truth()
    loss = build_loss(OPTIONS, LABELS)
    logits = certain(target, beside)
    assert float(loss(logits, target, **beside)) < 1e-3
    assert set(loss.parts) == {"dice", "cross_entropy", "border", "distance"}
    assert all(value < 1e-3 for value in loss.parts.values())
    loss(-logits, target, **beside)
    assert all(value > 0.5 for value in loss.parts.values())


def test_terms_are_their_definitions_and_weigh_as_told() -> None:
    target, beside = truth()
    logits = torch.randn(2, 5, 8, 9, generator=torch.Generator().manual_seed(1))
    settings = Instances(border_weight=0.5, touching_weight=3.0, distance_weight=2.0)
    loss = build_loss(OPTIONS, LABELS, instances=settings)
    value = float(loss(logits, target, **beside))
    classes = build_loss(OPTIONS, replace(LABELS, objects=False))
    alone = float(classes(logits[:, :3], target))
    is_border = (beside["border"] > 0).float()
    weights = torch.where(beside["border"] == 2, 3.0, 1.0)
    entropy = F.binary_cross_entropy_with_logits(logits[:, 3], is_border, weights, reduction="sum") / weights.sum()
    p = logits[:, 3].sigmoid()
    dice = 1 - 2 * (weights * p * is_border).sum() / (weights * (p + is_border)).sum()
    said, wanted = torch.distributions.Bernoulli(logits=logits[:, 4]), torch.distributions.Bernoulli(beside["distance"])
    apart = torch.distributions.kl_divergence(wanted, said)
    distance = (apart[target > 0].mean() + apart[target == 0].mean()) / 2
    assert loss.parts["border"] == pytest.approx(float(entropy + dice), rel=1e-4)
    assert loss.parts["distance"] == pytest.approx(float(distance), rel=1e-4)
    assert value == pytest.approx(alone + 0.5 * float(entropy + dice) + 2.0 * float(distance), rel=1e-4)


def test_what_nobody_labelled_is_not_learnt() -> None:
    target, beside = truth()
    target[:, :3] = 255
    sparse = build_loss(OPTIONS, replace(LABELS, ignored=255))
    logits = torch.randn(2, 5, 8, 9, generator=torch.Generator().manual_seed(1), requires_grad=True)
    value = sparse(logits, target, **beside)
    (gradient,) = torch.autograd.grad(value, logits)
    assert not gradient[:, :, :3].any()
    assert gradient[:, :, 3:].abs().sum(dim=(0, 2, 3)).min() > 0
    rest = {name: tensor[:, 3:] for name, tensor in beside.items()}
    torch.testing.assert_close(value, build_loss(OPTIONS, LABELS)(logits[:, :, 3:], target[:, 3:], **rest))


@pytest.mark.parametrize("label", [0, 1, 255])
def test_batches_of_one_kind_are_finite(label: int) -> None:
    logits = torch.randn(2, 5, 4, 4, 4, requires_grad=True)
    target = torch.full((2, 4, 4, 4), label)
    beside = {"border": torch.zeros_like(target), "distance": (target == 1).float()}
    value = build_loss(OPTIONS, replace(LABELS, ignored=255))(logits, target, **beside)
    (gradient,) = torch.autograd.grad(value, logits)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()


def test_coarser_levels_see_the_truth_at_their_centres() -> None:
    fine, beside = truth(shape=(1, 4, 6))
    coarse = {name: tensor.repeat_interleave(2, 1).repeat_interleave(2, 2) for name, tensor in beside.items()}
    target = fine.repeat_interleave(2, 1).repeat_interleave(2, 2)
    levels = [certain(target, coarse), certain(fine, beside)]
    loss = build_loss(OPTIONS, LABELS)
    assert float(loss(levels, target, **coarse)) < 1e-3
    levels[1] = -levels[1]
    alone = build_loss(OPTIONS, LABELS)
    alone(levels[1], fine, **beside)
    loss(levels, target, **coarse)
    assert loss.parts["border"] == pytest.approx(alone.parts["border"] / 3, rel=1e-3)
    assert loss.parts["distance"] == pytest.approx(alone.parts["distance"] / 3, rel=1e-3)


@pytest.mark.parametrize("ignored", [None, 2])
def test_processes_that_share_a_batch_have_its_loss(ignored: int | None) -> None:
    labels = replace(LABELS, ignored=ignored)
    target, beside = truth(shape=(5, 6, 7))
    logits = torch.randn(5, 5, 6, 7, generator=torch.Generator().manual_seed(1), requires_grad=True)
    whole = build_loss(OPTIONS, labels)(logits, target, **beside)
    sums: list[list[torch.Tensor]] = [[], []]

    def shares(loss: ObjectLoss | torch.nn.Module) -> list[torch.Tensor]:
        return [
            loss(logits[rank::2], target[rank::2], **{name: tensor[rank::2] for name, tensor in beside.items()})
            for rank in range(2)
        ]

    calls: list[torch.Tensor] = []

    def learn(values: torch.Tensor) -> torch.Tensor:
        calls.append(values)
        return values

    shares(build_loss(OPTIONS, labels, learn))
    half = len(calls) // 2
    sums = [calls[:half], calls[half:]]
    turn = iter(range(2 * half))

    def together(_values: torch.Tensor) -> torch.Tensor:
        mine = next(turn) % half
        return sums[0][mine] + sums[1][mine]

    values = shares(build_loss(OPTIONS, labels, together))
    torch.testing.assert_close(torch.stack(values).mean(), whole)
    mine, theirs = (
        torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (torch.stack(values).mean(), whole)
    )
    torch.testing.assert_close(mine, theirs)
