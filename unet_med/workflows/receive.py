"""``unet-med receive``: series arrive from a PACS, masks go back.

Objects come in threads of their own (:mod:`unet_med.io.pacs.listener`); this one waits for a series to be complete,
predicts it, one at a time, and sends the result back. ``OUT/journal`` remembers what is done, so the same command goes
on where it was stopped.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unet_med import __version__
from unet_med.bundle import BundleInfo, read_bundle_info
from unet_med.errors import InputRefusedError, MachineError, NothingUsableError, UnetMedError, UsageError
from unet_med.io.atomic import disk_errors, write_json
from unet_med.io.discover import discover
from unet_med.io.export.choices import export_options
from unet_med.io.export.formats import FORMATS
from unet_med.io.export.mask import ExportOptions, SegType
from unet_med.io.export.sidecars import RESEARCH_ONLY
from unet_med.io.pacs.client import send_objects
from unet_med.io.pacs.inbox import Arrived, Inbox, Limits
from unet_med.io.pacs.listener import listening
from unet_med.io.pacs.objects import find_objects
from unet_med.io.pacs.target import AE_TITLE, Access, Target, check_aet, is_loopback, needed
from unet_med.io.source import IntakeOptions
from unet_med.workflows.casefolder import REPORT
from unet_med.workflows.journal import Journal, file_key, input_state, open_job, same_input
from unet_med.workflows.outcome import DONE, MACHINE, NOTHING_USABLE, SOME_REFUSED, Outcome
from unet_med.workflows.predict import predict
from unet_med.workflows.send import make_access

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
PORT = 11112
IDLE_SECONDS = 15.0
DEFAULT_FORMATS = ("dicom-seg",)

_INCOMING = "incoming"
_MASKS = "masks"
_RECEIVER = "receiver"
_POLL_SECONDS = 0.1
_RETRY_SECONDS = 60.0
_MIB = 2**20
_BROKEN = "the connection broke while it was sent: send it again"
_NO_IMAGE = "it holds no image"


def receive(
    model: str,
    out: Path,
    port: int = PORT,
    aet: str = AE_TITLE,
    host: str = HOST,
    allow: Sequence[str] = (),
    idle_seconds: float = IDLE_SECONDS,
    formats: Sequence[str] = (),
    seg_type: SegType = "binary",
    labels: Path | None = None,
    deidentify: bool = False,
    send_back: tuple[str, str] | None = None,
    user: str | None = None,
    password_env: str | None = None,
    tls: bool = False,
    ca: Path | None = None,
    once: bool = False,
    device: str = "auto",
    memory_gb: float | None = None,
    max_file_mb: int = 1024,
    intake: IntakeOptions = IntakeOptions(),  # noqa: B008
    overwrite: bool = False,
) -> Outcome:
    """Receives series by C-STORE, predicts each when it is complete, and may send the result back.

    Args:
        model: Bundle folder, run folder, or an MLflow address.
        out: Receives ``incoming/<series>/``, ``masks/<series>/`` (as ``predict`` fills it) and ``report.json``.
        port: TCP port to listen at.
        aet: Our AE title, for the listener and for sending back.
        host: Address to listen at; other machines reach only what is not loopback.
        allow: AE titles that may send; needed when other machines can.
        idle_seconds: A series is complete when nothing of it came for so long.
        formats: As for ``predict``; ``dicom-seg`` for none.
        seg_type: Kind of DICOM SEG.
        labels: File of colours and codes of the labels.
        deidentify: Leave the patient out of DICOM outputs.
        send_back: Where DICOM outputs go, as for ``send``.
        user: As for ``send``.
        password_env: As for ``send``.
        tls: As for ``send``.
        ca: As for ``send``.
        once: End after the first series that was predicted or refused.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        memory_gb: Memory that a forward pass may use.
        max_file_mb: Larger objects are refused.
        intake: How images are read.
        overwrite: Forget the results of an earlier job in ``out``; what it received is predicted again.

    Returns:
        With ``once``; otherwise it runs until it is interrupted.

    Raises:
        UsageError: Options do not fit, the port is taken, or ``out`` belongs to another job or a running receiver.
        ConfigError: A format needs codes of the labels which nobody gave.
        ModelError: The model cannot be loaded.
    """
    needed("pynetdicom")
    title = check_aet(aet, "--aet")
    callers = [check_aet(name, "--allow") for name in allow]
    if not callers and not is_loopback(host):
        raise UsageError(
            f"{host} lets other machines send, and nobody is named", "--allow", "give the AE titles that may send"
        )
    info = read_bundle_info(model)
    export = export_options(info.labels, formats or DEFAULT_FORMATS, seg_type, labels, deidentify)
    target, access = (None, Access(title))
    if send_back is not None:
        if not any(FORMATS[name].needs_dicom for name in export.formats):
            raise UsageError("nothing of this can be sent back", "--format", "add a DICOM format, such as dicom-seg")
        target, access = make_access(send_back, title, user, password_env, tls, ca, "--send-back")
    limits = Limits(file_bytes=max_file_mb * _MIB)
    options = {
        "formats": list(export.formats),
        "seg_type": export.seg_type,
        "deidentify": deidentify,
        "labels_sha256": None if labels is None else file_key(labels),
        "intake": asdict(intake),
    }
    job = {"command": "receive", "model_sha256": [info.sha256], "options": options}
    journal = open_job(out, job, overwrite)
    claim = journal.claim(_RECEIVER)
    if claim is None:
        raise UsageError("another receiver works in this folder", out.name, "end it, or give another --out")
    try:
        desk = _Desk(journal, info, export, labels, intake, device, memory_gb, target, access)
        with disk_errors(_INCOMING):
            inbox = Inbox(out / _INCOMING, idle_seconds, limits)
        silence = max(60.0, 4 * idle_seconds)
        with listening(inbox, host, port, title, callers, limits, silence) as bound:
            _announce(host, bound, title, callers)
            return desk.work(inbox, once)
    finally:
        journal.release_all()


@dataclass
class _Desk:
    """Where complete series are worked on.

    Attributes:
        journal: What is done.
        info: The model.
        export: Formats.
        labels: File of the labels, as given.
        intake: How images are read.
        device: As given.
        memory_gb: As given.
        target: Where results go back to.
        access: How we show ourselves there.
    """

    journal: Journal
    info: BundleInfo
    export: ExportOptions
    labels: Path | None
    intake: IntakeOptions
    device: str
    memory_gb: float | None
    target: Target | None
    access: Access
    _tried: float = field(default=0.0)

    def work(self, inbox: Inbox, once: bool) -> Outcome:
        """Works until it is interrupted, or (``once``) until a series was predicted or refused."""
        self._write_report()
        if not once:
            self._send_what_is_left()
        while True:
            for arrived in inbox.due():
                ended = self._take(arrived)
                if once and ended is not None:
                    return Outcome(self._report(), [_line(ended[0])], ended[1])
            if not once and time.monotonic() - self._tried > _RETRY_SECONDS:
                self._send_what_is_left()
            time.sleep(_POLL_SECONDS)

    def _take(self, arrived: Arrived) -> tuple[dict[str, Any], int] | None:
        """Works on one series; returns its record and an exit code, unless there was nothing to do."""
        files = arrived.files
        if not files or self._is_known(arrived, files):
            return None
        claim = self.journal.claim(arrived.key)
        if claim is None:
            return None
        started = time.monotonic()
        try:
            state = input_state(files)
            if arrived.whole:
                record, code = self._predict(arrived)
            else:
                record, code = _record(arrived.key, "refused", _BROKEN), None
            record |= {
                "files": len(files),
                "whole": arrived.whole,
                "input": state,
                "seconds": round(time.monotonic() - started, 3),
            }
            if record["status"] == "done" and self.target is not None:
                record["sent_back"] = _unsent(self.target, "it was not tried yet")
            self.journal.finish(claim, record)
        finally:
            self.journal.release(claim)
        if record.get("sent_back"):
            record = self._send_back(record)
            code = max(code or DONE, _code_of(record["sent_back"]))
        self._write_report()
        _tell(record)
        return None if code is None else (record, code)

    def _is_known(self, arrived: Arrived, files: Sequence[Path]) -> bool:
        """Whether there is nothing to do: all of it is done, or what came on top of it is not whole."""
        record = self.journal.record(arrived.key)
        if record is None:
            return False
        if record["status"] == "done" and not arrived.whole:
            if not same_input(record.get("input"), files):
                logger.warning("series %s: its mask is older than what came since: %s", arrived.key, _BROKEN)
            return True
        same = record.get("whole") == arrived.whole and same_input(record.get("input"), files)
        return same and self.journal.is_done(arrived.key, files)

    def _predict(self, arrived: Arrived) -> tuple[dict[str, Any], int | None]:
        """Returns the record of a series and its exit code; ``None`` for one without images."""
        place = Path(_MASKS) / arrived.key
        try:
            if not discover(arrived.folder, self.intake).sources:
                return _record(arrived.key, "skipped", _NO_IMAGE), None
            outcome = predict(
                str(self.info.folder),
                arrived.folder,
                self.journal.out / place,
                formats=self.export.formats,
                device=self.device,
                memory_gb=self.memory_gb,
                intake=self.intake,
                overwrite=True,
                seg_type=self.export.seg_type,
                labels=self.labels,
                deidentify=self.export.deidentify,
            )
        except NothingUsableError as error:
            return _record(arrived.key, "refused", error.what), NOTHING_USABLE
        except InputRefusedError as error:
            return _record(arrived.key, "refused", error.reason), NOTHING_USABLE
        except MachineError as error:
            return _record(arrived.key, "failed", error.reason), MACHINE
        except UnetMedError:
            raise  # the model or the options are at fault, so every series would fail
        except Exception as error:
            logger.debug("a series failed", exc_info=True)
            return _record(arrived.key, "failed", f"an unexpected {type(error).__name__}; please report it"), MACHINE
        cases = [{key: case[key] for key in ("id", "status", "reason", "outputs")} for case in outcome.result["cases"]]
        reasons = "; ".join(f"{case['id']}: {case['reason']}" for case in cases if case["status"] != "done")
        states = {str(case["status"]) for case in cases}
        status = "done" if "done" in states else "failed" if "failed" in states else "refused"
        files = (self.journal.out / place / name for case in cases for name in case["outputs"])
        outputs = [path.relative_to(self.journal.out).as_posix() for file in files for path in _expanded(file)]
        record = _record(arrived.key, status, reasons) | {"cases": cases, "outputs": outputs}
        return record, outcome.exit_code

    # ---- sending back -------------------------------------------------------------------------------------------

    def _send_what_is_left(self) -> None:
        """Tries again what could not be sent back, now or by an earlier process."""
        self._tried = time.monotonic()
        if self.target is None:
            return
        for record in self.journal.records().values():
            sent = record.get("sent_back")
            if record["status"] == "done" and (sent is None or sent["status"] == "failed"):
                record = self._send_back(record)
                if record["sent_back"]["status"] != "failed":
                    self._write_report()
                    _tell(record)

    def _send_back(self, record: dict[str, Any]) -> dict[str, Any]:
        """Sends the DICOM outputs of a series and records how that went."""
        target = self.target
        if target is None:
            return record
        names = [self.journal.out / name for name in record["outputs"] if name.endswith(".dcm")]
        sent = _sent(target, self.access, names)
        if sent["status"] != "sent":
            logger.warning("series %s was not sent back: %s", record["id"], sent["reason"])
        record = {**record, "sent_back": sent}
        claim = self.journal.claim(record["id"])
        if claim is not None:
            self.journal.finish(claim, record)
        return record

    # ---- the report ---------------------------------------------------------------------------------------------

    def _report(self) -> dict[str, Any]:
        records = sorted(self.journal.records().values(), key=lambda record: float(record["recorded"]))
        keys = ("id", "status", "reason", "files", "seconds", "cases", "outputs", "sent_back")
        states = [record["status"] for record in records]
        return {
            "tool": "unet-med",
            "version": __version__,
            "use": RESEARCH_ONLY,
            "model_sha256": self.info.sha256,
            "series": [{key: record.get(key) for key in keys} for record in records],
            "totals": {
                "series": len(records),
                **{state: states.count(state) for state in ("done", "refused", "failed", "skipped")},
            },
        }

    def _write_report(self) -> None:
        try:
            write_json(self.journal.out / REPORT, self._report(), REPORT)
        except MachineError as error:
            logger.error("%s", error)  # noqa: TRY400 - it goes on receiving; the next report may fit


def _record(key: str, status: str, reason: str) -> dict[str, Any]:
    return {"id": key, "status": status, "reason": reason or None, "outputs": [], "cases": [], "sent_back": None}


def _expanded(path: Path) -> list[Path]:
    """Returns a file, or the files of an output that is a folder."""
    return sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]


def _sent(target: Target, access: Access, files: Sequence[Path]) -> dict[str, Any]:
    try:
        receipts = list(send_objects(target, access, find_objects(files).objects))
    except UnetMedError as error:
        return _unsent(target, str(error))
    states = [receipt.status for receipt in receipts]
    reason = "; ".join(dict.fromkeys(receipt.reason for receipt in receipts if receipt.status != "sent"))
    status = "failed" if "failed" in states else "sent" if set(states) == {"sent"} else "refused"
    counts = {state: states.count(state) for state in ("sent", "refused", "failed")}
    return {"to": str(target), "status": status, "reason": reason or None, "files": counts}


def _unsent(target: Target, reason: str) -> dict[str, Any]:
    return {"to": str(target), "status": "failed", "reason": reason, "files": None}


def _code_of(sent: Mapping[str, Any]) -> int:
    return {"sent": DONE, "refused": SOME_REFUSED}.get(str(sent["status"]), MACHINE)


def _announce(host: str, port: int, aet: str, allow: Sequence[str]) -> None:
    _say(f"listening: {host}:{port}/{aet}, for {', '.join(allow) if allow else 'every AE title of this machine'}")
    if not is_loopback(host):
        _say("other machines can reach this port, and DICOM travels unencrypted")
    _say("Ctrl-C ends it. Research use only")


def _tell(record: Mapping[str, Any]) -> None:
    if record["status"] in ("refused", "failed"):
        logger.warning("series %s %s: %s", record["id"], record["status"], record["reason"])
    _say(_line(record))


def _line(record: Mapping[str, Any]) -> str:
    done = [str(case["id"]) for case in record["cases"] if case["status"] == "done"]
    line = f"series {record['id']}: {record['status']}" + (f" ({', '.join(done)})" if done else "")
    if record["reason"]:
        line += f": {record['reason']}"
    sent = record.get("sent_back")
    if sent:
        line += f"; sent back to {sent['to']}" if sent["status"] == "sent" else f"; not sent back: {sent['reason']}"
    return line


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
