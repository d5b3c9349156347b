"""What runs the network on a batch of windows: torch everywhere, OpenVINO where it is faster.

``open_engine`` chooses; prediction knows only the protocol ``Engine``.
"""

from unet_med.inference.engine.choice import open_engine
from unet_med.inference.engine.request import Engine, EngineRequest, Wanted
from unet_med.inference.engine.torch_engine import TorchEngine

__all__ = ["Engine", "EngineRequest", "TorchEngine", "Wanted", "open_engine"]
