"""nnU-Net's weights compute in our networks what they compute in its own."""

from __future__ import annotations

import pytest
import torch
from nnunet_reference import DATASET, ReferenceUNet, arguments_of, plans_of
from torch import Tensor

from unet_med.errors import ModelError
from unet_med.networks import build_network
from unet_med.nnunet import imported_pipeline, translated
from unet_med.nnunet.weights import is_batch_normalised


def reference(dims: int, residual: bool, channels: int = 2, outputs: int = 3) -> ReferenceUNet:
    torch.manual_seed(0)
    network = ReferenceUNet(dims, channels, outputs, arguments_of(dims, residual))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))  # norms with scales and shifts that differ, biases too
    return network.eval()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("residual", [False, True])
def test_logits_are_those_of_the_reference(dims: int, residual: bool) -> None:
    theirs = reference(dims, residual)
    plans = plans_of("2d" if dims == 2 else "3d_fullres", residual, patch_size=[16] * dims)
    imported = imported_pipeline(plans, DATASET, next(iter(plans["configurations"])), (0, 1))
    ours = build_network(imported.config.network, dims, 2, 3).eval()
    ours.load_state_dict(translated(theirs.state_dict(), 3, imported.heads, "fold_0"), strict=True)
    image = torch.randn(2, 2, *[16] * dims)
    with torch.inference_mode():
        torch.testing.assert_close(ours(image), theirs(image), rtol=1e-4, atol=2e-5)


def test_heads_of_coarser_levels_are_taken_from_the_finest_on() -> None:
    weights = reference(3, residual=False).state_dict()
    two = translated(weights, 3, 2, "fold_0")
    assert torch.equal(two["heads.0.weight"], weights["decoder.seg_layers.1.weight"])
    assert torch.equal(two["heads.1.weight"], weights["decoder.seg_layers.0.weight"])
    assert "heads.1.weight" not in translated(weights, 3, 1, "fold_0")


def test_a_part_of_another_architecture_is_named() -> None:
    with pytest.raises(ModelError, match=r"encoder\.eva\.blocks\.0\.weight"):
        translated({"encoder.eva.blocks.0.weight": torch.zeros(1)}, 3, 1, "fold_0")


def test_statistics_of_batch_norm_are_noticed() -> None:
    found: dict[str, Tensor] = {"encoder.stages.0.0.convs.0.norm.running_mean": torch.zeros(4)}
    assert is_batch_normalised(found)
    assert not is_batch_normalised(reference(2, residual=False).state_dict())
