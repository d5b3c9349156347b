"""What a run says of how it was trained."""

from __future__ import annotations

import pytest

from unet_med.config import PipelineConfig
from unet_med.errors import UsageError
from unet_med.training.past_run import PastRun, _fold

RUN = PastRun(PipelineConfig(name="a"), "0", "d" * 64, None, "abc", "1.0")


@pytest.mark.parametrize(("tag", "fold"), [("fold_0", "0"), ("fold_12", "12"), ("cv", "cv"), ("all", "all")])
def test_the_fold_is_said_as_train_takes_it(tag: str, fold: str) -> None:
    assert _fold(tag) == fold


@pytest.mark.parametrize("tag", ["fold_0-low_1", "all-low_0", "", "fold_"])
def test_the_first_stage_of_a_cascade_is_not_trained_alone(tag: str) -> None:
    with pytest.raises(UsageError, match="the run above it"):
        _fold(tag)


def test_the_same_data_and_the_same_beginning_are_taken() -> None:
    RUN.require_same("d" * 64, None)
    with pytest.raises(UsageError, match="digest is another"):
        RUN.require_same("e" * 64, None)
    with pytest.raises(UsageError, match="fresh weights"):
        RUN.require_same("d" * 64, "f" * 64)


def test_what_may_differ_is_said() -> None:
    assert RUN.remarks("abc", "1.0") == []
    assert RUN.remarks("abd", "1.1") == ["trained again with unet-med 1.1 (abd), the run was made by 1.0 (abc)"]
    timed = PastRun(RUN.config.replacing({"training.max_minutes": 5}), "0", "", None, None, None)
    (by, steps) = timed.remarks(None, "1.0")
    assert by.endswith("made by an unknown version")
    assert "a faster machine takes more" in steps
