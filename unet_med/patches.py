"""Random patches of prepared cases.

Everything random about a sample is a function of (seed, index of the sample), so a run that was killed goes on with
exactly the samples it would have seen, whatever the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from unet_med.config import PipelineConfig
from unet_med.data import ANNOTATED, TEACHER, TEACHER_STEPS, CachedCase
from unet_med.errors import ConfigError, UnetMedError
from unet_med.instances.targets import DISTANCE_STEPS
from unet_med.networks import admissible_patch, context_voxels
from unet_med.transforms.augment import (
    IntensityChange,
    SpatialChange,
    apply_intensity,
    draw_intensity,
    draw_spatial,
    mirrored_index,
    sample_patch,
)
from unet_med.transforms.prior import damaged, one_hot
from unet_med.transforms.stains import StainChange, draw_stains, with_stains

NEAREST = ("label", "border")
"""What is cut from a case by the nearest voxel; all else is interpolated."""

Source = TypeVar("Source", npt.NDArray[Any], torch.Tensor)


@dataclass(frozen=True, eq=False)
class Sample:
    """Everything that is random about a patch.

    Attributes:
        case: What it is cut from.
        slices: Places along the last axis that the image shows, where a 2-D patch is cut from a volume; the middle one
            is labelled. ``None``: the patch has as many axes as the case.
        centre: (d,) centre of the patch in the case, in voxels.
        spatial: Where its voxels come from.
        intensity: What happens to its values.
        number: Of the sample; with the pipeline's seed it says how the mask of a first stage is damaged.
        stains: What happens to the colours of stained tissue; ``None``: nothing.
    """

    case: CachedCase
    slices: tuple[int, ...] | None
    centre: npt.NDArray[np.float64]
    spatial: SpatialChange
    intensity: IntensityChange
    number: int = 0
    stains: StainChange | None = None

    def views(self, name: str, source: Source) -> list[Source]:
        """Returns what the patch ``name`` is cut from, of the case's array of that name, each (channels, *s)."""
        if self.slices is None:
            return [source]
        shown = self.slices if name == "image" else self.slices[len(self.slices) // 2 :][:1]
        return [source[..., place] for place in shown]

    def stained(self, image: torch.Tensor) -> torch.Tensor:
        """Returns the patch of the image (C, *size) in other colours, where they change and it has some."""
        tint = self.case.tint
        return image if self.stains is None or tint is None else with_stains(image, self.stains, tint)


class PatchDataset(Dataset[dict[str, torch.Tensor]]):
    """Random, augmented patches; item ``i`` depends on (seed, i) and nothing else.

    An item is ``image`` (C, *patch + 2 * context) float32, ``label`` (*patch) int64 and, for a border-weighted loss,
    ``weight`` (*patch) float32; where objects are told apart, ``border`` (*patch) int64 and ``distance`` (*patch)
    float32 in [0, 1]; of a teacher, ``teacher`` (labels, *patch) float32 in [0, 1]. Neighbouring slices are channels:
    those of the first channel come first. So are the labels that a cascade's first stage found; they come last, no
    intensity of theirs is changed.

    Cases come in a new random order at every pass. Of every stretch of items the configured share is centred on a
    labelled voxel, each label of the data set as often as any other; a case that lacks the label gives way to one that
    holds it. Where voxels are left unlabelled, the other items are centred on any voxel that somebody labelled, too.

    Attributes:
        patch: Voxels of a label patch along each axis.
        context: Voxels that the image is larger, on each side of each axis.

    Raises:
        UnetMedError: if the pipeline is not resolved.
        ConfigError: if neighbouring slices of a picture are wanted.
    """

    def __init__(self, cases: Sequence[CachedCase], config: PipelineConfig) -> None:
        if config.dims == "auto" or config.sampling.patch_voxels == "auto":
            raise UnetMedError("the pipeline is not resolved", "sampling", "resolve it with `unet-med plan`")
        self._cases = tuple(cases)
        self._config = config
        self._dims = config.dims
        self.patch = admissible_patch(config.network, config.dims, config.sampling.patch_voxels)
        self.context = context_voxels(config.network, config.dims)
        self._share = config.sampling.foreground_share
        self._order: tuple[int, npt.NDArray[np.int64]] = (-1, np.zeros(0, dtype=np.int64))
        self._holders = _holders(self._cases) if self._share else {}
        if config.network.slices > 1 and any(len(case.shape) == config.dims for case in cases):
            raise ConfigError(
                f"{config.network.slices} neighbouring slices are wanted, and a picture has no neighbours",
                "network.slices",
                "set it to 1, or train on volumes",
            )

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        sample = self.draw(index)
        item = {name: self._cut(name, array, sample) for name, array in sample.case.arrays().items()}
        item["image"] = sample.stained(item["image"])
        item["image"] = torch.from_numpy(apply_intensity(item["image"].numpy(), sample.intensity))
        prior = self.prior(sample)
        if prior is not None:
            item["image"] = torch.cat([item["image"], prior])
        return as_targets(item, len(self.patch))

    def size_of(self, name: str) -> tuple[int, ...]:
        """Returns the size of a patch: images are larger than labels by what the network needs around them."""
        if name != "image":
            return self.patch
        return tuple(n + 2 * border for n, border in zip(self.patch, self.context, strict=True))

    def prior(self, sample: Sample) -> torch.Tensor | None:
        """Returns the labels of a cascade's first stage in a patch, damaged at random: (labels, *size) bool.

        ``None`` without a cascade.
        """
        mask, labels = sample.case.prior(), self._config.prior_channels
        if mask is None or not labels:
            return None
        size, mirrored = self.size_of("image"), any(self.context)
        patch = sample_patch(mask[None], sample.centre, size, sample.spatial, nearest=True, mirrored_border=mirrored)
        rng = np.random.default_rng((self._config.seed, sample.number, 1))
        return one_hot(damaged(patch[0].astype(np.int32), labels, rng), labels)

    def draw(self, index: int) -> Sample:
        """Returns everything that is random about sample ``index``."""
        rng = np.random.default_rng((self._config.seed, index))
        case, label = self._choose(index, rng)
        anchor = None if label is None else _draw_anchor(case, label, rng)
        shape, slices = case.shape, None
        if len(shape) > self._dims:
            position = int(anchor[-1]) if anchor is not None else int(rng.integers(shape[-1]))
            slices = neighbours(position, shape[-1], self._config.network.slices)
            shape, anchor = shape[:-1], None if anchor is None else anchor[:-1]
        centre = _draw_centre(shape, self.patch, anchor, rng)
        spatial = draw_spatial(self._config.augment, rng, self._dims, case.spacing_mm)
        intensity = draw_intensity(self._config.augment, rng)
        return Sample(case, slices, centre, spatial, intensity, index, draw_stains(self._config.augment, rng))

    def _choose(self, index: int, rng: np.random.Generator) -> tuple[CachedCase, int | None]:
        """Returns the case of a sample, and the label it is centred on."""
        case = self.case_of(index)
        forced = int((index + 1) * self._share) > int(index * self._share)
        if not forced or not self._holders:
            return case, None if self._config.ignore_label is None else ANNOTATED
        label = int(rng.choice(list(self._holders)))
        if label not in case.labels:
            holders = self._holders[label]
            case = holders[int(rng.integers(len(holders)))]
        return case, label

    def _cut(self, name: str, array: npt.NDArray[Any], sample: Sample) -> torch.Tensor:
        """Returns (channels, *size) float32; neighbouring slices follow each other in every channel."""
        size, mirrored = self.size_of(name), any(self.context)
        patches = [
            sample_patch(view, sample.centre, size, sample.spatial, nearest=name in NEAREST, mirrored_border=mirrored)
            for view in sample.views(name, array)
        ]
        return torch.from_numpy(patches[0] if len(patches) == 1 else np.stack(patches, axis=1).reshape(-1, *size))

    def case_of(self, index: int) -> CachedCase:
        """Returns the case whose turn it is at sample ``index``."""
        turn, position = divmod(index, len(self._cases))
        if self._order[0] != turn:
            self._order = turn, np.random.default_rng((self._config.seed, 0, turn)).permutation(len(self._cases))
        return self._cases[int(self._order[1][position])]


def as_targets(item: dict[str, torch.Tensor], dims: int) -> dict[str, torch.Tensor]:
    """Gives what was cut from a case the types that a loss needs.

    Args:
        item: ``image`` ([N, ]C, *size) float32, which stays as it is, and what it is learnt from, ([N, ]1, *patch), or
            ([N, ]labels, *patch) of a teacher.
        dims: Number of spatial axes.

    Returns:
        The same, all but image and teacher without the axis of channels.
    """
    if TEACHER in item:
        item[TEACHER] = item[TEACHER] / TEACHER_STEPS
    for name in item.keys() - {"image", TEACHER}:
        values = item[name].select(-dims - 1, 0)
        if name in NEAREST:
            values = values.round().long()
        item[name] = values / DISTANCE_STEPS if name == "distance" else values
    return item


def neighbours(position: int, size: int, count: int) -> tuple[int, ...]:
    """Returns the places of ``count`` slices around one, out of ``size``; mirrored at the ends."""
    first = position - count // 2
    return tuple(int(place) for place in mirrored_index(np.arange(first, first + count), size))


def _holders(cases: Sequence[CachedCase]) -> dict[int, list[CachedCase]]:
    """Returns the cases that hold each label, the labels in rising order."""
    labels = sorted({label for case in cases for label in case.labels})
    return {label: [case for case in cases if label in case.labels] for label in labels}


def _draw_anchor(case: CachedCase, label: int, rng: np.random.Generator) -> npt.NDArray[np.int32] | None:
    """A random voxel of a label; ``None`` where the case has none."""
    rows = case.foreground()
    rows = rows[rows[:, 0] == label]
    return np.asarray(rows[rng.integers(len(rows)), 1:]) if len(rows) else None


def _draw_centre(
    shape: tuple[int, ...], patch: tuple[int, ...], anchor: npt.NDArray[np.int32] | None, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Centre of a patch: uniform over all places inside the case (or around a smaller case), or on the anchor."""
    centre = np.zeros(len(shape))
    for axis, (size, length) in enumerate(zip(shape, patch, strict=True)):
        low, high = min(0, size - length), max(0, size - length)
        if anchor is None:
            start = int(rng.integers(low, high + 1))
        else:
            start = int(np.clip(int(anchor[axis]) - length // 2, low, high))
        centre[axis] = start + (length - 1) / 2
    return centre


def patch_loader(
    dataset: PatchDataset,
    batch_size: int,
    first_step: int,
    last_step: int,
    workers: int,
    rank: int = 0,
    world: int = 1,
) -> Iterator[dict[str, torch.Tensor]]:
    """Yields the batches of steps ``first_step`` to ``last_step - 1``; the same ones for any number of workers.

    Args:
        dataset: Where samples come from.
        batch_size: Samples of one step, all processes together.
        first_step: The first step, counted from 0.
        last_step: The step before which it ends.
        workers: Processes that prepare samples; 0: this one.
        rank: Number of this process among those that share each step; it gets every ``world``-th sample of a batch.
        world: How many they are.
    """
    batches = (
        list(range(step * batch_size + rank, (step + 1) * batch_size, world)) for step in range(first_step, last_step)
    )
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        prefetch_factor=4 if workers else None,
    )
    yield from loader
