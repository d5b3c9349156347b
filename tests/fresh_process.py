"""Runs functions of a test module in an interpreter of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent

_PROGRAM = """
import importlib, sys
module = importlib.import_module(sys.argv[1])
for name in sys.argv[2:]:
    print(name, flush=True)
    getattr(module, name)()
"""


def in_fresh_process(folder: Path, module: str, *functions: str) -> None:
    """Calls ``module.function()`` one after the other in the working directory ``folder``; warnings are errors.

    Fails with the output of the process, and also when it dies on its way out.
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _PROGRAM, module, *functions],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(TESTS), str(TESTS.parent)))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"ended with {done.returncode}:\n{done.stdout}"
