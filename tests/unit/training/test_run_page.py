"""What a person reads about a run."""

from __future__ import annotations

import numpy as np

from unet_med.config import PipelineConfig
from unet_med.training.run_page import Facts, describe, flatten, framed, headline, main_choices, short, stacked


def flat(config: PipelineConfig) -> dict[str, str]:
    return {key: short(value) for key, value in flatten(config.model_dump(mode="json"))}


def test_parameters_are_the_main_choices_and_what_is_not_the_default() -> None:
    plain = main_choices(flat(PipelineConfig(name="a", labels={"background": 0, "cell": 1})))
    assert set(plain) == {
        "dims",
        "loss.kind",
        "network.style",
        "network.norm",
        "training.optimizer",
        "training.epochs",
    }
    changed = PipelineConfig(name="a").replacing(
        {"loss.focal_gamma": 1.0, "preprocess.normalisation": [{"scheme": "ct", "window": [-50, 200]}]}
    )
    extra = {key: value for key, value in main_choices(flat(changed)).items() if key not in plain}
    assert extra == {
        "loss.focal_gamma": "1.0",
        "preprocess.normalisation": '[{"scheme": "ct", "window": [-50.0, 200.0]}]',
    }


def test_the_description_of_a_run_that_just_began_promises_nothing() -> None:
    text = describe(Facts())
    facts, found, _ = text.partition("Where to look")
    assert found
    assert facts.startswith("**segmentation of the labels**")
    assert "Dice" not in facts
    assert "Use it" not in text


def test_the_headline_is_the_mean_dice() -> None:
    assert headline({"hd95_mm/mean": 1.0, "dice/anterior": 0.9, "dice/mean": 0.8}) == 0.8
    assert headline({"iou/mean": 0.5}) is None


def test_a_strip_gets_a_frame_and_a_picture_stays_as_it_is() -> None:
    picture = np.full((300, 400, 3), 7, np.uint8)
    assert np.array_equal(framed(picture), picture)
    assert not np.shares_memory(framed(picture), picture)
    assert framed(np.full((1, 1000, 3), 7, np.uint8)).shape == (125, 1000, 3)
    assert framed(np.full((1000, 2, 3), 7, np.uint8)).sum() == 1000 * 2 * 3 * 7


def test_pictures_of_different_sizes_stand_below_each_other() -> None:
    sheet = stacked([np.full((4, 6, 3), 1, np.uint8), np.full((2, 3, 3), 2, np.uint8)])
    assert sheet.shape == (4 + 8 + 2, 6, 3)
    assert sheet.dtype == np.uint8
    assert (sheet[:4] == 1).all()
    assert not sheet[4:12].any()
    assert (sheet[12:, :3] == 2).all()
    assert not sheet[12:, 3:].any()
