"""Patches from cases that lie on the device: cut and augmented there, a batch at a time.

A card waits for processors that augment one sample after the other; here they only draw the random numbers and, for
cases that do not fit on the card, read boxes of the memory maps. The samples are those of
:class:`unet_med.patches.PatchDataset`: the same index gives the same case, place and changes, only the values of the
noise are the device's own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unet_med.data import CachedCase
from unet_med.patches import NEAREST, PatchDataset, Sample, as_targets
from unet_med.transforms.augment_batch import Cut, change_intensities, plan_cuts, read_box, sample_patches, send

_AHEAD = 2
"""Batches whose host part is under way while the device works."""

Source = Tensor | npt.NDArray[Any]


def resident_cases(cases: Sequence[CachedCase], budget_bytes: int) -> list[CachedCase]:
    """Returns the cases to keep on a device: in their order, each that still fits what is left of the budget."""
    chosen = []
    for case in cases:
        size = sum(_bytes(source) for source in case.arrays().values())
        if size <= budget_bytes:
            budget_bytes -= size
            chosen.append(case)
    return chosen


def _bytes(array: npt.NDArray[Any]) -> int:
    return prod(array.shape) * (4 if array.dtype == np.uint16 else array.itemsize)


class DeviceCases:
    """Prepared cases, on a device as far as they fit, in memory maps beyond.

    Args:
        cases: Prepared cases.
        device: Where patches are cut.
        budget_bytes: Memory of the device that whole cases may take, for example half of what is free.

    Attributes:
        device: Where patches are cut.
        resident: How many cases lie there.
    """

    def __init__(self, cases: Sequence[CachedCase], device: torch.device, budget_bytes: int) -> None:
        self.device = device
        self._on_device: dict[CachedCase, dict[str, Tensor]] = {}
        for case in resident_cases(cases, budget_bytes):
            self._on_device[case] = {name: _to_device(array, device) for name, array in case.arrays().items()}
        self.resident = len(self._on_device)

    def sources(self, sample: Sample) -> Mapping[str, Sequence[Source]]:
        """Returns what image, label and all else are cut from: tensors on the device, or memory maps.

        Several for the image of a network that sees neighbouring slices, one for each.
        """
        there = self._on_device.get(sample.case)
        if there is not None:
            return {name: sample.views(name, tensor) for name, tensor in there.items()}
        return {name: sample.views(name, array) for name, array in sample.case.arrays().items()}


def _to_device(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Copies an array; 16-bit labels become int32, for few operations know uint16."""
    return torch.from_numpy(np.array(array, dtype=np.int32 if array.dtype == np.uint16 else None)).to(device)


@dataclass(frozen=True, eq=False)
class _Part:
    """The host part of the images, labels or weights of a batch: what is cut, and how each box comes to the device."""

    cuts: list[Cut]
    readers: list[Callable[[], Tensor]]


@dataclass(frozen=True, eq=False)
class _Batch:
    """The host part of a batch."""

    samples: list[Sample]
    parts: dict[str, _Part]
    prior: Tensor | None


def device_batches(
    cases: DeviceCases,
    dataset: PatchDataset,
    batch_size: int,
    first_step: int,
    last_step: int,
    rank: int = 0,
    world: int = 1,
) -> Iterator[dict[str, Tensor]]:
    """Yields on the device the batches that :func:`unet_med.patches.patch_loader` yields on the CPU.

    Args:
        cases: The cases of ``dataset``.
        dataset: What draws the samples.
        batch_size: Samples of one step, all processes together.
        first_step: The first step, counted from 0.
        last_step: The step before which it ends.
        rank: Number of this process among those that share each step; it gets every ``world``-th sample of a batch.
        world: How many they are.

    Yields:
        ``image`` (n, C, *patch + 2 * context) float32, ``label`` (n, *patch) int64, and what else the loss needs, each
        (n, *patch), or (n, labels, *patch) of a teacher.
    """
    chunks = (range(step * batch_size + rank, (step + 1) * batch_size, world) for step in range(first_step, last_step))
    pool = ThreadPoolExecutor(1, thread_name_prefix="samples")  # one: a data set remembers the order of its cases
    try:
        waiting = deque(pool.submit(_prepare, cases, dataset, chunk) for chunk in islice(chunks, _AHEAD))
        while waiting:
            batch = waiting.popleft().result()
            waiting.extend(pool.submit(_prepare, cases, dataset, chunk) for chunk in islice(chunks, 1))
            yield _finish(batch, dataset, cases.device)
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare(cases: DeviceCases, dataset: PatchDataset, indices: range) -> _Batch:
    """Draws samples, and reads into pinned memory what is not on the device."""
    samples = [dataset.draw(index) for index in indices]
    sources = [cases.sources(sample) for sample in samples]
    centres, changes = [sample.centre for sample in samples], [sample.spatial for sample in samples]
    parts: dict[str, _Part] = {}
    for name in sources[0]:
        cuts = plan_cuts(centres, changes, dataset.size_of(name))
        here = [source[name] for source in sources]
        readers = [_reader(*one, any(dataset.context), cases.device) for one in zip(here, cuts, strict=True)]
        parts[name] = _Part(cuts, readers)
    found = [prior for sample in samples if (prior := dataset.prior(sample)) is not None]
    prior = torch.stack(found) if found else None
    return _Batch(samples, parts, prior if prior is None or cases.device.type != "cuda" else prior.pin_memory())


def _reader(views: Sequence[Source], cut: Cut, mirrored: bool, device: torch.device) -> Callable[[], Tensor]:
    if isinstance(views[0], Tensor):
        return lambda: _box(views, cut, mirrored)
    box = _box(views, cut, mirrored)
    box = box.pin_memory() if device.type == "cuda" else box
    return lambda: send(box, device)


def _box(views: Sequence[Source], cut: Cut, mirrored: bool) -> Tensor:
    """Reads one box; neighbouring slices follow each other in every channel."""
    boxes = [read_box(view, cut, mirrored_border=mirrored) for view in views]
    return boxes[0] if len(boxes) == 1 else torch.stack(boxes, dim=1).flatten(0, 1)


def _finish(batch: _Batch, dataset: PatchDataset, device: torch.device) -> dict[str, Tensor]:
    """Cuts, augments and joins on the device."""
    item: dict[str, Tensor] = {}
    for name, part in batch.parts.items():
        boxes = [read() for read in part.readers]
        item[name] = sample_patches(boxes, part.cuts, dataset.size_of(name), nearest=name in NEAREST)
    for image, sample in zip(item["image"], batch.samples, strict=True):
        image.copy_(sample.stained(image))
    item["image"] = change_intensities(item["image"], [sample.intensity for sample in batch.samples])
    if batch.prior is not None:
        item["image"] = torch.cat([item["image"], send(batch.prior, device)], dim=1)
    return as_targets(item, len(dataset.patch))
