"""Pieces of work that take hours, each in a process of its own, for example one on each card.

The processes are fresh interpreters. They end when asked to, as after SIGTERM, and when the process that started them
is gone; Ctrl-C reaches that one alone, so that each of them is asked once and can write its checkpoint.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

from unet_med.errors import MachineError, Terminated
from unet_med.redaction import PrivateFormatter

T = TypeVar("T")
R = TypeVar("R")


def in_processes(work: Callable[[T, int], R], items: Sequence[T], places: int) -> Iterator[tuple[int, R]]:
    """Does pieces of work, as many at a time as there are places; yields each as soon as it is done.

    Args:
        work: A function of a module; given an item and the number of a free place, from 0.
        items: What it is given; items and results are pickled.
        places: Number of places.

    Yields:
        The number of an item, and what ``work`` returned for it.

    Raises:
        MachineError: when a process dies.
        Exception: what ``work`` raised; the other processes are asked to stop first.
    """
    context = multiprocessing.get_context("spawn")
    waiting, free = list(range(len(items))), list(range(places))
    running: dict[Connection, tuple[SpawnProcess, int, int]] = {}
    try:
        while waiting or running:
            while waiting and free:
                number, place = waiting.pop(0), free.pop(0)
                ours, theirs = context.Pipe()
                level = logging.getLogger().getEffectiveLevel()
                process = context.Process(target=_main, args=(theirs, work, items[number], place, level))
                process.start()
                theirs.close()
                running[ours] = process, number, place
            ready = wait(list(running))
            for connection in [one for one in running if one in ready]:
                process, number, place = running.pop(connection)
                yield number, _answer(connection, process)
                free.append(place)
    finally:
        for process, _, _ in running.values():
            process.terminate()
        for process, _, _ in running.values():
            process.join()


def _answer(connection: Connection, process: SpawnProcess) -> Any:
    """Returns what a process has to say and waits for its end."""
    try:
        done, value = connection.recv()
    except (EOFError, OSError):
        process.join()
        code = process.exitcode or 0
        raise MachineError(
            f"a process that trains died ({f'signal {-code}' if code < 0 else f'exit code {code}'})",
            remedy="its own message says why, if it had the time; then start the same command again with --resume",
        ) from None
    connection.close()
    process.join()
    if not done:
        raise value
    return value


def _main(connection: Connection, work: Callable[[Any, int], Any], item: Any, place: int, level: int) -> None:
    """What such a process does."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C in a terminal goes to a whole session
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_follow, args=(connection,), daemon=True).start()
    handler = logging.StreamHandler()
    handler.setFormatter(PrivateFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    answer: tuple[bool, Any]
    try:
        answer = True, work(item, place)
    except Exception as error:  # noqa: BLE001 - raised again where the work was ordered
        answer = False, error
    except (KeyboardInterrupt, Terminated):
        return
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the other end closes the pipe when it has the answer
    connection.send(answer)


def _stop(_number: int, _frame: object) -> None:
    raise Terminated


def _follow(connection: Connection) -> None:
    """Asks this process to stop when the other end of the pipe, which never says anything, is gone."""
    try:
        connection.recv()
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)
