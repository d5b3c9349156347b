"""C-STORE as the sending side (SCU)."""

from __future__ import annotations

import socket
import ssl
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from unet_med.errors import InputRefusedError, MachineError, UnetMedError, UsageError
from unet_med.io.dicom.headers import EXPLICIT_LITTLE, IMPLICIT_LITTLE
from unet_med.io.pacs.client import LostError, Receipt
from unet_med.io.pacs.objects import DicomObject
from unet_med.io.pacs.target import Access, DicomTarget, needed

VERIFICATION = "1.2.840.10008.1.1"
_MAX_CONTEXTS = 120  # an association has room for 128
_CONVERTED = frozenset({IMPLICIT_LITTLE, EXPLICIT_LITTLE})  # one into the other, while sending
_CONNECT_SECONDS = 15.0
_ANSWER_SECONDS = 30.0
_STORE_SECONDS = 120.0
_BY_USER, _BY_SERVICE = 1, 3
_TRANSIENT = 2

FAILURES = {
    0x0117: "the object has an invalid UID",
    0x0122: "the PACS does not take this kind of object",
    0x0124: "the PACS does not allow it",
    0x0210: "the PACS took it for a repeated message",
    0x0211: "the PACS does not know C-STORE",
    0x0212: "the PACS found a wrong argument",
}
"""What a C-STORE status says, by the standard (PS3.7 C, PS3.4 B.2.3)."""


def batches(objects: Sequence[DicomObject]) -> Iterator[list[DicomObject]]:
    """Yields objects in order, in runs whose kinds and encodings fit into one association."""
    batch: list[DicomObject] = []
    kinds: set[tuple[str, str]] = set()
    for one in objects:
        wider = kinds | _kinds(one)
        if batch and len(wider) > _MAX_CONTEXTS:
            yield batch
            batch, wider = [], _kinds(one)
        batch.append(one)
        kinds = wider
    if batch:
        yield batch


def failure_text(status: int) -> str:
    """Returns what a failing status means and what to do."""
    number = f"status 0x{status:04X}"
    if status & 0xFF00 == 0xA700:
        return f"the PACS has no room for it ({number}): free some space there, then send it again"
    if status & 0xFF00 == 0xA900:
        return f"the PACS says that its content does not fit its kind ({number}): check it with dciodvfy"
    if status & 0xF000 == 0xC000:
        return f"the PACS does not understand it ({number}): check it with dciodvfy, see the log of the PACS"
    what = FAILURES.get(status, "the PACS refuses it")
    return f"{what} ({number}): see the log of the PACS"


class DimseConnection:
    """An association that is made when the first object is stored.

    Args:
        target: The PACS.
        access: Our AE title, and TLS.
        objects: What will be stored, for the presentation contexts.
    """

    def __init__(self, target: DicomTarget, access: Access, objects: Sequence[DicomObject]) -> None:
        self._pynetdicom = needed("pynetdicom")
        self._target = target
        self._access = access
        self._kinds = sorted({kind for one in objects for kind in _kinds(one)})
        self._association: Any = None

    def store(self, one: DicomObject) -> Receipt:
        """Sends one object and waits for the answer of the PACS; see :class:`~unet_med.io.pacs.client.Connection`."""
        if self._association is None:
            self._associate()
        unaccepted = self._unaccepted(one)
        if unaccepted:
            return Receipt(one.id, "refused", unaccepted)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's texts may quote values of the header
            try:
                status = self._association.send_c_store(one.read())
            except RuntimeError as error:  # the association ended since the last object
                raise self._lost() from error
            except Exception:  # noqa: BLE001 - malformed data make pydicom raise nearly anything
                reason = "the object cannot be read or encoded: restore it from its origin"
                return Receipt(one.id, "refused", reason)
        if "Status" not in status:
            raise self._lost()
        code = int(status.Status)
        if code == 0:
            return Receipt(one.id, "sent")
        if code & 0xF000 == 0xB000:
            return Receipt(one.id, "sent", f"the PACS stored it with a remark (status 0x{code:04X})")
        return Receipt(one.id, "refused", failure_text(code))

    def close(self) -> None:
        """Releases the association."""
        association, self._association = self._association, None
        if association is None:
            return
        if association.is_established:
            association.release()
        else:
            association.abort()

    def _associate(self) -> None:
        connected: list[bool] = []

        def on_open(event: Any) -> None:
            connected.append(True)
            send_at_once(event)

        entity = self._pynetdicom.AE(ae_title=self._access.aet)
        entity.connection_timeout = _CONNECT_SECONDS
        entity.acse_timeout = _ANSWER_SECONDS
        entity.dimse_timeout = _STORE_SECONDS
        entity.network_timeout = _STORE_SECONDS
        entity.add_requested_context(VERIFICATION)  # every PACS takes it, so what it does not take can be told
        for sop_class, syntax in self._kinds:
            entity.add_requested_context(sop_class, syntax)
        association = entity.associate(
            self._target.host,
            self._target.port,
            ae_title=self._target.aet,
            tls_args=(self._tls(), self._target.host) if self._access.tls else None,
            evt_handlers=[(self._pynetdicom.evt.EVT_CONN_OPEN, on_open)],
        )
        if association.is_established:
            self._association = association
            return
        if association.is_rejected:
            raise self._rejected(association)
        if association.rejected_contexts:
            what = "the PACS takes none of these kinds of objects"
            raise InputRefusedError(what, str(self._target), "allow them in its configuration, or send them elsewhere")
        if connected:
            what = "the other side ended the connection before an association was made"
            remedy = "check that a DICOM server listens there, and whether it wants TLS (--tls)"
        else:
            what = "no connection"
            remedy = "check address, port and --tls, that the PACS is running, and firewalls on the way"
        raise LostError(MachineError(what, str(self._target), remedy), reached=False)

    def _rejected(self, association: Any) -> Exception:
        answer = association.acceptor.primitive
        source = getattr(answer, "result_source", None)
        diagnostic = getattr(answer, "diagnostic", None)
        where = str(self._target)
        if (source, diagnostic) == (_BY_USER, 7):
            what = "the PACS does not answer to this AE title"
            return UsageError(what, where, "give its own AE title: --to dicom HOST:PORT/AET")
        if (source, diagnostic) == (_BY_USER, 3):
            what = f"the PACS does not know our AE title {self._access.aet}"
            return UsageError(what, where, "add it to the known peers of the PACS, or give a known one with --aet")
        if source == _BY_SERVICE or getattr(answer, "result", None) == _TRANSIENT:
            error: UnetMedError = MachineError("the PACS is busy", where, "try again later")
            return LostError(error, reached=False)
        return UsageError("the PACS refuses the association", where, "see the log of the PACS")

    def _unaccepted(self, one: DicomObject) -> str:
        """Says why no accepted presentation context carries this object; nothing when one does."""
        accepted = {
            context.transfer_syntax[0]
            for context in self._association.accepted_contexts
            if context.abstract_syntax == one.sop_class
        }
        if one.syntax in accepted or (one.syntax in _CONVERTED and accepted & _CONVERTED):
            return ""
        if not accepted:
            kind = kind_name(one.sop_class)
            return f"the PACS does not take this kind of object ({kind}): allow it in the configuration of the PACS"
        return (
            f"the PACS does not take this encoding ({kind_name(one.syntax)}): allow it in the configuration of the "
            "PACS, or convert the object before"
        )

    def _lost(self) -> LostError:
        where = str(self._target)
        error = MachineError("the connection broke", where, "try again; see the log of the PACS")
        return LostError(error, reached=True)

    def _tls(self) -> ssl.SSLContext:
        try:
            return ssl.create_default_context(cafile=None if self._access.ca is None else str(self._access.ca))
        except (ssl.SSLError, OSError) as error:
            raise UsageError("the file holds no certificates", "--ca", "give a PEM file") from error


def send_at_once(event: Any) -> None:
    """Lets short messages leave at once: otherwise each object waits for the peer's delayed acknowledgement."""
    with suppress(OSError, AttributeError):
        event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def kind_name(uid: str) -> str:
    """Returns the name that the standard gives a UID; ``private`` for one that it does not know."""
    from pydicom.uid import UID

    name = UID(uid).name
    return "private" if name == uid else name


def _kinds(one: DicomObject) -> set[tuple[str, str]]:
    """Returns the presentation contexts that an object can travel in; every peer knows implicit little endian."""
    kinds = {(one.sop_class, one.syntax)}
    return kinds | {(one.sop_class, IMPLICIT_LITTLE)} if one.syntax in _CONVERTED else kinds
