"""What is kept of a model that training starts from, and what its weights become."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toy_set import PIPELINE

from unet_med.bundle import Bundle, load_bundle
from unet_med.config import parse_config
from unet_med.labels import LabelMap
from unet_med.manifest import Manifest
from unet_med.training.fine_tuning import (
    KEPT,
    initial_weights,
    seen_before,
    started_from,
    with_kept_reasons,
)


@pytest.fixture
def start(tiny_bundle) -> Bundle:
    meta = {"training": {"case_sha256": ["x", "y"], "fold": "fold_0"}}
    return load_bundle(tiny_bundle(meta=meta, preprocess__spacing_mm=[1.5, 1.5, 3.0]))


def manifest(channels: tuple[str, ...] = ("c0",)) -> Manifest:
    return Manifest("new", {"background": 0, "bright": 1, "lesion": 2}, channels, None, "semantic", ())


def test_grid_network_and_patch_are_kept_and_the_rest_is_new(start: Bundle) -> None:
    config = started_from(parse_config(PIPELINE, "toy"), manifest(), start)
    assert config.preprocess == start.config.preprocess
    assert config.network == start.config.network
    assert config.sampling.patch_voxels == start.config.sampling.patch_voxels
    assert config.dims == start.config.dims
    assert config.training.epochs == PIPELINE["training"]["epochs"]
    assert config.sampling.batch_size == PIPELINE["sampling"]["batch_size"]
    assert config.labels == "auto"


def test_channels_are_normalised_by_their_name(start: Bundle) -> None:
    ct = {"scheme": "ct", "window": [-100.0, 200.0], "mean": 40.0, "sd": 20.0}
    two = start.config.replacing(
        {"channels": ["CT", "PET"], "preprocess.normalisation": [ct, {"scheme": "percentile"}]}
    )
    old = replace(start, config=two, channels=("CT", "PET"))
    config = started_from(parse_config(PIPELINE, "toy"), manifest(("PET", "T1", "CT")), old)
    assert [entry.scheme for entry in config.preprocess.normalisation] == ["percentile", "zscore", "ct"]
    assert config.preprocess.normalisation[2].mean == 40.0
    one = replace(start, config=start.config.replacing({"preprocess.normalisation": [ct]}))
    renamed = started_from(parse_config(PIPELINE, "toy"), manifest(("CT of 2020",)), one)
    assert renamed.preprocess.normalisation[0].scheme == "ct"


def test_kept_values_say_why(start: Bundle) -> None:
    reasons = with_kept_reasons({"preprocess.spacing_mm": "the median", "loss.class_weights": "rare", "dims": "given"})
    assert reasons == {"preprocess.spacing_mm": KEPT, "loss.class_weights": "rare", "dims": KEPT}


def test_weights_follow_the_names_of_labels(start: Bundle) -> None:
    labels = LabelMap.from_names({"background": 0, "lesion": 1, "bright": 2})
    config = start.config.replacing({"labels": {"background": 0, "lesion": 1, "bright": 2}})
    state, notes = initial_weights(start, config, labels)
    head, old = state["heads.0.weight"], start.state["heads.0.weight"]
    torch.testing.assert_close(head[0], old[0])
    torch.testing.assert_close(head[2], old[1])
    assert torch.any(head[1] != old[2])
    assert any("lesion" in note for note in notes)
    again, _ = initial_weights(start, config, labels)
    assert all(torch.equal(value, again[name]) for name, value in state.items())
    for name, value in start.state.items():
        if not name.startswith("heads."):
            torch.testing.assert_close(state[name], value)


def test_held_out_cases_that_it_knows_are_told(start: Bundle) -> None:
    class Case:
        def __init__(self, digest: str) -> None:
            self.sha256 = {"image": digest}

    assert seen_before(start, [Case("a"), Case("b")]) == []
    (warning,) = seen_before(start, [Case("a"), Case("x")])
    assert "1 of the 2 held-out cases" in warning
