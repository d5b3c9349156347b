"""Resolves every ``auto`` of a pipeline from the data, each with a sentence that says why."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unet_med.config import PipelineConfig
from unet_med.errors import ConfigError
from unet_med.labels import LabelMap
from unet_med.manifest import Manifest, ManifestCase
from unet_med.planning.draft import GIVEN, Draft, times
from unet_med.planning.fingerprint import Fingerprint, Progress, fingerprint
from unet_med.planning.network import Target, settle_network
from unet_med.planning.sides import sidedness
from unet_med.planning.spacing import ANISOTROPY, target_spacing

FEW_SLICES = 8
LARGEST_WEIGHT_RATIO = 10.0
SMALLEST_OBJECT = 4.0
"""Objects of fewer voxels across are all border."""
LARGEST_OBJECT_SHARE = 0.5
"""Objects that are larger than this share of a patch are mostly seen cut off."""
_PIXEL_TERMS = ("dice_focal", "focal", "cross_entropy", "dice_ce", "border_cross_entropy")
_LEARNING_RATES: Mapping[str, float] = {"sgd": 1e-2, "adamw": 1e-3}
_RIGHT = 0
"""Axis of the canonical grid that runs from the patient's left to the right."""


@dataclass(frozen=True)
class Plan:
    """A pipeline without ``auto``.

    Attributes:
        config: The resolved pipeline; ``config.unresolved() == ()``.
        reasons: Dotted key -> why it has this value.
        fingerprint: What the training set is like (see :meth:`Fingerprint.as_dict`).
    """

    config: PipelineConfig
    reasons: dict[str, str]
    fingerprint: dict[str, Any]


def make_plan(
    config: PipelineConfig,
    manifest: Manifest,
    memory_gb: float | None = None,
    device: str = "cpu",
    cases: Sequence[ManifestCase] | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Resolves a pipeline for a data set.

    Args:
        config: The pipeline; values that are not ``auto`` are kept.
        manifest: The data set.
        memory_gb: Memory that training may take; default: what ``network.size`` is made for, else 8 on a GPU and 3 on
            a CPU.
        device: ``cpu``, or anything else for a GPU.
        cases: The cases to look at; default all training cases. Held-out cases must not be among them.
        progress: Wraps the iteration over cases.

    Raises:
        ConfigError: when given values contradict each other or the data.
        InputRefusedError: naming the case, when the data cannot be used.
    """
    manifest.require_clean()
    if config.task == "instance" and manifest.task != "instance":
        raise ConfigError(
            "the labels of this data set are kinds, not numbers of objects",
            "task",
            "make the manifest with --task instance, or set task to semantic",
        )
    config = config.model_copy(update=_told(config, manifest))
    chosen = manifest.training if cases is None else tuple(cases)
    labels = _labels(config, manifest)
    measured = fingerprint([case.case for case in chosen], len(labels), progress, config.ignore_label)
    return plan_from_fingerprint(config, manifest, measured, memory_gb, device)


def plan_from_fingerprint(
    config: PipelineConfig,
    manifest: Manifest,
    measured: Fingerprint,
    memory_gb: float | None = None,
    device: str = "cpu",
) -> Plan:
    """Resolves a pipeline from a fingerprint; see :func:`make_plan`."""
    told = _told(config, manifest)
    config = config.model_copy(update=told)  # what is given stays known as given
    turned = measured.turned(config.preprocess.axes)
    draft = Draft(config, manifest, turned, "cpu" if device == "cpu" else "gpu", memory_gb)
    draft.reasons.update(dict.fromkeys(told, "from the manifest"))
    target = _settle_task(draft)
    settle_network(draft, target)
    _tell_of_objects(draft, target)
    _settle_loss(draft)
    _settle_augmentation(draft, target)
    _settle_training(draft, target)
    return Plan(config.replacing(draft.changes()), draft.reasons, measured.as_dict())


def auto_class_weights(voxel_counts: Sequence[int]) -> tuple[float, ...]:
    """Returns weights for focal and cross-entropy terms: one over the root of the label's frequency.

    The rarest label weighs at most ten times the commonest; the mean is 1; a label that does not occur counts as
    the rarest one.

    Args:
        voxel_counts: Voxels of each label, background first.
    """
    counts = np.asarray(voxel_counts, dtype=np.float64)
    present = counts[counts > 0]
    if present.size == 0:
        return (1.0,) * len(counts)
    weights = 1.0 / np.sqrt(np.where(counts > 0, counts, present.min()))
    weights = np.minimum(weights, LARGEST_WEIGHT_RATIO * weights.min())
    return tuple(round(float(w), 4) for w in weights / weights.mean())


def _told(config: PipelineConfig, manifest: Manifest) -> dict[str, Any]:
    """Returns what the data set says of its labels and the pipeline leaves open, by key."""
    told = {"ignore_label": manifest.ignore_label, "regions": manifest.regions}
    return {key: value for key, value in told.items() if value is not None and getattr(config, key) is None}


def _labels(config: PipelineConfig, manifest: Manifest) -> dict[str, int]:
    """Names and values of the labels; the value of what nobody labelled is none of them.

    Raises:
        ConfigError: when pipeline and manifest differ in their values.
    """
    known = {name: value for name, value in manifest.labels.items() if value != config.ignore_label}
    given = config.label_values
    if given is not None and sorted(given.values()) != sorted(known.values()):
        raise ConfigError(
            f"the pipeline has the label values {sorted(given.values())}, the manifest {sorted(known.values())}",
            "labels",
            "set labels to auto, or make the two agree",
        )
    labels = known if given is None else given
    _label_map(labels, config)
    return labels


def _label_map(labels: Mapping[str, int], config: PipelineConfig) -> LabelMap:
    return LabelMap.from_names(labels, config.regions, objects=config.task == "instance")


# ---- the task -------------------------------------------------------------------------------------------------------


def _settle_task(draft: Draft) -> Target:
    """Settles what depends on the data alone: dims, labels, channels and preprocessing."""
    measured = draft.measured
    if len({len(case.shape) for case in measured.cases}) > 1:
        raise ConfigError(
            "the manifest mixes pictures and volumes", "dims", "make one manifest for each (--images GLOB)"
        )
    dims = _settle_dims(draft)
    labels = _labels(draft.config, draft.manifest)
    draft.settle("labels", labels, "from the manifest")
    channels = draft.settle("channels", list(draft.manifest.channels), "from the manifest")
    if len(channels) != len(measured.channels):
        raise ConfigError(
            f"{len(channels)} channels are named, the images have {len(measured.channels)}",
            "channels",
            "name each channel once, in the pipeline file or in the manifest (channel_names)",
        )
    spacing = _settle_spacing(draft, dims)
    crop = measured.kept_share < 0.75
    share = f"cropping to what is not 0 would keep {measured.kept_share:.0%} of the median image"
    draft.settle("preprocess.crop_to_nonzero", crop, share)
    _settle_normalisation(draft)
    known = spacing or measured.median_spacing_mm
    return Target(
        dims=dims,
        outputs=_label_map(labels, draft.config).outputs,
        spacing_mm=spacing,
        spacing=(1.0,) * dims if known is None else tuple(known[:dims]),
        median=tuple(float(v) for v in np.median(measured.resampled_shapes(spacing), axis=0)[:dims]),
    )


def _settle_dims(draft: Draft) -> int:
    measured, slices = draft.measured, draft.config.network.slices
    if measured.ndim == 2:
        dims, reason = 2, "the images are pictures"
    elif slices > 1:
        dims, reason = 2, f"a 2-D network that sees {slices} neighbouring slices (network.slices)"
    elif measured.median_shape[2] <= FEW_SLICES:
        dims = 2
        reason = f"volumes of about {measured.median_shape[2]} slices are too thin for 3-D; network.slices 3 adds depth"
    else:
        dims, reason = 3, f"volumes of about {times(measured.median_shape)} voxels"
    dims = int(draft.settle("dims", dims, reason))
    if dims > measured.ndim:
        raise ConfigError("a 3-D network cannot be trained on pictures", "dims", "set dims to 2 or auto")
    if slices > 1 and measured.ndim == 2:
        raise ConfigError("pictures have no neighbouring slices", "network.slices", "set network.slices to 1")
    return dims


def _settle_spacing(draft: Draft, dims: int) -> tuple[float, ...] | None:
    measured = draft.measured
    names = "".join("RAS"[axis] for axis in draft.config.preprocess.axes or (0, 1, 2))
    found = target_spacing(measured, names)
    if found is None:
        auto, reason = None, "the images say nothing about their pixel size: every image keeps its own pixels"
    else:
        auto, reason = found
        if dims < measured.ndim:
            auto, reason = auto[:dims], f"{reason}; in the plane of the slices only"
    spacing = draft.settle("preprocess.spacing_mm", auto, reason)
    if spacing is None:
        return None
    if len(spacing) not in {dims, measured.ndim}:
        raise ConfigError(
            f"{len(spacing)} spacings for {measured.ndim}-D images", "preprocess.spacing_mm", f"give {dims} numbers"
        )
    if not measured.is_calibrated:
        raise ConfigError(
            "a spacing in mm is asked for, and the images say nothing about their pixel size",
            "preprocess.spacing_mm",
            "make the manifest with --pixel-size, or set spacing_mm to null",
        )
    return tuple(spacing)


def _settle_normalisation(draft: Draft) -> None:
    schemes: list[dict[str, Any]] = []
    names = draft.values["channels"]
    for name, statistics in zip(names, draft.measured.channels, strict=True):
        if (str(name).upper() == "CT" or draft.manifest.modality == "CT") and statistics.sd > 0:
            window = (round(statistics.percentile_00_5, 4), round(statistics.percentile_99_5, 4))
            mean, sd = round(statistics.mean, 4), round(statistics.sd, 4)
            schemes.append({"scheme": "ct", "window": window, "mean": mean, "sd": sd})
        else:
            schemes.append({"scheme": "zscore"})
    if any(scheme["scheme"] == "ct" for scheme in schemes):
        reason = "CT numbers have a meaning: clipped and scaled by the labelled voxels of all cases"
    else:
        reason = "intensities differ in scale from image to image: each by its own mean and deviation"
    chosen = draft.settle("preprocess.normalisation", schemes, reason)
    if len(chosen) == 1 < len(names):
        draft.values["preprocess.normalisation"] = [one.model_dump(mode="json") for one in chosen for _ in names]
        draft.reasons["preprocess.normalisation"] = f"{GIVEN}, the same for each of {len(names)} channels"
    elif len(chosen) != len(names):
        raise ConfigError(
            f"{len(chosen)} normalisations for {len(names)} channels",
            "preprocess.normalisation",
            "give one for each channel, one for all of them, or auto",
        )


# ---- objects --------------------------------------------------------------------------------------------------------


def _tell_of_objects(draft: Draft, target: Target) -> None:
    """Says beside the patch how large objects are on the network's grid, and where that fits neither grid nor patch."""
    objects, own = draft.measured.objects, draft.measured.median_spacing_mm
    if draft.config.task != "instance" or objects is None:
        return
    coarser = 1.0
    if own is not None and target.spacing_mm is not None:
        ratios = [mine / wanted for mine, wanted in zip(own, target.spacing_mm, strict=False)]
        coarser = float(np.prod(ratios) ** (1 / len(ratios)))
    small, usual, large = (
        round(diameter * coarser, 1) for diameter in (objects.diameter_5, objects.diameter_50, objects.diameter_95)
    )
    told = f"objects are about {usual:g} voxels across ({small:g} to {large:g})"
    if small < SMALLEST_OBJECT:
        told += ", the smallest hardly large enough to be told apart: a finer preprocess.spacing_mm helps"
    shortest = min(draft.values["sampling.patch_voxels"])
    if large > LARGEST_OBJECT_SHARE * shortest:
        told += f", the largest too large for a patch of {shortest}: a coarser preprocess.spacing_mm shows them whole"
    key = "sampling.patch_voxels"
    draft.reasons[key] = f"{draft.reasons[key]}; {told}"


# ---- loss, augmentation, training -----------------------------------------------------------------------------------


def _settle_loss(draft: Draft) -> None:
    kind = draft.config.loss.kind
    weights: tuple[float, ...] | None = None
    if draft.config.regions:
        reason = "regions overlap: each has an output of its own"
    elif kind not in _PIXEL_TERMS:
        reason = f"{kind} has no term that weights could act on"
    else:
        weights = auto_class_weights(draft.measured.label_voxels)
        reason = "one over the root of each label's frequency, mean 1, at most 10 to 1"
    chosen = draft.settle("loss.class_weights", weights, reason)
    outputs = _label_map(_labels(draft.config, draft.manifest), draft.config).class_outputs
    if chosen is not None and len(chosen) != outputs:
        raise ConfigError(
            f"{len(chosen)} weights for {outputs} outputs",
            "loss.class_weights",
            "give one for each output, background first, or auto",
        )


def _settle_augmentation(draft: Draft, target: Target) -> None:
    if target.dims == 2:
        degrees, reason = (-180.0, 180.0), "pictures have no up"
    elif max(target.spacing) > ANISOTROPY * min(target.spacing):
        degrees, reason = (-180.0, 180.0), "the voxels are anisotropic: rotations stay in the plane"
    else:
        degrees, reason = (-30.0, 30.0), "3-D"
    draft.settle("augment.rotation_degrees", degrees, reason)
    axes, reason = _mirror_axes(draft, target)
    chosen = draft.settle("augment.mirror_axes", axes, reason)
    if any(axis >= target.dims for axis in chosen):
        raise ConfigError(
            f"the network has {target.dims} axes", "augment.mirror_axes", f"use {list(range(target.dims))}"
        )


def _mirror_axes(draft: Draft, target: Target) -> tuple[tuple[int, ...], str]:
    """All axes, but not from left to right where that would turn one label into another."""
    measured, preprocess = draft.measured, draft.config.preprocess
    axes = tuple(range(target.dims))
    reason = sidedness(draft.config.label_values or draft.values["labels"], measured.sides())
    if reason is None:
        return axes, "left and right make no difference to the labels"
    if measured.ndim == 3 and (not measured.is_calibrated or preprocess.orientation == "stored"):
        return (), f"{reason}, and which axis runs from left to right is not known"
    across = _RIGHT if preprocess.axes is None or measured.ndim == 2 else preprocess.axes.index(_RIGHT)
    return tuple(axis for axis in axes if axis != across), f"{reason}: never mirrored left to right"


def _settle_training(draft: Draft, target: Target) -> None:
    training, measured = draft.config.training, draft.measured
    rate = _LEARNING_RATES[training.optimizer]
    draft.settle("training.learning_rate", rate, f"usual for {training.optimizer}")
    batch = int(draft.values["sampling.batch_size"])
    volumes = target.dims == measured.ndim
    images = len(measured.cases) if volumes else sum(case.shape[2] for case in measured.cases)
    steps = min(250, max(20, math.ceil(images / batch)))
    draft.settle("training.steps_per_epoch", steps, f"one pass over {images} images in batches of {batch}, 20 to 250")
    cores = _cores()
    workers = max(0, min(8, cores - 1)) if draft.device == "gpu" else min(4, cores // 4)
    draft.settle("training.workers", workers, f"this machine has {cores} cores")
    if training.max_minutes is not None:
        every, reason = 5, "training is limited by time: every fifth epoch"
    else:
        every = min(10, max(1, training.epochs // 20))
        reason = f"about twenty times in {training.epochs} epochs"
    draft.settle("training.validation_every_epochs", every, reason)


def _cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
