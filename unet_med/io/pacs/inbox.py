"""Where received objects wait until their series is complete.

One folder for each series, under a keyed hash; one file for each object, under another, so that no name says anything.
Folders and files are for this user alone. A file appears whole or not at all. While somebody sends into a series a
marker lies beside its folder; it goes when the sender ends in order. A marker that is left over, by a connection that
broke or by a stop of this program, says that the series is not whole.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from unet_med.identity import keyed_hash
from unet_med.io.pacs.objects import look_at_bytes

logger = logging.getLogger(__name__)

STORED = 0x0000
NO_ROOM = 0xA700
OTHER_OBJECT = 0xA900
NO_OBJECT = 0xC000
"""Answers to C-STORE (PS3.4 B.2.3)."""

OPEN_FACTOR = 3
"""A series into which an association that is still open has sent waits so many idle times."""

_KEY_LENGTH = 16
_MARKER = ".open"
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


@dataclass(frozen=True)
class Limits:
    """What is taken at most.

    Attributes:
        file_bytes: Size of one object.
        series_files: Objects of one series.
        free_bytes: What stays free on the disk.
    """

    file_bytes: int = 2**30
    series_files: int = 20_000
    free_bytes: int = 2**29


@dataclass(frozen=True)
class Arrived:
    """A series to which nothing more comes.

    Attributes:
        key: Name of its folder.
        folder: Its files.
        whole: Whether every sender ended in order.
    """

    key: str
    folder: Path
    whole: bool

    @property
    def files(self) -> list[Path]:
        """The files of the series, by name."""
        return sorted(self.folder.glob("*.dcm"))


@dataclass
class _Series:
    """What is known of a series.

    Attributes:
        touched: When the last object came, by the clock.
        files: How many there are.
        senders: Who sends into it at the moment, and whether each began after the last break.
        broken: Whether a sender was lost, and none that began later has ended in order yet.
        news: Whether something has changed since it was handed out.
    """

    touched: float
    files: int = 0
    senders: dict[Hashable, bool] = field(default_factory=dict)
    broken: bool = False
    news: bool = False


class Inbox:
    """Received series; every method may be called by any thread.

    Args:
        folder: Made if it does not exist; what lies there from an earlier time is taken up again.
        idle_seconds: A series is complete when nothing came for so long.
        limits: What is taken at most.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        folder: Path,
        idle_seconds: float,
        limits: Limits = Limits(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder
        self._idle_seconds = idle_seconds
        self._limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        self._series: dict[str, _Series] = {}
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._take_up()

    def store(self, sender: Hashable, sop_uid: str, content: bytes) -> int:
        """Keeps one object.

        Args:
            sender: Stands for the association; :meth:`ended` is told the same.
            sop_uid: SOPInstanceUID that the sender names.
            content: The object as a Part 10 file.

        Returns:
            The status to answer with.
        """
        if len(content) > self._limits.file_bytes:
            logger.warning("an object was refused: it is larger than %d MB", self._limits.file_bytes // 2**20)
            return NO_ROOM
        one = look_at_bytes(content)
        if one is None or not one.study_uid or not one.series_uid:
            logger.warning("an object was refused: it does not say to which series it belongs")
            return NO_OBJECT
        if one.sop_uid != sop_uid:
            logger.warning("an object was refused: its header names another object than its sender")
            return OTHER_OBJECT
        key = keyed_hash(f"{one.study_uid}\n{one.series_uid}", _KEY_LENGTH)
        try:
            return self._keep(sender, key, keyed_hash(one.sop_uid, _KEY_LENGTH) + ".dcm", content)
        except OSError as error:
            full = error.errno in _FULL
            logger.error("an object was refused: %s", "the disk is full" if full else "it cannot be written")  # noqa: TRY400
            return NO_ROOM

    def ended(self, sender: Hashable, *, in_order: bool) -> None:
        """Takes note that a sender is gone.

        Args:
            sender: As given to :meth:`store`.
            in_order: Whether the association was released; otherwise it broke. When nothing had come for the idle
                time already, a break says nothing.
        """
        with self._lock:
            for key, series in self._series.items():
                if sender not in series.senders:
                    continue
                began_later = series.senders.pop(sender)
                idle = self._clock() - series.touched >= self._idle_seconds
                if not in_order and not idle:
                    series.broken = series.news = True
                    series.senders = dict.fromkeys(series.senders, False)
                    logger.warning("the connection broke while series %s was received", key)
                elif series.broken and began_later and in_order:
                    series.broken, series.news = False, True
                self._mark(key, series)

    def due(self) -> list[Arrived]:
        """Returns the series that became complete, or were given up by their senders, since the last call."""
        arrived: list[Arrived] = []
        with self._lock:
            now = self._clock()
            for key, series in self._series.items():
                idle = self._idle_seconds * (OPEN_FACTOR if series.senders else 1)
                if not series.news or now - series.touched < idle:
                    continue
                series.news = False
                series.senders.clear()  # it idles in the hands of its sender: nothing more is to come
                self._mark(key, series)
                arrived.append(Arrived(key, self.folder / key, not series.broken))
        return arrived

    # ---- inside -------------------------------------------------------------------------------------------------

    def _keep(self, sender: Hashable, key: str, name: str, content: bytes) -> int:
        path = self.folder / key / name
        known = path.is_file()
        with self._lock:
            series = self._series.setdefault(key, _Series(self._clock()))
            full = not known and series.files >= self._limits.series_files
            if sender not in series.senders and not full:
                series.senders[sender] = True
                self._mark(key, series)
        if full:
            logger.warning("an object was refused: series %s has %d already", key, self._limits.series_files)
            return NO_ROOM
        if shutil.disk_usage(self.folder).free < len(content) + self._limits.free_bytes:
            logger.error("an object was refused: the disk is nearly full")
            return NO_ROOM
        fresh = not known or path.read_bytes() != content
        if fresh:
            _write(path, content)
        with self._lock:
            series.touched = self._clock()
            series.files += not known
            series.news |= fresh
        return STORED

    def _mark(self, key: str, series: _Series) -> None:
        """Keeps the marker for as long as a series is in the hands of senders, or not whole."""
        if series.senders or series.broken:
            _touch(self._marker(key))
        else:
            self._marker(key).unlink(missing_ok=True)

    def _marker(self, key: str) -> Path:
        return self.folder / f"{key}{_MARKER}"

    def _take_up(self) -> None:
        """Finds what an earlier process received; the caller knows which series are done."""
        for folder in sorted(path for path in self.folder.iterdir() if path.is_dir()):
            for leftover in folder.glob("*.part"):
                leftover.unlink(missing_ok=True)
            files = sum(1 for _ in folder.glob("*.dcm"))
            if files:
                broken = self._marker(folder.name).exists()
                self._series[folder.name] = _Series(self._clock(), files, broken=broken, news=True)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    part = path.with_name(f"{path.stem}.{secrets.token_hex(4)}.part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _touch(path: Path) -> None:
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
