"""Calls to a store that goes away and comes back."""

from __future__ import annotations

import logging
import time
from threading import Timer

import pytest

from unet_med.training import outbox as module
from unet_med.training.outbox import PICTURE, Outbox


class LostError(Exception):
    error_code = "TEMPORARILY_UNAVAILABLE"


class RefusedError(LostError):
    error_code = "INVALID_PARAMETER_VALUE"


class Server:
    def __init__(self) -> None:
        self.here = True
        self.received: list[str] = []

    def take(self, what: str) -> None:
        if not self.here:
            raise LostError("/home/jane/secret")
        self.received.append(what)


def test_nothing_is_lost_and_the_order_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    server, outbox = Server(), Outbox((LostError,), retry_seconds=0.0)
    outbox.send("a", lambda: server.take("a"))
    server.here = False
    with caplog.at_level(logging.WARNING):
        outbox.send("b", lambda: server.take("b"))
        outbox.flush(now=True)
        outbox.send("c", lambda: server.take("c"))
    assert len(outbox) == 2
    assert [record.message for record in caplog.records] == [
        "the MLflow store does not answer; training goes on, records wait"
    ]
    assert "jane" not in caplog.text
    server.here = True
    outbox.flush(now=True)
    assert server.received == ["a", "b", "c"]
    assert len(outbox) == 0


def test_at_the_end_it_waits_for_a_server_that_comes_back() -> None:
    server, outbox = Server(), Outbox((LostError,), retry_seconds=60.0)
    server.here = False
    outbox.send("a", lambda: server.take("a"))
    Timer(0.1, lambda: setattr(server, "here", True)).start()
    outbox.drain(patience_seconds=30.0, pause_seconds=0.02)
    assert server.received == ["a"]


def test_at_the_end_it_does_not_wait_for_ever() -> None:
    server, outbox = Server(), Outbox((LostError,))
    server.here = False
    outbox.send("a", lambda: server.take("a"))
    began = time.monotonic()
    outbox.drain(patience_seconds=0.1, pause_seconds=0.02)
    assert time.monotonic() - began < 10
    assert len(outbox) == 1


def test_a_lost_server_is_not_asked_at_every_call() -> None:
    asked = []

    def call() -> None:
        asked.append(1)
        raise LostError

    outbox = Outbox((LostError,), retry_seconds=60.0)
    for _ in range(5):
        outbox.send("metrics", call)
    assert len(asked) == 1


def test_a_slow_failure_is_followed_by_a_longer_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    asked = []

    def call() -> None:
        asked.append(now[0])
        now[0] += 20
        raise LostError

    outbox = Outbox((LostError,), retry_seconds=30.0)
    outbox.send("metrics", call)
    now[0] += 100
    outbox.flush()
    assert asked == [100.0]
    now[0] += 301
    outbox.flush()
    assert len(asked) == 2


def test_a_refused_call_is_left_out_and_the_rest_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()

    def refused() -> None:
        raise RefusedError("/home/jane/secret")

    outbox = Outbox((LostError,))
    outbox.send("tags", refused)
    outbox.send("tags", refused)
    outbox.send("metrics", lambda: server.take("metrics"))
    assert server.received == ["metrics"]
    assert [record.message for record in caplog.records] == ["MLflow refused tags (RefusedError); it is left out"]


def test_other_errors_are_not_hidden() -> None:
    outbox = Outbox((LostError,))
    with pytest.raises(ZeroDivisionError):
        outbox.send("metrics", lambda: 1 / 0)


def test_a_long_outage_costs_pictures_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_WAITING_PICTURES", 2)
    monkeypatch.setattr(module, "_MOST_WAITING", 5)
    server, outbox = Server(), Outbox((LostError,))
    server.here = False
    for name in ("m1", "p1", "p2", "m2", "p3", "m3", "m4"):
        outbox.send(PICTURE if name[0] == "p" else "metrics", lambda name=name: server.take(name))
    server.here = True
    outbox.flush(now=True)
    assert server.received == ["p2", "m2", "p3", "m3", "m4"]
