"""Names that are safe to print.

A DICOM series is named by its number and a keyed hash of its UID; every other file by its stem, cleaned to
letters, digits, ``.``, ``_`` and ``-``. The key is made once for each user and never leaves the machine, so the
hash cannot be turned back by trying known UIDs.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

_COMPRESSED = (".gz", ".bz2")
_DOUBLE_SUFFIXES = (".ome.tiff", ".ome.tif", ".ome.zarr", ".companion.ome", ".ome.btf", ".seg.nrrd")
_ZARR = ".zarr"


def stem_of(path: Path) -> str:
    """Returns the name of a file without its format's suffix: ``case.nii.gz`` and ``case.ome.tif`` give ``case``.

    An image inside of a Zarr folder is named by the way to it: ``plate.zarr/A/1/0`` gives ``plate_A_1_0``. The first
    image of a folder and a label image in it go by the folder's name: ``case.zarr/0`` and ``case.zarr/labels/cells``.
    """
    for depth, part in enumerate(path.parts[:-1], 1):
        if part.lower().endswith(_ZARR):
            inside = path.parts[depth:]
            named = () if inside == ("0",) or (len(inside) == 2 and inside[0] == "labels") else inside
            return "_".join((_without_suffix(part), *named))
    return _without_suffix(path.name)


def _without_suffix(name: str) -> str:
    lower = name.lower()
    for suffix in _DOUBLE_SUFFIXES:
        if lower.endswith(suffix):
            return name[: -len(suffix)]
    if lower.endswith(_COMPRESSED):
        name = name[: name.rfind(".")]
    return name[: name.rfind(".")] if "." in name[1:] else name


def safe_name(text: str) -> str:
    """Returns ``text`` with everything but letters, digits, ``.``, ``_`` and ``-`` replaced by ``_``."""
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._")
    return cleaned or "unnamed"


def _key_file() -> Path:
    if os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    else:
        base = Path(os.environ.get("XDG_STATE_HOME", Path.home() / ".local" / "state"))
    return base / "unet-med" / "identity.key"


@lru_cache(maxsize=1)
def user_key() -> bytes:
    """Returns this user's secret key, made on first use (mode 0600); a key for this process if no home is writable."""
    path = _key_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _write_key(path)
        return path.read_bytes()
    except OSError:
        return secrets.token_bytes(32)


def _write_key(path: Path) -> None:
    """Makes the key under a name of its own, then links it into place: the first of several processes wins."""
    own = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_bytes(32))
    with contextlib.suppress(FileExistsError):
        path.hardlink_to(own)
    own.unlink()


def keyed_hash(text: str, length: int = 8) -> str:
    """Returns the first ``length`` hex digits of the keyed hash of ``text`` (HMAC-SHA256, this user's key)."""
    return hmac.new(user_key(), text.encode(), hashlib.sha256).hexdigest()[:length]


def series_id(series_number: int | None, series_uid: str, suffix: str = "") -> str:
    """Returns the printable id of a DICOM series, for example ``s013-1f00ba12``; ``suffix`` names a part of it."""
    number = "sxxx" if series_number is None else f"s{series_number:03d}"
    return f"{number}-{keyed_hash(series_uid)}" + (f"-{safe_name(suffix)}" if suffix else "")


def case_tag(case_id: str) -> str:
    """Returns the name of a case for logs and MLflow, where file stems are not allowed: ``case-`` and a keyed hash."""
    return f"case-{keyed_hash(case_id)}"


def unique_ids(wanted: list[str]) -> list[str]:
    """Returns ``wanted`` with repeats numbered (``a``, ``a-2``, ``a-3``), case-insensitively, in the order given."""
    taken: set[str] = set()
    unique: list[str] = []
    for name in wanted:
        candidate, number = name, 1
        while candidate.lower() in taken:
            number += 1
            candidate = f"{name}-{number}"
        taken.add(candidate.lower())
        unique.append(candidate)
    return unique


def file_stamp(path: Path) -> tuple[int, int]:
    """Returns the size and the time (ns) of a file, which change with it; of a folder, the sums of all its files."""
    files = [one for one in path.rglob("*") if one.is_file()] if path.is_dir() else [path]
    states = [file.stat() for file in files]
    return sum(state.st_size for state in states), sum(state.st_mtime_ns for state in states)


def file_sha256(path: Path) -> str:
    """Returns the sha256 of a file as hex digits; of a folder, that of the names and contents of all its files."""
    if path.is_dir():
        digest = hashlib.sha256()
        for inside in sorted(one for one in path.rglob("*") if one.is_file()):
            digest.update(f"{inside.relative_to(path).as_posix()}\0{file_sha256(inside)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_sha256(paths: list[Path]) -> str:
    """Returns one sha256 for several files: that of the sorted list of their own."""
    if len(paths) == 1:
        return file_sha256(paths[0])
    digest = hashlib.sha256()
    for one in sorted(file_sha256(path) for path in paths):
        digest.update(one.encode())
    return digest.hexdigest()


def write_private_table(path: Path, table: Mapping[str, object]) -> None:
    """Writes the table from ids to files as JSON that only this user can read (mode 0600), by rename."""
    temporary = path.with_name(path.name + ".part")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(table, file, indent=1, sort_keys=True)
    temporary.replace(path)
