"""While one case is predicted, the next is read and the one before is written.

The three stages run in three threads of one process: decompression, numpy and the network release Python's lock. The
side threads have the priority of the network: a lower one made no case faster on two cores, and starves them on a busy
machine. What is held stays bounded: one case is read ahead, one is computed, one is written; where images are large, or
a budget was given, the next is only read when nothing else is held.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import Protocol

from unet_med.errors import UnetMedError

Tell = Callable[[str, object], None]
"""Sends a message: ``done`` with a record, ``refused`` with an error that ends the job."""


class Work(Protocol):
    """A case in stages; each stage keeps to itself what goes wrong with the case."""

    @property
    def image_bytes(self) -> int:
        """Memory of the image and its labels."""
        ...

    def read(self) -> None: ...  # noqa: D102
    def compute(self) -> None: ...  # noqa: D102
    def write(self) -> None: ...  # noqa: D102
    def result(self) -> object:
        """Returns the record; raises UnetMedError when the job cannot go on."""
        ...


class CaseLine:
    """Does cases as they come, until the process ends.

    Args:
        ask: Waits for the next case; called when there is room for one.
        tell: Is given the results; called from several threads.
        budget: Returns how many bytes the images of all cases in work may take; a case that is alone is done whatever
            its size.
    """

    def __init__(self, ask: Callable[[], Work], tell: Tell, budget: Callable[[], float]) -> None:
        self._ask = ask
        self._tell = tell
        self._budget = budget
        self._ahead: queue.Queue[Work] = queue.Queue()
        self._behind: queue.Queue[Work] = queue.Queue()
        self._room_ahead = threading.Semaphore(1)
        self._room_behind = threading.Semaphore(1)
        self._held: list[Work] = []
        self._changed = threading.Condition()

    def run(self) -> None:
        """Computes in this thread; never returns."""
        for side in (self._read_ahead, self._write_behind):
            threading.Thread(target=_or_end, args=(side,), daemon=True).start()
        while True:
            work = self._ahead.get()
            self._room_ahead.release()
            work.compute()
            self._room_behind.acquire()
            self._behind.put(work)

    def _read_ahead(self) -> None:
        while True:
            self._room_ahead.acquire()
            work = self._ask()
            with self._changed:
                self._changed.wait_for(lambda: self._fits(work))  # noqa: B023 - waited for at once
                self._held.append(work)
            work.read()
            self._ahead.put(work)

    def _fits(self, work: Work) -> bool:
        return not self._held or sum(one.image_bytes for one in (*self._held, work)) <= self._budget()

    def _write_behind(self) -> None:
        while True:
            work = self._behind.get()
            work.write()
            try:
                self._tell("done", work.result())
            except UnetMedError as error:
                self._tell("refused", error)
            self._room_behind.release()
            with self._changed:
                self._held.remove(work)
                self._changed.notify()


def _or_end(side: Callable[[], None]) -> None:
    """Runs a side thread; what it cannot handle ends the process, as it would in the main one."""
    try:
        side()
    except BaseException:  # noqa: BLE001 - whatever it is, nobody else would hear of it
        sys.excepthook(*sys.exc_info())
        os._exit(1)
