"""Which engine runs a request: on a CPU the one that is measured to be faster on the request's own windows."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from unet_med.errors import MachineError, UsageError
from unet_med.inference.device import precision_name
from unet_med.inference.engine.cache import EngineCache
from unet_med.inference.engine.openvino_engine import OpenVinoEngine, convert, openvino_version
from unet_med.inference.engine.request import Engine, EngineRequest, Wanted
from unet_med.inference.engine.torch_engine import TorchEngine
from unet_med.version import __version__

TOLERANCES = {"fp32": 1e-3, "bf16": 0.1}
"""Largest difference between two engines' results, relative to their norm."""

_TRIED_AFTER_SECONDS = 3.0
_BELIEVED_SECONDS = 7 * 24 * 3600.0
_WARM_SECONDS = 1.0

_log = logging.getLogger(__name__)


def open_engine(request: EngineRequest, wanted: Wanted = "auto", cache: EngineCache | None = None) -> Engine:
    """Returns the engine for a request.

    With ``auto`` on a CPU work begins on torch at once. OpenVINO is tried on a real batch when its network lies in
    the cache, or else after some seconds of work, so that small jobs never wait for a conversion; the faster engine
    goes on, and is believed to be the faster one for a week.

    Args:
        request: What to run.
        wanted: ``auto``, or the name of an engine.
        cache: Of converted networks; the user's own by default.

    Raises:
        UsageError: when OpenVINO is asked for and not installed.
        MachineError: when OpenVINO is asked for and cannot run the network.
    """
    if request.device.type != "cpu":
        return TorchEngine(request, f"openvino is for CPUs, this is {request.device.type}")
    if wanted == "torch":
        return TorchEngine(request, "torch was asked for")
    version = openvino_version()
    cache = EngineCache() if cache is None else cache
    if wanted == "openvino":
        if version is None:
            raise UsageError(
                "openvino is not installed",
                "inference.engine",
                "install it with `pip install openvino`, or set inference.engine to auto or torch",
            )
        return _open_openvino(request, cache, version, "openvino was asked for")
    if version is None:
        return TorchEngine(request, "openvino is not installed")
    return _measured(request, cache, version)


def cache_key(request: EngineRequest, version: str) -> str:
    """Returns the name of what is converted for a request: a sha256 over all that it depends on.

    Batch and precision are not among it: windows go through one at a time, and the files are float32.
    """
    parts = (
        request.sha256,
        request.window,
        request.context,
        request.channels,
        request.features,
        version,
        torch.__version__,
        __version__,
    )
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class MeasuringEngine:
    """Runs one engine, tries a second on a real batch, and goes on with the faster of the two.

    Args:
        first: Runs from the start.
        open_rival: Opens the second.
        after_seconds: Work of the first after which the second is opened.
        decided: Told of the measurement: the name of the faster engine, and why.
        clock: Seconds.
    """

    def __init__(
        self,
        first: Engine,
        open_rival: Callable[[], Engine],
        after_seconds: float,
        decided: Callable[[str, str], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._engine = first
        self._open_rival = open_rival
        self._after = after_seconds
        self._decided = decided
        self._clock = clock
        self._spent = 0.0
        self._fastest = float("inf")
        self._settled = False
        self._why: str | None = None

    @property
    def name(self) -> str:
        """Of the engine that runs now."""
        return self._engine.name

    @property
    def precision(self) -> str:
        """Of the engine that runs now."""
        return self._engine.precision

    @property
    def why(self) -> str:
        """What was measured, or why nothing was."""
        return self._engine.why if self._why is None else self._why

    def __call__(self, batch: Tensor) -> Tensor:
        """Maps (N, C, *window + 2 * context) float32 to (N, channels, *window) float32."""
        if self._settled:
            return self._engine(batch)
        out, seconds = self._timed(self._engine, batch)
        self._spent += seconds
        self._fastest = min(self._fastest, seconds / len(batch))
        if self._spent >= self._after:
            self._settled = True
            self._try_rival(batch, out)
        return out

    def close(self) -> None:
        """Closes the engine that runs."""
        self._engine.close()

    def _try_rival(self, batch: Tensor, out: Tensor) -> None:
        try:
            rival = self._open_rival()
        except MachineError as error:
            self._why = error.what
            _log.warning("%s", error)
            return
        try:
            theirs, seconds = self._timed(rival, batch)
            difference = _difference(theirs, out)
            if seconds < _WARM_SECONDS:  # the first run of either includes its setting up
                seconds = min(seconds, self._timed(rival, batch)[1])
                self._fastest = min(self._fastest, self._timed(self._engine, batch)[1] / len(batch))
        except (RuntimeError, MemoryError) as error:
            self._why = f"{rival.name} failed: {type(error).__name__}"
            _log.warning("%s", self._why)
            _log.debug("%s: %s", rival.name, error)
            rival.close()
            return
        self._settle(rival, seconds / len(batch), difference)

    def _settle(self, rival: Engine, seconds: float, difference: float) -> None:
        tolerance = TOLERANCES[rival.precision]
        if not difference <= tolerance:  # so that NaN disagrees
            winner, loser = self._engine, rival
            why = f"{_title(rival)} differs from {_title(self._engine)} by {difference:.1g}, more than {tolerance:.1g}"
        else:
            times = [(seconds, rival), (self._fastest, self._engine)]
            (best, winner), (other, loser) = times if seconds < self._fastest else times[::-1]
            why = f"{_title(winner)}: {_duration(best)} a window, {_title(loser)}: {_duration(other)}"
        self._engine, self._why = winner, why
        loser.close()
        _log.debug("engine: %s", why)
        self._decided(winner.name, why)

    def _timed(self, engine: Engine, batch: Tensor) -> tuple[Tensor, float]:
        start = self._clock()
        out = engine(batch)
        return out, self._clock() - start


def _measured(request: EngineRequest, cache: EngineCache, version: str) -> Engine:
    """The engine that an earlier run found to be faster, or one that measures."""
    key, machine = cache_key(request, version), _machine(request)
    known = cache.noted(key, machine, _BELIEVED_SECONDS)
    if isinstance(known, dict):
        why = f"{known.get('why')} (measured earlier)"
        if known.get("name") == "torch":
            return TorchEngine(request, why)
        try:
            return _open_openvino(request, cache, version, why)
        except MachineError as error:
            _log.warning("%s", error)
            return TorchEngine(request, error.what)
    return MeasuringEngine(
        TorchEngine(request, "too little to do for trying openvino"),
        partial(_open_openvino, request, cache, version, "measured to be faster"),
        0.0 if cache.get(key) else _TRIED_AFTER_SECONDS,
        lambda name, why: cache.note(key, machine, {"name": name, "why": why}),
    )


def _open_openvino(request: EngineRequest, cache: EngineCache, version: str, why: str) -> Engine:
    key = cache_key(request, version)
    entry = cache.get(key) or cache.put(key, partial(convert, request))
    if entry is not None:
        return OpenVinoEngine(request, entry, why)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        convert(request, Path(folder))
        return OpenVinoEngine(request, Path(folder), why)


def _machine(request: EngineRequest) -> str:
    """What decides which engine is faster, besides the network; folders may be shared between machines."""
    abilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    named = sorted(name for name, present in abilities.items() if present is True)
    parts = (named, os.cpu_count(), torch.get_num_threads(), precision_name(request.precision))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _difference(one: Tensor, other: Tensor) -> float:
    """Norm of the difference relative to the norm of ``other``."""
    scale, difference = float(other.norm()), float(torch.dist(one, other))
    return difference / scale if scale else difference


def _title(engine: Engine) -> str:
    return f"{engine.name} {engine.precision}"


def _duration(seconds: float) -> str:
    if seconds >= 10:
        return f"{seconds:.0f} s"
    return f"{seconds:.2g} s" if seconds >= 0.1 else f"{1000 * seconds:.2g} ms"
