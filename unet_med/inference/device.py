"""Which processor computes, and in which precision."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import psutil
import torch

from unet_med.errors import UsageError


def choose_device(name: str = "auto") -> torch.device:
    """Returns the device to compute on.

    Args:
        name: ``auto`` (CUDA when present, else MPS, else the CPU), ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.

    Raises:
        UsageError: when the device asked for is unknown or absent.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if _has_mps() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"unknown device {name!r}", "--device", "use auto, cpu, cuda, cuda:N or mps")
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": _has_mps()}[device.type]
    if present and device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        present = False
    if not present:
        raise UsageError(f"this machine has no device {name!r}", "--device", "leave --device out, or use --device cpu")
    return device


def choose_precision(wanted: str, device: torch.device) -> torch.dtype:
    """Returns the dtype that convolutions compute in; weights and sums stay float32.

    Half precision is only chosen where it is computed by hardware: bfloat16 on CPUs with AMX-BF16 or AVX512-BF16 and
    on GPUs that have it, float16 on other CUDA GPUs. Elsewhere float32 is faster.

    Args:
        wanted: ``training.precision`` of the pipeline: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        device: What :func:`choose_device` returned.
    """
    if wanted == "fp32" or device.type == "mps":
        return torch.float32
    if device.type == "cpu":
        return torch.bfloat16 if cpu_has_bf16() else torch.float32
    if wanted == "fp16":
        return torch.float16
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


@lru_cache(maxsize=1)
def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AMX-BF16 or AVX512-BF16)."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        flags = capabilities()
        return bool(flags.get("amx_bf16") or flags.get("avx512_bf16"))
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    words = set(text.split())
    return "amx_bf16" in words or "avx512_bf16" in words


def precision_name(dtype: torch.dtype) -> str:
    """Returns ``fp32``, ``bf16`` or ``fp16``."""
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


def free_memory(device: torch.device) -> int | None:
    """Returns the bytes that a program can still take on a device; ``None`` where the device does not tell.

    What torch holds of a card without using it counts as free.
    """
    if device.type == "cpu":
        return int(psutil.virtual_memory().available)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return None


def _has_mps() -> bool:
    return torch.backends.mps.is_available()
