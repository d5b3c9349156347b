"""Converted networks, kept between runs in the user's cache folder; bundles may be read-only.

An entry is a folder with files and their checksums. It is filled under another name and renamed, so that other
processes see it whole or not at all; the most recently used few are kept. Nothing here is precious: what is damaged
is removed and made again, and where nothing can be written there is no cache.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unet_med.identity import file_sha256

KEPT = 8
"""Entries that stay; one of a large network takes 120 MB."""

_CHECKSUMS = "sha256.json"
_NOTES = "notes.json"
_UNFINISHED = ".part-"
_ABANDONED_SECONDS = 24 * 3600.0

_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Returns the folder of converted networks below the user's cache folder; it need not exist."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "unet-med" / "engines"


class EngineCache:
    """A folder of entries.

    Args:
        folder: Made when the first entry is; by default :func:`cache_folder`.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = cache_folder() if folder is None else folder

    def get(self, key: str) -> Path | None:
        """Returns the folder of an entry if it is there and whole; a damaged one is removed."""
        entry = self._folder / key
        try:
            if not entry.is_dir():
                return None
            if _is_whole(entry):
                os.utime(entry)
                return entry
        except OSError as error:
            _log.debug("the engine cache cannot be read: %s", error)
            return None
        _log.debug("a damaged entry of the engine cache is removed")
        self._remove(entry)
        return None

    def put(self, key: str, fill: Callable[[Path], None]) -> Path | None:
        """Makes an entry: ``fill`` writes its files into the folder it is given.

        Returns:
            Its folder, be it this process's or that of another which was faster; ``None`` where nothing can be
            written: ``fill`` has not been called then, or its files did not fit.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            part = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=self._folder))
        except OSError as error:
            _log.debug("there is no engine cache: %s", error)
            return None
        try:
            fill(part)
            sums = {path.name: file_sha256(path) for path in part.iterdir()}
            (part / _CHECKSUMS).write_text(json.dumps(sums), encoding="utf-8")
            entry = self._renamed(part, key)
        except OSError as error:
            _log.debug("the engine cache cannot be written: %s", error)
            entry = None
        finally:
            shutil.rmtree(part, ignore_errors=True)
        self._tidy()
        return entry

    def note(self, key: str, name: str, value: Any) -> None:
        """Writes a note to an entry; notes do not count as its content."""
        path = self._folder / key / _NOTES
        try:
            part = path.with_name(f"{_NOTES}.{os.getpid()}")
            part.write_text(json.dumps(_notes(path) | {name: value}), encoding="utf-8")
            part.replace(path)
        except OSError as error:
            _log.debug("the engine cache cannot be written: %s", error)

    def noted(self, key: str, name: str, within_seconds: float) -> Any:
        """Returns a note of an entry, ``None`` where there is none or the notes are older than that."""
        path = self._folder / key / _NOTES
        try:
            if time.time() - path.stat().st_mtime > within_seconds:
                return None
        except OSError:
            return None
        return _notes(path).get(name)

    def _renamed(self, part: Path, key: str) -> Path | None:
        entry = self._folder / key
        try:
            part.rename(entry)
        except OSError:
            return self.get(key)  # another process was faster
        return entry

    def _remove(self, entry: Path) -> None:
        """Takes an entry out of sight at once, then deletes it."""
        try:
            grave = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=self._folder))
            entry.rename(grave / entry.name)
        except OSError as error:
            _log.debug("an entry of the engine cache cannot be removed: %s", error)
            return
        shutil.rmtree(grave, ignore_errors=True)

    def _tidy(self) -> None:
        """Removes all but the latest entries, and what crashed processes left."""
        try:
            found = sorted((path.stat().st_mtime, path) for path in self._folder.iterdir() if path.is_dir())
        except OSError:
            return  # another process tidies at the same time
        parts = [(when, path) for when, path in found if path.name.startswith(_UNFINISHED)]
        entries = [path for _, path in found if not path.name.startswith(_UNFINISHED)]
        for entry in entries[:-KEPT]:
            self._remove(entry)
        for when, path in parts:
            if time.time() - when > _ABANDONED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _is_whole(entry: Path) -> bool:
    try:
        sums = json.loads((entry / _CHECKSUMS).read_text(encoding="utf-8"))
        return bool(sums) and all(file_sha256(entry / Path(name).name) == value for name, value in sums.items())
    except (FileNotFoundError, ValueError, AttributeError):
        return False


def _notes(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
