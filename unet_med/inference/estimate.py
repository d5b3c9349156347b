"""How long a prediction will take and how much memory it will need, before it runs.

A window is timed on this machine; the rest is arithmetic. An estimate, not a promise: reading, resampling and
writing come on top, and other programs slow a machine down.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import prod
from pathlib import Path

import psutil
import torch
from torch import nn

from unet_med.config import PipelineConfig
from unet_med.errors import ConfigError
from unet_med.geometry import Geometry
from unet_med.inference.tiling import window_starts
from unet_med.networks import context_voxels

_POLL_SECONDS = 0.002
_FEWEST_RUNS, _MOST_RUNS, _TIMING_SECONDS = 2, 10, 3.0
_BYTES = 4  # float32


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
class CaseCost:
    """What one image will cost.

    Attributes:
        windows: Forward passes, mirrored ones included.
        seconds: Time of these passes.
        peak_bytes: Memory beyond what the process holds with the model loaded.
    """

    windows: int
    seconds: float
    peak_bytes: int


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
    image = torch.randn(batch, len(config.channels), *size).to(device=device, memory_format=layout)
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


def estimate_case(geometry: Geometry, config: PipelineConfig, cost: WindowCost, mirror: bool = False) -> CaseCost:
    """Returns what the prediction of one image on this grid will cost.

    Args:
        geometry: Grid of the image, as ``scan`` reports it.
        config: The model's resolved pipeline.
        cost: What :func:`measure_window` found.
        mirror: Whether flips are averaged.
    """
    window, dims = _window(config)
    grid = _network_shape(geometry, config)
    places = prod(
        len(window_starts(max(size, edge), edge, config.inference.overlap))
        for size, edge in zip(grid[:dims], window, strict=True)
    )
    slices = prod(grid[dims:])
    axes = config.augment.mirror_axes if mirror and config.augment.mirror_axes != "auto" else ()
    flips = sum(1 for count in range(len(axes) + 1) for _ in combinations(axes, count))
    windows = places * slices * flips
    channels = len(config.channels)
    outputs = _outputs(config)
    image = 2 * channels * prod(geometry.shape) + channels * prod(grid)
    logits = outputs * (prod(grid) + prod(geometry.shape))
    return CaseCost(windows, windows * cost.seconds, cost.peak_bytes + _BYTES * (image + logits))


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


def _outputs(config: PipelineConfig) -> int:
    return len(config.regions or ()) or len(config.labels)


def _network_shape(geometry: Geometry, config: PipelineConfig) -> Sequence[int]:
    """Shape of the image on the network's grid, without the cropping that only its voxels decide."""
    spacing, own = config.preprocess.spacing_mm, geometry.spacing_mm
    turned = geometry.reoriented(*geometry.canonical_axes())
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
