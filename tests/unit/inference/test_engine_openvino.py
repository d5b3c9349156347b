"""OpenVINO against torch; it is loaded in processes of its own, see ``conftest``."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from fresh_process import in_fresh_process

try:
    version("openvino")
except PackageNotFoundError:
    pytest.skip("openvino is not installed", allow_module_level=True)


def test_networks_give_the_results_of_torch(tmp_path: Path) -> None:
    in_fresh_process(
        tmp_path,
        "openvino_checks",
        "all_networks_equal_torch",
        "calls_are_independent",
        "bfloat16_is_close_and_is_said",
    )


def test_cache_and_choice(tmp_path: Path) -> None:
    in_fresh_process(
        tmp_path,
        "openvino_checks",
        "the_cache_serves_again",
        "an_unwritable_cache_does_no_harm",
        "a_network_it_cannot_run_is_refused",
        "the_choice_measures_and_remembers",
    )


def test_nothing_is_sent(tmp_path: Path) -> None:
    in_fresh_process(tmp_path, "openvino_checks", "nothing_is_sent")
