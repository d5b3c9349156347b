"""Calls to a store that may go away: sent in order, kept while it is away, never an error for the caller."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

logger = logging.getLogger(__name__)

PICTURE: Final = "an overlay"
_PAUSE_PER_SECOND: Final = 20.0  # so that waiting for a store costs at most 5 % of the time
_MOST_WAITING: Final = 2000
_MOST_WAITING_PICTURES: Final = 100
_REFUSALS: Final = frozenset(
    {
        "INVALID_PARAMETER_VALUE",
        "BAD_REQUEST",
        "MALFORMED_REQUEST",
        "INVALID_STATE",
        "RESOURCE_DOES_NOT_EXIST",
        "RESOURCE_ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",
        "ENDPOINT_NOT_FOUND",
    }
)


@dataclass(frozen=True)
class _Call:
    what: str
    send: Callable[[], Any]


class Outbox:
    """Sends calls in order and keeps those that fail.

    A failure of the connection stops sending until ``retry_seconds`` have passed, longer when the failure itself took
    long, so that a server that is away does not slow training down; a call that the store refuses for good is left
    out. Both are warned about once, without the text of the exception, which may hold paths.

    Args:
        failures: The exceptions by which the store fails; any other goes through.
        retry_seconds: Shortest pause after a failure of the connection.
    """

    def __init__(self, failures: tuple[type[Exception], ...], retry_seconds: float = 30.0) -> None:
        self._failures = failures
        self._retry_seconds = retry_seconds
        self._retry_at = 0.0
        self._waiting: deque[_Call] = deque()
        self._warned: set[str] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def send(self, what: str, call: Callable[[], Any]) -> None:
        """Sends a call now or later.

        Args:
            what: Said in warnings; calls named :data:`PICTURE` are the first to be dropped in a long outage.
            call: Safe to repeat.
        """
        self._waiting.append(_Call(what, call))
        self._shed()
        self.flush()

    def flush(self, *, now: bool = False) -> None:
        """Sends what waits; ``now`` tries even within the pause after a failure."""
        if not now and time.monotonic() < self._retry_at:
            return
        while self._waiting:
            call, began = self._waiting[0], time.monotonic()
            try:
                call.send()
            except self._failures as error:
                if getattr(error, "error_code", None) not in _REFUSALS:
                    failed = time.monotonic()
                    self._retry_at = failed + max(self._retry_seconds, _PAUSE_PER_SECOND * (failed - began))
                    self._warn_once("away", "the MLflow store does not answer; training goes on, records wait")
                    return
                text = f"MLflow refused {call.what} ({type(error).__name__}); it is left out"
                self._warn_once(call.what, text)
            self._waiting.popleft()
        self._warned.discard("away")

    def drain(self, patience_seconds: float, pause_seconds: float = 5.0) -> None:
        """Sends what waits, and waits itself for a store that is away, for so many seconds at most."""
        deadline = time.monotonic() + patience_seconds
        self.flush(now=True)
        while self._waiting and time.monotonic() < deadline:
            time.sleep(pause_seconds)
            self.flush(now=True)

    def _shed(self) -> None:
        pictures = [call for call in self._waiting if call.what == PICTURE]
        if len(pictures) > _MOST_WAITING_PICTURES:
            self._waiting.remove(pictures[0])
        if len(self._waiting) > _MOST_WAITING:
            self._waiting.popleft()

    def _warn_once(self, topic: str, text: str) -> None:
        if topic not in self._warned:
            self._warned.add(topic)
            logger.warning("%s", text)
