"""Whether this machine convolves volumes rightly and as fast as it should.

Some versions of cuDNN and torch compute ``conv3d`` in bfloat16 several times slower than in float32, or wrongly where
a tensor has more than 2**31 elements. A convolution does not depend on the place, so a few small boxes of the result,
computed again in float64 on the CPU, tell whether the result of a huge volume is right.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from unet_med.inference.device import free_memory, precision_name
from unet_med.manifest import Finding

_CHANNELS = 32
_BOX = 10
_TOLERANCE = {torch.float32: 5e-3, torch.float16: 5e-3, torch.bfloat16: 2e-2}
"""Relative error that rounding explains; float32 may be computed in TF32."""
_SLOWER = 1.5
_REPEATS = 5
_SMALL = 32
_TIMED = {"cpu": 48, "cuda": 128}
_PLANE = {"cpu": 40, "cuda": 256}
_LARGEST = {"cpu": 2**22, "cuda": 2**31 + 2**24}
"""Elements of the large volume; more than an int32 counts on a card."""
_COPIES = 4
"""Volumes of this size that a convolution may need: input, output, room to work."""
_LAYOUTS = {"channels-last": torch.channels_last_3d, "contiguous": torch.contiguous_format}
_CURE = (
    "upgrade torch (its CUDA build brings cuDNN along), or set training.precision to fp32 or fp16, "
    "or use smaller windows (sampling.patch_voxels, --memory-gb)"
)


def conv3d_findings(device: torch.device, precision: torch.dtype) -> list[Finding]:
    """Convolves small and large volumes and reports what is wrong or slower than it should be.

    Args:
        device: Where predictions run.
        precision: What convolutions are computed in.

    Returns:
        One finding for each trouble with its cure, kind ``conv3d_wrong``, ``conv3d_fails`` or ``conv3d_slow``; empty
        on a sound machine. About a second on a CPU.
    """
    findings: list[Finding] = []
    with torch.inference_mode(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        for name, layout in _LAYOUTS.items():
            for size in (_cube(_SMALL), _large_size(device, precision)):
                found = _fault_of(size, device, precision, layout, name)
                if found is not None:
                    findings.append(found)
                    break
        return findings or _slowness(device, precision)


def _cube(size: int) -> tuple[int, int, int]:
    return size, size, size


def _large_size(device: torch.device, precision: torch.dtype) -> tuple[int, int, int]:
    """The largest volume to try, in voxels: bounded by the free memory."""
    kind = device.type if device.type in _LARGEST else "cpu"
    elements, plane = _LARGEST[kind], _PLANE[kind]
    free = free_memory(device)
    if free is not None:
        elements = min(elements, free // (_COPIES * precision.itemsize))
    return plane, plane, max(_BOX, elements // (_CHANNELS * plane**2))


def _fault_of(
    size: tuple[int, int, int], device: torch.device, precision: torch.dtype, layout: torch.memory_format, name: str
) -> Finding | None:
    shown = "x".join(str(n) for n in size)
    try:
        error = _relative_error(size, device, precision, layout)
    except torch.OutOfMemoryError:
        return None  # a volume that does not fit is no fault; prediction takes smaller windows by itself
    except RuntimeError as failure:
        what = f"conv3d in {precision_name(precision)} ({name}) fails on {_CHANNELS} x {shown}: {_first_line(failure)}"
        return Finding("", "error", what, _CURE, "conv3d_fails")
    if error <= _TOLERANCE[precision]:
        return None
    what = f"conv3d in {precision_name(precision)} ({name}) is wrong by {error:.1%} on {_CHANNELS} x {shown}"
    return Finding("", "error", what, _CURE, "conv3d_wrong")


def _relative_error(
    size: tuple[int, int, int], device: torch.device, precision: torch.dtype, layout: torch.memory_format
) -> float:
    """Largest relative error in L2 norm of a box of the result; infinite where it is not finite."""
    x, weight = _operands(size, device, precision, layout)
    result = F.conv3d(x, weight, padding=1)
    worst = 0.0
    for box in _boxes(size):
        around = x[:, :, *box].cpu().double()
        inner = tuple(slice(along.start + 1, along.stop - 1) for along in box)
        expected = F.conv3d(around, weight.cpu().double())
        difference = result[:, :, *inner].cpu().double() - expected
        error = float(difference.norm() / expected.norm())
        worst = max(worst, error) if error == error else float("inf")
    return worst


def _operands(
    size: tuple[int, int, int], device: torch.device, precision: torch.dtype, layout: torch.memory_format
) -> tuple[Tensor, Tensor]:
    shape = (1, _CHANNELS, *size)
    x = torch.empty(shape, device=device, dtype=precision, memory_format=layout).normal_()
    weight = torch.randn((_CHANNELS, _CHANNELS, 3, 3, 3)) / (27 * _CHANNELS) ** 0.5
    return x, weight.to(device=device, dtype=precision, memory_format=layout)


def _boxes(size: tuple[int, int, int]) -> Iterator[tuple[slice, slice, slice]]:
    """Boxes at the first, the middle and the last voxels."""
    for place in (0.0, 0.5, 1.0):
        first, second, third = (slice(start := int(place * (n - _BOX)), start + _BOX) for n in size)
        yield first, second, third


def _slowness(device: torch.device, precision: torch.dtype) -> list[Finding]:
    """Compares the times of a convolution that lower precision and channels-last should make shorter."""
    size = _cube(_TIMED.get(device.type, _TIMED["cpu"]))
    ours = f"{precision_name(precision)} (channels-last)"
    rivals = {"contiguous": (precision, torch.contiguous_format)}
    if precision != torch.float32:
        rivals["fp32"] = (torch.float32, torch.channels_last_3d)
    try:
        seconds = _seconds(size, device, precision, torch.channels_last_3d)
        slower = {name: seconds / _seconds(size, device, *rival) for name, rival in rivals.items()}
    except torch.OutOfMemoryError:
        return []
    return [
        Finding("", "warning", f"conv3d in {ours} takes {ratio:.1f} x the time of {name}", _CURE, "conv3d_slow")
        for name, ratio in slower.items()
        if ratio > _SLOWER
    ]


def _seconds(
    size: tuple[int, int, int], device: torch.device, precision: torch.dtype, layout: torch.memory_format
) -> float:
    """The shortest of a few convolutions, for other programs only make them longer."""
    x, weight = _operands(size, device, precision, layout)
    wait = _waiting(device)
    times = []
    for _ in range(_REPEATS):
        before = time.perf_counter()
        F.conv3d(x, weight, padding=1)
        wait()
        times.append(time.perf_counter() - before)
    return min(times)


def _waiting(device: torch.device) -> Callable[[], object]:
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return torch.mps.synchronize if device.type == "mps" else lambda: None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
