"""Objects to a PACS, one after the other, each with a receipt; a broken connection is made again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from unet_med.errors import UnetMedError
from unet_med.io.pacs.objects import DicomObject
from unet_med.io.pacs.target import Access, DicomTarget, Target

Status = Literal["sent", "refused", "failed"]
ATTEMPTS = 3
_WAIT_SECONDS = 1.0
_BROKEN_OBJECTS = 2


@dataclass(frozen=True)
class Receipt:
    """What became of one object.

    Attributes:
        id: Of the object.
        status: ``sent``; ``refused`` by the PACS; ``failed`` because the connection did.
        reason: Why it was not sent, or what the PACS remarked.
    """

    id: str
    status: Status
    reason: str = ""


class LostError(Exception):
    """There is no connection, or not any more: trying again may help.

    Attributes:
        error: What to tell the user when it does not.
        reached: Whether the PACS had answered on this connection.
    """

    def __init__(self, error: UnetMedError, *, reached: bool) -> None:
        super().__init__(error.what)
        self.error = error
        self.reached = reached


class Connection(Protocol):
    """One way to speak to a PACS."""

    def store(self, one: DicomObject) -> Receipt:
        """Sends one object, over a new connection where there is none.

        Raises:
            LostError: The connection broke or cannot be made.
            UnetMedError: The PACS will take nothing from us.
        """

    def close(self) -> None:
        """Ends the connection; nothing when there is none."""


def connections(target: Target, access: Access, objects: Sequence[DicomObject]) -> Iterator[tuple[Connection, int]]:
    """Yields connections and how many of the objects, in order, each is for."""
    if isinstance(target, DicomTarget):
        from unet_med.io.pacs.dimse import DimseConnection, batches

        for batch in batches(objects):
            yield DimseConnection(target, access, batch), len(batch)
    else:
        from unet_med.io.pacs.web import WebConnection

        yield WebConnection(target, access), len(objects)


def send_objects(
    target: Target, access: Access, objects: Sequence[DicomObject], wait_seconds: float = _WAIT_SECONDS
) -> Iterator[Receipt]:
    """Sends objects.

    Args:
        target: The PACS.
        access: How this side shows itself.
        objects: Objects in files.
        wait_seconds: Pause before a second attempt; doubled each time.

    Yields:
        One receipt for each object, in order.

    Raises:
        UnetMedError: Before anything was sent: the PACS cannot be reached or takes nothing from us.
    """
    start = 0
    state = _State()
    for connection, count in connections(target, access, objects):
        try:
            for one in objects[start : start + count]:
                yield _deliver(connection, one, state, wait_seconds)
        finally:
            connection.close()
        start += count


@dataclass
class _State:
    """What is known about the way to the PACS.

    Attributes:
        began: Whether it has answered about an object.
        broken: Objects in a row over which the connection broke each time.
        given_up: Why nothing more is tried.
    """

    began: bool = False
    broken: int = 0
    given_up: str = ""


def _deliver(connection: Connection, one: DicomObject, state: _State, wait_seconds: float) -> Receipt:
    if state.given_up:
        return Receipt(one.id, "failed", state.given_up)
    reason, reached = "", False
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(wait_seconds * 2 ** (attempt - 1))
        try:
            receipt = connection.store(one)
        except LostError as lost:
            connection.close()
            if not lost.reached and not state.began:
                raise lost.error from lost
            reason, reached = lost.error.reason, lost.reached
            continue
        except UnetMedError as error:
            if not state.began:
                raise
            state.given_up = error.reason
            return Receipt(one.id, "failed", state.given_up)
        state.began, state.broken = True, 0
        return receipt
    state.broken += 1
    if not reached or state.broken == _BROKEN_OBJECTS:
        state.given_up = reason
    return Receipt(one.id, "failed", reason)
