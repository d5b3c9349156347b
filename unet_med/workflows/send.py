"""``unet-med send``: DICOM objects to a PACS, by C-STORE or by DICOMweb."""

from __future__ import annotations

import getpass
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unet_med.errors import NothingUsableError, UsageError
from unet_med.io.pacs.client import Receipt, send_objects
from unet_med.io.pacs.objects import find_objects
from unet_med.io.pacs.target import AE_TITLE, Access, DicomTarget, Target, check_access, check_aet, needed, parse_target
from unet_med.workflows.outcome import DONE, MACHINE, NOTHING_USABLE, SOME_REFUSED, Outcome
from unet_med.workflows.progress import track

logger = logging.getLogger(__name__)

_SHOWN = 20


def send(
    files: Sequence[Path],
    to: tuple[str, str],
    aet: str = AE_TITLE,
    user: str | None = None,
    password_env: str | None = None,
    tls: bool = False,
    ca: Path | None = None,
) -> Outcome:
    """Sends files, and all DICOM objects below folders, to a PACS.

    Args:
        files: Files or folders; only read.
        to: ``("dicom", "HOST:PORT/AET")`` or ``("dicomweb", URL)``.
        aet: Our own AE title.
        user: Name for HTTP basic authentication; the password is asked for, or read from the first line of the input.
        password_env: Name of the environment variable that holds the password instead.
        tls: Whether C-STORE goes through TLS.
        ca: Certificates to trust instead of the machine's own.

    Raises:
        UsageError: The target is none, or takes nothing from us.
        NothingUsableError: None of the files is a DICOM object.
        MachineError: The PACS cannot be reached.
    """
    target, access = make_access(to, aet, user, password_env, tls, ca, "--to")
    found = find_objects(files, track)
    if not found.objects:
        also = f"; {found.skipped} other files were skipped" if found.skipped else ""
        raise NothingUsableError(f"no DICOM object was found{also}", "FILES", "give DICOM files, or folders of them")
    sending = send_objects(target, access, found.objects)
    receipts = list(track(sending, "sending", total=len(found.objects)))
    entries = [_entry(receipt) for receipt in receipts]
    entries += [{"id": one.id, "status": "refused", "reason": one.reason} for one in found.refused]
    states = [str(entry["status"]) for entry in entries]
    totals = {state: states.count(state) for state in ("sent", "refused", "failed")}
    result = {
        "tool": "unet-med",
        "to": str(target),
        "files": entries,
        "totals": {"files": len(entries), **totals, "skipped": found.skipped},
    }
    return Outcome(result, _lines(target, entries, totals), exit_code(states))


def make_access(
    to: tuple[str, str],
    aet: str,
    user: str | None,
    password_env: str | None,
    tls: bool,
    ca: Path | None,
    option: str,
) -> tuple[Target, Access]:
    """Returns a target and how we show ourselves there; asks for the password where one is needed.

    Raises:
        UsageError: An option is wrong, the password is missing, or the extra ``pacs`` is not installed.
    """
    target = parse_target(*to, option)
    needed("pynetdicom" if isinstance(target, DicomTarget) else "dicomweb_client.web")
    plain = Access(check_aet(aet, "--aet"), user, None, tls, ca)
    warning = check_access(target, plain)
    if warning:
        logger.warning("%s: %s", target, warning)
    if user is None:
        if password_env is not None:
            raise UsageError("a password without a user", "--password-env", "give --user as well")
        return target, plain
    return target, Access(plain.aet, user, _password(password_env), tls, ca)


def exit_code(states: Sequence[str]) -> int:
    """Returns the exit code for what became of all objects."""
    if "failed" in states:
        return MACHINE
    if "sent" not in states:
        return NOTHING_USABLE
    return SOME_REFUSED if "refused" in states else DONE


def _entry(receipt: Receipt) -> dict[str, Any]:
    return {"id": receipt.id, "status": receipt.status, "reason": receipt.reason or None}


def _lines(target: Target, entries: Sequence[dict[str, Any]], totals: dict[str, int]) -> list[str]:
    counts = ", ".join(f"{number} {state}" for state, number in totals.items() if number or state == "sent")
    lines = [f"{counts}: {target}"]
    told = [entry for entry in entries if entry["reason"]]
    lines += [f"{entry['status']}: {entry['id']}: {entry['reason']}" for entry in told[:_SHOWN]]
    if len(told) > _SHOWN:
        lines.append(f"... and {len(told) - _SHOWN} more; --json FILE lists all")
    return lines


def _password(variable: str | None) -> str:
    if variable is not None:
        found = os.environ.get(variable)
        if not found:
            raise UsageError("the environment variable is not set", "--password-env", "give the name of one that is")
        return found
    if sys.stdin.isatty():
        return getpass.getpass("Password: ")
    line = sys.stdin.readline().rstrip("\r\n")
    if not line:
        raise UsageError(
            "there is no password", "--user", "type it when asked, pipe it in, or name a variable with --password-env"
        )
    return line
