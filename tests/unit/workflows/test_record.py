"""What training tells the tracker, also after an interruption while the store was away."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from unet_med.labels import LabelMap
from unet_med.training.tracking import NullTracker
from unet_med.workflows.last_look import CALIBRATION, CONFUSION, joined_looks, worst_cases
from unet_med.workflows.record import Recorder, told_results


class Told(NullTracker):
    def __init__(self, known: int) -> None:
        super().__init__()
        self.last = known
        self.epochs: list[tuple[int, dict[str, float]]] = []

    def epoch(self, step: int, metrics: Any) -> None:
        """As the tracker, leaves out what the run already holds."""
        if step > self.last:
            self.last = step
            self.epochs.append((step, dict(metrics)))


def _recorder(tracker: Told, history: list[dict[str, float]]) -> Recorder:
    trainer: Any = SimpleNamespace(history=history, device=torch.device("cpu"))
    return Recorder(tracker, [], LabelMap.from_names({"background": 0, "a": 1}), draws_validation=True, trainer=trainer)


@pytest.mark.parametrize("known", [0, 2, 4])
def test_a_resumed_run_tells_what_waited_when_it_was_interrupted(known: int) -> None:
    history = [{"train/loss": 1.0 / epoch} for epoch in range(1, 5)]
    tracker = Told(known)
    recorder = _recorder(tracker, history)
    history.append({"train/loss": 0.1})
    recorder(5, history[-1], {})
    recorder.catch_up(5)
    assert [step for step, _ in tracker.epochs] == list(range(known + 1, 6))
    assert all(metrics["train/loss"] == history[step - 1]["train/loss"] for step, metrics in tracker.epochs)
    assert "system/cpu_utilization_percentage" in tracker.epochs[-1][1]


def test_a_run_that_only_had_to_be_scored_tells_its_epochs_too() -> None:
    tracker = Told(1)
    _recorder(tracker, [{"train/loss": 1.0}, {"train/loss": 0.5}]).catch_up(2)
    assert tracker.epochs == [(2, {"train/loss": 0.5})]


def _metrics(*dice: float | None) -> dict[str, Any]:
    return {"n_cases": len(dice), "cases": [{"id": str(n), "dice": {"a": value}} for n, value in enumerate(dice)]}


def test_the_worst_cases_come_first() -> None:
    assert worst_cases(_metrics(0.9, 0.2, None, 0.5)) == [("1", 0.2), ("3", 0.5), ("0", 0.9)]
    objects = {"cases": [{"id": "x", "dice": {"a": 0.1}, "instance": {"ap_mean": 0.7}}]}
    assert worst_cases(objects) == [("x", 0.7)]


def test_a_bundle_keeps_no_single_case_and_no_table() -> None:
    metrics = _metrics(0.9, 0.6, 0.8) | {CONFUSION: {"table": [[1]]}, CALIBRATION: {"a": {"error": 0.02, "said": [1]}}}
    told = told_results(metrics)
    assert set(told) == {"n_cases", "intervals", "failures", "calibration_error"}
    assert told["calibration_error"] == {"a": 0.02}
    assert told["failures"] == ["Dice of a is below 0.7 in 1 of 3 cases, the lowest 0.60"]


def test_looks_at_the_folds_are_put_together() -> None:
    entry = {"error": 0.1, "voxels": [1] * 10, "said": [0.5] * 10, "true": [1] * 10}
    part = {CONFUSION: {"labels": ["background", "a"], "table": [[3, 1], [0, 2]]}, CALIBRATION: {"a": entry}}
    both = joined_looks([part, part])
    assert both[CONFUSION] == {"labels": ["background", "a"], "table": [[6, 2], [0, 4]]}
    assert both[CALIBRATION]["a"]["voxels"] == [2] * 10
    assert joined_looks([part, {}]) == {}
    assert joined_looks([]) == {}
