"""Measures what prediction costs, in the very process that predicts: its own model, engine, threads and libraries."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from unet_med.bundle import Bundle
from unet_med.inference.case_scores import label_volumes
from unet_med.inference.device import choose_precision
from unet_med.inference.engine import Engine, EngineRequest, open_engine
from unet_med.inference.estimate import CaseSize, Rates, held_bytes, window_count
from unet_med.inference.peak import PeakMeter
from unet_med.inference.predictor import Predictor
from unet_med.io.cases import Case
from unet_med.io.sinks import open_mask_sink
from unet_med.networks import admissible_patch, context_voxels, head_channels, input_channels
from unet_med.overlays import outline_preview
from unet_med.transforms.preprocess import network_axes
from unet_med.volume import ArraySource, Volume

T = TypeVar("T")

_SETTLED_SECONDS = 4.0
"""Work after which an engine has decided which implementation is the fastest."""
_RUNS, _LONG_SECONDS = 3, 5.0
_SLICES = 4
_LAYOUTS = {2: torch.channels_last, 3: torch.channels_last_3d}


def measure_rates(predictor: Predictor, bundle: Bundle, case: Case, windows: int) -> Rates:
    """Reads a case, predicts a window's worth of its middle, and writes that to a folder that is removed.

    Args:
        predictor: Of ``bundle``, and perhaps of others like it.
        bundle: The model.
        case: A small one of those that will be predicted.
        windows: Of all cases together; a job of a few seconds is not worth looking for a faster engine.

    Returns:
        What was measured; ``start_seconds`` is what opening the engine takes.
    """
    began = time.perf_counter()
    whole = case.open().read(frame=case.frames[0])
    read_seconds = (time.perf_counter() - began) / max(1, whole.array[0].size)
    volume = _middle(whole, bundle)
    del whole
    size = CaseSize(volume.geometry, volume.channels, volume.channels * volume.array.dtype.itemsize)
    passes = window_count(volume.geometry, bundle.config, mirror=_mirrors(bundle))
    _settle(lambda: predictor.predict(volume), windows / passes)
    meter = PeakMeter()
    span = meter.begin()
    compute_seconds, labels = _fastest(lambda: predictor.predict(volume).labels)
    peak = meter.end(span)
    write_seconds = _fastest(lambda: _write(volume, labels, bundle))[0]
    preview_seconds = _fastest(
        lambda: outline_preview(volume.array, labels, volume.geometry.spacing_mm, bundle.labels)
    )[0]
    low = [_fastest(partial(stage.predict, volume)) for stage in predictor.first_stages]
    low_seconds = sum(seconds for seconds, _ in low)
    low_windows = sum(prediction.windows for _, prediction in low)
    engine, open_seconds, window_seconds = _time_engine(predictor, bundle)
    window_seconds *= len(predictor.precisions)  # models see the same windows one after the other
    return Rates(
        start_seconds=open_seconds,
        window_seconds=window_seconds,
        voxel_seconds=max(0.0, compute_seconds - low_seconds - passes * window_seconds) / size.voxels,
        read_seconds=read_seconds,
        write_seconds=write_seconds / size.voxels,
        case_seconds=preview_seconds,
        peak_bytes=int(peak * 1e6),
        probe_bytes=held_bytes(size, bundle.config).total,
        engine=f"{engine.name} {engine.precision}",
        engine_why=engine.why,
        low_window_seconds=low_seconds / max(1, low_windows),
    )


def _middle(volume: Volume, bundle: Bundle) -> Volume:
    """The middle of an image, as large as a window; noise where there is nothing to see in it."""
    config, geometry = bundle.config, volume.geometry
    order, _ = network_axes(geometry, config.preprocess)
    wanted, own = config.preprocess.spacing_mm, geometry.spacing_mm
    window = admissible_patch(config.network, bundle.dims, _patch(bundle))
    box = [slice(0, n) for n in geometry.shape]
    for place, axis in enumerate(order):
        length = float(window[place]) if place < len(window) else float(_SLICES)
        if place < len(window) and own is not None and isinstance(wanted, tuple) and place < len(wanted):
            length *= wanted[place] / own[axis]
        count = min(geometry.shape[axis], max(1, round(length)))
        start = (geometry.shape[axis] - count) // 2
        box[axis] = slice(start, start + count)
    region = tuple(box)
    array = np.ascontiguousarray(volume.array[(slice(None), *region)])
    for channel in array:
        if channel.min() == channel.max():
            channel[...] = np.random.default_rng(0).integers(0, 100, channel.shape)
    return Volume(array, geometry.crop(region))


def _patch(bundle: Bundle) -> tuple[int, ...]:
    patch = bundle.config.sampling.patch_voxels
    return () if patch == "auto" else tuple(patch)


def _mirrors(bundle: Bundle) -> bool:
    return bundle.config.inference.mirror


def _settle(predict: Callable[[], object], times: float) -> None:
    """Predicts until an engine that looks for the faster way has found it, or the whole job would be done."""
    began = time.perf_counter()
    done = 0
    while done < 1 or (done < times and time.perf_counter() - began < _SETTLED_SECONDS):
        predict()
        done += 1


def _fastest(work: Callable[[], T]) -> tuple[float, T]:
    """Returns the shortest time of a few runs, for others share the processor, and what the last one made."""
    seconds = float("inf")
    for _ in range(_RUNS):
        began = time.perf_counter()
        made = work()
        seconds = min(seconds, time.perf_counter() - began)
        if seconds > _LONG_SECONDS:
            break
    return seconds, made


def _write(volume: Volume, labels: npt.NDArray[Any], bundle: Bundle) -> None:
    source = ArraySource("probe", volume)
    with tempfile.TemporaryDirectory() as folder:
        sink = open_mask_sink(source, Path(folder) / "probe", bundle.labels)
        sink.labels_of(0)[...] = labels
        sink.close()
    label_volumes(labels, volume.geometry, bundle.labels)


def _time_engine(predictor: Predictor, bundle: Bundle) -> tuple[Engine, float, float]:
    """Opens the engine that prediction uses anew; returns it, the seconds that opening took, and those of a window."""
    config, device = bundle.config, predictor.device
    blends_features = bundle.labels.outputs > head_channels(config.network)
    network = bundle.network().to(device=device, memory_format=_LAYOUTS[bundle.dims])  # type: ignore[call-overload]
    request = EngineRequest(
        network=network,
        window=admissible_patch(config.network, bundle.dims, _patch(bundle)),
        context=context_voxels(config.network, bundle.dims),
        channels=input_channels(config.network, bundle.channels, config.prior_channels),
        batch=1,
        features=blends_features,
        device=device,
        precision=choose_precision(config.training.precision, device),
        sha256=bundle.sha256,
    )
    windows = torch.randn(1, request.channels, *request.entering, device=device)
    began = time.perf_counter()
    engine = open_engine(request, config.inference.engine)
    engine(windows)
    first = time.perf_counter() - began
    seconds = _fastest(lambda: _synchronised(engine, windows, device))[0]
    engine.close()
    return engine, max(0.0, first - seconds), seconds


def _synchronised(engine: Engine, windows: torch.Tensor, device: torch.device) -> None:
    engine(windows)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
