"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unet_med.errors import MachineError

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


def part_path(path: Path) -> Path:
    """Returns the hidden name in the same folder under which ``path`` is written; the suffix stays."""
    return path.with_name(f".{os.getpid()}.part.{path.name}")


@contextmanager
def disk_errors(where: str) -> Iterator[None]:
    """Turns a full disk or a folder that cannot be written into :class:`MachineError`."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise MachineError(
                "disk full", where, "free some space, then start the same command again: finished cases are kept"
            ) from error
        if error.errno in _DENIED:
            raise MachineError(
                "the output folder cannot be written", where, "choose another output folder or change its rights"
            ) from error
        raise


@contextmanager
def whole_file(path: Path, where: str) -> Iterator[Path]:
    """Yields a temporary name; renames it to ``path`` on success, removes it on any error.

    Raises:
        MachineError: The disk is full or the folder cannot be written.
    """
    part = part_path(path)
    try:
        with disk_errors(where):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def whole_files(paths: Sequence[Path], where: str) -> Iterator[list[Path]]:
    """Yields temporary names for several files or folders; all get their names on success, none on any error.

    What had one of these names before is replaced.

    Raises:
        MachineError: The disk is full or the folder cannot be written.
    """
    parts = [part_path(path) for path in paths]
    shown: list[Path] = []
    try:
        with disk_errors(where):
            for path in paths:
                path.parent.mkdir(parents=True, exist_ok=True)
            yield parts
            for part, path in zip(parts, paths, strict=True):
                if path.is_dir():
                    remove(path)
                shown.append(path)
                part.replace(path)
    except BaseException:
        for path in shown:
            remove(path)
        raise
    finally:
        for part in parts:
            remove(part)


def remove(path: Path) -> None:
    """Removes a file, or a folder with all that is in it; no error where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any], where: str) -> None:
    """Writes ``content`` as JSON (UTF-8, never NaN), whole or not at all."""
    with whole_file(path, where) as part:
        part.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
