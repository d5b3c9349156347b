"""From cases to patches: a cache of preprocessed cases on disk, and a data set of random patches.

Everything random about a sample is a function of (seed, index of the sample), so a run that was killed goes on with
exactly the samples it would have seen, whatever the number of workers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from unet_med.config import PipelineConfig
from unet_med.errors import InputRefusedError, MachineError, NothingUsableError, UnetMedError
from unet_med.identity import case_tag
from unet_med.labels import LabelMap
from unet_med.losses import border_weight_map
from unet_med.manifest import ManifestCase
from unet_med.networks import admissible_patch, context_voxels
from unet_med.transforms.augment import (
    IntensityChange,
    SpatialChange,
    apply_intensity,
    draw_intensity,
    draw_spatial,
    sample_patch,
)
from unet_med.transforms.preprocess import Preprocessor

logger = logging.getLogger(__name__)

Progress = Callable[[Iterable[Any], str], Iterable[Any]]

_FOREGROUND_VOXELS = 5000
"""Positions remembered for each label and case, to centre patches on."""


@dataclass(frozen=True)
class CachedCase:
    """A preprocessed case on disk, opened as memory maps.

    Attributes:
        id: Id of the case.
        folder: Holds image.npy (C, *s) float32, label.npy (*s), foreground.npy (n, 1 + d) and perhaps weight.npy.
        shape: *s, the network grid.
        spacing_mm: Of the network grid; ``None`` when uncalibrated.
    """

    id: str
    folder: Path
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...] | None

    def image(self) -> npt.NDArray[np.float32]:
        """Returns (C, *s), memory-mapped."""
        return np.asarray(np.load(self.folder / "image.npy", mmap_mode="r"))

    def label(self) -> npt.NDArray[np.integer[Any]]:
        """Returns (*s) uint8 or uint16, memory-mapped."""
        return np.asarray(np.load(self.folder / "label.npy", mmap_mode="r"))

    def weight(self) -> npt.NDArray[np.float32] | None:
        """Returns the weight map (*s), if the loss has one."""
        path = self.folder / "weight.npy"
        return np.asarray(np.load(path, mmap_mode="r")) if path.exists() else None

    def foreground(self) -> npt.NDArray[np.int32]:
        """Returns (n, 1 + d): label and position of some labelled voxels."""
        return np.asarray(np.load(self.folder / "foreground.npy"))


@dataclass(frozen=True)
class PreparedCases:
    """The cases that could be prepared, and the ones that were refused with their reasons."""

    cases: tuple[CachedCase, ...]
    refused: tuple[tuple[str, UnetMedError], ...]


def prepare_cases(
    cases: Sequence[ManifestCase], config: PipelineConfig, labels: LabelMap, cache: Path, progress: Progress
) -> PreparedCases:
    """Preprocesses cases into ``cache``; what is there already is used again.

    Raises:
        NothingUsableError: if every case is refused.
        MachineError: if the disk is full.
    """
    preprocessor = Preprocessor(config)
    prepared: list[CachedCase] = []
    refused: list[tuple[str, UnetMedError]] = []
    for case in progress(cases, "preparing"):
        try:
            prepared.append(_prepare_case(case, config, labels, preprocessor, cache))
        except InputRefusedError as error:
            logger.warning("%s is left out: %s", case_tag(case.id), error.what)
            refused.append((case.id, error))
    if cases and not prepared:
        first = refused[0][1]
        raise NothingUsableError(
            f"none of the {len(cases)} cases can be used, the first because: {first.what}", first.where, first.remedy
        )
    return PreparedCases(tuple(prepared), tuple(refused))


def _cache_key(case: ManifestCase, config: PipelineConfig, labels: LabelMap) -> str:
    border = config.loss.model_dump(mode="json") if config.loss.kind == "border_cross_entropy" else None
    recipe = [
        dict(case.sha256),
        case.case.frame,
        config.preprocess.model_dump(mode="json"),
        labels.names,
        border,
        case.id,
    ]
    return hashlib.sha256(json.dumps(recipe, sort_keys=True, default=str).encode()).hexdigest()[:20]


def _prepare_case(
    case: ManifestCase, config: PipelineConfig, labels: LabelMap, preprocessor: Preprocessor, cache: Path
) -> CachedCase:
    folder = cache / _cache_key(case, config, labels)
    if not (folder / "done.json").exists():
        stored = case.case.read_label()
        target = read_target(case, labels, stored)
        prepared = preprocessor.prepare(case.case.read())
        label = preprocessor.prepare_label(target, prepared)
        weight = None
        if config.loss.kind == "border_cross_entropy":
            objects = preprocessor.prepare_label(stored, prepared) if case.case.instances else label
            weight = border_weight_map(objects, config.loss.border_w0, config.loss.border_sigma_voxels)
        spacing = prepared.geometry.spacing_mm
        write_case(folder, prepared.array, label, weight, spacing)
    meta = json.loads((folder / "done.json").read_text(encoding="utf-8"))
    spacing_mm = None if meta["spacing_mm"] is None else tuple(meta["spacing_mm"])
    return CachedCase(case.id, folder, tuple(meta["shape"]), spacing_mm)


def read_target(
    case: ManifestCase, labels: LabelMap, stored: npt.NDArray[np.integer[Any]] | None = None
) -> npt.NDArray[np.uint8 | np.uint16]:
    """Returns the label image of a case with exactly the values of ``labels``; objects become label 1.

    Raises:
        InputRefusedError: if the label image holds a value that is no label.
    """
    stored = case.case.read_label() if stored is None else stored
    dtype = np.uint8 if len(labels.labels) < 256 else np.uint16
    if case.case.instances:
        return np.asarray(stored > 0, dtype=dtype)
    values = np.unique(stored)
    unknown = sorted({int(v) for v in values} - {0, *(label.index for label in labels.labels)})
    if unknown:
        raise InputRefusedError(
            f"the label image holds {unknown[:5]}, which {'is' if len(unknown) == 1 else 'are'} no label",
            case.id,
            "see `unet-med check` on the manifest",
        )
    return np.asarray(stored, dtype=dtype)


def write_case(
    folder: Path,
    image: npt.NDArray[np.float32],
    label: npt.NDArray[np.integer[Any]],
    weight: npt.NDArray[np.float32] | None,
    spacing: tuple[float, ...] | None,
) -> None:
    """Writes a prepared case, whole or not at all.

    Args:
        folder: Where :class:`CachedCase` will find it.
        image: (C, *s) float32, normalised.
        label: (*s) integers.
        weight: (*s) float32 or ``None``.
        spacing: mm along each axis, or ``None``.

    Raises:
        MachineError: if the disk is full.
    """
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        np.save(part / "image.npy", image)
        np.save(part / "label.npy", label)
        np.save(part / "foreground.npy", _foreground_positions(label))
        if weight is not None:
            np.save(part / "weight.npy", weight.astype(np.float32))
        meta = {"shape": list(label.shape), "spacing_mm": spacing}
        (part / "done.json").write_text(json.dumps(meta), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise MachineError(
            f"the cache of prepared cases cannot be written ({error.strerror})",
            remedy="free some disk space, then start the same command with --resume",
        ) from error


def _foreground_positions(label: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int32]:
    """Returns up to 5000 evenly chosen positions of each label as rows (label, i, j[, k])."""
    rows: list[npt.NDArray[np.int32]] = [np.zeros((0, 1 + label.ndim), dtype=np.int32)]
    for value in np.unique(label):
        if value == 0:
            continue
        flat = np.flatnonzero(label == value)
        if len(flat) > _FOREGROUND_VOXELS:
            flat = np.random.default_rng(int(value)).choice(flat, _FOREGROUND_VOXELS, replace=False)
        positions = np.stack(np.unravel_index(np.sort(flat), label.shape), axis=1).astype(np.int32)
        rows.append(np.hstack([np.full((len(positions), 1), value, dtype=np.int32), positions]))
    return np.concatenate(rows)


@dataclass(frozen=True, eq=False)
class Sample:
    """Everything that is random about a patch.

    Attributes:
        case: What it is cut from.
        slice: Place along the last axis, where a 2-D patch is cut from a volume.
        centre: (d,) centre of the patch in the case, in voxels.
        spatial: Where its voxels come from.
        intensity: What happens to its values.
    """

    case: CachedCase
    slice: int | None
    centre: npt.NDArray[np.float64]
    spatial: SpatialChange
    intensity: IntensityChange


class PatchDataset(Dataset[dict[str, torch.Tensor]]):
    """Random, augmented patches; item ``i`` depends on (seed, i) and nothing else.

    An item is ``image`` (C, *patch + 2 * context) float32, ``label`` (*patch) int64 and, for a border-weighted loss,
    ``weight`` (*patch) float32. Cases come in a new random order at every pass; of every stretch of items the
    configured share is centred on a labelled voxel.

    Attributes:
        patch: Voxels of a label patch along each axis.
        context: Voxels that the image is larger, on each side of each axis.
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

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        sample = self.draw(index)
        arrays: dict[str, npt.NDArray[Any]] = {"image": sample.case.image(), "label": sample.case.label()[None]}
        weight = sample.case.weight()
        if weight is not None:
            arrays["weight"] = weight[None]
        if sample.slice is not None:
            arrays = {name: array[..., sample.slice] for name, array in arrays.items()}
        item = self._cut(arrays, sample.centre, sample.spatial)
        item["image"] = torch.from_numpy(apply_intensity(item["image"].numpy(), sample.intensity))
        return item

    def draw(self, index: int) -> Sample:
        """Returns everything that is random about sample ``index``."""
        rng = np.random.default_rng((self._config.seed, index))
        case = self.case_of(index)
        forced = int((index + 1) * self._share) > int(index * self._share)
        anchor = _draw_anchor(case, rng) if forced else None
        shape, position = case.shape, None
        if len(shape) > self._dims:
            position = int(anchor[-1]) if anchor is not None else int(rng.integers(shape[-1]))
            shape, anchor = shape[:-1], None if anchor is None else anchor[:-1]
        centre = _draw_centre(shape, self.patch, anchor, rng)
        spatial = draw_spatial(self._config.augment, rng, self._dims, case.spacing_mm)
        return Sample(case, position, centre, spatial, draw_intensity(self._config.augment, rng))

    def _cut(
        self, arrays: dict[str, npt.NDArray[Any]], centre: npt.NDArray[np.float64], change: Any
    ) -> dict[str, torch.Tensor]:
        mirrored = any(self.context)
        wide = tuple(p + 2 * c for p, c in zip(self.patch, self.context, strict=True))
        item = {
            "image": torch.from_numpy(
                sample_patch(arrays["image"], centre, wide, change, nearest=False, mirrored_border=mirrored)
            )
        }
        for name in ("label", "weight"):
            if name in arrays:
                patch = sample_patch(
                    arrays[name], centre, self.patch, change, nearest=name == "label", mirrored_border=mirrored
                )[0]
                item[name] = torch.from_numpy(patch)
        item["label"] = item["label"].round().long()
        return item

    def case_of(self, index: int) -> CachedCase:
        """Returns the case that sample ``index`` is cut from."""
        turn, position = divmod(index, len(self._cases))
        if self._order[0] != turn:
            self._order = turn, np.random.default_rng((self._config.seed, 0, turn)).permutation(len(self._cases))
        return self._cases[int(self._order[1][position])]


def _draw_anchor(case: CachedCase, rng: np.random.Generator) -> npt.NDArray[np.int32] | None:
    """A random voxel of a random label of the case."""
    rows = case.foreground()
    if not len(rows):
        return None
    present = np.unique(rows[:, 0])
    of_label = rows[rows[:, 0] == rng.choice(present)]
    return np.asarray(of_label[rng.integers(len(of_label)), 1:])


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
