"""Every loss, in two and three dimensions, for exclusive labels and for regions, is lowered by one step."""

from __future__ import annotations

import pytest
import torch

from unet_med.config import Loss, Network
from unet_med.labels import LabelMap
from unet_med.losses import border_weight_map, build_loss
from unet_med.networks import build_network

KINDS = Loss.model_fields["kind"].annotation.__args__
LABELS = LabelMap.from_names({"a": 1, "b": 2})
REGIONS = LabelMap.from_names({"a": 1, "b": 2}, {"whole": [1, 2], "core": [2]})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["softmax", "regions"])
def test_one_step_lowers_the_loss(kind: str, dims: int, labels: LabelMap) -> None:
    torch.manual_seed(0)
    network = build_network(
        Network(
            features=(4, 8, 8),
            strides=((1,) * dims, *[(2,) * dims] * 2),
            kernels=((3,) * dims,) * 3,
            deep_supervision=True,
        ),
        dims,
        1,
        labels.outputs,
    )
    loss = build_loss(Loss(kind=kind, class_weights=(0.5,) + (1.0,) * (labels.outputs - 1)), labels)
    target = torch.zeros(2, *(8,) * dims, dtype=torch.int64)
    target[:, 2:7] = 1
    target[:, 4:6] = 2
    image = target[:, None].float() + 0.1 * torch.randn(2, 1, *(8,) * dims)
    weight = (
        torch.from_numpy(border_weight_map(target[0].numpy())).expand(target.shape)
        if kind.startswith("border")
        else None
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-2)
    before = loss(network(image), target, weight)
    before.backward()
    optimizer.step()
    assert loss(network(image), target, weight).item() < before.item()
