"""The self-test of convolutions: silent on a sound machine, and it sees each of the troubles it looks for."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from unet_med.inference import selftest
from unet_med.inference.device import choose_precision, free_memory
from unet_med.inference.selftest import conv3d_findings

CPU = torch.device("cpu")
CONVOLVE = torch.nn.functional.conv3d


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "_TIMED", {"cpu": 16})
    monkeypatch.setattr(selftest, "_SMALL", 12)
    monkeypatch.setattr(selftest, "_LARGEST", {"cpu": 2**20})


def replace_convolution(monkeypatch: pytest.MonkeyPatch, fault: Any) -> None:
    """Every convolution but the reference (float64) is replaced."""

    def convolve(x: torch.Tensor, weight: torch.Tensor, **options: Any) -> torch.Tensor:
        result = CONVOLVE(x, weight, **options)
        return result if x.dtype == torch.float64 else fault(x, result)

    monkeypatch.setattr(selftest.F, "conv3d", convolve)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_right_result_is_no_finding(precision: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "_SLOWER", 1e9)  # other programs may slow one of the sides down
    assert conv3d_findings(CPU, precision) == []


def test_a_wrong_far_end_of_a_large_volume_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(x: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        if x.numel() > 2**19:
            result[..., -4:] = 0
        return result

    replace_convolution(monkeypatch, wrong)
    findings = conv3d_findings(CPU, torch.float32)
    assert {finding.kind for finding in findings} == {"conv3d_wrong"}
    assert ["channels-last" in finding.what for finding in findings] == [True, False]
    assert "training.precision" in findings[0].remedy


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_wrong(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    replace_convolution(monkeypatch, lambda _, result: result.fill_(value))
    assert {finding.kind for finding in conv3d_findings(CPU, torch.bfloat16)} == {"conv3d_wrong"}


def test_an_error_of_the_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED\nstack")

    replace_convolution(monkeypatch, fail)
    finding = conv3d_findings(CPU, torch.bfloat16)[0]
    assert finding.kind == "conv3d_fails"
    assert finding.what.endswith("CUDNN_STATUS_NOT_SUPPORTED")


def test_a_volume_that_does_not_fit_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("out of memory")

    replace_convolution(monkeypatch, full)
    assert conv3d_findings(CPU, torch.float32) == []


def test_a_slow_precision_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(x: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        time.sleep(0.1 if x.dtype == torch.bfloat16 else 0.0)
        return result

    monkeypatch.setattr(selftest, "_REPEATS", 2)
    replace_convolution(monkeypatch, slow)
    findings = conv3d_findings(CPU, torch.bfloat16)
    assert [finding.kind for finding in findings] == ["conv3d_slow"]
    assert "fp32" in findings[0].what


def test_the_volume_fits_the_memory_and_outgrows_an_int32_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    card = torch.device("cuda")
    for free, more_than_int32 in ((10**11, True), (10**9, False)):
        monkeypatch.setattr(selftest, "free_memory", lambda _, free=free: free)
        voxels = selftest._large_size(card, torch.bfloat16)
        elements = 32 * voxels[0] * voxels[1] * voxels[2]
        assert (elements > 2**31) is more_than_int32
        assert elements * 2 * 4 <= free


def test_it_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    conv3d_findings(CPU, choose_precision("fp32", CPU))
    assert torch.equal(torch.rand(1), expected)


def test_free_memory_of_a_cpu_is_known() -> None:
    free = free_memory(CPU)
    assert free is not None
    assert free > 0
    assert free_memory(torch.device("meta")) is None
