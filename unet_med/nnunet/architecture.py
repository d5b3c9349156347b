"""The network of an nnU-Net plan in our words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unet_med.errors import ModelError

_WHERE = "plans.json"
_KINDS = {"PlainConvUNet": "unet", "ResidualEncoderUNet": "residual"}
_ACTIVATIONS = {"LeakyReLU": "leaky_relu", "ReLU": "relu"}
_SLOPE = 0.01
_EPSILON = 1e-5


def network_of(configuration: Mapping[str, Any], dims: int) -> dict[str, Any]:
    """Returns the section ``network`` of a pipeline.

    Args:
        configuration: Of a plan, with what it inherits; of any version of nnU-Net v2.
        dims: 2 or 3.

    Raises:
        ModelError: for a network that is none of ours, naming what differs.
    """
    kind, arguments = _architecture(configuration)
    levels = int(arguments["n_stages"])
    per_level = "n_blocks_per_stage" if kind == "residual" else "n_conv_per_stage"
    encoder = _for_each(arguments[per_level], levels)
    network: dict[str, Any] = {
        "kind": kind,
        "features": _for_each(arguments["features_per_stage"], levels),
        "strides": [_for_each(stride, dims) for stride in _for_each(arguments["strides"], levels)],
        "kernels": [_for_each(kernel, dims) for kernel in _for_each(arguments["kernel_sizes"], levels)],
        "decoder_convolutions": _same(_for_each(arguments["n_conv_per_stage_decoder"], levels - 1), "decoder"),
        "bias": bool(arguments.get("conv_bias", False)),
        "norm": _norm(arguments),
        "activation": _activation(arguments),
        "downsampling": "strided",
        "upsampling": "transposed",
    }
    if kind == "residual":
        return network | {"blocks_per_level": encoder}
    return network | {"convolutions_per_level": _same(encoder, "encoder")}


def _architecture(configuration: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Returns our kind of network and nnU-Net's arguments for it."""
    stored = configuration.get("architecture")
    if isinstance(stored, Mapping):
        name, arguments = str(stored.get("network_class_name", "")), stored.get("arch_kwargs", {})
    else:
        name, arguments = str(configuration.get("UNet_class_name", "")), _of_old_plan(configuration)
    kind = _KINDS.get(name.rpartition(".")[2])
    if kind is None:
        raise _refused(f"the network is a {name.rpartition('.')[2] or 'network without a name'}")
    return kind, arguments


def _of_old_plan(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments from the first plans of nnU-Net v2, which name no architecture; none where there is no network."""
    if "n_conv_per_stage_encoder" not in configuration:
        return {}
    encoder = list(configuration["n_conv_per_stage_encoder"])
    first, most = int(configuration["UNet_base_num_features"]), int(configuration["unet_max_num_features"])
    return {
        "n_stages": len(encoder),
        "features_per_stage": [min(first * 2**level, most) for level in range(len(encoder))],
        "kernel_sizes": configuration["conv_kernel_sizes"],
        "strides": configuration["pool_op_kernel_sizes"],
        "n_conv_per_stage": encoder,
        "n_blocks_per_stage": encoder,
        "n_conv_per_stage_decoder": configuration["n_conv_per_stage_decoder"],
        "conv_bias": True,
        "norm_op": "InstanceNorm",
        "norm_op_kwargs": {"eps": _EPSILON, "affine": True},
        "nonlin": "LeakyReLU",
    }


def _norm(arguments: Mapping[str, Any]) -> str:
    name, details = str(arguments.get("norm_op") or ""), arguments.get("norm_op_kwargs") or {}
    if "InstanceNorm" in name and not details.get("affine", False):
        raise _refused("its instance norm has no scale and shift")
    if name and abs(float(details.get("eps", _EPSILON)) - _EPSILON) > 1e-12:
        raise _refused(f"its norm adds {details['eps']} to the variance")
    if arguments.get("nonlin_first"):
        raise _refused("its activation comes before the norm")
    if "InstanceNorm" in name:
        return "instance"
    if "BatchNorm" in name:
        return "batch"
    if not name:
        return "none"
    raise _refused(f"its norm is {name}")


def _activation(arguments: Mapping[str, Any]) -> str:
    name, details = str(arguments.get("nonlin") or "").rpartition(".")[2], arguments.get("nonlin_kwargs") or {}
    if name not in _ACTIVATIONS:
        raise _refused(f"its activation is {name or 'missing'}")
    if name == "LeakyReLU" and float(details.get("negative_slope", _SLOPE)) != _SLOPE:
        raise _refused(f"its LeakyReLU has the slope {details['negative_slope']}")
    return _ACTIVATIONS[name]


def _for_each(value: Any, count: int) -> list[Any]:
    """A number for all as one number for each."""
    return list(value) if isinstance(value, Sequence) else [value] * count


def _same(numbers: Sequence[int], part: str) -> int:
    if len(set(numbers)) != 1:
        raise _refused(f"the levels of its {part} have {', '.join(map(str, numbers))} convolutions")
    return int(numbers[0])


def _refused(what: str) -> ModelError:
    return ModelError(
        f"the network cannot be imported: {what}", _WHERE, "PlainConvUNet and ResidualEncoderUNet as planned can be"
    )
