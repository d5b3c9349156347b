"""Our U-Nets against nnU-Net's own, with its weights.

nnU-Net runs in an interpreter of its own, which ``UNET_MED_NNUNET_PYTHON`` names.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from unet_med.config import Network
from unet_med.networks import build_network
from unet_med.nnunet.weights import translated

CASES: dict[str, dict[str, Any]] = {
    "residual 3-D": {
        "kind": "residual",
        "features": [4, 6, 8, 8],
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]],
        "kernels": [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
        "blocks": [1, 3, 2, 2],
        "decoder": 1,
    },
    "residual 2-D": {
        "kind": "residual",
        "features": [4, 8, 8],
        "strides": [[1, 1], [2, 2], [2, 1]],
        "kernels": [[3, 3], [3, 5], [3, 3]],
        "blocks": [2, 1, 3],
        "decoder": 2,
    },
    "plain 3-D": {
        "kind": "unet",
        "features": [4, 6, 8, 8],
        "strides": [[1, 1, 1], [2, 2, 1], [2, 2, 2], [2, 2, 2]],
        "kernels": [[3, 3, 1], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
        "blocks": [2, 2, 2, 2],
        "decoder": 2,
    },
    "plain 2-D": {
        "kind": "unet",
        "features": [4, 6, 8],
        "strides": [[1, 1], [2, 2], [2, 2]],
        "kernels": [[3, 3], [3, 3], [3, 3]],
        "blocks": [3, 3, 3],
        "decoder": 1,
    },
}
CHANNELS, OUTPUTS, BATCH, EDGE = 2, 3, 2, 16

_PEER = f"""
import json, sys
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet

results = {{}}
for number, (name, case) in enumerate(json.loads(sys.argv[1]).items()):
    torch.manual_seed(number)
    dims = len(case["strides"][0])
    residual = case["kind"] == "residual"
    kind = ResidualEncoderUNet if residual else PlainConvUNet
    network = kind(
        input_channels={CHANNELS},
        n_stages=len(case["features"]),
        features_per_stage=case["features"],
        conv_op=getattr(torch.nn, f"Conv{{dims}}d"),
        kernel_sizes=case["kernels"],
        strides=case["strides"],
        num_classes={OUTPUTS},
        n_conv_per_stage_decoder=case["decoder"],
        conv_bias=True,
        norm_op=getattr(torch.nn, f"InstanceNorm{{dims}}d"),
        norm_op_kwargs={{"eps": 1e-5, "affine": True}},
        nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={{"inplace": True}},
        deep_supervision=True,
        **{{"n_blocks_per_stage" if residual else "n_conv_per_stage": case["blocks"]}},
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=1.0 if parameter.dim() == 1 else 0.1)
    image = torch.randn({BATCH}, {CHANNELS}, *[{EDGE}] * dims)
    with torch.no_grad():
        results[name] = {{"state": network.state_dict(), "image": image, "logits": list(network(image))}}
torch.save(results, sys.argv[2])
"""


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    python = os.environ.get("UNET_MED_NNUNET_PYTHON")
    if not python:
        pytest.skip("UNET_MED_NNUNET_PYTHON does not name an interpreter with nnU-Net")
    path: Path = tmp_path_factory.mktemp("nnunet") / "results.pt"
    command = [python, "-W", "ignore", "-c", _PEER, json.dumps(CASES), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("name", CASES)
def test_with_its_weights_our_logits_are_those_of_nnunet(name: str, peer: dict[str, Any]) -> None:
    case, theirs = CASES[name], peer[name]
    residual = case["kind"] == "residual"
    config = Network(
        kind=case["kind"],
        features=case["features"],
        strides=case["strides"],
        kernels=case["kernels"],
        convolutions_per_level=2 if residual else case["blocks"][0],
        blocks_per_level=case["blocks"] if residual else None,
        decoder_convolutions=case["decoder"],
        bias=True,
        deep_supervision=True,
    )
    network = build_network(config, len(case["strides"][0]), CHANNELS, OUTPUTS)
    network.load_state_dict(translated(theirs["state"], len(case["features"]), len(network.heads), "nnU-Net"))
    with torch.no_grad():
        found = network.train()(theirs["image"])
    for ours, expected in zip(found, theirs["logits"][:-1], strict=True):  # the coarsest has no weight in their loss
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
