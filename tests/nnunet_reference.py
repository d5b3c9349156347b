"""nnU-Net's networks, written from their description, with its names of parameters; and small plans of its kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_POOL = {2: nn.AvgPool2d, 3: nn.AvgPool3d}


class _Unit(nn.Module):
    """Convolution, norm, activation; the same parameters have a second name, as in nnU-Net's checkpoints."""

    def __init__(
        self,
        dims: int,
        enter: int,
        leave: int,
        kernel: Sequence[int],
        stride: Any = 1,
        bias: bool = True,
        act: bool = True,
    ) -> None:
        super().__init__()
        self.conv = _CONVOLUTION[dims](enter, leave, kernel, stride, [k // 2 for k in kernel], bias=bias)
        self.norm = _NORM[dims](leave, eps=1e-5, affine=True)
        self.all_modules = nn.Sequential(self.conv, self.norm, *([nn.LeakyReLU()] if act else []))

    def forward(self, x: Tensor) -> Tensor:
        return self.all_modules(x)


class _Stack(nn.Module):
    def __init__(self, dims: int, count: int, enter: int, leave: int, kernel: Sequence[int], stride: Any = 1) -> None:
        super().__init__()
        units = [_Unit(dims, enter if n == 0 else leave, leave, kernel, stride if n == 0 else 1) for n in range(count)]
        self.convs = nn.Sequential(*units)

    def forward(self, x: Tensor) -> Tensor:
        return self.convs(x)


class _Residual(nn.Module):
    def __init__(self, dims: int, enter: int, leave: int, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = _Unit(dims, enter, leave, kernel, stride)
        self.conv2 = _Unit(dims, leave, leave, kernel, act=False)
        parts: list[nn.Module] = [_POOL[dims](stride, stride)] if max(stride) > 1 else []
        if enter != leave:
            parts.append(_Unit(dims, enter, leave, [1] * dims, bias=False, act=False))
        self.skip = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.leaky_relu(self.conv2(self.conv1(x)) + self.skip(x))


class _Blocks(nn.Module):
    def __init__(self, dims: int, count: int, enter: int, leave: int, kernel: Sequence[int], stride: Any) -> None:
        super().__init__()
        first = _Residual(dims, enter, leave, kernel, stride)
        self.blocks = nn.Sequential(
            first, *[_Residual(dims, leave, leave, kernel, [1] * dims) for _ in range(count - 1)]
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class _Encoder(nn.Module):
    def __init__(self, dims: int, channels: int, arguments: dict[str, Any]) -> None:
        super().__init__()
        features, kernels, strides = (arguments[k] for k in ("features_per_stage", "kernel_sizes", "strides"))
        blocks = arguments.get("n_blocks_per_stage")
        self.stem: nn.Module | None = None
        enter = channels
        if blocks:
            self.stem = _Stack(dims, 1, channels, features[0], kernels[0])
            enter = features[0]
        stages: list[nn.Module] = []
        for level, leave in enumerate(features):
            if blocks:
                stages.append(_Blocks(dims, blocks[level], enter, leave, kernels[level], strides[level]))
            else:
                count = arguments["n_conv_per_stage"][level]
                stages.append(nn.Sequential(_Stack(dims, count, enter, leave, kernels[level], strides[level])))
            enter = leave
        self.stages = nn.Sequential(*stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = x if self.stem is None else self.stem(x)
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found


class _Decoder(nn.Module):
    def __init__(self, encoder: nn.Module, dims: int, outputs: int, arguments: dict[str, Any]) -> None:
        super().__init__()
        features, kernels, strides = (arguments[k] for k in ("features_per_stage", "kernel_sizes", "strides"))
        self.encoder = encoder
        self.transpconvs, self.stages, self.seg_layers = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for place, level in enumerate(range(len(features) - 2, -1, -1)):
            below, own = features[level + 1], features[level]
            stride, count = strides[level + 1], arguments["n_conv_per_stage_decoder"][place]
            self.transpconvs.append(_TRANSPOSED[dims](below, own, stride, stride))
            self.stages.append(_Stack(dims, count, 2 * own, own, kernels[level]))
            self.seg_layers.append(_CONVOLUTION[dims](own, outputs, 1))

    def forward(self, skips: list[Tensor]) -> Tensor:
        x = skips[-1]
        for place, (up, stage) in enumerate(zip(self.transpconvs, self.stages, strict=True)):
            x = stage(torch.cat((up(x), skips[-2 - place]), 1))
        return self.seg_layers[-1](x)


class ReferenceUNet(nn.Module):
    """``PlainConvUNet``, or ``ResidualEncoderUNet`` where the arguments have blocks."""

    def __init__(self, dims: int, channels: int, outputs: int, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.encoder = _Encoder(dims, channels, arguments)
        self.decoder = _Decoder(self.encoder, dims, outputs, arguments)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, *s) to logits (N, outputs, *s)."""
        return self.decoder(self.encoder(x))


def arguments_of(dims: int, residual: bool = False, features: Sequence[int] = (4, 6, 8)) -> dict[str, Any]:
    """``arch_kwargs`` of a small network."""
    levels = len(features)
    encoder = {"n_blocks_per_stage": [1, 2, 2][:levels]} if residual else {"n_conv_per_stage": [2] * levels}
    return {
        "n_stages": levels,
        "features_per_stage": list(features),
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "kernel_sizes": [[1, *[3] * (dims - 1)], *[[3] * dims] * (levels - 1)],
        "strides": [[1] * dims, [1, *[2] * (dims - 1)], [2] * dims][:levels],
        **encoder,
        "n_conv_per_stage_decoder": [1 if residual else 2] * (levels - 1),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def plans_of(
    configuration: str = "3d_fullres", residual: bool = False, spacing: Sequence[float] = (2.0, 1.0, 1.0), **more: Any
) -> dict[str, Any]:
    """``plans.json`` of a small model; ``more`` replaces entries of the configuration or of the whole."""
    dims = 2 if configuration == "2d" else 3
    name = "ResidualEncoderUNet" if residual else "PlainConvUNet"
    resampling = {"is_seg": False, "order_z": 0, "force_separate_z": None}
    chosen = {
        "data_identifier": "x",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [8, 16, 16][-dims:],
        "median_image_size_in_voxels": [20, 30, 30][-dims:],
        "spacing": list(spacing)[-dims:],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [True],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {**resampling, "order": 3},
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
        "architecture": {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
            "arch_kwargs": arguments_of(dims, residual),
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": False,
    }
    plans = {
        "dataset_name": "Dataset001_Toy",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [2.0, 1.0, 1.0],
        "original_median_shape_after_transp": [20, 30, 30],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(channel): {
                "max": 400.0, "mean": 90.0, "median": 92.0, "min": -50.0,
                "percentile_00_5": -20.0, "percentile_99_5": 240.0, "std": 40.0,
            }
            for channel in range(3)
        },
    }  # fmt: skip
    for key, value in more.items():
        (plans if key in plans else chosen)[key] = value
    return {**plans, "configurations": {configuration: chosen}}


DATASET = {
    "channel_names": {"0": "MR"},
    "labels": {"background": 0, "large": 1, "small": 2},
    "numTraining": 3,
    "file_ending": ".nii.gz",
}
