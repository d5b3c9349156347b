from __future__ import annotations

import platform
from pathlib import Path
from unittest import mock

import pytest
import torch
from fresh_process import in_fresh_process

from unet_med.inference import allocator
from unet_med.inference.allocator import freed_memory_kept


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_the_pages_of_one_step_serve_the_next(tmp_path: Path) -> None:
    in_fresh_process(tmp_path, "memory_checks", "pages_of_one_step_serve_the_next")


def test_another_c_library_is_left_alone() -> None:
    with mock.patch.object(allocator.platform, "libc_ver", return_value=("", "")), freed_memory_kept():
        assert float(torch.ones(8).sum()) == 8
