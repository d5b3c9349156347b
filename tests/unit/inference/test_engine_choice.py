from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from openvino_checks import request, windows

from unet_med.errors import MachineError, UsageError
from unet_med.inference.engine import EngineRequest, choice, open_engine
from unet_med.inference.engine.cache import EngineCache
from unet_med.inference.engine.choice import MeasuringEngine, cache_key


class Clock:
    """Time that passes only when an engine works."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Fake:
    """An engine whose calls take given times, the last of them again and again, and add a given value."""

    precision = "fp32"
    why = "fake"

    def __init__(self, name: str, clock: Clock, seconds: Sequence[float], adds: float = 0.0) -> None:
        self.name = name
        self.clock = clock
        self.seconds = list(seconds)
        self.adds = adds
        self.error: Exception | None = None
        self.calls = 0
        self.closed = False

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        assert not self.closed
        if self.error is not None:
            raise self.error
        self.clock.now += self.seconds[min(self.calls, len(self.seconds) - 1)]
        self.calls += 1
        return batch + self.adds

    def close(self) -> None:
        self.closed = True


class Trial:
    """Two fake engines, and what was decided."""

    def __init__(self, first: Sequence[float], second: Sequence[float], after: float = 3.0, adds: float = 0.0) -> None:
        clock = Clock()
        self.first = Fake("torch", clock, first)
        self.second = Fake("openvino", clock, second, adds)
        self.decisions: list[tuple[str, str]] = []
        self.opened = 0
        self.no_rival: Exception | None = None
        self.engine = MeasuringEngine(self.first, self.open, after, self.decide, clock)

    def open(self) -> Fake:
        if self.no_rival is not None:
            raise self.no_rival
        self.opened += 1
        return self.second

    def decide(self, name: str, why: str) -> None:
        self.decisions.append((name, why))


BATCH = torch.ones(2, 1, 4, 4)


def test_little_work_never_meets_the_second_engine() -> None:
    trial = Trial(first=[1.0], second=[0.1])
    trial.engine(BATCH)
    trial.engine(BATCH)
    assert (trial.opened, trial.engine.name, trial.engine.why, trial.decisions) == (0, "torch", "fake", [])


def test_the_faster_engine_goes_on() -> None:
    trial = Trial(first=[4.4], second=[3.0])
    assert torch.equal(trial.engine(BATCH), BATCH)
    why = "openvino fp32: 1.5 s a window, torch fp32: 2.2 s"
    assert (trial.engine.name, trial.engine.why) == ("openvino", why)
    assert trial.decisions == [("openvino", why)]
    assert trial.first.closed
    trial.engine(BATCH)
    assert (trial.first.calls, trial.second.calls, trial.opened) == (1, 2, 1)


def test_the_slower_engine_is_closed() -> None:
    trial = Trial(first=[3.0], second=[4.4])
    trial.engine(BATCH)
    trial.engine(BATCH)
    assert trial.engine.why == "torch fp32: 1.5 s a window, openvino fp32: 2.2 s"
    assert (trial.engine.name, trial.first.calls, trial.second.closed) == ("torch", 2, True)


def test_fast_windows_are_run_twice_so_that_setting_up_does_not_count() -> None:
    trial = Trial(first=[0.4, 0.1], second=[0.5, 0.05], after=0.0)
    trial.engine(BATCH)
    assert trial.engine.why == "openvino fp32: 25 ms a window, torch fp32: 50 ms"


@pytest.mark.parametrize("adds", [0.1, float("nan"), float("inf")])
def test_an_engine_with_other_results_is_not_used_however_fast(adds: float) -> None:
    trial = Trial(first=[3.0], second=[1.0], adds=adds)
    assert torch.equal(trial.engine(BATCH), BATCH)
    assert trial.engine.name == "torch"
    assert "differs from torch fp32 by" in trial.engine.why
    assert trial.decisions[0][0] == "torch"
    assert torch.equal(trial.engine(BATCH), BATCH)


def test_results_within_the_tolerance_agree() -> None:
    trial = Trial(first=[3.0], second=[1.0], adds=0.5e-3)
    trial.engine(BATCH)
    assert trial.engine.name == "openvino"


def test_zeros_agree_with_zeros() -> None:
    trial = Trial(first=[3.0], second=[1.0])
    trial.engine(torch.zeros_like(BATCH))
    assert trial.engine.name == "openvino"


@pytest.mark.parametrize("fails", ["opening", "running"])
def test_an_engine_that_fails_does_no_harm(fails: str) -> None:
    trial = Trial(first=[3.0], second=[1.0])
    if fails == "opening":
        trial.no_rival = MachineError("openvino cannot load the network")
    else:
        trial.second.error = RuntimeError("no")
    assert torch.equal(trial.engine(BATCH), BATCH)
    assert torch.equal(trial.engine(BATCH), BATCH)
    expected = {"opening": "openvino cannot load the network", "running": "openvino failed: RuntimeError"}[fails]
    assert (trial.engine.name, trial.engine.why, trial.decisions) == ("torch", expected, [])
    assert trial.second.closed == (fails == "running")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., EngineCache]:
    """Returns a cache, and stands in for an OpenVINO of which only the conversion is known."""

    def stand_in(version: str | None = "1") -> EngineCache:
        def convert(_: EngineRequest, folder: Path) -> None:
            (folder / "model.xml").write_text("converted")

        def opened(_: EngineRequest, folder: Path, why: str) -> Fake:
            assert (folder / "model.xml").read_text() == "converted"
            fake = Fake("openvino", Clock(), [0.0])
            fake.why = why
            return fake

        monkeypatch.setattr(choice, "openvino_version", lambda: version)
        monkeypatch.setattr(choice, "convert", convert)
        monkeypatch.setattr(choice, "OpenVinoEngine", opened)
        return EngineCache(tmp_path / "engines")

    return stand_in


def test_what_is_asked_for_is_opened(installed: Callable[..., EngineCache]) -> None:
    cache = installed()
    assert open_engine(request(2), "torch", cache).why == "torch was asked for"
    engine = open_engine(request(2), "openvino", cache)
    assert (engine.name, engine.why) == ("openvino", "openvino was asked for")


def test_without_openvino(installed: Callable[..., EngineCache]) -> None:
    cache = installed(None)
    engine = open_engine(request(2), "auto", cache)
    assert (engine.name, engine.why) == ("torch", "openvino is not installed")
    with pytest.raises(UsageError, match="not installed") as caught:
        open_engine(request(2), "openvino", cache)
    assert "pip install openvino" in caught.value.remedy


@pytest.mark.parametrize("wanted", ["auto", "openvino", "torch"])
def test_what_is_no_cpu_runs_torch(installed: Callable[..., EngineCache], wanted: Any) -> None:
    engine = open_engine(request(2, device=torch.device("meta")), wanted, installed())
    assert (engine.name, engine.why) == ("torch", "openvino is for CPUs, this is meta")


@pytest.mark.parametrize("winner", ["torch", "openvino"])
def test_a_measurement_is_believed_for_some_time(
    installed: Callable[..., EngineCache], monkeypatch: pytest.MonkeyPatch, winner: str
) -> None:
    cache = installed()
    asked = request(2)
    monkeypatch.setattr(choice, "_TRIED_AFTER_SECONDS", 0.0)
    engine = open_engine(asked, "auto", cache)
    assert isinstance(engine, MeasuringEngine)
    cache.put(cache_key(asked, "1"), lambda folder: choice.convert(asked, folder))
    engine._decided(winner, "it was faster")
    again = open_engine(asked, "auto", cache)
    assert (again.name, again.why) == (winner, "it was faster (measured earlier)")
    other_threads = torch.get_num_threads() + 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: other_threads)
    assert isinstance(open_engine(asked, "auto", cache), MeasuringEngine)


def test_what_lies_in_the_cache_is_tried_at_once(installed: Callable[..., EngineCache]) -> None:
    cache = installed()
    asked = request(2)
    open_engine(asked, "openvino", cache)
    engine = open_engine(asked, "auto", cache)
    engine(windows(asked))
    assert engine.why.startswith("openvino failed"), "the stand-in returns its input, which has another shape"


@pytest.mark.parametrize(
    "change",
    [{"window": (16, 16)}, {"context": (1, 1)}, {"channels": 1}, {"features": True}, {"sha256": "1" * 64}],
    ids=str,
)
def test_the_key_knows_what_is_converted(change: dict[str, Any]) -> None:
    assert cache_key(request(2), "1") == cache_key(request(2), "1")
    assert cache_key(request(2), "1") != cache_key(request(2, **change), "1")
    assert cache_key(request(2), "1") != cache_key(request(2), "2")
