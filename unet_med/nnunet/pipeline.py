"""nnU-Net's plans as a resolved pipeline of ours.

The network sees the axes in nnU-Net's order: it reads files as (z, y, x), transposes them by its plan, and leaves the
first axis out in 2-D, where ours leaves out the last. What cannot be done in the same way is refused with a reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unet_med.config import PipelineConfig, parse_config
from unet_med.errors import ModelError, UsageError
from unet_med.identity import safe_name
from unet_med.manifest.nnunet import LabelBlock, label_block
from unet_med.nnunet.architecture import network_of

_WHERE = "plans.json"
_STORED = ("SimpleITKIO", "NibabelIO", "Tiff3DIO")
_ORIENTED = ("SimpleITKIOWithReorient", "NibabelIOWithReorient")
_PICTURES = ("NaturalImage2DIO",)
_PREPROCESSORS = ("DefaultPreprocessor",)
_RESAMPLING = "resample_data_or_seg_to_shape"
_NO_RESAMPLING = "no_resampling_data_or_seg_to_shape"
_PLANNED = (
    *("preprocess.spacing_mm", "preprocess.normalisation", "network.features", "network.strides", "network.kernels"),
    *("sampling.patch_voxels", "sampling.batch_size"),
)


@dataclass(frozen=True)
class Imported:
    """A model's description.

    Attributes:
        config: The resolved pipeline.
        reasons: Dotted key -> where the value comes from.
        heads: Outputs of our network in training; nnU-Net has one more.
    """

    config: PipelineConfig
    reasons: dict[str, str]
    heads: int


def imported_pipeline(
    plans: Mapping[str, Any],
    dataset: Mapping[str, Any],
    configuration: str,
    mirror_axes: Sequence[int],
    name: str | None = None,
    batch_norm: bool = False,
    deep_supervision: bool = True,
    orientation: str | None = None,
) -> Imported:
    """Turns a plan into a pipeline.

    Args:
        plans: ``plans.json``.
        dataset: ``dataset.json``.
        configuration: ``2d``, ``3d_fullres``, ``3d_lowres`` or one that inherits from these.
        mirror_axes: Axes of nnU-Net's network that prediction mirrors; none for a trainer without mirroring.
        name: Of the pipeline; by default the data set's.
        batch_norm: Whether the trainer put batch norm where the plan says otherwise.
        deep_supervision: Whether the trainer learnt at several levels.
        orientation: How the training images were stored, ``LPS`` for example; ``None``: as each file is stored.

    Raises:
        ModelError: for what cannot be done in the same way, naming it.
    """
    chosen = _configuration(plans, configuration)
    _check(chosen, configuration)
    dims = len(chosen["patch_size"])
    labels = _labels(dataset)
    network = network_of(chosen, dims) | ({"norm": "batch"} if batch_norm else {})
    levels = len(network["features"])
    network["deep_supervision"] = deep_supervision and levels > 2
    content: dict[str, Any] = {
        "name": safe_name(name or str(plans.get("dataset_name") or "nnunet")),
        "dims": dims,
        "channels": _channels(dataset),
        "labels": labels.labels,
        "regions": labels.regions,
        "ignore_label": labels.ignore,
        "preprocess": _preprocess(plans, chosen, dims, len(_channels(dataset))),
        "network": network,
        "loss": {"kind": "dice_ce", "class_weights": None, "batch_dice": bool(chosen.get("batch_dice", False))},
        "augment": {"mirror_axes": list(mirror_axes), "rotation_degrees": [-30, 30] if dims == 3 else [-180, 180]},
        "sampling": {"patch_voxels": list(chosen["patch_size"]), "batch_size": int(chosen["batch_size"])},
        "training": _TRAINING,
        "inference": {**_BLENDING, "mirror": bool(mirror_axes)},
    }
    if orientation is not None and content["preprocess"]["orientation"] == "stored":
        content["preprocess"]["orientation"] = orientation
    config = parse_config(content, f"{_WHERE}, {configuration}")
    return Imported(config, _reasons(config, configuration), max(1, levels - 2) if network["deep_supervision"] else 1)


_BLENDING = {"overlap": 0.5, "gaussian_sigma": 0.125, "gaussian_centre": "voxel"}

_TRAINING = {
    "optimizer": "sgd",
    "learning_rate": 1e-2,
    "warmup_steps": 0,
    "epochs": 1000,
    "steps_per_epoch": 250,
    "workers": 0,
    "validation_every_epochs": 50,
}
"""nnU-Net's schedule, for the record."""


def _configuration(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns a configuration with what it inherits."""
    known = plans.get("configurations")
    known = known if isinstance(known, Mapping) else {}
    chain: list[Mapping[str, Any]] = []
    wanted: Any = name
    while wanted is not None:
        if wanted not in known or any(known[wanted] is one for one in chain):
            raise ModelError(
                f"the plans have no configuration {wanted!r}", _WHERE, f"they have {', '.join(map(str, known))}"
            )
        chain.append(known[wanted])
        wanted = known[wanted].get("inherits_from")
    merged: dict[str, Any] = {}
    for one in reversed(chain):
        merged |= one
    return merged


def _check(chosen: Mapping[str, Any], name: str) -> None:
    missing = [key for key in ("patch_size", "batch_size", "spacing", "normalization_schemes") if key not in chosen]
    if missing:
        raise ModelError(f"the configuration {name} says nothing about {missing[0]}", _WHERE, "make the plans again")
    if chosen.get("previous_stage") is not None:
        raise ModelError(
            f"{name} is the second stage of a cascade: it needs the masks of {chosen['previous_stage']} as channels",
            _WHERE,
            "import 3d_fullres, 3d_lowres or 2d",
        )
    if chosen.get("preprocessor_name", "DefaultPreprocessor") not in _PREPROCESSORS:
        raise ModelError(
            f"images are prepared by {chosen['preprocessor_name']}, which is not known here",
            _WHERE,
            "train with nnU-Net's DefaultPreprocessor",
        )


def _channels(dataset: Mapping[str, Any]) -> list[str]:
    named = dataset.get("channel_names") or dataset.get("modality")
    if not isinstance(named, Mapping) or not named:
        raise ModelError("the file names no channels", "dataset.json", "add channel_names")
    return [str(named[key]) for key in sorted(named, key=int)]


def _labels(dataset: Mapping[str, Any]) -> LabelBlock:
    block = dataset.get("labels")
    if not isinstance(block, Mapping) or not block:
        raise ModelError("the file names no labels", "dataset.json", "add labels")
    try:
        return label_block(block, dataset.get("regions_class_order"), "dataset.json")
    except UsageError as error:
        raise ModelError(error.what, error.where, error.remedy) from error


# ---- preprocessing --------------------------------------------------------------------------------------------------


def _preprocess(plans: Mapping[str, Any], chosen: Mapping[str, Any], dims: int, channels: int) -> dict[str, Any]:
    reader = str(plans.get("image_reader_writer", "SimpleITKIO"))
    if reader not in (*_STORED, *_ORIENTED, *_PICTURES):
        raise ModelError(f"images are read by {reader}, which is not known here", _WHERE, "name the reader of NIfTI")
    spacing: list[float] | None = [float(value) for value in chosen["spacing"]]
    axes = _axes([int(axis) for axis in plans.get("transpose_forward", (0, 1, 2))], dims)
    if reader in _PICTURES:
        if dims != 2 or spacing != [1.0, 1.0]:
            raise ModelError(
                "pictures without a pixel size are resampled", _WHERE, "train on files that say their size"
            )
        spacing = None
    order = _image_order(chosen)
    return {
        "spacing_mm": None if order is None else spacing,
        "normalisation": [_normalisation(plans, chosen, channel) for channel in range(channels)],
        "crop_to_nonzero": True,
        "image_order": 3 if order is None else order,
        "resampling": "nnunet",
        "orientation": "RAS" if reader in _ORIENTED else "stored",
        "axes": axes,
    }


def _axes(transpose: Sequence[int], dims: int) -> list[int]:
    """Order of the axes (i, j, k) of a file for the network; nnU-Net's are (k, j, i)."""
    if sorted(transpose) != [0, 1, 2]:
        raise ModelError(
            f"transpose_forward {list(transpose)} is no order of three axes", _WHERE, "make the plans again"
        )
    axes = [2 - axis for axis in transpose]
    return axes if dims == 3 else [*axes[1:], axes[0]]


def _image_order(chosen: Mapping[str, Any]) -> int | None:
    """The spline order of images; ``None`` where nothing is resampled."""
    names = [chosen.get(f"resampling_fn_{kind}", _RESAMPLING) for kind in ("data", "probabilities")]
    if names == [_NO_RESAMPLING] * 2:
        return None
    image = {"order": 3, "order_z": 0, "force_separate_z": None} | chosen.get("resampling_fn_data_kwargs", {})
    logits = {"order": 1, "order_z": 0, "force_separate_z": None} | chosen.get("resampling_fn_probabilities_kwargs", {})
    known = names == [_RESAMPLING] * 2 and image["order"] in (0, 1, 3) and logits["order"] == 1
    for used in (image, logits):
        known = known and used["order_z"] == 0 and used["force_separate_z"] is None
    if not known:
        raise ModelError(
            f"images or logits are resampled in a way that is not known here ({', '.join(map(str, names))})",
            _WHERE,
            "train with nnU-Net's usual resampling",
        )
    return int(image["order"])


def _normalisation(plans: Mapping[str, Any], chosen: Mapping[str, Any], channel: int) -> dict[str, Any]:
    schemes, masks = chosen["normalization_schemes"], chosen.get("use_mask_for_norm", ())
    if channel >= len(schemes):
        raise ModelError(f"channel {channel} has no normalization scheme", _WHERE, "make the plans again")
    scheme = schemes[channel]
    if scheme == "ZScoreNormalization":
        return {"scheme": "zscore", "inside": "filled" if channel < len(masks) and masks[channel] else "all"}
    if scheme == "CTNormalization":
        measured = (
            plans.get("foreground_intensity_properties_per_channel")
            or plans.get("foreground_intensity_properties_by_modality")
            or {}
        ).get(str(channel))
        if measured is None:
            raise ModelError(f"channel {channel} has no foreground intensities", _WHERE, "make the plans again")
        return {
            "scheme": "ct",
            "window": [measured["percentile_00_5"], measured["percentile_99_5"]],
            "mean": measured["mean"],
            "sd": max(measured["std"], 1e-8),
        }
    if scheme == "RGBTo01Normalization":
        return {"scheme": "ct", "window": [0, 255], "mean": 0, "sd": 255}
    if scheme == "RescaleTo01Normalization":
        return {"scheme": "rescale"}
    if scheme == "NoNormalization":
        return {"scheme": "none"}
    raise ModelError(
        f"channel {channel} is normalised by {scheme}, which is not known here", _WHERE, "use CT or z-score"
    )


def _reasons(config: PipelineConfig, configuration: str) -> dict[str, str]:
    plan = f"nnU-Net's plan, {configuration}"
    mirrored = "nnU-Net mirrors these axes" if config.inference.mirror else "nnU-Net's trainer did not mirror"
    turned = config.preprocess.orientation
    read = "as the files have them" if turned == "stored" else f"of images that are stored as {turned}"
    return {
        **dict.fromkeys(_PLANNED, plan),
        "preprocess.crop_to_nonzero": "nnU-Net always does",
        "preprocess.axes": f"nnU-Net reads the axes {read}",
        "augment.mirror_axes": mirrored,
        "training.optimizer": "nnU-Net's usual schedule; trainers may differ",
    }
