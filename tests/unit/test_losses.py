from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from unet_med.config import Loss
from unet_med.errors import ConfigError
from unet_med.labels import LabelMap
from unet_med.losses import border_weight_map, build_loss

LABELS = LabelMap.from_names({"background": 0, "a": 1, "b": 2})
REGIONS = LabelMap.from_names({"background": 0, "a": 1, "b": 2}, {"whole": [1, 2], "core": [2]})
KINDS = ("dice_focal", "dice", "focal", "cross_entropy", "dice_ce", "jaccard", "tversky", "border_cross_entropy")


def config(kind: str = "dice_focal", **changes: object) -> Loss:
    return Loss(**({"kind": kind, "class_weights": None} | changes))


def certain(target: torch.Tensor, outputs: int, regions: bool) -> torch.Tensor:
    """Logits that are sure of the truth."""
    if regions:
        return torch.stack([(target >= 1), (target == 2)], dim=1).float() * 80 - 40
    return torch.nn.functional.one_hot(target, outputs).movedim(-1, 1).float() * 80


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["softmax", "regions"])
def test_the_truth_costs_nothing_and_its_opposite_much(kind: str, labels: LabelMap) -> None:
    torch.manual_seed(0)
    target = torch.randint(0, 3, (2, 8, 9))
    loss = build_loss(config(kind), labels)
    logits = certain(target, 3, bool(labels.regions))
    assert float(loss(logits, target)) < 1e-3
    assert float(loss(-logits, target)) > 0.6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["softmax", "regions"])
@pytest.mark.parametrize("value", [0, 2])
@pytest.mark.parametrize("scale", [0.0, 1.0, 200.0])
def test_batches_of_one_label_are_finite(kind: str, labels: LabelMap, value: int, scale: float) -> None:
    torch.manual_seed(0)
    logits = (torch.randn(2, labels.outputs, 4, 4, 4) * scale).requires_grad_()
    for changes in (
        {},
        {"batch_dice": False},
        {"focal_gamma": 0.5},
        {"class_weights": (0.0,) + (1.0,) * (labels.outputs - 1)},
    ):
        loss = build_loss(config(kind, **changes), labels)(logits, torch.full((2, 4, 4, 4), value))
        (gradient,) = torch.autograd.grad(loss, logits)
        assert math.isfinite(float(loss.detach()))
        assert torch.isfinite(gradient).all()


def test_parts_name_the_terms_and_weights_mix_them() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 6, 6), torch.randint(0, 3, (2, 6, 6))
    loss = build_loss(config("dice_focal", dice_weight=0.5, pixel_weight=3.0), LABELS)
    total = float(loss(logits, target))
    assert set(loss.parts) == {"dice", "focal"}
    assert total == pytest.approx(0.5 * loss.parts["dice"] + 3.0 * loss.parts["focal"], rel=1e-5)
    alone = build_loss(config("dice", dice_weight=0.5), LABELS)
    assert float(alone(logits, target)) == pytest.approx(loss.parts["dice"], rel=1e-6)


def test_deep_supervision_halves_the_weight_of_each_level() -> None:
    torch.manual_seed(0)
    target = torch.randint(0, 3, (2, 8, 8))
    levels = tuple(torch.randn(2, 3, n, n) for n in (8, 4, 2))
    loss = build_loss(config("cross_entropy"), LABELS)
    single = [float(loss(level, target)) for level in levels]
    together = float(loss(levels, target))
    assert together == pytest.approx((4 * single[0] + 2 * single[1] + single[2]) / 7, rel=1e-5)
    assert loss.parts["cross_entropy"] == pytest.approx(together, rel=1e-5)
    assert float(loss((levels[0],), target)) == pytest.approx(single[0])


def test_coarser_levels_see_the_label_at_their_centres() -> None:
    target = torch.zeros(1, 6, dtype=torch.int64)
    target[0, [1, 4]] = torch.tensor([1, 2])
    logits = certain(torch.tensor([[1, 2]]), 3, regions=False)  # two voxels, each three fine ones long
    assert float(build_loss(config("cross_entropy"), LABELS)(logits, target)) < 1e-6


def test_class_weights_are_of_outputs() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 6, 6), torch.randint(0, 3, (2, 6, 6))
    loss = build_loss(config("cross_entropy", class_weights=(0.5, 2.0, 3.0)), LABELS)
    expected = torch.nn.functional.cross_entropy(logits, target, torch.tensor([0.5, 2.0, 3.0]))
    torch.testing.assert_close(loss(logits, target), expected)


def test_the_weight_map_is_added_to_the_class_weight() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(1, 3, 6, 6), torch.randint(0, 3, (1, 6, 6))
    weight = torch.rand(1, 6, 6) * 10
    loss = build_loss(config("border_cross_entropy", class_weights=(0.5, 2.0, 3.0)), LABELS)
    each = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    total = torch.tensor([0.5, 2.0, 3.0])[target] + weight
    torch.testing.assert_close(loss(logits, target, weight), (each * total).sum() / total.sum())
    regions = build_loss(config("border_cross_entropy"), REGIONS)
    assert float(regions(logits[:, :2], target, weight)) > 0


def test_half_precision_logits_give_a_float32_loss() -> None:
    logits, target = torch.randn(1, 3, 6, 6).bfloat16().requires_grad_(), torch.randint(0, 3, (1, 6, 6))
    loss = build_loss(config(), LABELS)(logits, target)
    assert loss.dtype == torch.float32
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16


class _InTurn:
    """Sums over processes, all of which are this one: called process after process, first to learn the sums."""

    def __init__(self) -> None:
        self.sums: list[torch.Tensor] = []
        self.calls: int | None = None

    def learn(self, values: torch.Tensor) -> torch.Tensor:
        self.sums.append(values)
        return values

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        assert self.calls is not None
        half = len(self.sums) // 2
        mine = self.calls % half
        self.calls += 1
        return self.sums[mine] + self.sums[half + mine]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["softmax", "regions"])
@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("ignored", [None, 2])
def test_processes_that_share_a_batch_have_its_loss(
    kind: str, labels: LabelMap, batch_dice: bool, ignored: int | None
) -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(5, labels.outputs, 6, 7, requires_grad=True), torch.randint(0, 3, (5, 6, 7))
    weight = torch.rand(5, 6, 7) if kind.startswith("border") else None
    options = config(kind, batch_dice=batch_dice, class_weights=(0.3, 1.0, 2.0)[: labels.outputs])
    labels = replace(labels, ignored=ignored)
    whole = build_loss(options, labels)(logits, target, weight)
    processes = _InTurn()
    shared = build_loss(options, labels, processes.learn)
    shares = [(logits[rank::2], target[rank::2], None if weight is None else weight[rank::2]) for rank in range(2)]
    for share in shares:
        shared(*share)
    processes.calls, shared.reduce = 0, processes.sum
    parts = torch.stack([shared(*share) for share in shares])
    torch.testing.assert_close(parts.mean(), whole)
    torch.testing.assert_close(*(torch.autograd.grad(value, logits)[0] for value in (parts.mean(), whole)))


@pytest.mark.parametrize(
    ("weights", "labels", "says"),
    [
        ("auto", LABELS, "still 'auto'"),
        ((1.0, 1.0), LABELS, "do not fit 3 outputs"),
        ((0.0, 0.0, 0.0), LABELS, "do not fit 3 outputs"),
        ((1.0, 1.0, 1.0), REGIONS, "do not fit 2 outputs"),
        (None, LabelMap(()), "no label to learn"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights: object, labels: LabelMap, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        build_loss(config(class_weights=weights), labels)
    assert caught.value.remedy


# ---- voxels that nobody labelled ----------------------------------------------------------------------------------

IGNORED = 255


def sparse(labels: LabelMap, seed: int, share: float) -> tuple[torch.Tensor, torch.Tensor, LabelMap]:
    """Logits, a target of which about ``share`` is labelled, and the map that says so."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, labels.outputs, 6, 7, generator=generator) * 3
    target = torch.randint(0, 3, (2, 6, 7), generator=generator)
    unlabelled = torch.rand(2, 6, 7, generator=generator) >= share
    return logits.requires_grad_(), target.masked_fill(unlabelled, IGNORED), replace(labels, ignored=IGNORED)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["softmax", "regions"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**20), share=st.floats(0.05, 1.0), gamma=st.sampled_from([0.0, 2.0]))
def test_unlabelled_voxels_do_not_exist(kind: str, labels: LabelMap, seed: int, share: float, gamma: float) -> None:
    logits, target, sparsely = sparse(labels, seed, share)
    known = target != IGNORED
    assume(bool(known.any()))
    weight = torch.rand(target.shape) if kind.startswith("border") else None
    options = config(kind, focal_gamma=gamma, class_weights=(0.3, 1.0, 2.0)[: labels.outputs])
    ours = build_loss(options, sparsely)(logits, target, weight)
    rest = logits.movedim(1, -1)[known].T[None], target[known][None], None if weight is None else weight[known][None]
    torch.testing.assert_close(ours, build_loss(options, labels)(*rest), rtol=1e-4, atol=1e-6)
    (gradient,) = torch.autograd.grad(ours, logits)
    assert torch.equal(gradient.movedim(1, -1)[~known], torch.zeros_like(gradient.movedim(1, -1)[~known]))
    moved = logits.detach() + 5.0 * (~known)[:, None]
    torch.testing.assert_close(build_loss(options, sparsely)(moved, target, weight), ours, rtol=1e-4, atol=1e-6)


def test_unlabelled_voxels_are_torchs_ignore_index() -> None:
    weights = torch.tensor([0.5, 2.0, 3.0])
    logits, target, sparsely = sparse(LABELS, 0, 0.4)
    ours = build_loss(config("cross_entropy", class_weights=tuple(weights.tolist())), sparsely)(logits, target)
    theirs = torch.nn.functional.cross_entropy(logits, target, weights, ignore_index=IGNORED)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(value, logits)[0] for value in (ours, theirs)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["softmax", "regions"])
@pytest.mark.parametrize("batch_dice", [True, False])
def test_nothing_is_learnt_where_nothing_is_labelled(kind: str, labels: LabelMap, batch_dice: bool) -> None:
    logits, target, sparsely = sparse(labels, 0, 0.0)
    loss = build_loss(config(kind, batch_dice=batch_dice), sparsely)(logits, target)
    (gradient,) = torch.autograd.grad(loss * 2.0**16, logits)  # as large as the loss scaling of fp16 begins
    assert loss.item() == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_coarser_levels_ignore_what_is_unlabelled_at_their_centres() -> None:
    _, target, sparsely = sparse(LABELS, 3, 0.5)
    levels = tuple(torch.randn(2, 3, *size) for size in ((6, 7), (3, 3)))
    loss = build_loss(config("cross_entropy"), sparsely)
    coarse = target[:, [1, 3, 5]][:, :, [1, 3, 5]]
    singles = [
        torch.nn.functional.cross_entropy(level, fine, ignore_index=IGNORED)
        for level, fine in zip(levels, (target, coarse), strict=True)
    ]
    torch.testing.assert_close(loss(levels, target), (2 * singles[0] + singles[1]) / 3)


# ---- border weights -----------------------------------------------------------------------------------------------


def by_definition(objects: np.ndarray, w0: float, sigma: float) -> np.ndarray:
    numbers = [n for n in np.unique(objects) if n != 0]
    if len(numbers) < 2:
        return np.zeros(objects.shape)
    distances = np.sort([ndimage.distance_transform_edt(objects != n) for n in numbers], axis=0)
    return np.where(objects == 0, w0 * np.exp(-((distances[0] + distances[1]) ** 2) / (2 * sigma**2)), 0)


@pytest.mark.parametrize(("shape", "sigma"), [((60, 50), 5.0), ((24, 20, 16), 2.0)])
def test_border_weights_are_those_of_2015(shape: tuple[int, ...], sigma: float) -> None:
    rng = np.random.default_rng(0)
    objects = np.zeros(shape, dtype=np.int32)
    for number in (3, 7, 8, 20, 500):
        corner = [int(rng.integers(0, n - 6)) for n in shape]
        objects[tuple(slice(c, c + 5) for c in corner)] = number
    weights = border_weight_map(objects, w0=10.0, sigma_voxels=sigma)
    assert weights.dtype == np.float32
    assert float(weights.max()) > 0.01
    np.testing.assert_allclose(weights, by_definition(objects, 10.0, sigma), atol=1e-6)


def test_border_weights_peak_in_the_gap() -> None:
    objects = np.zeros((30, 30), dtype=np.uint8)
    objects[:, :14] = 1
    objects[:, 15:] = 2
    weights = border_weight_map(objects)
    assert weights[15, 14] == pytest.approx(10 * math.exp(-4 / 50))
    assert np.count_nonzero(weights) == 30


@pytest.mark.parametrize("fill", [0, 1])
def test_fewer_than_two_objects_have_no_border(fill: int) -> None:
    objects = np.zeros((9, 9), dtype=np.int64)
    objects[2:5, 2:5] = fill
    assert not border_weight_map(objects).any()
    assert not border_weight_map(np.full((4, 4), fill)).any()
