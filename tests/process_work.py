"""What processes of their own do in tests; they find this module, but no test module."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from unet_med.errors import TrainingError


def square(number: int, place: int) -> tuple[int, int, int]:
    return number**2, place, os.getpid()


def fail(what: str, _place: int) -> None:
    """Raises, dies, or waits for its end in a folder of that name."""
    if what == "error":
        raise TrainingError("the loss is not finite", "step 3", "lower the rate")
    if what == "death":
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        Path(what, f"{os.getpid()}.started").touch()
        time.sleep(60)
    finally:
        Path(what, "stopped").touch()
