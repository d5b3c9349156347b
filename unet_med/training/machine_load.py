"""How busy the machine is while it trains, under the names that MLflow's page of system metrics knows."""

from __future__ import annotations

import psutil
import torch

_MEGABYTE = 1e6


class MachineLoad:
    """Looks at processor, memory and card once an epoch.

    MLflow's own monitor asks every ten seconds in a thread of its own, and sends each answer by itself; here the
    numbers go with those of the epoch, wait with them while a server is away, and cost nothing.

    Args:
        device: Where training computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        psutil.cpu_percent()  # the first answer is about no time at all

    def read(self) -> dict[str, float]:
        """Returns the load since the last look."""
        memory = psutil.virtual_memory()
        load = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / _MEGABYTE,
            "system_memory_usage_percentage": memory.percent,
            "process_memory_usage_megabytes": psutil.Process().memory_info().rss / _MEGABYTE,
        }
        if self._device.type == "cuda":
            load |= _card_load(self._device)
        return {f"system/{name}": float(value) for name, value in load.items()}


def _card_load(device: torch.device) -> dict[str, float]:
    number = device.index or 0
    free, total = torch.cuda.mem_get_info(device)
    load = {
        f"gpu_{number}_memory_usage_megabytes": (total - free) / _MEGABYTE,
        f"gpu_{number}_memory_usage_percentage": 100.0 * (total - free) / total,
        f"gpu_{number}_training_memory_peak_megabytes": torch.cuda.max_memory_allocated(device) / _MEGABYTE,
    }
    try:
        load[f"gpu_{number}_utilization_percentage"] = float(torch.cuda.utilization(device))
    except (ModuleNotFoundError, RuntimeError):
        return load  # the library that tells it is not installed
    return load
