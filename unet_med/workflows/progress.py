"""Progress for people: a bar on a terminal, a line now and then elsewhere, nothing for what takes under two seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")
_QUIET_SECONDS = 2.0
_LINE_SECONDS = 30.0


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yields ``items`` and shows how far it is, on stderr."""
    if sys.stderr.isatty():
        yield from _with_bar(items, description, total)
        return
    started = last = time.monotonic()
    for number, item in enumerate(items):
        now = time.monotonic()
        if now - started > _QUIET_SECONDS and now - last > _LINE_SECONDS:
            last = now
            of = _count(items, total)
            sys.stderr.write(f"{description}: {number}{f'/{of}' if of else ''}\n")
        yield item


def _count(items: Iterable[T], total: int | None) -> int | None:
    """Asked every time: the steps of a training with a time budget become more or fewer on the way."""
    return len(items) if total is None and isinstance(items, Sized) else total


def _with_bar(items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    started = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=_count(items, total), visible=False)
        for item in items:
            visible = time.monotonic() - started > _QUIET_SECONDS
            progress.update(task, total=_count(items, total), visible=visible)
            yield item
            progress.advance(task)
