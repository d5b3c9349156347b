"""The levels of the network, the patch and the batch: as large as memory allows."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from unet_med.config import Network
from unet_med.errors import ConfigError
from unet_med.planning.cascade import settle_cascade
from unet_med.planning.draft import GIVEN, Draft, times
from unet_med.planning.memory import SMALLEST_BATCH, Budget, budget_of, dilations_of, network_elements
from unet_med.planning.spacing import SMALL_SHARE, covered_share, low_resolution
from unet_med.planning.topology import Topology, fit_full_resolution, fit_patch, plan_levels

FIRST_FEATURES = {"gpu": 32, "cpu": 16}
MOST_FEATURES = {"gpu": {2: 512, 3: 320}, "cpu": {2: 256, 3: 256}}
CLASSIC_FEATURES = (64, 128, 256, 512, 1024)
LARGEST_BATCH_SHARE = 0.05
"""Of the data set's voxels in one batch; the networks of a given size fill their card, as in nnU-Net."""

FULL_RESOLUTION = ("dilated", "naive")
_CLASSIC_PARTS = {"norm": "none", "activation": "relu", "downsampling": "maxpool"}


@dataclass(frozen=True)
class Target:
    """What the network is to see and to tell.

    Attributes:
        dims: 2 or 3.
        outputs: Channels of its logits.
        spacing_mm: Spacing of its grid; ``None``: every image keeps its own voxels.
        spacing: Spacing of its axes, for their ratios; ones where nothing is known.
        median: Median image on its grid, in voxels.
    """

    dims: int
    outputs: int
    spacing_mm: tuple[float, ...] | None
    spacing: tuple[float, ...]
    median: tuple[float, ...]


def settle_network(draft: Draft, target: Target) -> None:
    """Settles the open keys of ``network`` and ``sampling``.

    Raises:
        ConfigError: when given values contradict each other or the data.
    """
    network = draft.config.network
    _refuse_contradictions(network)
    if network.style == "classic":
        _settle_classic_style(draft)
    budget = budget_of(network, target.dims, draft.device, draft.memory_gb)
    if network.kind in FULL_RESOLUTION:
        _FullResolution(draft, target, budget).settle()
    else:
        _Pooled(draft, target, budget).settle()


def _refuse_contradictions(network: Network) -> None:
    if network.style == "classic" and network.kind == "residual":
        raise ConfigError(
            "the network of 2015 has no residual encoder", "network.style", "set style to modern, or kind to unet"
        )
    if network.size is not None and network.kind != "residual":
        raise ConfigError(
            f"size {network.size} is one of residual networks",
            "network.size",
            "set network.kind to residual, or leave size out and give --memory-gb",
        )


def _settle_classic_style(draft: Draft) -> None:
    """Says what the network of 2015 consists of, where the pipeline names nothing else."""
    explicit = draft.config.network.model_fields_set
    for key, value in _CLASSIC_PARTS.items():
        if key not in explicit:
            draft.values[f"network.{key}"] = value
            draft.reasons[f"network.{key}"] = "style classic: the network of 2015"


class _Design(ABC):
    """From what is given to levels, patch and batch; how levels come about depends on the kind of network."""

    def __init__(self, draft: Draft, target: Target, budget: Budget) -> None:
        self.draft = draft
        self.target = target
        self.budget = budget
        self.network = draft.config.network

    def settle(self) -> None:
        """Fills the draft."""
        patch = self._given_patch()
        for key in ("network.strides", "network.kernels"):
            given = self.draft.given(key)
            if given is not None:
                self._check_lengths(key, given[0])
        topology = self.topology(self.target, patch)
        levels = len(topology.strides)
        features = self.draft.settle("network.features", self.features(levels), self.features_reason())
        self._check_levels(levels, len(features))
        self.draft.settle("network.strides", topology.strides, self.strides_reason())
        kernels = self.draft.settle("network.kernels", topology.kernels, self.kernels_reason())
        self._check_levels(levels, len(kernels))
        if self.network.kind == "residual" and self.network.blocks_per_level is not None:
            self._check_levels(levels, len(self.network.blocks_per_level))
        self.draft.settle("sampling.patch_voxels", topology.patch, self.patch_reason(topology))
        if patch is not None:
            self.check_given_patch(patch, topology)
        self._settle_batch(topology)
        share = covered_share(topology.patch, self.target.median)
        settle_cascade(self.draft, self.target.dims, self.target.spacing, share, lambda: self.low_resolution(patch))

    @abstractmethod
    def topology(self, target: Target, patch: tuple[int, ...] | None) -> Topology:
        """Returns the levels for a given patch, or the patch that memory allows and its levels."""

    @abstractmethod
    def features(self, levels: int) -> tuple[int, ...]:
        """Returns the channels of each level."""

    @abstractmethod
    def features_reason(self) -> str:
        """Returns why the network is as wide."""

    @abstractmethod
    def strides_reason(self) -> str:
        """Returns why it pools as it does."""

    @abstractmethod
    def kernels_reason(self) -> str:
        """Returns why its kernels are as large."""

    @abstractmethod
    def check_given_patch(self, patch: tuple[int, ...], topology: Topology) -> None:
        """Refuses a given patch that the network cannot take."""

    def advice(self) -> str:
        """Returns what helps where the patch is small beside the median image."""
        coarser = " or a coarser preprocess.spacing_mm" if self.draft.measured.is_calibrated else ""
        return f"more memory (--memory-gb){coarser} shows more"

    def elements(self, topology: Topology) -> float:
        """Returns the memory proxy of a topology."""
        features = self.features(len(topology.strides))
        size = min(len(features), len(topology.strides))
        strides, features = topology.strides[:size], features[:size]
        return network_elements(self.network, topology.patch, strides, features, self.target.outputs)

    def patch_reason(self, topology: Topology) -> str:
        """Returns why the patch is as large, and what to do where that is little."""
        median = times(round(m) for m in self.target.median)
        share = covered_share(topology.patch, self.target.median)
        if share == 1:
            return f"the whole median image ({median} voxels)"
        reason = f"{share:.0%} of the median image ({median} voxels), as much as {self.budget.gb:g} GB allow"
        alone = self.draft.config.cascade.spacing_mm is None
        if share < SMALL_SHARE and alone and self.draft.given("sampling.patch_voxels") is None:
            reason += f"; where more surroundings are needed, {self.advice()}"
        return reason

    def low_resolution(self, patch: tuple[int, ...] | None) -> tuple[float, ...] | None:
        """Returns the spacing on which a patch covers a quarter of the image; ``None`` when it is hardly coarser."""
        target = self.target

        def patch_of(spacing: Sequence[float], median: Sequence[float]) -> tuple[int, ...]:
            return self.topology(replace(target, spacing=tuple(spacing), median=tuple(median)), patch).patch

        return low_resolution(target.spacing, target.median, patch_of)

    def _given_patch(self) -> tuple[int, ...] | None:
        given = self.draft.given("sampling.patch_voxels")
        if given is None:
            return None
        self._check_lengths("sampling.patch_voxels", [given[0]])
        return tuple(given[0])

    def _check_lengths(self, key: str, values: Sequence[Sequence[int]]) -> None:
        dims = self.target.dims
        if any(len(value) != dims for value in values):
            raise ConfigError(f"{key} must have {dims} numbers for each entry", key, f"the network is {dims}-D (dims)")

    def _check_levels(self, levels: int, entries: int) -> None:
        if levels != entries:
            raise ConfigError(
                f"{entries} levels are given, images and patch of this size allow {levels}",
                "network.features",
                f"give {levels} entries, a larger sampling.patch_voxels, or network.strides",
            )

    def _settle_batch(self, topology: Topology) -> None:
        patch = self.draft.given("sampling.patch_voxels")
        if patch is not None and any(p > m for p, m in zip(patch[0], self.target.median, strict=True)):
            self.draft.reasons["sampling.patch_voxels"] = f"{GIVEN}; larger than the median image, which is padded"
        batch = self.budget.batch_of(self.elements(topology))
        shapes = self.draft.measured.resampled_shapes(self.target.spacing_mm)
        share = 1.0 if self.network.size else LARGEST_BATCH_SHARE
        most = round(float(np.prod(shapes, axis=1).sum()) * share / math.prod(topology.patch))
        reason = f"fills {self.budget.gb:g} GB" if batch <= most else f"at most {share:.0%} of the data set's voxels"
        value = max(SMALLEST_BATCH, min(batch, most))
        self.draft.settle("sampling.batch_size", value, f"{reason}, at least {SMALLEST_BATCH}")

    def _first_features(self) -> int:
        """A network of a given size is what it is on every machine."""
        return FIRST_FEATURES["gpu" if self.network.size else self.draft.device]


class _Pooled(_Design):
    """A U-Net, with a plain or a residual encoder."""

    def topology(self, target: Target, patch: tuple[int, ...] | None) -> Topology:
        """Returns the levels for a given patch, or the patch that memory allows and its levels."""
        fixed = self._fixed_strides()

        def levels(size: Sequence[int]) -> Topology:
            if fixed:
                return Topology(self._admissible(size, fixed), fixed, self._kernels_for(fixed))
            return plan_levels(target.spacing, size, self._levels_wanted(), keep_patch=patch is not None)

        if patch is not None:
            return levels(patch)
        return fit_patch(target.spacing, target.median, self.budget.largest_patch, self.elements, levels)

    def features(self, levels: int) -> tuple[int, ...]:
        """Returns the channels of each level: doubled from one to the next, up to a limit."""
        given = self.draft.given("network.features")
        if given is not None:
            return tuple(given[0])
        if self._classic:
            return CLASSIC_FEATURES[:levels]
        return tuple(min(self._most_features(), self._first_features() * 2**level) for level in range(levels))

    def features_reason(self) -> str:
        """Returns why the network is as wide."""
        if self._classic:
            return "style classic: 64 and doubled at each level"
        if self.network.size:
            where = f"in size {self.network.size}"
        else:
            where = "on a CPU" if self.draft.device == "cpu" else "on a GPU"
        return f"{self._first_features()} {where}, doubled at each level, at most {self._most_features()}"

    def strides_reason(self) -> str:
        """Returns why it pools as it does."""
        if self._classic:
            return "style classic: 2 into every level"
        text = "an axis is halved while it keeps 4 voxels and its spacing is within twice the finest"
        known = self.target.spacing_mm is not None or self.draft.measured.is_calibrated
        return f"{text} (spacing {times(self.target.spacing)} mm)" if known else text

    def kernels_reason(self) -> str:
        """Returns why its kernels are as large."""
        return "3 everywhere" if self._classic else "1 across an axis that is still more than twice coarser, else 3"

    def check_given_patch(self, patch: tuple[int, ...], topology: Topology) -> None:
        """Refuses a patch that the strides do not allow."""
        nearest = self._admissible(patch, topology.strides)
        if patch == nearest:
            return
        if self._classic:
            remedy = f"the next patch that fits is {list(nearest)}"
        else:
            remedy = f"give multiples of {list(topology.divisors)}"
        raise ConfigError(f"a patch of {list(patch)} does not fit the strides", "sampling.patch_voxels", remedy)

    def advice(self) -> str:
        """Returns the spacing on which a patch would cover a quarter of the image."""
        if not self.draft.measured.is_calibrated or self._fixed_strides():
            return super().advice()
        coarser = self.low_resolution(None)
        if coarser is None:
            return super().advice()
        cascade = "; cascade.spacing_mm auto sees both" if self.target.dims == 3 else ""
        return f"preprocess.spacing_mm {list(coarser)} (low resolution) shows a quarter of the image at once{cascade}"

    @property
    def _classic(self) -> bool:
        return self.network.style == "classic"

    def _most_features(self) -> int:
        return MOST_FEATURES["gpu" if self.network.size else self.draft.device][self.target.dims]

    def _levels_wanted(self) -> int | None:
        for key in ("network.features", "network.kernels"):
            given = self.draft.given(key)
            if given is not None:
                return len(given[0])
        blocks = self.network.blocks_per_level
        return len(blocks) if blocks is not None and self.network.kind == "residual" else None

    def _fixed_strides(self) -> tuple[tuple[int, ...], ...]:
        """Strides that are given, or those of 2015; empty when they follow from the patch."""
        given = self.draft.given("network.strides")
        if given is not None:
            return tuple(tuple(stride) for stride in given[0])
        if not self._classic:
            return ()
        count = self._levels_wanted() or len(CLASSIC_FEATURES)
        return ((1,) * self.target.dims, *[(2,) * self.target.dims for _ in range(count - 1)])

    def _kernels_for(self, strides: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
        """Kernels for given strides: 1 across an axis while it is more than twice coarser than the finest."""
        given = self.draft.given("network.kernels")
        if given is not None:
            return tuple(tuple(kernel) for kernel in given[0])
        whole = (3,) * self.target.dims
        if self._classic:
            return (whole,) * len(strides)
        current = list(self.target.spacing)
        kernel = [1] * len(current)
        kernels: list[tuple[int, ...]] = []
        for stride in strides:
            current = [c * s for c, s in zip(current, stride, strict=True)]
            kernel = [3 if k == 3 or c / min(current) < 2 else 1 for k, c in zip(kernel, current, strict=True)]
            kernels.append(tuple(kernel))
        return (*kernels[:-1], whole)

    def _admissible(self, size: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[int, ...]:
        """Smallest output patch of at least this size that the strides allow.

        A padded network needs multiples of the product of the strides. The unpadded one of 2015 loses voxels in every
        convolution: its outputs are such a multiple less what the levels above the bottleneck lose.
        """
        convolutions = self.network.decoder_convolutions or self.network.convolutions_per_level
        kernels = self.draft.given("network.kernels")
        admissible: list[int] = []
        for axis, wanted in enumerate(size):
            divisor, loss = 1, 0
            for level, stride in enumerate(strides):
                divisor *= stride[axis]
                kernel = 3 if kernels is None else kernels[0][level][axis]
                if self._classic and level < len(strides) - 1:
                    loss += convolutions * (kernel - 1) * divisor
            offset = -loss % divisor
            steps = math.ceil((wanted - offset) / divisor)
            admissible.append(max(0 if offset else 1, steps) * divisor + offset)
        return tuple(admissible)


class _FullResolution(_Design):
    """A network that never pools: dilations, or depth alone, widen what it sees."""

    def topology(self, target: Target, patch: tuple[int, ...] | None) -> Topology:
        """Returns one level, or as many entries as features, strides or kernels are given."""
        entries = 1
        for key in ("network.features", "network.strides", "network.kernels"):
            given = self.draft.given(key)
            entries = entries if given is None else len(given[0])
        if patch is None:
            per_voxel = self.elements(Topology((1,) * target.dims, ((1,) * target.dims,) * entries, ()))
            voxels = self.budget.largest_patch / per_voxel
            patch = fit_full_resolution(target.spacing, target.median, voxels)
        return Topology(patch, ((1,) * target.dims,) * entries, ((3,) * target.dims,) * entries)

    def features(self, levels: int) -> tuple[int, ...]:
        """Returns the channels of all convolutions."""
        given = self.draft.given("network.features")
        return tuple(given[0]) if given is not None else (self._first_features(),) * levels

    def features_reason(self) -> str:
        """Returns why the network is as wide."""
        return f"{self._first_features()} on a {self.draft.device.upper()}, in each convolution"

    def strides_reason(self) -> str:
        """Returns why it does not pool."""
        return f"kind {self.network.kind}: full resolution throughout"

    def kernels_reason(self) -> str:
        """Returns how far it sees."""
        dilations = dilations_of(self.network)
        seen = 1 + 2 * sum(dilations)
        return f"3 with dilations {', '.join(map(str, dilations))}: it sees {seen} voxels along each axis"

    def check_given_patch(self, patch: tuple[int, ...], topology: Topology) -> None:
        """Every patch fits."""
