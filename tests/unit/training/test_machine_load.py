"""The load of the machine has the names that MLflow's page of system metrics looks for."""

from __future__ import annotations

import torch

from unet_med.training.machine_load import MachineLoad


def test_the_load_of_this_machine() -> None:
    load = MachineLoad(torch.device("cpu"))
    sum(number**2 for number in range(100_000))
    found = load.read()
    assert all(name.startswith("system/") for name in found)
    assert not any("gpu" in name for name in found)
    for name in ("system/cpu_utilization_percentage", "system/system_memory_usage_percentage"):
        assert 0 <= found[name] <= 100
    assert 10 < found["system/process_memory_usage_megabytes"] < found["system/system_memory_usage_megabytes"] * 2


def test_the_load_of_a_card(monkeypatch) -> None:
    def without_library(_: object) -> int:
        raise ModuleNotFoundError

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (6_000_000_000, 8_000_000_000))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 1_500_000_000)
    monkeypatch.setattr(torch.cuda, "utilization", lambda _: 87)
    found = MachineLoad(torch.device("cuda:1")).read()
    assert found["system/gpu_1_memory_usage_megabytes"] == 2000
    assert found["system/gpu_1_memory_usage_percentage"] == 25
    assert found["system/gpu_1_utilization_percentage"] == 87
    monkeypatch.setattr(torch.cuda, "utilization", without_library)
    assert "system/gpu_1_utilization_percentage" not in MachineLoad(torch.device("cuda:1")).read()
