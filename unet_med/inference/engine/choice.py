"""Which engine runs a request."""

from __future__ import annotations

from unet_med.inference.engine.request import Engine, EngineRequest, Wanted
from unet_med.inference.engine.torch_engine import TorchEngine


def open_engine(request: EngineRequest, wanted: Wanted = "auto") -> Engine:
    """Returns the engine for a request.

    Args:
        request: What to run.
        wanted: ``auto``, or the name of an engine.
    """
    return TorchEngine(request, f"{wanted} on {request.device.type}: torch")
