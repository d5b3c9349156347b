"""C-STORE as the receiving side (SCP): an association is let in by its AE titles, its objects go into the inbox."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from unet_med.errors import UsageError
from unet_med.io.dicom.headers import DEFLATED, EXPLICIT_BIG, EXPLICIT_LITTLE, IMPLICIT_LITTLE
from unet_med.io.dicom.pixels import missing_decoder
from unet_med.io.pacs.dimse import VERIFICATION, send_at_once
from unet_med.io.pacs.inbox import NO_OBJECT, Inbox, Limits
from unet_med.io.pacs.target import needed

logger = logging.getLogger(__name__)

_MAX_PDU = 2**17
_OVERHEAD = 2**20  # of commands and headers around one object
_ASSOCIATIONS = 10
_SILENCE_SECONDS = 60.0
_COMPRESSED = (
    ("1.2.840.10008.1.2.5", 16),  # RLE
    ("1.2.840.10008.1.2.4.70", 16),  # JPEG lossless
    ("1.2.840.10008.1.2.4.57", 16),
    ("1.2.840.10008.1.2.4.80", 16),  # JPEG-LS lossless
    ("1.2.840.10008.1.2.4.90", 16),  # JPEG 2000 lossless
    ("1.2.840.10008.1.2.4.201", 16),  # HTJ2K lossless
    ("1.2.840.10008.1.2.4.202", 16),
    ("1.2.840.10008.1.2.4.81", 16),  # the lossy ones come last
    ("1.2.840.10008.1.2.4.91", 16),
    ("1.2.840.10008.1.2.4.203", 16),
    ("1.2.840.10008.1.2.4.50", 8),
    ("1.2.840.10008.1.2.4.51", 12),
)


def syntaxes() -> list[str]:
    """Returns the transfer syntaxes that can be decoded here, the best first: a sender converts what is not offered."""
    plain = [EXPLICIT_LITTLE, IMPLICIT_LITTLE, DEFLATED, EXPLICIT_BIG]
    return plain + [uid for uid, bits in _COMPRESSED if not missing_decoder(uid, bits)]


@contextmanager
def listening(
    inbox: Inbox,
    host: str,
    port: int,
    aet: str,
    allow: Sequence[str] = (),
    limits: Limits = Limits(),  # noqa: B008
    silence_seconds: float = _SILENCE_SECONDS,
) -> Iterator[int]:
    """Receives objects in threads of its own for as long as the context is open; yields the port.

    Args:
        inbox: Where they go.
        host: Address to listen at.
        port: TCP port; 0 for any free one.
        aet: Our AE title; an association that calls another one is rejected.
        allow: AE titles that may call; empty for all.
        limits: Largest object.
        silence_seconds: An association over which nothing comes for so long is aborted.

    Raises:
        UsageError: The port is taken or not ours to use, or ``pynetdicom`` is not installed.
    """
    pynetdicom = needed("pynetdicom")
    events = pynetdicom.evt
    entity = pynetdicom.AE(ae_title=aet)
    entity.require_called_aet = True
    entity.require_calling_aet = list(allow)
    entity.maximum_associations = _ASSOCIATIONS
    entity.maximum_pdu_size = _MAX_PDU
    entity.network_timeout = silence_seconds
    entity.add_supported_context(VERIFICATION)
    offered = syntaxes()
    for context in pynetdicom.AllStoragePresentationContexts:
        entity.add_supported_context(context.abstract_syntax, offered)
    most = limits.file_bytes + _OVERHEAD
    endings = (events.EVT_RELEASED, events.EVT_ABORTED, events.EVT_CONN_CLOSE)
    handlers = [
        (events.EVT_CONN_OPEN, lambda event: _Meter.attach(event.assoc, most)),
        (events.EVT_CONN_OPEN, send_at_once),
        (events.EVT_C_STORE, lambda event: _store(event, inbox)),
        (events.EVT_PDU_RECV, _note_release),
        *((ending, lambda event: _ended(event, inbox)) for ending in endings),
        (events.EVT_REJECTED, _rejected),
    ]
    server = _start(entity, host, port, handlers)
    try:
        yield int(server.server_address[1])
    finally:
        entity.shutdown()


def _start(entity: Any, host: str, port: int, handlers: Sequence[Any]) -> Any:
    try:
        return entity.start_server((host, port), block=False, evt_handlers=handlers)
    except OSError as error:
        where = f"{host}:{port}"
        if error.errno == errno.EADDRINUSE:
            raise UsageError("the port is in use", where, "give another --port, or end what listens there") from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise UsageError("the port needs rights that you lack", where, "give a --port above 1023") from error
        raise UsageError("there is no such address on this machine", where, "give another --host") from error


def _store(event: Any, inbox: Inbox) -> int:
    meter = _Meter.of(event.assoc)
    meter.spent = 0
    try:
        content = event.encoded_dataset()
        return inbox.store(meter, str(event.request.AffectedSOPInstanceUID), content)
    except Exception as error:  # noqa: BLE001 - whatever a peer sends must not end its association, or us
        logger.warning("an object was refused: %s", type(error).__name__)
        return NO_OBJECT


def _rejected(_event: Any) -> None:
    logger.warning("an association was rejected: its AE titles are not those that are let in")


def _note_release(event: Any) -> None:
    """Sees the wish to release when it comes in: the connection may be closed before the release is announced."""
    if type(event.pdu).__name__ == "A_RELEASE_RQ":
        _Meter.of(event.assoc).released = True


def _ended(event: Any, inbox: Inbox) -> None:
    meter = _Meter.of(event.assoc)
    inbox.ended(meter, in_order=meter.released)


class _Meter:
    """Counts what a peer sends before an object is whole, and cuts it off: all of it would be kept in memory.

    A message unit that claims to be larger than allowed is not even begun.

    Attributes:
        spent: Bytes since the last object.
        released: Whether the peer asked to end the association.
    """

    def __init__(self, receive: Any, most: int) -> None:
        self.spent = 0
        self.released = False
        self._receive = receive
        self._most = most

    @classmethod
    def attach(cls, association: Any, most: int) -> None:
        """Puts a meter in front of the socket of an association."""
        socket = association.dul.socket
        meter = cls(socket.recv, most)
        socket.recv = meter
        association.meter = meter

    @staticmethod
    def of(association: Any) -> Any:
        """Returns the meter of an association."""
        return association.meter

    def __call__(self, count: int) -> Any:
        self.spent += count
        if count > self._most or self.spent > self._most:
            logger.warning("a connection was cut: it sent more than %d MB for one object", self._most // 2**20)
            return bytearray()  # taken for the end of the connection
        return self._receive(count)
