"""``unet-med doctor``: what this machine has, and what a prediction or a training step will cost on it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch

from unet_med.bundle import labels_of, load_bundles, read_bundle_info, save_bundle
from unet_med.config import PipelineConfig, load_config
from unet_med.errors import MachineError, UsageError
from unet_med.inference.device import choose_device, choose_precision, precision_name
from unet_med.inference.estimate import (
    CaseSize,
    Rates,
    available_bytes,
    estimate_case,
    folder_seconds,
    held_bytes,
    may_overlap,
    measure_window,
    memory_remedy,
    window_count,
)
from unet_med.inference.process import Worker, WorkerDiedError
from unet_med.inference.selftest import conv3d_findings
from unet_med.inference.worker import Probe, Setup
from unet_med.io.cases import Case
from unet_med.io.dicom.pixels import missing_decoder
from unet_med.io.discover import discover
from unet_med.io.grouping import group_cases
from unet_med.networks import build_network, input_channels
from unet_med.training.tracking import leftover_file_store
from unet_med.version import __version__
from unet_med.workflows.outcome import MACHINE, NOTHING_USABLE, Outcome
from unet_med.workflows.progress import track

_LIBRARIES = (
    *("torch", "monai", "numpy", "scipy", "nibabel", "SimpleITK", "pydicom", "highdicom", "scikit-image", "tifffile"),
    *("imagecodecs", "pillow", "mlflow", "pydantic", "typer", "safetensors"),
)
_CPU_FLAGS = ("avx2", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_tile", "amx_fp16")
_GB = 1e9
_LITTLE_DISK_GB = 5.0
_DECODERS = {
    "RLE": ("1.2.840.10008.1.2.5", 16),
    "JPEG": ("1.2.840.10008.1.2.4.50", 8),
    "JPEG 12 bit": ("1.2.840.10008.1.2.4.51", 12),
    "JPEG Lossless": ("1.2.840.10008.1.2.4.70", 16),
    "JPEG-LS": ("1.2.840.10008.1.2.4.80", 16),
    "JPEG 2000": ("1.2.840.10008.1.2.4.90", 16),
    "HTJ2K": ("1.2.840.10008.1.2.4.201", 16),
}
"""Kinds of compressed DICOM: transfer syntax and bits of a pixel."""


def doctor(target: str | None = None, input_: Path | None = None) -> Outcome:
    """Looks at the machine; with a model or a resolved pipeline, estimates time and memory before a run.

    Args:
        target: A model (bundle folder, run folder, MLflow address) or a pipeline file.
        input_: A file or folder whose images will be predicted.

    Raises:
        ConfigError: for a pipeline that still holds ``auto`` values.
        UsageError: when ``target`` is neither.
    """
    machine, lines = _machine()
    if target is None:
        return Outcome({"machine": machine}, lines)
    config, network, kind = _load(target)
    first_stage = [] if kind == "pipeline" else _first_stage(target)
    device = choose_device("auto")
    precision = choose_precision(config.training.precision, device)
    findings = conv3d_findings(device, precision) if config.dims == 3 else []
    estimate: dict[str, Any] = {
        "device": device.type,
        "precision": precision_name(precision),
        "conv3d": [{"kind": finding.kind, "what": finding.what, "remedy": finding.remedy} for finding in findings],
    }
    lines = [
        f"{kind} on {device.type} in {estimate['precision']}, {torch.get_num_threads()} threads",
        *(f"warning: {finding.what}: {finding.remedy}" for finding in findings),
    ]
    if kind == "pipeline" or input_ is None:
        cost = measure_window(network, config, device, precision)
        estimate |= {"seconds_per_window": round(cost.seconds, 4), "window_peak_mb": round(cost.peak_bytes / 1e6)}
        window = "x".join(str(n) for n in config.sampling.patch_voxels)
        lines.append(
            f"one window of {window} by torch: {cost.seconds:.3f} s, {cost.peak_bytes / 1e6:.0f} MB (timed just now)"
        )
    if kind == "pipeline" and load_config(Path(target)).prior_channels:
        lines.append("of a cascade, the second stage alone: the first one, at low resolution, is not counted")
    if kind == "pipeline":
        estimate["training"], more = _training(network, config, device, precision)
        lines += more
    outcome = Outcome({"machine": machine, "estimate": estimate}, lines)
    if input_ is None:
        return outcome
    cases = _cases(input_, config)
    if not cases:
        lines = [*outcome.lines, "no usable image for this model: `unet-med scan` says why"]
        return Outcome(outcome.result, lines, NOTHING_USABLE)
    with _as_model(target, config, network, kind) as folder:
        rates = _measured(folder, config, cases)
    return _with_cases(outcome, cases, config, rates, first_stage)


# ---- the machine -----------------------------------------------------------------------------------------------------


def _machine() -> tuple[dict[str, Any], list[str]]:
    memory, available = psutil.virtual_memory(), available_bytes()
    disk = shutil.disk_usage(Path.cwd())
    flags = _cpu_flags()
    libraries = {name: _version(name) for name in _LIBRARIES}
    decoders = {name: not missing_decoder(*syntax) for name, syntax in _DECODERS.items()}
    machine: dict[str, Any] = {
        "unet_med": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "cpu_flags": flags,
        "memory_gb": round(memory.total / _GB, 1),
        "memory_available_gb": round(available / _GB, 1),
        "disk_free_gb": round(disk.free / _GB, 1),
        "devices": _devices(),
        "libraries": libraries,
        "dicom_decoders": decoders,
        "warnings": _warnings(libraries, disk.free, available),
    }
    precision = precision_name(choose_precision("auto", torch.device("cpu")))
    missing = [name for name, present in decoders.items() if not present]
    lines = [
        f"unet-med {__version__}, Python {machine['python']} on {machine['system']}",
        f"processor   {machine['cores']} cores, {machine['threads']} threads, computes in {precision}"
        + (f" ({' '.join(flags)})" if flags else ""),
        f"memory      {machine['memory_available_gb']} of {machine['memory_gb']} GB available",
        f"disk        {machine['disk_free_gb']} GB free here",
        f"devices     {', '.join(machine['devices'])}",
        "libraries   " + ", ".join(f"{name} {version}" for name, version in libraries.items() if version),
        f"DICOM       decodes {', '.join(name for name, present in decoders.items() if present) or 'nothing'}"
        + (f"; for {', '.join(missing)}: pip install 'unet-med[dicom]'" if missing else ""),
        *(f"warning: {warning}" for warning in machine["warnings"]),
    ]
    return machine, lines


def _warnings(libraries: dict[str, str | None], disk_free: float, memory_free: float) -> list[str]:
    found = [f"{name} is not installed: install unet-med again" for name, version in libraries.items() if not version]
    if leftover_file_store(Path.cwd()):
        found.append(
            "mlruns here is an old MLflow file store, which `mlflow ui` would open instead of mlflow.db: move it away, "
            "or run `mlflow migrate-filestore --source mlruns --target sqlite:///mlflow.db`"
        )
    if disk_free < _LITTLE_DISK_GB * _GB:
        found.append("little disk space is left: free some before training")
    if memory_free < 2 * _GB:
        found.append("little memory is left: close other programs, or use --memory-gb")
    return found


def _cpu_flags() -> list[str]:
    """Returns the vector and matrix extensions that matter for speed; empty where the system does not tell."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    known = {name for name, present in capabilities().items() if present is True} if capabilities is not None else set()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        known |= set(cpuinfo.read_text(encoding="utf-8", errors="replace").split())
    return [flag for flag in _CPU_FLAGS if flag in known]


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _devices() -> list[str]:
    found = ["cpu"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(f"cuda:{index} ({properties.name}, {properties.total_memory / _GB:.0f} GB)")
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


# ---- a model on this machine -----------------------------------------------------------------------------------------


def _load(target: str) -> tuple[PipelineConfig, torch.nn.Module, str]:
    path = Path(target)
    if path.suffix.lower() in (".yaml", ".yml"):
        config = load_config(path)
        if config.unresolved():
            raise UsageError(
                f"the pipeline leaves {len(config.unresolved())} values to the data",
                path.name,
                "resolve it with `unet-med plan`, or give the pipeline.yaml of a run",
            )
        config = config.replacing({"cascade.spacing_mm": None})  # its first stage is yet to be planned
        dims = 2 if config.dims == 2 else 3
        channels = input_channels(config.network, config.channels)
        return config, build_network(config.network, dims, channels, labels_of(config).outputs), "pipeline"
    bundles = load_bundles(target)
    kind = "model" if len(bundles) == 1 else f"one of {len(bundles)} models"
    return bundles[0].config, bundles[0].network(), kind


def _first_stage(target: str) -> list[PipelineConfig]:
    """Pipelines of the models at low resolution, where the model is a cascade or made of such."""
    info = read_bundle_info(target)
    return [low.config for one in info.members or (info,) for low in one.low]


def _training(
    network: torch.nn.Module, config: PipelineConfig, device: torch.device, precision: torch.dtype
) -> tuple[dict[str, Any], list[str]]:
    batch = config.sampling.batch_size if config.sampling.batch_size != "auto" else 1
    cost = measure_window(network, config, device, precision, batch=batch, training=True)
    training = config.training
    steps = training.epochs * (training.steps_per_epoch if training.steps_per_epoch != "auto" else 1)
    result: dict[str, Any] = {
        "seconds_per_step": round(cost.seconds, 4),
        "step_peak_mb": round(cost.peak_bytes / 1e6),
        "steps": None if training.max_minutes else steps,
        "minutes": training.max_minutes or round(steps * cost.seconds / 60, 1),
    }
    length = (
        f"{training.max_minutes:g} minutes are about {training.max_minutes * 60 / cost.seconds:.0f} steps"
        if training.max_minutes
        else f"{steps} steps are about {steps * cost.seconds / 60:.1f} minutes"
    )
    lines = [
        f"one training step of {batch}: {cost.seconds:.3f} s, {cost.peak_bytes / 1e6:.0f} MB; {length}, without "
        "augmentation and validation"
    ]
    return result, lines


# ---- a prediction on this machine ------------------------------------------------------------------------------------


def _cases(input_: Path, config: PipelineConfig) -> list[Case]:
    """The cases that the model can take."""
    axes = config.dims if config.dims != "auto" else 2
    found = group_cases(discover(input_, progress=track).usable, config.channels)
    return [case for case in found if case.geometry.ndim >= axes and case.channels == len(config.channels)]


@contextmanager
def _as_model(target: str, config: PipelineConfig, network: torch.nn.Module, kind: str) -> Iterator[Path]:
    """Yields a bundle: the model itself, or one with a pipeline's untrained network, which costs the same."""
    if kind != "pipeline":
        yield read_bundle_info(target).folder
        return
    with tempfile.TemporaryDirectory() as folder:
        save_bundle(Path(folder) / "model", config, network.state_dict(), {})
        yield Path(folder) / "model"


def _measured(model: Path, config: PipelineConfig, cases: Sequence[Case]) -> Rates:
    """Has the process that would predict measure what that costs."""
    smallest = min(cases, key=lambda case: CaseSize.of(case).voxels)
    mirror = config.inference.mirror
    windows = sum(window_count(case.geometry, config, mirror) * len(case.frames) for case in cases)
    worker = Worker(Setup((model,), probe=Probe(smallest, windows)))
    started = time.perf_counter()
    try:
        worker.wait_ready()
        ready = time.perf_counter() - started
        found = Rates(**(worker.collect() or {}))
    except WorkerDiedError as error:
        raise MachineError(
            f"the process that predicts died on a single window ({error.why})",
            remedy="close other programs, use smaller windows (--memory-gb), or a machine with more memory",
        ) from None
    finally:
        worker.stop()
    return replace(found, start_seconds=found.start_seconds + ready)


def _with_cases(
    outcome: Outcome,
    cases: Sequence[Case],
    config: PipelineConfig,
    rates: Rates,
    first_stage: Sequence[PipelineConfig] = (),
) -> Outcome:
    """Adds what each case will cost, and whether all will fit."""
    available, mirror = available_bytes(), config.inference.mirror
    objects = config.task == "instance"
    sizes = [
        CaseSize.of(case, objects) if first_stage else CaseSize.as_read(case, None, available, objects)
        for case in cases
    ]
    alone = [estimate_case(size, config, rates, mirror, first_stage=first_stage) for size in sizes]
    crowded = [len(sizes) > 1 and may_overlap(size, available) for size in sizes]
    costs = [
        estimate_case(size, config, rates, mirror, alone=not with_others, first_stage=first_stage)
        for size, with_others in zip(sizes, crowded, strict=True)
    ]
    fits = [cost.peak_bytes <= available for cost in alone]
    entries = [
        {
            "id": case.id,
            "windows": cost.windows,
            "seconds": round(cost.seconds, 2),
            "peak_memory_mb": round(cost.peak_bytes / 1e6),
            "fits": fit,
        }
        for case, cost, fit in zip(cases, costs, fits, strict=True)
    ]
    seconds = folder_seconds(costs, rates, _cores())
    peak = max(cost.peak_bytes for cost in costs)
    result = {
        **outcome.result,
        "estimate": {**outcome.result["estimate"], "engine": rates.engine, "engine_why": rates.engine_why}
        | {"seconds_per_window": round(rates.window_seconds, 4), "start_seconds": round(rates.start_seconds, 2)},
        "cases": entries,
        "totals": {"images": len(cases), "seconds": round(seconds, 1), "peak_memory_mb": round(peak / 1e6)},
        "fits": all(fits),
        "memory_available_mb": round(available / 1e6),
    }
    lines = [
        *outcome.lines,
        f"engine: {rates.engine} ({rates.engine_why}); {rates.window_seconds:.3f} s a window",
        f"{len(cases)} images, {sum(cost.windows for cost in costs)} windows: about {_duration(seconds)}, at most "
        f"about {peak / 1e9:.1f} GB of memory; {available / 1e9:.1f} GB are free. An estimate, good to a quarter.",
    ]
    if all(fits):
        return Outcome(result, lines)
    worst = max(range(len(alone)), key=lambda number: alone[number].peak_bytes)
    held = held_bytes(sizes[worst], config)
    remedy = memory_remedy(held.image + held.mask + held.chunk + rates.base_bytes, available)
    lines.append(f"error: {fits.count(False)} of {len(fits)} images will not fit into the free memory: {remedy}")
    return Outcome(result, lines, MACHINE)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
