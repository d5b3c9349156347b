"""The peak of memory of several cases at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
from fresh_process import in_fresh_process

from unet_med.inference import peak
from unet_med.inference.peak import PeakMeter


def test_spans_that_overlap_have_their_own_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak between two events is charged to every span that is open then, and to no other."""
    since_last = [100.0]
    monkeypatch.setattr(peak, "peak_mb", lambda: since_last[0])
    meter = PeakMeter()
    first = meter.begin()
    since_last[0] = 300.0
    second = meter.begin()
    since_last[0] = 200.0
    assert meter.end(first) == 300.0
    since_last[0] = 150.0
    assert meter.end(second) == 200.0


@pytest.mark.skipif(not peak._RESET.exists(), reason="this system does not forget a peak")
def test_memory_that_was_given_back_is_not_charged_to_the_next_span(tmp_path: Path) -> None:
    in_fresh_process(tmp_path, "memory_checks", "memory_given_back_is_not_charged_to_the_next_span")
