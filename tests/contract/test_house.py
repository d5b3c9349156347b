"""Habits of the whole package: layers, errors that say what to do, no print, no assert."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import unet_med
from unet_med import errors

PACKAGE = Path(unet_med.__file__).parent
ROOT = PACKAGE.parent
ERRORS = {
    name
    for name, found in vars(errors).items()
    if isinstance(found, type) and issubclass(found, errors.UnetMedError) and found is not errors.UnetMedError
}


def _calls(names: set[str]) -> Iterator[tuple[str, ast.Call]]:
    """Yields the file and the node of every call in the package; ``names`` empty: of all functions."""
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and (not names or ast.unparse(node.func) in names):
                yield file.relative_to(PACKAGE).as_posix(), node


def _calls_of_errors() -> Iterator[tuple[str, ast.Call]]:
    """Yields every place where one of our errors is made, and the call."""
    for file, call in _calls(ERRORS):
        yield f"{file}:{call.lineno}", call


OWN_PROCESS = "inference/worker.py"
"""The worker's entry point: it has its own log, and its pipe to the parent carries objects of this package."""


def test_layers_hold() -> None:
    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("the package is installed without its checkout")
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout


def test_every_error_is_raised_somewhere() -> None:
    raised = {call.func.id for _, call in _calls_of_errors() if isinstance(call.func, ast.Name)}
    assert raised == ERRORS


def test_every_error_names_a_remedy() -> None:
    silent = [
        place
        for place, call in _calls_of_errors()
        if len(call.args) < 3
        and "reason" not in ast.unparse(call.args[0])  # a reason says why, and what to do
        and "remedy" not in {keyword.arg for keyword in call.keywords}
        and not any(isinstance(argument, ast.Starred) for argument in call.args)
        and not any(keyword.arg is None for keyword in call.keywords)
    ]
    assert silent == []


def test_only_the_command_line_configures_logging_and_leaves_the_process() -> None:
    assert {file for file, _ in _calls({"logging.basicConfig", "sys.exit"})} <= {
        OWN_PROCESS,
        "training/processes.py",
    }


def test_no_code_can_come_out_of_data() -> None:
    found = []
    for file, call in _calls(set()):
        name = ast.unparse(call.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        unsafe = name in {"eval", "exec", "yaml.load", "yaml.unsafe_load"}
        unsafe |= name in {"pickle.load", "pickle.loads"} and file != OWN_PROCESS
        unsafe |= keywords.get("weights_only") == "False" or keywords.get("allow_pickle") == "True"
        unsafe |= name == "torch.load" and keywords.get("weights_only") != "True"
        if unsafe:
            found.append(f"{file}:{call.lineno} {name}")
    assert found == []
