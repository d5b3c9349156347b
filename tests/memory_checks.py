"""What is checked of this process's own memory, each function in a process of its own (see ``fresh_process``)."""

from __future__ import annotations

import resource

import numpy as np
import torch

from unet_med.inference.allocator import freed_memory_kept
from unet_med.inference.peak import PeakMeter

LEVELS = 4
MEGABYTES = 36


def page_faults_of_a_step() -> int:
    """Faults of going up and down a network: each tensor is needed for the next one, and all end together."""

    def step() -> None:
        x = torch.ones(MEGABYTES * 2**18, requires_grad=True)
        for _ in range(LEVELS):
            x = x.square()
        x.sum().backward()

    for _ in range(2):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def pages_of_one_step_serve_the_next() -> None:
    """Far fewer faults inside, and the system gets its pages back afterwards."""
    torch.set_num_threads(1)
    mapped = page_faults_of_a_step()
    with freed_memory_kept():
        kept = page_faults_of_a_step()
    assert mapped > LEVELS * MEGABYTES / 2, mapped  # even in pages of 2 MB
    assert kept < mapped / 2, (kept, mapped)
    assert page_faults_of_a_step() > kept, (kept, mapped)


def memory_given_back_is_not_charged_to_the_next_span() -> None:
    """A span's peak is its own."""
    meter = PeakMeter()
    first = meter.begin()
    np.ones(200_000_000, dtype=np.uint8)
    large = meter.end(first)
    second = meter.begin()
    small = meter.end(second)
    assert small < large - 150, (small, large)
