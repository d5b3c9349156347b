"""Being asked to stop: remembered until the step is done, so that a step is never cut in two."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from unet_med.errors import Terminated


class StopRequest:
    """Remembers that the process was asked to stop, so that a step is never cut in two."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal."""
        if self.signal is not None:  # asked twice: at once
            self.leave()
        self.signal = number

    def leave(self) -> None:
        """Raises what the signal means."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise Terminated


@contextmanager
def asked_to_stop() -> Iterator[StopRequest]:
    """Within this context SIGTERM and SIGINT are remembered; outside of the main thread nothing changes."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
