"""One frozen, typed description of a pipeline; the only thing that carries choices.

A pipeline file is YAML. Whatever it leaves out or sets to ``auto`` is resolved from the data by
:mod:`unet_med.planning`; the resolved file is again a valid pipeline file. Nothing in it is ever executed.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from unet_med.errors import ConfigError
from unet_med.labels import Code, LabelCode, LabelMap

Auto = Literal["auto"]
Axes = tuple[int, int] | tuple[int, int, int]
Spacing = tuple[Annotated[float, Field(gt=0)], ...]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Axis = Annotated[int, Field(ge=0, le=2)]


RESIDUAL_BLOCKS = (1, 3, 4, 6)
"""Blocks in the levels of a residual encoder; the last number is that of all further levels."""

DILATIONS = (1, 1, 2, 4, 8, 16, 1)
"""Dilation of each convolution of the context network before its last, which is 1x1 (Yu and Koltun, ICLR 2016)."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


def _as_text(value: Any) -> Any:
    """A code without quotes is a number to YAML."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


CodeText = Annotated[
    str,
    Field(min_length=1, max_length=16),
    BeforeValidator(_as_text),
    WithJsonSchema({"type": ["string", "integer"]}),
]
Meaning = Annotated[str, Field(min_length=1, max_length=64)]
CodedTerm = tuple[CodeText, CodeText, Meaning]
Shade = Annotated[int, Field(ge=0, le=255)]


class LabelEntry(_Model):
    """One label: its value alone, or with colour and codes."""

    value: Annotated[int, Field(ge=0, lt=2**16, strict=True)]
    colour: tuple[Shade, Shade, Shade] | None = Field(None, description="red, green, blue from 0 to 255")
    category: CodedTerm | None = Field(
        None, description='what kind of thing: scheme, code, meaning; [SCT, "91723000", Anatomical Structure]'
    )
    type: CodedTerm | None = Field(None, description='which one, for example [SCT, "10200004", Liver]')
    modifier: CodedTerm | None = Field(None, description='side, for example [SCT, "7771000", Left]')

    @model_validator(mode="before")
    @classmethod
    def _value_alone(cls, data: Any) -> Any:
        if isinstance(data, int) and not isinstance(data, bool):
            return {"value": data}
        if not isinstance(data, dict | LabelEntry):
            raise ValueError("give a whole number or {value: N, colour: ..., category: ..., type: ...}")  # noqa: TRY004
        return data

    @model_validator(mode="after")
    def _codes_go_together(self) -> Self:
        if (self.category is None) != (self.type is None):
            raise ValueError("category and type go together")
        if self.modifier is not None and self.type is None:
            raise ValueError("a modifier needs a category and a type")
        return self

    @model_serializer(mode="wrap")
    def _short(self, handler: SerializerFunctionWrapHandler) -> Any:
        content = {key: value for key, value in handler(self).items() if value is not None}
        return content["value"] if set(content) == {"value"} else content

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        described = handler.resolve_ref_schema(handler(schema))
        return {"anyOf": [{"type": "integer", "minimum": 0}, described]}

    @property
    def code(self) -> LabelCode | None:
        """The codes; ``None`` where there are none."""
        if self.category is None or self.type is None:
            return None
        modifier = None if self.modifier is None else Code(*self.modifier)
        return LabelCode(Code(*self.category), Code(*self.type), modifier)


class ChannelNormalisation(_Model):
    """How one channel's intensities are brought to about zero mean and unit deviation."""

    scheme: Literal["zscore", "ct", "percentile", "rescale", "none"] = Field(
        "zscore", description="rescale: lowest value to 0, highest to 1"
    )
    window: tuple[float, float] | None = Field(
        None, description="ct: clip to this range first (HU), the 0.5 and 99.5 percentiles of the foreground"
    )
    mean: float | None = Field(None, description="ct: mean of the foreground")
    sd: Positive | None = Field(None, description="ct: standard deviation of the foreground")
    inside: Literal["all", "nonzero", "filled"] | None = Field(
        None,
        description="zscore, percentile: voxels that mean and deviation are of, all others become 0; nonzero: in any "
        "channel; filled: and the holes in them; null: nonzero where crop_to_nonzero, else all",
    )


class Preprocess(_Model):
    """From the image as it is stored to the grid and the intensities that the network sees."""

    spacing_mm: Auto | Spacing | None = Field(
        "auto",
        description="spacing of the network's grid along its axes (R, A, S); null keeps every image's own voxels",
    )
    normalisation: Auto | list[ChannelNormalisation] = Field(
        "auto", description="one entry for each channel; auto: ct for CT, else zscore for each image"
    )
    crop_to_nonzero: Auto | bool = Field("auto", description="leave out the outer voxels that are exactly 0")
    image_order: Literal[0, 1, 3] = Field(3, description="spline order of resampling images")
    resampling: Literal["plain", "nnunet"] = Field(
        "plain",
        description="nnunet: images keep to the range of what they came from; logits return by the nearest slice along "
        "an axis that is resampled so on the way in",
    )
    orientation: Annotated[str, Field(pattern="^(stored|[RL][AP][SI])$")] = Field(
        "RAS", description="towards where the axes are turned, for example LPS; stored: as the file has them"
    )
    axes: tuple[Axis, Axis, Axis] | None = Field(
        None,
        description="order of the oriented axes for the network; a 2-D network sees the first two; null: as they are",
    )

    @model_validator(mode="after")
    def _axes_are_each_once(self) -> Self:
        if self.axes is not None and sorted(self.axes) != [0, 1, 2]:
            raise ValueError(f"axes {list(self.axes)} is no order of 0, 1 and 2")
        return self


class Network(_Model):
    """A 2-D or 3-D network: a U-Net, or one that never pools."""

    kind: Literal["unet", "residual", "dilated", "naive"] = Field(
        "unet",
        description="residual: a U-Net with a residual encoder; dilated: full resolution, growing dilations "
        "(Yu and Koltun 2016); naive: the same without dilations",
    )
    size: Literal["M", "L", "XL"] | None = Field(
        None, description="residual: planned for a card of 8, 24 or 40 GB, where --memory-gb does not say otherwise"
    )
    style: Literal["modern", "classic"] = Field(
        "modern",
        description="classic: the network of 2015 (no normalisation, ReLU, 2x2 max-pooling, 2x2 up-convolution, "
        "unpadded convolutions, mirrored borders)",
    )
    features: Auto | tuple[Count, ...] = Field("auto", description="channels at each level, finest first")
    strides: Auto | tuple[Axes, ...] = Field("auto", description="stride into each level; the first is all 1")
    kernels: Auto | tuple[Axes, ...] = Field("auto", description="kernel size of each level")
    convolutions_per_level: Annotated[int, Field(ge=1, le=8)] = 2
    decoder_convolutions: Annotated[int, Field(ge=1, le=8)] | None = Field(
        None, description="in each level of the decoder; null: as many as in the encoder, 1 beside a residual encoder"
    )
    blocks_per_level: tuple[Count, ...] | None = Field(
        None, description="residual: blocks in each level of the encoder; null: 1, 3, 4, 6, 6, ..."
    )
    dilations: tuple[Count, ...] | None = Field(
        None, description="dilated: of each convolution; null: 1, 1, 2, 4, 8, 16, 1"
    )
    attention: bool = Field(False, description="attention gates on the skip connections (Oktay et al. 2018)")
    bias: bool = Field(False, description="biases also where a norm follows")
    slices: Annotated[int, Field(ge=1, le=31)] = Field(
        1, description="a 2-D network on volumes sees this many neighbouring slices as channels (2.5-D); odd"
    )
    downsampling: Literal["maxpool", "strided"] = "strided"
    upsampling: Literal["transposed", "interpolate"] = "transposed"
    norm: Literal["instance", "batch", "none"] = "instance"
    activation: Literal["leaky_relu", "relu"] = "leaky_relu"
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="after the bottleneck")
    deep_supervision: bool = False


class Loss(_Model):
    """What training makes small."""

    kind: Literal[
        "dice_focal", "dice", "focal", "cross_entropy", "dice_ce", "jaccard", "tversky", "border_cross_entropy"
    ] = "dice_focal"
    class_weights: Auto | tuple[Annotated[float, Field(ge=0)], ...] | None = Field(
        "auto", description="weight of each output in focal and cross-entropy terms; auto: from label frequencies"
    )
    focal_gamma: Annotated[float, Field(ge=0, le=10)] = 2.0
    dice_weight: Annotated[float, Field(ge=0)] = 1.0
    pixel_weight: Annotated[float, Field(ge=0)] = Field(1.0, description="weight of the focal or cross-entropy term")
    batch_dice: bool = Field(True, description="Dice over the whole batch rather than each sample")
    include_background: bool = Field(False, description="whether Dice, Jaccard and Tversky count label 0")
    tversky_alpha: Share = Field(0.3, description="weight of false positives")
    tversky_beta: Share = Field(0.7, description="weight of false negatives")
    border_w0: Annotated[float, Field(ge=0)] = Field(10.0, description="height of the border weight map (2015)")
    border_sigma_voxels: Positive = Field(5.0, description="width of the border weight map")
    teacher_weight: Share = Field(
        0.0, description="share of what a teacher says (train --teacher); the rest is the truth's"
    )


class Augment(_Model):
    """Random changes of training patches; each has a probability and a range. Angles in degrees."""

    rotation_probability: Share = 0.2
    rotation_degrees: Auto | tuple[float, float] = Field(
        "auto", description="auto: -30..30 in 3-D (in-plane -180..180 when anisotropic), -180..180 in 2-D"
    )
    scaling_probability: Share = 0.2
    scaling_factor: tuple[Positive, Positive] = (0.7, 1.4)
    elastic_probability: Share = Field(0.0, description="smooth random displacements, the key augmentation of 2015")
    elastic_sd_voxels: Annotated[float, Field(ge=0)] = 10.0
    elastic_grid: Annotated[int, Field(ge=2, le=16)] = Field(3, description="control points along each axis")
    mirror_axes: Auto | tuple[Annotated[int, Field(ge=0, le=2)], ...] = Field(
        "auto", description="axes that may be flipped; auto: all but the left-right axis of paired labels"
    )
    mirror_probability: Share = 0.5
    noise_probability: Share = 0.1
    noise_variance: tuple[float, float] = (0.0, 0.1)
    blur_probability: Share = 0.2
    blur_sigma_voxels: tuple[float, float] = (0.5, 1.0)
    brightness_probability: Share = 0.15
    brightness_factor: tuple[float, float] = (0.75, 1.25)
    contrast_probability: Share = 0.15
    contrast_factor: tuple[float, float] = (0.75, 1.25)
    low_resolution_probability: Share = 0.25
    low_resolution_zoom: tuple[Positive, Positive] = (0.5, 1.0)
    gamma_probability: Share = 0.3
    gamma_inverted_probability: Share = 0.1
    gamma_range: tuple[Positive, Positive] = (0.7, 1.5)
    stain_probability: Share = Field(
        0.0, description="colour pictures of stained tissue: as if more or less of each stain had been used"
    )
    stain_factor: tuple[Positive, Positive] = Field((0.7, 1.3), description="of the amount of each stain")
    stain_shift: tuple[float, float] = Field((-0.05, 0.05), description="of the optical density of each stain")


class Cascade(_Model):
    """Two stages for volumes of which a patch shows too little: masks at low resolution, then the image with them."""

    spacing_mm: Auto | tuple[Positive, Positive, Positive] | None = Field(
        None,
        description="spacing of the first stage along the network's axes; null: no cascade; auto: where a patch covers "
        "less than a quarter of the median image, the spacing on which it covers one",
    )


class Sampling(_Model):
    """Which patches the network sees."""

    patch_voxels: Auto | Axes = "auto"
    batch_size: Auto | Count = "auto"
    foreground_share: Share = Field(
        0.34,
        description="share of each batch that is centred on a labelled voxel, each label of the data set as often as "
        "any other",
    )


class Training(_Model):
    """How long and how fast it learns."""

    optimizer: Literal["sgd", "adamw"] = "adamw"
    learning_rate: Auto | Positive = Field("auto", description="auto: 1e-2 for sgd, 1e-3 for adamw")
    weight_decay: Annotated[float, Field(ge=0)] = 3e-5
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.99, description="sgd: Nesterov momentum")
    warmup_steps: Annotated[int, Field(ge=0)] = 20
    poly_power: Positive = Field(0.9, description="learning rate = base * (1 - step / steps) ** power")
    epochs: Count = 100
    steps_per_epoch: Auto | Count = Field("auto", description="auto: one pass over the cases, 20 to 250 steps")
    max_minutes: Positive | None = Field(None, description="wall-clock budget of a fold; replaces epochs")
    clip_gradient_norm: Positive = 12.0
    accumulate: Count = Field(1, description="pieces in which a batch is computed, to save memory; same result")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: Literal["none", "default", "reduce-overhead"] = Field(
        "none", description="compile the forward pass on a CUDA card; reduce-overhead replays CUDA graphs"
    )
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="average of the weights over at most the last ninth of the steps; 0: off"
    )
    workers: Auto | Annotated[int, Field(ge=0, le=64)] = "auto"
    validation_every_epochs: Auto | Count = "auto"
    checkpoint_minutes: Positive = 3.0
    overlay_cases: Annotated[int, Field(ge=0, le=16)] = Field(3, description="cases drawn for the review")

    @model_validator(mode="after")
    def _graphs_hold_one_piece(self) -> Self:
        if self.compile == "reduce-overhead" and self.accumulate > 1:
            raise ValueError("compile: reduce-overhead keeps one output only; use compile: default with accumulate")
        return self


class Inference(_Model):
    """How windows cover an image."""

    overlap: Annotated[float, Field(ge=0, lt=1)] = Field(0.5, description="share of a window that the next one covers")
    gaussian_sigma: Positive = Field(0.125, description="width of the blending weight, in window lengths")
    gaussian_centre: Literal["middle", "voxel"] = Field(
        "middle", description="voxel: nnU-Net's, half a voxel behind the middle of a window of even size"
    )
    mirror: bool = Field(False, description="average over flips along the axes that training mirrored")
    skip_empty: bool = Field(True, description="leave out windows that hold nothing, by the rule learnt in training")
    engine: Literal["auto", "openvino", "torch"] = Field(
        "auto", description="what runs the network on a CPU; auto: the faster one, measured"
    )


class Postprocess(_Model):
    """What is done to the labels."""

    keep_largest: tuple[str, ...] = Field((), description="labels of which only the largest component is kept")
    fill_holes: tuple[str, ...] = Field((), description="labels whose holes are filled")
    minimum_voxels: Annotated[int, Field(ge=0)] = Field(0, description="smaller components are removed")
    choose: bool = Field(
        True, description="after a cross-validation: add what helps its out-of-fold masks and harms no label"
    )


class Instances(_Model):
    """Objects: what is learnt of them beside their class, and how they are cut out of the network's maps."""

    border_voxels: Positive = Field(1.0, description="width of the border inside each object, on the network's grid")
    border_weight: Annotated[float, Field(ge=0)] = Field(1.0, description="weight of the border's term in the loss")
    touching_weight: Annotated[float, Field(ge=1)] = Field(
        2.0, description="weight of border voxels between objects that touch, beside other border voxels"
    )
    distance_weight: Annotated[float, Field(ge=0)] = Field(
        1.0, description="weight of the term of the distance to the border, 1 at the deepest place of each object"
    )
    foreground_threshold: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.5, description="probability from which a voxel belongs to an object"
    )
    seed_threshold: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.3, description="height from which a summit of the distance map is an object of its own"
    )
    seed_depth: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.15, description="how far below the lower of two summits the saddle between two objects is, as a share of it"
    )
    minimum_voxels: Annotated[int, Field(ge=0)] = Field(0, description="smaller objects are removed")
    tune: bool = Field(True, description="after training: choose thresholds and smallest size on the held-out cases")


class Tracking(_Model):
    """Where experiments are recorded."""

    enabled: bool = True
    experiment: str | None = Field(None, description="name of the MLflow experiment; default: the pipeline's name")
    store: str = Field("sqlite:///mlflow.db", description="relative to the working directory, or an http(s) server")
    register_model: bool = Field(True, description="register the finished bundle as a model version")


class PipelineConfig(_Model):
    """A whole pipeline."""

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    task: Literal["semantic", "instance"] = Field("semantic", description="instance: objects that can be counted")
    dims: Auto | Literal[2, 3] = "auto"
    channels: Auto | tuple[str, ...] = "auto"
    labels: Auto | dict[str, LabelEntry] = Field(
        "auto", description="name and value of each label, 0 for background; or name: {value, colour, category, type}"
    )
    regions: dict[str, tuple[Count, ...]] | None = Field(
        None, description="overlapping regions (sigmoid), outermost first, each a list of label values"
    )
    ignore_label: Annotated[int, Field(ge=1, lt=2**16)] | None = Field(
        None, description="value of voxels that nobody labelled: neither learnt from nor scored"
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    preprocess: Preprocess = Preprocess()
    network: Network = Network()
    cascade: Cascade = Cascade()
    loss: Loss = Loss()
    augment: Augment = Augment()
    sampling: Sampling = Sampling()
    training: Training = Training()
    inference: Inference = Inference()
    postprocess: Postprocess = Postprocess()
    instances: Instances = Instances()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _slices_are_odd(self) -> Self:
        if self.network.slices % 2 == 0:
            raise ValueError(f"network.slices: {self.network.slices} slices have no middle one; give an odd number")
        if self.network.slices > 1 and self.dims == 3:
            raise ValueError("network.slices: neighbouring slices are for a 2-D network; set dims to 2")
        return self

    @model_validator(mode="after")
    def _cascades_are_three_dimensional(self) -> Self:
        if self.cascade.spacing_mm not in (None, "auto") and self.dims == 2:
            raise ValueError("cascade.spacing_mm: a cascade is for 3-D networks; set dims to 3 or spacing_mm to null")
        return self

    @model_validator(mode="after")
    def _levels_agree(self) -> Self:
        lengths = {
            name: len(value)
            for name in ("features", "strides", "kernels")
            if (value := getattr(self.network, name)) != "auto"
        }
        if len(set(lengths.values())) > 1:
            raise ValueError(
                f"network: features, strides and kernels must have one entry for each level, got {lengths}"
            )
        return self

    @property
    def label_values(self) -> dict[str, int] | None:
        """Value of each label by its name; ``None`` for ``auto``."""
        return None if self.labels == "auto" else {name: entry.value for name, entry in self.labels.items()}

    @property
    def prior_channels(self) -> int:
        """Channels that the network sees beside the image's: one for each label of a cascade's first stage."""
        if self.cascade.spacing_mm is None or self.labels == "auto":
            return 0
        return sum(entry.value != 0 for entry in self.labels.values())

    def unresolved(self) -> tuple[str, ...]:
        """Returns the dotted names of all values that are still ``auto``; precision and engine the machine chooses."""
        chosen_later = ("training.precision", "inference.engine")
        return tuple(name for name in _auto_keys(self.model_dump()) if name not in chosen_later)

    def to_yaml(self) -> str:
        """Returns the pipeline as YAML that :func:`load_config` reads back to an equal value."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=100)

    def replacing(self, changes: Mapping[str, Any]) -> PipelineConfig:
        """Returns a validated copy with dotted keys replaced, for example ``{"sampling.batch_size": 4}``."""
        data = self.model_dump(mode="json")
        for key, value in changes.items():
            _set_dotted(data, key, value)
        return parse_config(data, "the changed pipeline")


def _auto_keys(data: Mapping[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for key, value in data.items():
        if isinstance(value, dict):
            found += _auto_keys(value, f"{prefix}{key}.")
        elif value == "auto":
            found.append(prefix + key)
    return found


def _set_dotted(data: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        nested = data.setdefault(parent, {})
        if not isinstance(nested, dict):
            raise ConfigError(f"{parent!r} has no keys below it", f"--set {key}", "name a key of the pipeline file")
        data = nested
    data[last] = value


def load_config(path: Path, overrides: Sequence[str] = ()) -> PipelineConfig:
    """Reads a pipeline file.

    Args:
        path: A YAML file.
        overrides: ``a.b=c`` assignments applied before validation; values are YAML.

    Raises:
        ConfigError: listing every fault with key, value and the nearest valid key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read the pipeline file {path.name}", remedy="give the path of a pipeline YAML file"
        ) from error
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path.name}, line {mark.line + 1}" if mark else path.name
        raise ConfigError(
            "the file is no valid YAML", where, "correct the line, mind indentation and colons"
        ) from error
    if not isinstance(data, dict):
        raise ConfigError("a pipeline file must hold keys and values", path.name, "start from a file in pipelines/")
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"--set {override!r} has no '='", remedy="write --set section.key=value")
        _set_dotted(data, key.strip(), yaml.safe_load(value))
    return parse_config(data, path.name)


def parse_config(data: Mapping[str, Any], where: str) -> PipelineConfig:
    """Validates a mapping; see :func:`load_config` for the errors."""
    try:
        return PipelineConfig.model_validate(data)
    except ValidationError as error:
        problems = _readable(error)
        raise ConfigError(
            f"{len(problems)} {'problem' if len(problems) == 1 else 'problems'} in the pipeline",
            where,
            "; ".join(problems),
            problems=problems,
        ) from None


def load_labels(path: Path) -> dict[str, LabelEntry]:
    """Reads a ``labels`` block from a file of its own, with or without the key ``labels`` above it.

    Raises:
        ConfigError: listing every fault.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError("the file is no valid YAML", path.name, "write a `labels` block: name: value") from error
    block = data.get("labels", data) if isinstance(data, dict) else None
    if not isinstance(block, dict) or not block:
        raise ConfigError("the file holds no labels", path.name, "write a `labels` block: name: value")
    try:
        return _LABELS.validate_python(block)
    except ValidationError as error:
        problems = _readable(error, ("labels",))
        raise ConfigError(
            f"{len(problems)} {'problem' if len(problems) == 1 else 'problems'} in the labels",
            path.name,
            "; ".join(problems),
            problems=problems,
        ) from None


def dressed(labels: LabelMap, entries: Mapping[str, LabelEntry]) -> LabelMap:
    """Returns a label map with the colours and codes that entries of the same names give."""
    changed = []
    for label in labels.labels:
        entry = entries.get(label.name)
        if entry is not None:
            label = replace(label, colour=entry.colour or label.colour, code=entry.code or label.code)
        changed.append(label)
    return replace(labels, labels=tuple(changed))


_LABELS = TypeAdapter(dict[str, LabelEntry])


def _readable(error: ValidationError, prefix: tuple[str, ...] = ()) -> tuple[str, ...]:
    """One sentence for each faulty key: union branches that disagree are merged."""
    by_key: dict[str, list[str]] = {}
    faults = [(*prefix, *map(str, fault["loc"])) for fault in error.errors()]
    for fault, location in zip(error.errors(), faults, strict=True):
        if location == _AUTO_LABELS and any(other[0] == "labels" and len(other) > len(location) for other in faults):
            continue
        keys = _known_prefix(location)
        name = ".".join(keys) if keys else "pipeline"
        if fault["type"] == "extra_forbidden":
            message = f"unknown key '{name}'" + _nearest(keys)
        else:
            detail = fault["msg"].removeprefix("Value error, ")
            shown = repr(fault["input"])
            message = detail if len(shown) > 80 or not keys else f"{detail}, got {shown}"
            message = f"{name}: {message[0].lower()}{message[1:]}"
        by_key.setdefault(name, []).append(message)
    return tuple(_merge(messages) for messages in by_key.values())


def _merge(messages: list[str]) -> str:
    unique = list(dict.fromkeys(messages))
    if len(unique) == 1:
        return unique[0]
    head = unique[0].split(": ", 1)[0]
    details = [m.split(": ", 1)[-1].rsplit(", got ", 1)[0] for m in unique]
    got = unique[0].rsplit(", got ", 1)
    return f"{head}: {' or '.join(dict.fromkeys(details))}" + (f", got {got[1]}" if len(got) == 2 else "")


_AUTO_LABELS = ("labels", "literal['auto']")


def _known_prefix(location: Sequence[str]) -> list[str]:
    """Drops the names of union branches that pydantic mixes into the location."""
    if location[:1] == ("labels",):
        return [part for part in location if part != _AUTO_LABELS[1] and not part.startswith("dict[")]
    keys: list[str] = []
    model: type[BaseModel] | None = PipelineConfig
    for part in location:
        keys.append(part)
        if model is None or part not in model.model_fields:
            break
        model = _section(model.model_fields[part].annotation)
        if model is None:
            break
    return keys


def _section(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (typing.Union, types.UnionType, list):
        for branch in get_args(annotation):
            found = _section(branch)
            if found is not None and get_origin(annotation) is not list:
                return None if get_origin(branch) is list else found
    return None


def _nearest(keys: Sequence[str]) -> str:
    model: type[BaseModel] | None = PipelineConfig
    for key in [] if keys[0] == "labels" and len(keys) > 1 else keys[:-1]:
        model = _section(model.model_fields[key].annotation) if model and key in model.model_fields else None
    if keys[0] == "labels" and len(keys) == 3:
        model = LabelEntry
    if model is None:
        return ""
    close = difflib.get_close_matches(keys[-1], list(model.model_fields), n=1, cutoff=0.5)
    prefix = ".".join(keys[:-1])
    return f", did you mean '{prefix + '.' if prefix else ''}{close[0]}'?" if close else ""


def json_schema() -> dict[str, Any]:
    """Returns the JSON Schema of a pipeline file (``pipelines/schema.json``)."""
    schema = PipelineConfig.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "unet-med pipeline"
    return schema
