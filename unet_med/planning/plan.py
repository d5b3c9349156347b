"""Resolves every ``auto`` of a pipeline from the data, each with a sentence that says why."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unet_med.config import PipelineConfig
from unet_med.errors import ConfigError
from unet_med.labels import LabelMap
from unet_med.manifest import Manifest, ManifestCase
from unet_med.planning.fingerprint import Fingerprint, Progress, fingerprint
from unet_med.planning.topology import Topology, feature_map_elements, fit_patch, plan_levels

REFERENCE_GB = 8.0
REFERENCE_ELEMENTS = {2: 85e6, 3: 560e6}
REFERENCE_BATCH = {2: 12, 3: 2}
"""nnU-Net's yardstick: this many feature-map elements for one patch, at this batch size, fill a card of 8 GB."""

CPU_GB = 3.0
CPU_SHARE = 0.5
"""A CPU trains in fp32, where an element takes twice the memory."""

FIRST_FEATURES = {"gpu": 32, "cpu": 16}
MOST_FEATURES = {"gpu": {2: 512, 3: 320}, "cpu": {2: 256, 3: 256}}
CLASSIC_FEATURES = (64, 128, 256, 512, 1024)
ANISOTROPY = 3.0
FEW_SLICES = 8
LARGEST_BATCH_SHARE = 0.05
LARGEST_WEIGHT_RATIO = 10.0
GIVEN = "given in the pipeline file"
_SIDE = re.compile(r"(?<![a-z])(left|right|l|r)(?![a-z])")
_OTHER_SIDE = {"left": "right", "right": "left", "l": "r", "r": "l"}
_PIXEL_TERMS = ("dice_focal", "focal", "cross_entropy", "dice_ce", "border_cross_entropy")


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
        memory_gb: Memory that training may take; default 8 on a GPU, 3 on a CPU.
        device: ``cpu``, or anything else for a GPU.
        cases: The cases to look at; default all training cases. Held-out cases must not be among them.
        progress: Wraps the iteration over cases.

    Raises:
        ConfigError: when given values contradict each other or the data.
        InputRefusedError: naming the case, when the data cannot be used.
    """
    manifest.require_clean()
    chosen = manifest.training if cases is None else tuple(cases)
    _check_labels(config, manifest)
    measured = fingerprint([case.case for case in chosen], len(manifest.labels), progress)
    return plan_from_fingerprint(config, manifest, measured, memory_gb, device)


def plan_from_fingerprint(
    config: PipelineConfig,
    manifest: Manifest,
    measured: Fingerprint,
    memory_gb: float | None = None,
    device: str = "cpu",
) -> Plan:
    """Resolves a pipeline from a fingerprint; see :func:`make_plan`."""
    planner = _Planner(config, manifest, measured, "cpu" if device == "cpu" else "gpu", memory_gb)
    planner.resolve()
    changes = {key: value for key, value in planner.values.items() if planner.reasons.get(key) != GIVEN}
    return Plan(config.replacing(changes), planner.reasons, measured.as_dict())


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


def target_spacing(measured: Fingerprint) -> tuple[tuple[float, ...], str] | None:
    """Returns nnU-Net's target spacing in mm and the reason; ``None`` when the set is uncalibrated.

    The median of each axis; on an axis more than three times coarser than the others, with fewer voxels than a third
    of theirs, the 10th percentile, but never finer than the others.
    """
    spacings = measured.spacings()
    if spacings is None:
        return None
    target = [float(v) for v in np.median(spacings, axis=0)]
    sizes = np.median([case.shape for case in measured.cases], axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(len(target)) if axis != worst]
    coarse = target[worst] > ANISOTROPY * max(target[a] for a in others)
    thin = sizes[worst] * ANISOTROPY < min(sizes[a] for a in others)
    if len(target) == 3 and coarse and thin:
        tenth = float(np.percentile(spacings[:, worst], 10))
        target[worst] = max(tenth, max(target[a] for a in others))
        return _rounded(target), f"median of the cases; the {'RAS'[worst]} axis is coarse: its 10th percentile"
    same = bool((np.ptp(spacings, axis=0) < 1e-6).all())
    return _rounded(target), "all cases have this spacing" if same else f"median of {len(spacings)} cases"


def paired_sides(names: Sequence[str]) -> tuple[str, str] | None:
    """Returns the first two label names that differ only in left and right; ``None`` when there are none."""
    lower = {name.lower(): name for name in names}
    for name in names:
        swapped = _SIDE.sub(lambda found: _OTHER_SIDE[found.group()], name.lower())
        if swapped != name.lower() and swapped in lower:
            return name, lower[swapped]
    return None


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(f"{value:.9g}") for value in values)


def _check_labels(config: PipelineConfig, manifest: Manifest) -> None:
    given = config.label_values
    if given is not None and sorted(given.values()) != sorted(manifest.labels.values()):
        raise ConfigError(
            f"the pipeline has the label values {sorted(given.values())}, "
            f"the manifest {sorted(manifest.labels.values())}",
            "labels",
            "set labels to auto, or make the two agree",
        )
    LabelMap.from_names(manifest.labels if given is None else given, config.regions)


def _times(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)


class _Planner:
    """One pass over the pipeline, from what depends on the data alone to what depends on everything."""

    def __init__(
        self, config: PipelineConfig, manifest: Manifest, measured: Fingerprint, kind: str, memory_gb: float | None
    ) -> None:
        self.config = config
        self.manifest = manifest
        self.measured = measured
        self.kind = kind
        self.memory_gb = memory_gb if memory_gb is not None else REFERENCE_GB if kind == "gpu" else CPU_GB
        self.values: dict[str, Any] = {}
        self.reasons: dict[str, str] = {}

    def resolve(self) -> None:
        """Fills ``values`` and ``reasons``."""
        self._task()
        self._preprocess()
        self._network()
        self._loss()
        self._augment()
        self._training()

    # ---- bookkeeping ----------------------------------------------------------------------------------------------

    def _set(self, key: str, value: Any, reason: str) -> Any:
        """Takes ``value`` where the pipeline says ``auto``; else keeps what is given."""
        given = self._given(key)
        if given is not None:
            value, reason = given[0], GIVEN
        self.values[key] = value
        self.reasons[key] = reason
        return value

    def _given(self, key: str) -> tuple[Any] | None:
        """The value in the pipeline as a tuple of one; ``None`` for auto."""
        value: Any = self.config
        for part in key.split("."):
            value = getattr(value, part)
        return None if isinstance(value, str) and value == "auto" else (value,)

    def _lengths(self, key: str, values: Sequence[Sequence[int]] | None) -> None:
        if values is not None and any(len(value) != self.dims for value in values):
            raise ConfigError(
                f"{key} must have {self.dims} numbers for each entry", key, f"the network is {self.dims}-D (dims)"
            )

    # ---- the task -------------------------------------------------------------------------------------------------

    def _task(self) -> None:
        measured = self.measured
        ndims = {len(case.shape) for case in measured.cases}
        if len(ndims) > 1:
            raise ConfigError(
                "the manifest mixes pictures and volumes", "dims", "make one manifest for each (--images GLOB)"
            )
        if measured.ndim == 2:
            dims, reason = 2, "the images are pictures"
        elif measured.median_shape[2] <= FEW_SLICES:
            dims, reason = 2, f"volumes of about {measured.median_shape[2]} slices are too thin for 3-D"
        else:
            dims, reason = 3, f"volumes of about {_times(measured.median_shape)} voxels"
        self.dims: int = self._set("dims", dims, reason)
        if self.dims > measured.ndim:
            raise ConfigError("a 3-D network cannot be trained on pictures", "dims", "set dims to 2 or auto")
        self._set("labels", dict(self.manifest.labels), "from the manifest")
        labels = self.config.label_values or self.manifest.labels
        channels = self._set("channels", list(self.manifest.channels), "from the manifest")
        if len(channels) != len(measured.channels):
            raise ConfigError(
                f"{len(channels)} channels are named, the images have {len(measured.channels)}",
                "channels",
                "name each channel once, in the pipeline file or in the manifest (channel_names)",
            )
        self.outputs = LabelMap.from_names(labels, self.config.regions).outputs
        self.label_names = [name for name, value in labels.items() if value != 0]

    # ---- preprocessing --------------------------------------------------------------------------------------------

    def _preprocess(self) -> None:
        found = target_spacing(self.measured)
        if found is None:
            spacing, reason = None, "the images say nothing about their pixel size: every image keeps its own pixels"
        else:
            spacing, reason = found
            if self.dims == 2 and self.measured.ndim == 3:
                spacing, reason = spacing[:2], f"{reason}; in the plane of the slices only"
        spacing = self._set("preprocess.spacing_mm", spacing, reason)
        if spacing is not None and len(spacing) not in {self.dims, self.measured.ndim}:
            raise ConfigError(
                f"{len(spacing)} spacings for {self.measured.ndim}-D images",
                "preprocess.spacing_mm",
                f"give {self.dims} numbers",
            )
        if spacing is not None and not self.measured.is_calibrated:
            raise ConfigError(
                "a spacing in mm is asked for, and the images say nothing about their pixel size",
                "preprocess.spacing_mm",
                "make the manifest with --pixel-size, or set spacing_mm to null",
            )
        self.spacing: tuple[float, ...] | None = None if spacing is None else tuple(spacing)
        crop = self.measured.kept_share < 0.75
        share = f"cropping to what is not 0 would keep {self.measured.kept_share:.0%} of the median image"
        self._set("preprocess.crop_to_nonzero", crop, share)
        self._normalisation()

    def _normalisation(self) -> None:
        schemes: list[dict[str, Any]] = []
        names = self.values["channels"]
        for name, statistics in zip(names, self.measured.channels, strict=True):
            if (str(name).upper() == "CT" or self.manifest.modality == "CT") and statistics.sd > 0:
                window = (round(statistics.percentile_00_5, 4), round(statistics.percentile_99_5, 4))
                mean, sd = round(statistics.mean, 4), round(statistics.sd, 4)
                schemes.append({"scheme": "ct", "window": window, "mean": mean, "sd": sd})
            else:
                schemes.append({"scheme": "zscore"})
        ct = any(scheme["scheme"] == "ct" for scheme in schemes)
        reason = (
            "CT numbers have a meaning: clipped and scaled by the labelled voxels of all cases"
            if ct
            else "the scale of intensities differs from image to image: each image by its own mean and deviation"
        )
        chosen = self._set("preprocess.normalisation", schemes, reason)
        if len(chosen) != len(names):
            raise ConfigError(
                f"{len(chosen)} normalisations for {len(names)} channels",
                "preprocess.normalisation",
                "give one for each channel, or auto",
            )

    # ---- network and patch ----------------------------------------------------------------------------------------

    def _network(self) -> None:
        relative = self._relative_spacing()
        median = np.median(self.measured.resampled_shapes(self.spacing), axis=0)[: self.dims]
        self.median = tuple(float(v) for v in median)
        patch = self._given("sampling.patch_voxels")
        if patch is not None:
            self._lengths("sampling.patch_voxels", [patch[0]])
        for key in ("strides", "kernels"):
            given = self._given(f"network.{key}")
            self._lengths(f"network.{key}", given[0] if given is not None else None)
        classic = self.config.network.style == "classic"
        if classic:
            self._classic_style()
        topology = self._topology(relative, None if patch is None else tuple(patch[0]))
        levels = len(topology.strides)
        features = self._set("network.features", self._features(levels), self._features_reason())
        self._check_levels(levels, len(features))
        self._set("network.strides", topology.strides, self._strides_reason(relative))
        kernel_reason = "3 everywhere" if classic else "1 across an axis that is still more than twice coarser, else 3"
        kernels = self._set("network.kernels", topology.kernels, kernel_reason)
        self._check_levels(levels, len(kernels))
        self._patch_and_batch(topology)

    def _relative_spacing(self) -> tuple[float, ...]:
        spacing = self.spacing or self.measured.median_spacing_mm
        return (1.0,) * self.dims if spacing is None else tuple(spacing[: self.dims])

    def _classic_style(self) -> None:
        explicit = self.config.network.model_fields_set
        for key, value in {"norm": "none", "activation": "relu", "downsampling": "maxpool"}.items():
            if key not in explicit:
                self.values[f"network.{key}"] = value
                self.reasons[f"network.{key}"] = "style classic: the network of 2015"

    def _features(self, levels: int) -> tuple[int, ...]:
        given = self._given("network.features")
        if given is not None:
            return tuple(given[0])
        if self.config.network.style == "classic":
            return CLASSIC_FEATURES[:levels]
        first, most = FIRST_FEATURES[self.kind], MOST_FEATURES[self.kind][self.dims]
        return tuple(min(most, first * 2**level) for level in range(levels))

    def _features_reason(self) -> str:
        if self.config.network.style == "classic":
            return "style classic: 64 and doubled at each level"
        where = "a CPU" if self.kind == "cpu" else "a GPU"
        first, most = FIRST_FEATURES[self.kind], MOST_FEATURES[self.kind][self.dims]
        return f"{first} on {where}, doubled at each level, at most {most}"

    def _strides_reason(self, relative: Sequence[float]) -> str:
        if self.config.network.style == "classic":
            return "style classic: 2 into every level"
        text = "an axis is halved while it keeps 4 voxels and its spacing is within twice the finest"
        return f"{text} (spacing {_times(relative)} mm)" if self.spacing or self.measured.is_calibrated else text

    def _levels_wanted(self) -> int | None:
        for key in ("network.features", "network.kernels"):
            given = self._given(key)
            if given is not None:
                return len(given[0])
        return None

    def _topology(self, relative: tuple[float, ...], patch: tuple[int, ...] | None) -> Topology:
        strides = self._given("network.strides")
        wanted = self._levels_wanted()
        dims = self.dims
        if strides is not None:
            fixed = tuple(tuple(stride) for stride in strides[0])
        elif self.config.network.style == "classic":
            count = wanted or len(CLASSIC_FEATURES)
            fixed = ((1,) * dims, *[(2,) * dims for _ in range(count - 1)])
        else:
            fixed = ()
        kernels = self._given("network.kernels")

        def levels(size: Sequence[int]) -> Topology:
            if not fixed:
                return plan_levels(relative, size, wanted, keep_patch=patch is not None)
            shape = self._admissible(size, fixed)
            own = tuple(tuple(k) for k in kernels[0]) if kernels is not None else _kernels_for(relative, fixed)
            if self.config.network.style == "classic" and kernels is None:
                own = ((3,) * dims,) * len(fixed)
            return Topology(shape, fixed, own)

        if patch is not None:
            return levels(patch)
        return fit_patch(relative, self.median, self._budget(), self._elements(), levels)

    def _elements(self) -> Callable[[Topology], float]:
        network = self.config.network

        def count(topology: Topology) -> float:
            features = self._features(len(topology.strides))
            size = min(len(features), len(topology.strides))
            return feature_map_elements(
                topology.patch, topology.strides[:size], features[:size], self.outputs, network.convolutions_per_level
            )

        return count

    def _budget(self) -> float:
        share = CPU_SHARE if self.kind == "cpu" else 1.0
        return REFERENCE_ELEMENTS[self.dims] * self.memory_gb / REFERENCE_GB * share

    def _admissible(self, size: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[int, ...]:
        """Smallest output patch of at least this size that the strides allow.

        A padded network needs multiples of the product of the strides. The unpadded one of 2015 loses voxels in every
        convolution: its outputs are such a multiple less what the levels above the bottleneck lose.
        """
        network = self.config.network
        unpadded = network.style == "classic"
        kernels = self._given("network.kernels")
        admissible: list[int] = []
        for axis, wanted in enumerate(size):
            divisor, loss = 1, 0
            for level, stride in enumerate(strides):
                divisor *= stride[axis]
                kernel = 3 if kernels is None else kernels[0][level][axis]
                if unpadded and level < len(strides) - 1:
                    loss += network.convolutions_per_level * (kernel - 1) * divisor
            offset = -loss % divisor
            steps = math.ceil((wanted - offset) / divisor)
            admissible.append(max(0 if offset else 1, steps) * divisor + offset)
        return tuple(admissible)

    def _check_levels(self, levels: int, entries: int) -> None:
        if levels != entries:
            raise ConfigError(
                f"{entries} levels are given, images and patch of this size allow {levels}",
                "network.features",
                f"give {levels} entries, a larger sampling.patch_voxels, or network.strides",
            )

    def _patch_and_batch(self, topology: Topology) -> None:
        elements = self._elements()(topology)
        self._set(
            "sampling.patch_voxels",
            topology.patch,
            f"as much of the median image ({_times(self.median)}) as {self.memory_gb:g} GB allow, in voxels",
        )
        given = self._given("sampling.patch_voxels")
        if given is not None and tuple(given[0]) != self._admissible(given[0], topology.strides):
            if self.config.network.style == "classic":
                nearest = self._admissible(given[0], topology.strides)
                remedy = f"the next patch that fits is {list(nearest)}"
            else:
                remedy = f"give multiples of {list(topology.divisors)}"
            raise ConfigError(f"a patch of {list(given[0])} does not fit the strides", "sampling.patch_voxels", remedy)
        if given is not None and any(p > m for p, m in zip(topology.patch, self.median, strict=True)):
            self.reasons["sampling.patch_voxels"] = f"{GIVEN}; larger than the median image, which is padded"
        batch = max(1, round(self._budget() / elements * REFERENCE_BATCH[self.dims]))
        voxels = float(np.prod(self.measured.resampled_shapes(self.spacing), axis=1).sum())
        most = round(voxels * LARGEST_BATCH_SHARE / math.prod(topology.patch))
        value = max(2, min(batch, most))
        reason = f"fills {self.memory_gb:g} GB" if batch <= most else "at most 5 % of the data set's voxels"
        self._set("sampling.batch_size", value, f"{reason}, at least 2")

    # ---- loss, augmentation, training -----------------------------------------------------------------------------

    def _loss(self) -> None:
        kind = self.config.loss.kind
        if self.config.regions:
            weights, reason = None, "regions overlap: each has an output of its own"
        elif kind not in _PIXEL_TERMS:
            weights, reason = None, f"{kind} has no term that weights could act on"
        else:
            weights, reason = (
                auto_class_weights(self.measured.label_voxels),
                "one over the root of each label's frequency, mean 1, at most 10 to 1",
            )
        chosen = self._set("loss.class_weights", weights, reason)
        if chosen is not None and len(chosen) != self.outputs:
            raise ConfigError(
                f"{len(chosen)} weights for {self.outputs} outputs",
                "loss.class_weights",
                "give one for each output, background first, or auto",
            )

    def _augment(self) -> None:
        relative = self._relative_spacing()
        if self.dims == 2:
            degrees, reason = (-180.0, 180.0), "pictures have no up"
        elif max(relative) > ANISOTROPY * min(relative):
            degrees, reason = (-180.0, 180.0), "the voxels are anisotropic: rotations stay in the plane"
        else:
            degrees, reason = (-30.0, 30.0), "3-D"
        self._set("augment.rotation_degrees", degrees, reason)
        pair = paired_sides(self.label_names)
        axes = tuple(range(self.dims))
        if pair is None:
            self._set("augment.mirror_axes", axes, "no label has a left or right twin")
        elif self.measured.ndim == 3 and not self.measured.is_calibrated:
            self._set("augment.mirror_axes", (), f"{pair[0]} and {pair[1]} are sides, and left is not known")
        else:
            self._set(
                "augment.mirror_axes", axes[1:], f"{pair[0]} and {pair[1]} are sides: never mirrored left to right"
            )
        if any(axis >= self.dims for axis in self.values["augment.mirror_axes"]):
            raise ConfigError(f"the network has {self.dims} axes", "augment.mirror_axes", f"use {list(axes)}")

    def _training(self) -> None:
        training = self.config.training
        rates: Mapping[str, float] = {"sgd": 1e-2, "adamw": 1e-3}
        self._set("training.learning_rate", rates[training.optimizer], f"usual for {training.optimizer}")
        batch = int(self.values["sampling.batch_size"])
        count = len(self.measured.cases)
        slices = count if self.dims == self.measured.ndim else sum(case.shape[2] for case in self.measured.cases)
        steps = min(250, max(20, math.ceil(slices / batch)))
        self._set("training.steps_per_epoch", steps, f"one pass over {slices} images in batches of {batch}, 20 to 250")
        cores = _cores()
        workers = max(0, min(8, cores - 1)) if self.kind == "gpu" else min(4, cores // 4)
        self._set("training.workers", workers, f"this machine has {cores} cores")
        if training.max_minutes is not None:
            self._set("training.validation_every_epochs", 5, "training is limited by time: every fifth epoch")
        else:
            every = min(10, max(1, training.epochs // 20))
            self._set("training.validation_every_epochs", every, f"about twenty times in {training.epochs} epochs")


def _kernels_for(spacing: Sequence[float], strides: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Kernels for given strides: 1 across an axis while it is more than twice coarser than the finest."""
    current = list(spacing)
    kernel = [1] * len(current)
    kernels: list[tuple[int, ...]] = []
    for stride in strides:
        current = [c * s for c, s in zip(current, stride, strict=True)]
        kernel = [3 if k == 3 or c / min(current) < 2 else 1 for k, c in zip(kernel, current, strict=True)]
        kernels.append(tuple(kernel))
    return (*kernels[:-1], (3,) * len(current))


def _cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
