"""The device and the precision are chosen by what the machine has."""

from __future__ import annotations

import pytest
import torch

from unet_med.errors import UsageError
from unet_med.inference import device as device_module
from unet_med.inference.device import choose_device, choose_precision, precision_name

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_takes_the_fastest(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(device_module, "_has_mps", lambda: mps)
    assert choose_device("auto").type == expected


@pytest.mark.parametrize("name", ["cuda", "cuda:3", "mps"])
def test_an_absent_device_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device_module, "_has_mps", lambda: False)
    with pytest.raises(UsageError, match="--device cpu"):
        choose_device(name)


@pytest.mark.parametrize("name", ["gpu", "meta", ""])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="unknown device"):
        choose_device(name)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(UsageError):
        choose_device("cuda:1")


@pytest.mark.parametrize("wanted", ["auto", "bf16", "fp16"])
@pytest.mark.parametrize("has", [True, False])
def test_a_cpu_computes_in_bf16_only_in_hardware(monkeypatch: pytest.MonkeyPatch, wanted: str, has: bool) -> None:
    monkeypatch.setattr(device_module, "cpu_has_bf16", lambda: has)
    assert choose_precision(wanted, CPU) is (torch.bfloat16 if has else torch.float32)
    assert choose_precision("fp32", CPU) is torch.float32


def test_a_gpu_computes_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: not including_emulation)
    assert choose_precision("auto", gpu) is torch.bfloat16
    assert choose_precision("fp16", gpu) is torch.float16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert choose_precision("bf16", gpu) is torch.float16
    assert precision_name(torch.float16) == "fp16"


@pytest.mark.parametrize(("flag", "expected"), [("amx_bf16", True), ("avx512_bf16", True), ("avx2", False)])
def test_the_cpu_flags_decide(monkeypatch: pytest.MonkeyPatch, flag: str, expected: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {flag: True}, raising=False)
    device_module.cpu_has_bf16.cache_clear()
    try:
        assert device_module.cpu_has_bf16() is expected
    finally:
        device_module.cpu_has_bf16.cache_clear()
