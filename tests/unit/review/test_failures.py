"""What single cases say: how sure the mean is, and where a model failed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unet_med.metrics import summarise
from unet_med.review.failures import failures, intervals


def _case(number: int, dice: float | None, mask: int = 10, label: int = 10) -> dict[str, Any]:
    scores = {"dice": dice, "iou": dice, "hd95_mm": None, "nsd": dice, "volume_error_ml": None}
    return {"id": str(number), "labels": {"liver": {**scores, "mask_voxels": mask, "label_voxels": label}}}


def _cases(*scored: dict[str, Any]) -> list[dict[str, Any]]:
    """As they are in ``metrics.json``."""
    return summarise(list(scored))["cases"]


def test_an_interval_holds_the_mean_and_becomes_narrower() -> None:
    values = np.random.default_rng(0).normal(0.8, 0.1, 64)
    few, many = (intervals(_cases(*(_case(n, v) for n, v in enumerate(values[:size]))))["liver"] for size in (8, 64))
    assert many[0] < values.mean() < many[1]
    assert many[1] - many[0] < few[1] - few[0]


def test_too_few_cases_have_no_interval() -> None:
    assert intervals(_cases(_case(0, 0.8), _case(1, 0.9))) == {}
    assert intervals([]) == {}


def test_a_model_that_did_well_has_no_failures() -> None:
    assert failures(_cases(_case(0, 0.8), _case(1, None, 0, 0))) == []


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        (_case(1, 0.0, mask=0), "liver was not found at all in 1 of 2 cases that have it"),
        (_case(1, 0.0, label=0), "liver was found in 1 of 1 cases that have none"),
        (_case(1, 0.41), "Dice of liver is below 0.7 in 1 of 2 cases, the lowest 0.41"),
    ],
)
def test_each_kind_of_failure_is_told(case: dict[str, Any], sentence: str) -> None:
    assert sentence in failures(_cases(_case(0, 0.9), case))


def test_objects_are_judged_by_their_average_precision() -> None:
    cases = [{"id": str(n), "instance": {"ap_mean": ap}} for n, ap in enumerate((0.8, 0.2, 0.7, None))]
    assert failures(cases) == ["AP of objects is below 0.5 in 1 of 3 images, the lowest 0.20"]
    low, high = intervals(cases)["objects"]
    assert 0.2 <= low < high <= 0.8
