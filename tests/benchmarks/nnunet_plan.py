"""What both comparisons with nnU-Net write into its plans."""

from __future__ import annotations

from typing import Any


def plain_unet(features: list[int]) -> dict[str, Any]:
    """Arguments of nnU-Net's plain U-Net: 3x3x3 kernels, strides of 2, two convolutions a level."""
    levels = len(features)
    return {
        "n_stages": levels,
        "features_per_stage": features,
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * levels,
        "strides": [[1, 1, 1], *[[2, 2, 2]] * (levels - 1)],
        "n_conv_per_stage": [2] * levels,
        "n_conv_per_stage_decoder": [2] * (levels - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
