"""How long a prediction will take and how much memory it will need, before it runs.

What a window, a voxel and a file cost is measured on this machine (:mod:`unet_med.inference.probe`); the rest is
arithmetic on what prediction holds: the image as it is stored, its mask, the rolling sum of windows, the slab that is
prepared and the rows that become labels.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import prod
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import nn

from unet_med.bundle import labels_of
from unet_med.config import PipelineConfig
from unet_med.errors import ConfigError, MachineError
from unet_med.geometry import Geometry
from unet_med.inference.predictor import CPU_BATCH
from unet_med.inference.rows import CHUNK_VALUES
from unet_med.inference.stream import ROWS_READ, rolling_values
from unet_med.inference.tiling import WindowAxis, window_axes
from unet_med.io.cases import Case
from unet_med.networks import admissible_patch, context_voxels, head_channels, input_channels
from unet_med.transforms.preprocess import network_axes
from unet_med.volume import BANDS_BYTES

_POLL_SECONDS = 0.002
_FEWEST_RUNS, _MOST_RUNS, _TIMING_SECONDS = 2, 10, 3.0
_BYTES = 4  # float32
_COPIES = 3
"""Of a chunk of logits: blended, brought to the image's grid, and the values that labels are chosen by."""
_ERROR = 1.25
"""Estimates hold within 25 %: what is not further beyond the free memory than that is tried, with a note."""
_OBJECT_BYTES = 8
"""Of a voxel in which objects are told apart: their numbers as they are found and as they are written, their class."""
_IN_WORK = 3
"""Cases that are read, computed and written at the same time."""
_SHARE_OF_MEMORY = 0.25
"""Of the free memory, what the images of several cases in work may take; larger ones are done one after the other."""


@dataclass(frozen=True)
class WindowCost:
    """What one window costs on this machine.

    Attributes:
        seconds: Time of one forward pass (and backward pass, when training was timed).
        peak_bytes: Memory that the pass took beyond what the process held before.
    """

    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class CaseSize:
    """What an estimate needs to know of an image.

    Attributes:
        geometry: Grid of a frame.
        channels: Of all files together.
        voxel_bytes: Of a voxel with all channels as it is held in memory.
        frames: Pictures or volumes of this grid.
        on_disk: Whether it is read region by region and its labels lie in a file.
        label_bytes: Of a voxel, for what is found there.
    """

    geometry: Geometry
    channels: int
    voxel_bytes: int
    frames: int = 1
    on_disk: bool = False
    label_bytes: int = 1

    @classmethod
    def of(cls, case: Case, objects: bool = False) -> CaseSize:
        """Returns the size of a case, from its headers; ``objects``: whether objects are told apart in it."""
        kept = sum(source.channels * np.dtype(source.dtype).itemsize for source in case.sources)
        return cls(case.geometry, case.channels, kept, len(case.frames), label_bytes=_OBJECT_BYTES if objects else 1)

    @classmethod
    def as_read(cls, case: Case, memory_gb: float | None, available: int, objects: bool = False) -> CaseSize:
        """Returns the size of a case as a model without a first stage will read it; see :meth:`is_large`."""
        size = cls.of(case, objects)
        return replace(size, on_disk=case.reads_regions and size.is_large(memory_gb, available))

    @property
    def image_bytes(self) -> int:
        """Of a frame and its labels, as far as they are in memory."""
        return BANDS_BYTES if self.on_disk else (self.voxel_bytes + self.label_bytes) * self.voxels

    def is_large(self, memory_gb: float | None, available: int) -> bool:
        """Whether it is better read region by region than held in memory with the labels of all its frames.

        Args:
            memory_gb: The budget that was given, if any.
            available: Bytes that can still be taken.
        """
        budget = overlap_bytes(available)
        if memory_gb is not None:
            budget = min(budget, memory_gb * 1e9)
        return self.image_bytes + (self.frames - 1) * self.label_bytes * self.voxels > budget

    @property
    def voxels(self) -> int:
        """Of a frame."""
        return prod(self.geometry.shape)


@dataclass(frozen=True)
class Held:
    """Bytes that the prediction of a frame holds beyond the loaded model and the window that is computed.

    Attributes:
        image: As it is stored.
        mask: Labels of all frames, and those of a cascade's first stage.
        windows: The rolling sum of windows.
        slab: What is prepared of the image.
        chunk: Rows of logits on the image's grid.
    """

    image: int
    mask: int
    windows: int
    slab: int
    chunk: int

    @property
    def total(self) -> int:
        """All together."""
        return self.image + self.mask + self.windows + self.slab + self.chunk


@dataclass(frozen=True)
class Rates:
    """What prediction costs on this machine, as it was measured.

    Attributes:
        start_seconds: From the start of the process until the model is loaded and its engine is open.
        window_seconds: One window.
        voxel_seconds: Preparing, blending and labelling, for each voxel of the image.
        read_seconds: Reading, for each voxel of the image.
        write_seconds: Writing and checking the mask, for each voxel.
        case_seconds: What every case takes whatever its size: mostly its preview.
        peak_bytes: The most that the process held while it predicted the probe.
        probe_bytes: What of it the probe's size explains (:attr:`Held.total`).
        engine: For example ``openvino bf16``.
        engine_why: Why that.
        low_window_seconds: One window of a cascade's first stage.
    """

    start_seconds: float
    window_seconds: float
    voxel_seconds: float
    read_seconds: float
    write_seconds: float
    case_seconds: float
    peak_bytes: int
    probe_bytes: int
    engine: str
    engine_why: str
    low_window_seconds: float = 0.0

    @property
    def base_bytes(self) -> int:
        """What the process takes whatever it predicts: model, engine and the window that is computed."""
        return max(0, self.peak_bytes - self.probe_bytes)


@dataclass(frozen=True)
class CaseCost:
    """What one case will cost.

    Attributes:
        windows: Passes through the network, mirrored ones included.
        read_seconds: Reading it.
        compute_seconds: Predicting it.
        write_seconds: Writing, checking and drawing.
        peak_bytes: Of the process that predicts it.
    """

    windows: int
    read_seconds: float
    compute_seconds: float
    write_seconds: float
    peak_bytes: int

    @property
    def seconds(self) -> float:
        """All together."""
        return self.read_seconds + self.compute_seconds + self.write_seconds


def measure_window(
    network: nn.Module,
    config: PipelineConfig,
    device: torch.device,
    precision: torch.dtype,
    batch: int = 1,
    training: bool = False,
) -> WindowCost:
    """Runs one window of noise a few times after a warm-up; the fastest run counts, others shared the processor.

    Args:
        network: What ``build_network`` made of ``config``.
        config: A resolved pipeline.
        device: Where to compute.
        precision: Compute dtype; float32 for no autocast.
        batch: Windows in one pass.
        training: Time a training step (forward and backward) instead of a forward pass.
    """
    window, dims = _window(config)
    context = context_voxels(config.network, dims)
    size = [edge + 2 * border for edge, border in zip(window, context, strict=True)]
    layout = torch.channels_last_3d if dims == 3 else torch.channels_last
    channels = input_channels(config.network, config.channels, config.prior_channels)
    image = torch.randn(batch, channels, *size).to(device=device, memory_format=layout)
    network = network.to(device=device, memory_format=layout)  # type: ignore[call-overload]
    network.train(training)

    def step() -> None:
        with torch.set_grad_enabled(training), torch.autocast(device.type, precision, precision != torch.float32):
            logits = network(image)
        if training:
            finest = logits[0] if isinstance(logits, tuple) else logits
            finest.float().square().mean().backward()
            network.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        peak = torch.cuda.max_memory_allocated() - before
    else:
        peak = _peak_of(step)
    runs: list[float] = []
    while len(runs) < _FEWEST_RUNS or (len(runs) < _MOST_RUNS and sum(runs) < _TIMING_SECONDS):
        started = time.perf_counter()
        step()
        runs.append(time.perf_counter() - started)
    return WindowCost(min(runs), peak)


def estimate_case(
    size: CaseSize,
    config: PipelineConfig,
    rates: Rates,
    mirror: bool = False,
    alone: bool = True,
    first_stage: Sequence[PipelineConfig] = (),
) -> CaseCost:
    """Returns what the prediction of one case will cost.

    Args:
        size: Its size, as ``scan`` reports it.
        config: The model's resolved pipeline.
        rates: What was measured.
        mirror: Whether flips are averaged.
        alone: Whether no other case is read or written meanwhile.
        first_stage: Of all models at low resolution, where the model is a cascade.
    """
    low = sum(window_count(size.geometry, one, mirror) for one in first_stage) * size.frames
    windows = window_count(size.geometry, config, mirror) * size.frames
    voxels = size.voxels * size.frames
    held = held_bytes(size, config)
    others = 0 if alone else (_IN_WORK - 1) * (held.image + held.mask)
    return CaseCost(
        windows + low,
        rates.read_seconds * voxels,
        windows * rates.window_seconds + low * rates.low_window_seconds + voxels * rates.voxel_seconds,
        rates.case_seconds + rates.write_seconds * voxels,
        rates.base_bytes + held.total + others,
    )


def overlap_bytes(available: int) -> float:
    """Returns how many bytes the images of several cases in work may take together."""
    return _SHARE_OF_MEMORY * available


def may_overlap(size: CaseSize, available: int) -> bool:
    """Whether cases of this size are read and written while others are predicted."""
    return _IN_WORK * size.image_bytes <= overlap_bytes(available)


def folder_seconds(costs: Sequence[CaseCost], rates: Rates, cores: int) -> float:
    """Returns how long a folder takes: reading and writing go on beside the network, but not without its cores.

    Args:
        costs: Of the cases, in their order.
        rates: What was measured.
        cores: That the network computes on; a side thread takes one of them away for as long as it works.
    """
    if not costs:
        return 0.0
    beside = sum(cost.read_seconds for cost in costs[1:]) + sum(cost.write_seconds for cost in costs[:-1])
    computing = sum(cost.compute_seconds for cost in costs)
    ends = costs[0].read_seconds + costs[-1].write_seconds
    return rates.start_seconds + ends + max(computing + beside / max(1, cores), beside)


def window_count(geometry: Geometry, config: PipelineConfig, mirror: bool = False) -> int:
    """Returns how many windows go through the network for one frame, mirrored ones included."""
    axes = config.augment.mirror_axes if mirror and config.augment.mirror_axes != "auto" else ()
    flips = sum(1 for count in range(len(axes) + 1) for _ in combinations(axes, count))
    return flips * prod(len(axis.starts) for axis in _axes(geometry, config))


def held_bytes(size: CaseSize, config: PipelineConfig) -> Held:
    """Returns what prediction holds of a case of this size."""
    axes = _axes(size.geometry, config)
    labels, dims = labels_of(config), _window(config)[1]
    outputs = labels.outputs
    channels = min(outputs - int(labels.softmax_only), head_channels(config.network))
    rolling = [rolling_values(axes, along, channels, CPU_BATCH[dims]) for along in range(len(axes))]
    along = rolling.index(min(rolling))
    thickness = min(axes[along].size, axes[along].window + 2 * axes[along].border)
    length = size.geometry.shape[network_axes(size.geometry, config.preprocess)[0][along]]
    row = size.voxels // max(1, length)
    final = -(-length * min(axes[along].window, axes[along].size) // axes[along].size)
    rows = max(row, min(row * final, CHUNK_VALUES // outputs))
    plane = (size.channels + config.prior_channels) * prod(axis.size for n, axis in enumerate(axes) if n != along)
    prior = prod(axis.size for axis in axes) if config.prior_channels else 0
    labelled = 0 if size.on_disk else size.voxels * size.frames
    class_bytes = 1 if outputs < 2**8 else 2
    return Held(
        image=BANDS_BYTES if size.on_disk else size.voxel_bytes * size.voxels,
        mask=max(size.label_bytes, class_bytes) * labelled + class_bytes * prior,
        windows=_BYTES * rolling[along],
        slab=_BYTES * plane * (thickness + 2 * min(ROWS_READ, thickness)),
        chunk=_COPIES * _BYTES * outputs * rows,
    )


def check_memory(
    size: CaseSize, configs: Sequence[PipelineConfig], memory_gb: float | None, available: int
) -> list[str]:
    """Refuses a case that cannot fit, before it is predicted; its image is in memory already.

    Args:
        size: Of the case.
        configs: Of all models.
        memory_gb: The budget that was given; windows are chosen to fit it.
        available: Bytes that can still be taken.

    Returns:
        A note where it is tight.

    Raises:
        MachineError: with the way out.
    """
    held = [held_bytes(size, config) for config in configs]
    work = sum(one.windows + one.slab for one in held)
    if memory_gb is not None:
        work = min(work, int(memory_gb * 1e9))
    needed = held[0].mask + max(one.chunk for one in held) + work
    if needed <= available:
        return []
    what = f"the prediction needs about {needed / 1e9:.1f} GB, {available / 1e9:.1f} GB are free"
    if needed <= _ERROR * available:
        return [what]
    raise MachineError(what, remedy=memory_remedy(needed - work, available))


def memory_remedy(fixed: int, available: int) -> str:
    """Returns what to do where memory does not suffice; ``fixed`` bytes are needed whatever the windows."""
    if fixed >= available:
        return f"use a machine with at least {fixed / 1e9:.1f} GB of free memory, or cut the images"
    budget = max(0.1, (available - fixed) / _ERROR / 1e9)
    return f"take smaller windows with --memory-gb {budget:.1f}, close other programs, or use another machine"


def available_bytes() -> int:
    """Returns the memory that this process can still take: what is free on the machine, or less in a container.

    A control group (docker, SLURM, Kubernetes) ends a process that goes beyond its limit, whatever the machine has.
    """
    free = int(psutil.virtual_memory().available)
    return min([free, *(max(0, limit - used) for limit, used in _group_memory())])


def _group_memory(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[tuple[int, int]]:
    """Returns limit and use of each control group of this process that has a limit, in bytes."""
    try:
        lines = own.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
    found: list[tuple[int, int]] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, limit, use = root, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base, limit, use = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = base / path.strip("/")
        for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(base))):
            pair = _number_in(folder / limit), _number_in(folder / use)
            if pair[0] is not None and pair[1] is not None:
                found.append((pair[0], pair[1] - _reclaimable(folder)))
    return found


def _number_in(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _reclaimable(folder: Path) -> int:
    """Bytes of files that the kernel keeps in memory and gives back when it is needed."""
    try:
        text = (folder / "memory.stat").read_text(encoding="ascii")
    except OSError:
        return 0
    found = re.search(r"^(?:total_)?inactive_file (\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else 0


def _window(config: PipelineConfig) -> tuple[tuple[int, ...], int]:
    window = config.sampling.patch_voxels
    if window == "auto" or config.dims == "auto" or config.unresolved():
        raise ConfigError(
            "the pipeline still holds `auto` values",
            ", ".join(config.unresolved()[:3]),
            "resolve it with `unet-med plan PIPELINE.yaml --data M.json`",
        )
    return tuple(window), config.dims


def _axes(geometry: Geometry, config: PipelineConfig) -> Sequence[WindowAxis]:
    window, dims = _window(config)
    settings = config.inference
    return window_axes(
        _network_shape(geometry, config),
        admissible_patch(config.network, dims, window),
        settings.overlap,
        settings.gaussian_sigma,
        context_voxels(config.network, dims),
        config.network.slices,
    )


def _network_shape(geometry: Geometry, config: PipelineConfig) -> Sequence[int]:
    """Shape of the image on the network's grid, without the cropping that only its voxels decide."""
    spacing, own = config.preprocess.spacing_mm, geometry.spacing_mm
    turned = geometry.reoriented(*network_axes(geometry, config.preprocess))
    if spacing is None or spacing == "auto" or own is None or turned.spacing_mm is None:
        return turned.shape
    wanted = tuple(spacing) + turned.spacing_mm[len(spacing) :]
    return turned.resampled(wanted[: turned.ndim]).shape


def _peak_of(step: Callable[[], None]) -> int:
    """Runs ``step`` and returns by how much the resident memory rose above its start, in bytes."""
    process = psutil.Process()
    before = process.memory_info().rss
    peak = before
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(_POLL_SECONDS):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        step()
    finally:
        done.set()
        watcher.join()
    return int(max(0, peak - before, process.memory_info().rss - before))
