"""Cases in a line: read ahead, computed, written behind; never more than that at a time."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest

from unet_med.errors import MachineError
from unet_med.inference.overlap import CaseLine

TIMEOUT = 10.0


class _Gates:
    """Stages that wait until a test lets them go on, and a log of what began and ended."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self._open: set[str] = set()
        self._changed = threading.Condition()

    def pass_through(self, name: str) -> None:
        with self._changed:
            self.log.append(f"{name} begins")
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: name in self._open, TIMEOUT)
            self.log.append(f"{name} ends")
            self._changed.notify_all()

    def open(self, *names: str) -> None:
        with self._changed:
            self._open |= set(names)
            self._changed.notify_all()

    def wait(self, entry: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: entry in self.log, TIMEOUT), f"{entry}: not in {self.log}"


class _Work:
    def __init__(self, name: str, gates: _Gates, image_bytes: int = 1, error: MachineError | None = None) -> None:
        self.name, self.gates, self.image_bytes, self.error = name, gates, image_bytes, error

    def read(self) -> None:
        self.gates.pass_through(f"read {self.name}")

    def compute(self) -> None:
        self.gates.pass_through(f"compute {self.name}")

    def write(self) -> None:
        self.gates.pass_through(f"write {self.name}")

    def result(self) -> str:
        if self.error is not None:
            raise self.error
        return self.name


class _Line:
    """A line in a thread of its own, and what it asked for and told."""

    def __init__(self, budget: float = 100.0) -> None:
        self.gates = _Gates()
        self.asked = threading.Semaphore(0)
        self.told: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._works: queue.Queue[_Work] = queue.Queue()
        line = CaseLine(self._ask, lambda kind, content: self.told.put((kind, content)), lambda: budget)
        threading.Thread(target=line.run, daemon=True).start()

    def _ask(self) -> _Work:
        self.asked.release()
        return self._works.get()

    def give(self, name: str, **options: Any) -> None:
        assert self.asked.acquire(timeout=TIMEOUT), "it did not ask for another case"
        self._works.put(_Work(name, self.gates, **options))

    def result(self) -> tuple[str, Any]:
        return self.told.get(timeout=TIMEOUT)


def test_the_next_is_read_and_the_one_before_written_while_one_is_computed() -> None:
    line = _Line()
    line.give("a")
    line.gates.open("read a", "compute a")
    line.give("b")
    line.gates.open("read b")
    line.give("c")
    for stage in ("write a", "compute b", "read c"):
        line.gates.wait(f"{stage} begins")
    line.gates.open("compute b", "read c")
    line.gates.wait("compute b ends")
    assert not line.asked.acquire(timeout=0.1), "a fourth case was asked for while three are in work"
    assert "compute c begins" not in line.gates.log, "two cases wait behind the one that is written"
    assert line.told.empty()
    line.gates.open("write a", "write b", "compute c", "write c")
    assert [line.result() for _ in range(3)] == [("done", "a"), ("done", "b"), ("done", "c")]


def test_large_images_are_done_one_after_the_other() -> None:
    line = _Line(budget=100.0)
    line.give("large", image_bytes=1000)
    line.gates.open("read large")
    line.gates.wait("compute large begins")
    line.give("small")
    line.gates.open("compute large", "read small", "compute small", "write small")
    line.gates.wait("write large begins")
    assert "read small begins" not in line.gates.log
    line.gates.open("write large")
    assert [line.result()[1] for _ in range(2)] == ["large", "small"]
    assert line.gates.log.index("write large ends") < line.gates.log.index("read small begins")


def test_what_cannot_be_written_ends_the_job_and_not_the_case_that_is_computed() -> None:
    line = _Line()
    full = MachineError("disk full", "a", "free some space")
    line.give("a", error=full)
    line.gates.open("read a", "compute a", "read b")
    line.give("b")
    line.gates.wait("compute b begins")
    line.gates.open("write a", "write b")
    assert line.result() == ("refused", full)
    line.gates.open("compute b")
    assert line.result() == ("done", "b")


def test_a_broken_side_thread_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the process would wait for ever for a case that nobody reads."""
    ended: queue.Queue[int] = queue.Queue()
    monkeypatch.setattr("unet_med.inference.overlap.os._exit", ended.put)
    monkeypatch.setattr("sys.excepthook", lambda *_: None)

    def ask() -> _Work:
        raise ZeroDivisionError

    line = CaseLine(ask, lambda *_: None, lambda: 1.0)
    threading.Thread(target=line.run, daemon=True).start()
    assert ended.get(timeout=TIMEOUT) == 1
