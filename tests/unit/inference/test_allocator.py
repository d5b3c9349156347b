from __future__ import annotations

import platform
from unittest import mock

import pytest
import torch

from unet_med.inference import allocator
from unet_med.inference.allocator import freed_memory_kept

LEVELS = 4
MEGABYTES = 36


def page_faults_of_a_step() -> int:
    """Faults of going up and down a network: each tensor is needed for the next one, and all end together."""
    import resource

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_the_pages_of_one_step_serve_the_next() -> None:
    mapped = page_faults_of_a_step()
    with freed_memory_kept():
        kept = page_faults_of_a_step()
    assert mapped > LEVELS * MEGABYTES / 2  # even in pages of 2 MB
    assert kept < mapped / 4
    assert page_faults_of_a_step() > mapped / 10  # as it was before


def test_another_c_library_is_left_alone() -> None:
    with mock.patch.object(allocator.platform, "libc_ver", return_value=("", "")), freed_memory_kept():
        assert float(torch.ones(8).sum()) == 8
