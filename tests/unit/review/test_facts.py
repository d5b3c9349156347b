"""What is said of a case: sizes and their bounds, checks, where it comes from, and what needs to be looked at."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from unet_med.review.facts import CARD, NOTICED, OBJECTS, ORIGIN, STAMP, VOLUMES, number, sections, volume_bounds
from unet_med.review.histogram import MOST_BARS, histogram, svg
from unet_med.review.need import FIRST, OTHERS, WITHOUT, need_of

RECORD = {
    "id": "case",
    "status": "done",
    "volumes": [
        {"frame": None, "label": "liver", "voxels": 1000, "value": 1512.25, "unit": "ml"},
        {"frame": None, "label": "spleen", "voxels": 0, "value": 0.0, "unit": "ml"},
    ],
    "predicted_dice": {"liver": {"value": 0.93, "low": 0.9, "high": 0.95}},
    "look_at": [],
    "checks": {
        "passed": True,
        "formats": {
            "nifti": {
                "passed": True,
                "readers": ["nibabel", "SimpleITK"],
                "corner_mm": 2e-06,
                "voxels": 0,
                "order": {"left_right": True},
            }
        },
    },
    "device": "cpu",
    "engine": "torch bf16",
    "engine_why": "the fastest of two",
    "seconds": 1.25,
    "peak_memory_mb": 900.0,
}
SIDECAR = {
    "version": "0.1.0",
    "shape": [10, 20, 30],
    "spacing_mm": [1.0, 1.0, 2.5],
    "provenance": {
        "model_sha256": ["f" * 64],
        "sources": [{"id": "s001-aa", "kind": "dicom", "read_as": {"untilt": True}, "notes": ["1 duplicate dropped"]}],
        "options": {"tta": False, "formats": ["nifti"], "intake": {"series": []}},
    },
}


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 60))
def test_no_truth_of_this_dice_lies_outside_of_the_bounds(mask: int, truth: int, shared: int) -> None:
    assume(0 < shared <= min(mask, truth))
    dice = 2 * shared / (mask + truth)
    low, high = volume_bounds(mask, dice)
    assert low - 1e-9 <= truth <= high + 1e-9
    if shared == min(mask, truth):  # one within the other: the bound is reached
        assert truth == pytest.approx(high if truth >= mask else low)


def test_sections_say_sizes_checks_origin_and_the_card() -> None:
    card = {"name": "net", "sha256": "f" * 64, "card": {"limits": ["few cases", "one scanner"]}, "knows": ["nothing"]}
    found = {section.title: section for section in sections(RECORD, SIDECAR, [card])}
    assert list(found) == [VOLUMES, STAMP, ORIGIN, CARD]
    volumes = found[VOLUMES]
    assert volumes.columns == ("Label", "Size", "Between", "Predicted Dice")
    low, high = volume_bounds(1512.25, 0.9)
    assert volumes.rows[0] == ("liver", "1,512 ml", f"{number(low)} to {number(high)}", "0.93 (0.90 to 0.95)")
    assert volumes.rows[1] == ("spleen", "0 ml", "\u2013", "\u2013")
    assert found[STAMP].rows == (
        ("nifti", "passed, read back by nibabel and SimpleITK, corners within 2e-06 mm, 0 voxels differ, left is left"),
    )
    origin = dict(found[ORIGIN].rows)
    assert origin["source s001-aa"] == "dicom, read with untilt"
    assert origin["computed by"] == "cpu, torch bf16, the fastest of two"
    assert origin["options"] == "formats nifti"
    assert found[CARD].rows[1:] == (("limits", "few cases"), ("", "one scanner"), ("knowing when it fails", "nothing"))


def test_a_model_that_knows_nothing_gives_no_bounds_and_says_so() -> None:
    section = sections({**RECORD, "predicted_dice": {}}, SIDECAR, [])[0]
    assert section.columns == ("Label", "Size")
    assert "has not learnt" in section.note


def test_measured_scores_and_the_agreement_of_models_are_told() -> None:
    labels = {"liver": {"dice": 0.91234, "hd95_mm": None, "nsd": 0.8}}
    section = sections({**RECORD, "labels": labels, "agreement": {"liver": 0.97}}, SIDECAR, [])[0]
    assert section.columns[-3:] == ("Models agree", "Dice measured", "NSD measured")
    assert section.rows[0][-3:] == ("0.970", "0.912", "0.800")
    assert section.rows[1][-3:] == ("\u2013",) * 3


def test_objects_are_counted_by_class_and_frame() -> None:
    row = {"class": "cell", "objects": 1234, "density": 56.7, "unit": "1/mm2", "covered": 0.125, "mean_size": 80.0}
    record = {"id": "a", "status": "done", "objects": [{"frame": 0, **row}, {"frame": 1, **row, "density": None}]}
    section = next(one for one in sections(record, {}, []) if one.title == OBJECTS)
    assert section.rows[0] == ("1", "cell", "1,234", "56.7 per mm²", "12.5%", "80")
    assert section.rows[1][3] == "\u2013"


@pytest.mark.parametrize(
    ("unusual", "rows"),
    [
        (None, None),
        ([], (("image", "nothing unusual"),)),
        (["thick slices", "bright"], (("unlike training", "thick slices"), ("", "bright"))),
    ],
)
def test_an_image_unlike_training_is_told(unusual: list[str] | None, rows: tuple[tuple[str, str], ...] | None) -> None:
    record = {"id": "a", "status": "done"} | ({} if unusual is None else {"unusual": unusual})
    found = {section.title: section.rows for section in sections(record, {}, [])}
    assert found.get(NOTICED) == rows


def test_what_failed_a_check_is_not_said_to_have_passed() -> None:
    record = {"id": "a", "status": "done", "checks": {"formats": {"nifti": {"passed": False}}}}
    assert "NOT PASSED" in sections(record, {}, [])[0].rows[0][1]


def test_the_least_certain_come_first_after_those_to_look_at() -> None:
    def done(name: str, **more: object) -> dict[str, object]:
        return {"id": name, "status": "done", **more}

    dice = {"a": {"value": 0.9, "low": 0.8, "high": 1.0}, "b": {"value": 0.7, "low": 0.5, "high": 0.8}}
    records = [
        done("unknown"),
        done("sure", predicted_dice={"a": dice["a"]}),
        done("unsure", predicted_dice=dice),
        done("odd", look_at=["unlike training"], predicted_dice={"a": dice["a"]}),
        {"id": "broken", "status": "refused", "reason": "cut off"},
        done("scored", labels={"a": {"dice": 0.2}, "b": {"dice": None}}, predicted_dice=dice),
    ]
    needs = sorted(need_of(record) for record in records)
    assert [need.id for need in needs] == ["odd", "broken", "scored", "unsure", "sure", "unknown"]
    assert [need.group for need in needs] == [FIRST, WITHOUT, OTHERS, OTHERS, OTHERS, OTHERS]
    assert needs[3].told == "predicted Dice 0.70 (b)"
    assert needs[1].reasons == ("refused: cut off",)
    assert need_of(done("cells"), [0.5, 0.7]).certainty == pytest.approx(0.6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), max_size=60), st.lists(st.floats(0, 10), max_size=20))
def test_a_histogram_holds_every_object_once(first: list[float], second: list[float]) -> None:
    found = histogram("size", {"a": np.array(first), "b & c": np.array([*second, np.nan])})
    if not first and not second:
        assert found is None
        return
    assert found is not None
    assert {name: int(counts.sum()) for name, counts in found.counts.items()} == {"a": len(first), "b & c": len(second)}
    assert len(found.edges) - 1 <= MOST_BARS
    assert found.median == pytest.approx(np.median([*first, *second]))
    picture = ElementTree.fromstring(svg(found, {"a": (1, 2, 3)}))
    bars = sum(int((counts > 0).sum()) for counts in found.counts.values())
    assert len(picture.findall("rect")) == bars
