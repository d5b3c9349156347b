from __future__ import annotations

from typing import Any

import pytest
import torch

from unet_med.config import Network
from unet_med.errors import ModelError
from unet_med.networks import Segmenter, build_network
from unet_med.networks.transfer import transferred

KINDS: list[dict[str, Any]] = [
    {},
    {"kind": "residual", "blocks_per_level": (1, 1, 1)},
    {"kind": "dilated", "features": (4,), "strides": ((1, 1),), "kernels": ((3, 3),)},
]
LABELS = ("background", "liver", "spleen")


def build(seed: int, channels: int = 2, outputs: int = 3, **changes: Any) -> Segmenter:
    torch.manual_seed(seed)
    values: dict[str, Any] = {
        "features": (4, 6, 8),
        "strides": ((1, 1), (2, 2), (2, 2)),
        "kernels": ((3, 3),) * 3,
        "norm": "none",
    }
    return build_network(Network(**(values | changes)), 2, channels, outputs).eval()


def logits(network: Segmenter, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network(x)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_same_channels_and_labels_are_taken_over_as_they_are(kind: dict[str, Any]) -> None:
    trained, target = build(0, **kind), build(1, **kind)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    state, notes = transferred(trained.state_dict(), target, ("T1", "T2"), ("T1", "T2"), LABELS, LABELS)
    assert notes == []
    assert list(state) == list(before)
    for name, value in trained.state_dict().items():
        assert torch.equal(state[name], value)
        assert state[name].data_ptr() != value.data_ptr()
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_known_labels_answer_as_before_and_new_ones_start_fresh(kind: dict[str, Any]) -> None:
    trained, target = build(0, **kind), build(1, outputs=4, **kind)
    fresh = target.heads[0].weight.detach().clone()
    after = ("background", "tumour", "spleen", "kidney")
    state, notes = transferred(trained.state_dict(), target, ("T1", "T2"), ("T1", "T2"), LABELS, after)
    target.load_state_dict(state)
    x = torch.randn(1, 2, 8, 8)
    found, expected = logits(target, x), logits(trained, x)
    torch.testing.assert_close(found[:, [0, 2]], expected[:, [0, 2]])
    assert torch.equal(target.heads[0].weight[[1, 3]], fresh[[1, 3]])
    assert notes == [
        "output tumour is new, it starts fresh",
        "output kidney is new, it starts fresh",
        "output liver of the trained network is left out",
    ]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_known_channels_are_seen_as_before_and_new_ones_by_their_mean(kind: dict[str, Any]) -> None:
    trained, target = build(0, **kind), build(1, channels=3, **kind)
    state, notes = transferred(trained.state_dict(), target, ("T1", "T2"), ("T2", "FLAIR", "T1"), LABELS, LABELS)
    target.load_state_dict(state)
    x = torch.randn(1, 2, 8, 8)
    turned = torch.stack((x[:, 1], torch.zeros(1, 8, 8), x[:, 0]), dim=1)
    torch.testing.assert_close(logits(target, turned), logits(trained, x))
    weights, old = state[target.entry], trained.state_dict()[trained.entry]
    torch.testing.assert_close(weights[:, 1], (old[:, 0] + old[:, 1]) / 2)
    assert notes == ["channel FLAIR is new, it starts from the mean of the trained ones"]


def test_slices_stay_with_their_channel() -> None:
    trained, target = build(0, channels=6), build(1, channels=9)
    state, _ = transferred(trained.state_dict(), target, ("T1", "T2"), ("T2", "T1", "new"), LABELS, LABELS)
    target.load_state_dict(state)
    x = torch.randn(1, 6, 8, 8)
    turned = torch.cat((x[:, 3:], x[:, :3], torch.zeros(1, 3, 8, 8)), dim=1)
    torch.testing.assert_close(logits(target, turned), logits(trained, x))


def test_heads_that_were_not_trained_start_fresh() -> None:
    more = {"features": (4, 6, 8, 8), "strides": ((1, 1), *[(2, 2)] * 3), "kernels": ((3, 3),) * 4}
    trained, target = build(0, **more), build(1, deep_supervision=True, **more)
    channels = ("T1", "T2")
    state, notes = transferred(trained.state_dict(), target, channels, channels, LABELS, LABELS)
    assert torch.equal(state["heads.1.weight"], target.heads[1].weight)
    assert torch.equal(state["heads.0.weight"], trained.heads[0].weight)
    assert notes == ["heads of deep supervision that were not trained start fresh"]
    back, notes = transferred(state, build(2, **more), channels, channels, LABELS, LABELS)
    assert notes == []
    assert set(back) == set(trained.state_dict())


@pytest.mark.parametrize(
    ("trained", "target", "channels", "outputs", "says"),
    [
        ({}, {"features": (4, 6, 10)}, (2, 2), (3, 3), r"encoder\.2\.0\.0\.weight is of shape"),
        ({}, {"kind": "residual"}, (2, 2), (3, 3), "does not exist"),
        ({}, {"features": (5, 6, 8)}, (2, 2), (3, 3), "is of shape"),
        ({}, {}, (3, 2), (3, 3), "the trained network has 2 channels, 3 are named"),
        ({}, {}, (2, 3), (3, 3), "the new network has 2 channels, 3 are named"),
        ({}, {}, (2, 2), (3, 4), "the new network has 3 outputs, 4 are named"),
        ({}, {"channels": 6}, (2, 2), (3, 3), "first convolutions differ"),
        (KINDS[2], {}, (2, 2), (3, 3), r"the trained network has no encoder\.0\.0\.0\.weight"),
    ],
)
def test_networks_that_differ_in_more_are_refused(
    trained: dict[str, Any], target: dict[str, Any], channels: tuple[int, int], outputs: tuple[int, int], says: str
) -> None:
    names = [[f"{number}" for number in range(count)] for count in (*channels, *outputs)]
    with pytest.raises(ModelError, match=says) as caught:
        transferred(build(0, **trained).state_dict(), build(1, **target), *names)
    assert caught.value.remedy


def test_a_name_that_comes_twice_is_refused() -> None:
    trained = build(0)
    with pytest.raises(ModelError, match="T1, T1"):
        transferred(trained.state_dict(), build(1), ("T1", "T1"), ("T1", "T2"), LABELS, LABELS)
