"""The network as it is, run by torch: on a GPU always, on a CPU where nothing faster is at hand."""

from __future__ import annotations

import torch
from torch import Tensor

from unet_med.inference.device import precision_name
from unet_med.inference.engine.request import EngineRequest

_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


class TorchEngine:
    """Runs the request's network with autocast, channels-last.

    Args:
        request: What to run.
        why: One sentence for the report.
    """

    name = "torch"

    def __init__(self, request: EngineRequest, why: str) -> None:
        self.why = why
        self.precision = precision_name(request.precision)
        self._device = request.device
        self._dtype = request.precision
        self._layout = _CHANNELS_LAST[len(request.window)]
        self._run = request.network.features if request.features else request.network

    @torch.inference_mode()
    def __call__(self, batch: Tensor) -> Tensor:
        """Maps (N, C, *window + 2 * context) float32 to (N, channels, *window) float32."""
        batch = batch.to(device=self._device, memory_format=self._layout, non_blocking=True)
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype != torch.float32):
            output: Tensor = self._run(batch)  # type: ignore[operator]
        return output.float()

    def close(self) -> None:
        """Holds nothing of its own."""
