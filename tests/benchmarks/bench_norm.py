"""Seconds per training step of the Hippocampus network, with torch's instance norm and with ours.

``python tests/benchmarks/bench_norm.py [--threads 2] [--repeats 5]`` prints the shortest and the median step of each
variant: forward, Dice + focal, backward, AdamW, batch 4 of 40x56x40, features 16, 32, 64, 128, float32. The shortest
is the one to compare on a machine that is not quiet.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from unittest import mock

import torch

from unet_med.config import Loss, Network
from unet_med.labels import LabelMap
from unet_med.losses import build_loss
from unet_med.networks import build_network, norm

FEATURES = (16, 32, 64, 128)
SHAPE = (4, 1, 40, 56, 40)


def one_step(precision: torch.dtype) -> Callable[[], None]:
    torch.manual_seed(0)
    network = build_network(
        Network(features=FEATURES, strides=((1, 1, 1), *[(2, 2, 2)] * 3), kernels=((3, 3, 3),) * 4), 3, 1, 3
    )
    loss = build_loss(Loss(class_weights=(0.1, 1.0, 1.0)), LabelMap.from_names({"anterior": 1, "posterior": 2}))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    image = torch.randn(SHAPE).to(memory_format=torch.channels_last_3d)
    target = torch.randint(0, 3, (SHAPE[0], *SHAPE[2:]))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
            logits = network(image)
        loss(logits, target).backward()
        optimizer.step()

    return step


def seconds(step: Callable[[], None], repeats: int) -> list[float]:
    step()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--bf16", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    precision = torch.bfloat16 if arguments.bf16 else torch.float32
    for name, fast in (("F.instance_norm", False), ("fused, channels-last", True)):
        with mock.patch.object(norm, "_is_fast", norm._is_fast if fast else lambda _: False):
            times = seconds(one_step(precision), arguments.repeats)
        print(f"{name:22s} {min(times):.3f} s a step (median {statistics.median(times):.3f})")


if __name__ == "__main__":
    main()
