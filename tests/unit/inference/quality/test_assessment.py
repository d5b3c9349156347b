"""What bundles learnt from held-out cases becomes numbers and sentences about a case."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from unet_med.inference.quality.assessment import Assessment, Assessor, quality_lines, quality_meta
from unet_med.inference.quality.calibration import Estimate
from unet_med.inference.quality.outliers import Typical


@dataclass
class Seen:
    """Stands in for what was gathered of a case."""

    models: list[dict[str, Any]]
    traits: dict[str, float] = field(default_factory=dict)
    agreements: dict[str, float] = field(default_factory=dict)

    def features(self) -> list[dict[str, Any]]:
        return self.models

    def agreement(self) -> dict[str, float]:
        return self.agreements


def _features(expected: float | None) -> dict[str, float | None]:
    return {"expected_dice": expected, "edge_doubt": None if expected is None else 0.2, "mirror_dice": None}


def _scored(count: int = 40, seed: int = 0, noise: float = 0.02) -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        expected = float(random.uniform(0.4, 0.95))
        dice = float(np.clip(expected - 0.05 + random.normal(0, noise), 0, 1))
        liver = {"dice": dice, "label_voxels": 9, "mask_voxels": 8, **_features(expected)}
        cyst = {"dice": None, "label_voxels": 0, "mask_voxels": 0, **_features(None)}
        rows.append({"id": f"case{number}", "labels": {"liver": liver, "cyst": cyst}})
    return rows


@pytest.fixture
def meta() -> dict[str, Any]:
    known = Typical.of([{"middle/0": float(value)} for value in np.random.default_rng(0).normal(size=30)])
    stored = {"quality": quality_meta(_scored()), "typical": known.to_json()}
    return json.loads(json.dumps(stored, allow_nan=False))


def test_a_good_case_is_left_in_peace(meta: dict[str, Any]) -> None:
    seen = Seen([{"liver": _features(0.9), "cyst": _features(None)}], {"middle/0": 0.1})
    found = Assessor([meta]).assess(seen)
    assert found.predicted_dice["liver"].value == pytest.approx(0.85, abs=0.03)
    assert set(found.predicted_dice) == {"liver"}
    assert (found.unusual, found.look_at) == ([], [])


def test_a_bad_case_is_to_be_looked_at(meta: dict[str, Any]) -> None:
    found = Assessor([meta]).assess(Seen([{"liver": _features(0.3), "cyst": _features(None)}], {"middle/0": 40.0}))
    assert found.predicted_dice["liver"].high < 0.6
    assert found.look_at[0].startswith("predicted Dice of liver 0.")
    assert "nine of ten held-out cases reach 0.4" in found.look_at[0]
    assert found.look_at[1:] == found.unusual
    assert len(found.unusual) == 1


def test_a_missing_structure_that_is_always_there(meta: dict[str, Any]) -> None:
    found = Assessor([meta]).assess(Seen([{"liver": _features(None), "cyst": _features(None)}]))
    assert found.predicted_dice == {"liver": Estimate(0.0, 0.0, 0.0)}
    assert found.look_at == ["no voxel is liver, which every held-out case has"]


def test_models_are_asked_one_by_one_and_averaged(meta: dict[str, Any]) -> None:
    other = {"quality": quality_meta(_scored(seed=1))}
    features = [{"liver": _features(value), "cyst": _features(None)} for value in (0.6, 0.9)]
    alone = [Assessor([one]).assess(Seen([own])) for one, own in zip((meta, other), features, strict=True)]
    together = Assessor([meta, other]).assess(Seen(features, agreements={"liver": 0.77}))
    expected = np.mean([found.predicted_dice["liver"].value for found in alone])
    assert together.predicted_dice["liver"].value == pytest.approx(expected)
    assert together.to_json()["agreement"] == {"liver": 0.77}
    half = Assessor([meta, {}]).assess(Seen(features))
    assert half.predicted_dice == alone[0].predicted_dice


def test_a_rule_that_is_no_better_than_the_mean_warns_of_nothing() -> None:
    rows = _scored()
    for row, dice in zip(rows, np.random.default_rng(5).uniform(0.5, 0.9, len(rows)), strict=True):
        row["labels"]["liver"]["dice"] = float(dice)
    found = Assessor([{"quality": quality_meta(rows)}]).assess(
        Seen([{"liver": _features(0.1), "cyst": _features(None)}])
    )
    assert found.predicted_dice["liver"].value == pytest.approx(0.7, abs=0.05)
    assert found.look_at == []


@pytest.mark.parametrize("older", [{}, {"quality": 3}, {"quality": {"schema": 9, "labels": {}}}, {"typical": "x"}])
def test_a_bundle_that_knows_nothing_says_nothing(older: dict[str, Any]) -> None:
    assessor = Assessor([older])
    assert not assessor.knows_anything
    assert assessor.assess(Seen([{"liver": _features(0.3)}], {"middle/0": 40.0})) == Assessment()
    assert quality_lines(older) == []


def test_no_held_out_case_calibrates_nothing() -> None:
    assert quality_meta([]) == {"schema": 1, "cases": 0, "labels": {}}


def test_few_held_out_cases_say_so() -> None:
    lines = quality_lines({"quality": quality_meta(_scored(4)), "typical": Typical.of([{"dark/0": 0.0}] * 3).to_json()})
    assert lines == [
        "Dice of liver: not predicted: 4 held-out cases, at least 10 are needed",
        "Dice of cyst: not predicted: 0 held-out cases, at least 10 are needed",
        "unusual images are not recognised: 3 cases of training say too little",
    ]


def test_the_words_of_info(meta: dict[str, Any]) -> None:
    liver, cyst, unusual = quality_lines(meta)
    assert "Dice of liver: predicted by" in liver
    assert "40 held-out cases" in liver
    assert "not predicted" in cyst
    assert unusual == "unusual images are recognised by 1 traits of 30 cases"


def test_frames_together_have_the_worst_dice_and_every_sentence_once() -> None:
    one = Assessment({"a": Estimate(0.9, 0.8, 0.95)}, {"a": 0.9}, ["dark"], ["dark"])
    two = Assessment(
        {"a": Estimate(0.5, 0.4, 0.6), "b": Estimate(0.7, 0.6, 0.8)}, {"a": 0.8}, ["dark"], ["bad", "dark"]
    )
    assert one.joined(two) == Assessment(
        {"a": Estimate(0.5, 0.4, 0.6), "b": Estimate(0.7, 0.6, 0.8)}, {"a": 0.8}, ["dark"], ["dark", "bad"]
    )


def test_what_the_report_holds() -> None:
    found = Assessment({"a": Estimate(0.912345, 0.8, 0.95)}, {}, [], [])
    assert found.to_json() == {
        "predicted_dice": {"a": {"value": 0.9123, "low": 0.8, "high": 0.95}},
        "unusual": [],
        "look_at": [],
    }
