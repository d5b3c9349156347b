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
    if total is None and isinstance(items, Sized):
        total = len(items)
    if sys.stderr.isatty():
        yield from _with_bar(items, description, total)
        return
    started = last = time.monotonic()
    for number, item in enumerate(items):
        now = time.monotonic()
        if now - started > _QUIET_SECONDS and now - last > _LINE_SECONDS:
            last = now
            sys.stderr.write(f"{description}: {number}{f'/{total}' if total else ''}\n")
        yield item


def _with_bar(items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    started = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=total, visible=False)
        for item in items:
            progress.update(task, visible=time.monotonic() - started > _QUIET_SECONDS)
            yield item
            progress.advance(task)
