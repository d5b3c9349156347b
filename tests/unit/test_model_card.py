"""A model says what it is for, how good it is and where it failed, and an old one what is known of it."""

from __future__ import annotations

from typing import Any

import pytest

from unet_med.bundle import CARD, change_bundle, load_bundle, read_bundle_info, save_ensemble
from unet_med.model_card import card_text, model_card

META: dict[str, Any] = {
    "training": {"n_cases": 12, "held_out": 3, "fold": "fold_0", "data_digest": "ab" * 32, "modality": "MR"},
    "intended": {
        "schema": 1,
        "modalities": ["MR", "MR"],
        "body_parts": ["BRAIN"],
        "spacing_mm": [[1.0, 1.0], [1.0, 1.0], [2.0, 3.0]],
    },
    "fingerprint": {
        "label_voxels": [90, 6, 4],
        "spacing_mm_median": [1.0, 1.0, 2.5],
        "channels": [{"percentile_00_5": 12.0, "percentile_99_5": 890.5}],
    },
    "results": {
        "held_out": {
            "n_cases": 3,
            "mean": {"dice": 0.85},
            "per_label": {"bright": {"dice": 0.9, "iou": 0.82, "hd95_mm": 1.5}, "dark": {"dice": 0.8, "iou": 0.7}},
            "intervals": {"bright": [0.86, 0.93]},
            "failures": ["dark was not found at all in 1 of 3 cases that have it"],
        }
    },
}


def test_everything_that_a_card_must_say(tiny_bundle) -> None:
    card = model_card(read_bundle_info(tiny_bundle(meta=META)).config, META)
    assert card["intended use"] == [
        "Outlines bright, dark in 3-D images of the brain (MR) like those it learnt from",
        "Research use only: not a medical device, not for diagnosis or treatment",
    ]
    assert card["training data"][:2] == ["12 cases", "3 others were held out (fold_0)"]
    assert "10 % of the voxels are labelled" in card["training data"]
    assert "voxels of 1 x 1 x 2 to 3 mm (towards R, A, S)" in card["images"]
    assert "intensities of c0 in labelled voxels: 12 to 890.5 (99 % of them)" in card["images"]
    assert card["results"] == [
        "3 held-out cases",
        "mean Dice 0.850",
        "bright: Dice 0.900 (95 % interval 0.860 to 0.930), IoU 0.820, HD95 1.5 mm",
        "dark: Dice 0.800, IoU 0.700",
    ]
    assert card["failures seen"] == ["dark was not found at all in 1 of 3 cases that have it"]
    assert "it has seen 12 cases only; other scanners and patients may differ" in card["limits"]
    assert "made for MR images; others are refused where their files tell" in card["limits"]


@pytest.mark.parametrize("meta", [{}, {"results": {}, "training": None, "intended": 3}])
def test_a_model_that_says_nothing_of_itself_has_a_card(tiny_bundle, meta: dict[str, Any]) -> None:
    card = model_card(read_bundle_info(tiny_bundle(meta=meta)).config, meta)
    assert card["results"] == ["none recorded"]
    assert card["failures seen"] == ["not recorded"]
    assert "no score on held-out cases is recorded" in card["limits"]
    assert all(card.values())


def test_no_failure_on_scored_cases_is_told_as_such(tiny_bundle) -> None:
    config = read_bundle_info(tiny_bundle()).config
    assert model_card(config, {"results": {"held_out": {"n_cases": 3, "failures": []}}})["failures seen"] == [
        "none on these cases"
    ]
    none_held_out = {"results": {"held_out": {"n_cases": 0, "failures": []}}}
    assert model_card(config, none_held_out)["failures seen"] == ["not recorded"]


def test_it_travels_in_the_bundle_and_changes_with_it(tiny_bundle, tmp_path) -> None:
    folder = tiny_bundle(meta=META)
    text = (folder / CARD).read_text(encoding="utf-8")
    assert text == card_text("tiny", model_card(load_bundle(folder).config, META))
    assert "## Failures seen\n\n- dark was not found" in text
    change_bundle(folder, {}, {"results": {}})
    assert "- none recorded" in (folder / CARD).read_text(encoding="utf-8")
    (folder / CARD).unlink()  # as in a bundle of an older version
    load_bundle(folder)
    save_ensemble(tmp_path / "both", {"a": folder}, load_bundle(folder).config, META)
    assert (tmp_path / "both" / CARD).exists()
    assert not (tmp_path / "both" / "a" / CARD).exists()
