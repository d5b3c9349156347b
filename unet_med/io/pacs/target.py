"""Where objects are sent to, and how this side shows itself there."""

from __future__ import annotations

import importlib
import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from unet_med.errors import UsageError

AE_TITLE = "UNETMED"
"""How this side calls itself unless told otherwise."""

_EXAMPLES = "give `dicom HOST:PORT/AET` or `dicomweb URL`, for example dicom 127.0.0.1:4242/ORTHANC"


@dataclass(frozen=True)
class DicomTarget:
    """A PACS that is spoken to with C-STORE.

    Attributes:
        host: Name or address.
        port: TCP port.
        aet: AE title of the PACS.
    """

    host: str
    port: int
    aet: str

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"dicom {host}:{self.port}/{self.aet}"


@dataclass(frozen=True)
class WebTarget:
    """A PACS that is spoken to with STOW-RS.

    Attributes:
        url: Address of its DICOMweb service, without ``/studies``; a query may hold a secret and is not shown.
    """

    url: str = field(repr=False)

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        return f"dicomweb {parts.scheme}://{parts.netloc}{parts.path}"


Target = DicomTarget | WebTarget


@dataclass(frozen=True)
class Access:
    """How this side shows itself.

    Attributes:
        aet: Its own AE title (C-STORE).
        user: Name for HTTP basic authentication (STOW-RS).
        password: Its password; never shown.
        tls: Whether C-STORE goes through TLS; for DICOMweb the address says it.
        ca: Certificates to trust instead of the machine's own, PEM.
    """

    aet: str = AE_TITLE
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    ca: Path | None = None


def parse_target(kind: str, place: str, option: str = "--to") -> Target:
    """Reads the two words after ``--to`` (or another option).

    Raises:
        UsageError: They name no place.
    """
    if kind == "dicom":
        return _dicom(place, option)
    if kind == "dicomweb":
        return _web(place, option)
    raise UsageError("the kind of target is neither dicom nor dicomweb", option, _EXAMPLES)


def check_aet(title: str, where: str) -> str:
    """Returns an AE title without blanks around it.

    Raises:
        UsageError: It is none: 1 to 16 printable ASCII characters without backslash.
    """
    cleaned = title.strip()
    if not re.fullmatch(r"[\x20-\x5b\x5d-\x7e]{1,16}", cleaned):
        raise UsageError("this is no AE title", where, "give 1 to 16 ASCII characters without backslash")
    return cleaned


def check_access(target: Target, access: Access) -> str:
    """Returns a warning about what travels unprotected, or nothing.

    Raises:
        UsageError: An option does not fit the kind of target.
    """
    if access.ca is not None and not access.ca.is_file():
        raise UsageError("there is no such file of certificates", "--ca", "give a PEM file")
    if isinstance(target, DicomTarget):
        if access.user is not None:
            raise UsageError("C-STORE knows no user names", "--user", "give --aet, by which a PACS knows its peers")
        if access.ca is not None and not access.tls:
            raise UsageError("certificates are of no use without TLS", "--ca", "give --tls as well")
        return ""
    if access.tls:
        raise UsageError("--tls is for C-STORE alone", "--tls", "give an https:// address instead")
    parts = urlsplit(target.url)
    if access.user is not None and parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        return "the password travels unencrypted: use an https:// address"
    return ""


def is_loopback(host: str) -> bool:
    """Whether a host is this machine under an address that no other machine can reach."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def needed(module: str) -> Any:
    """Returns a module of the extra ``pacs``.

    Raises:
        UsageError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0].replace("_", "-")
        raise UsageError(f"{package} is not installed", remedy='pip install "unet-med[pacs]"') from error


def _dicom(place: str, option: str) -> DicomTarget:
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]@]+):(\d{1,5})/(.+)", place)
    if found is None or not 1 <= int(found[2]) <= 65535:
        raise UsageError("this is no HOST:PORT/AET", option, _EXAMPLES)
    return DicomTarget(found[1].strip("[]"), int(found[2]), check_aet(found[3], option))


def _web(place: str, option: str) -> WebTarget:
    try:
        parts = urlsplit(place)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise UsageError("this is no http address", option, _EXAMPLES)
    if parts.username or parts.password:
        raise UsageError("a password in an address is seen by everybody on this machine", option, "give --user instead")
    if parts.query or parts.fragment:
        raise UsageError("the address of a DICOMweb service has no query", option, "give the address without ? and #")
    return WebTarget(place.rstrip("/").removesuffix("/studies"))
