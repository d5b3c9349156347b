"""When a plan asks for a first stage at low resolution, and on which spacing."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from unet_med.config import PipelineConfig, parse_config
from unet_med.errors import ConfigError
from unet_med.manifest import Manifest
from unet_med.planning import CaseFingerprint, ChannelStatistics, Fingerprint, Plan, plan_from_fingerprint
from unet_med.workflows.cascade import low_config
from unet_med.workflows.plan import explained

KEY = "cascade.spacing_mm"
LARGE, FINE = (512, 512, 482), (0.77, 0.77, 1.0)
MANIFEST = Manifest("set", {"background": 0, "liver": 1, "tumour": 2}, ("MR",), "MR", "semantic", ())


def planned(
    cascade: Any = "auto",
    shape: tuple[int, ...] = LARGE,
    spacing: tuple[float, ...] | None = FINE,
    **config: Any,
) -> Plan:
    found = Fingerprint(
        (CaseFingerprint(shape, spacing, 1.0),) * 20,
        (ChannelStatistics(99.0, 39.0, -41.0, 176.0),),
        (900_000, 90_000, 10_000),
    )
    return plan_from_fingerprint(pipeline(cascade, **config), MANIFEST, found, device="cuda")


def pipeline(cascade: Any = "auto", **config: Any) -> PipelineConfig:
    return parse_config({"name": "p", "cascade": {"spacing_mm": cascade}, **config}, "test")


def test_large_volumes_get_a_first_stage_that_sees_a_quarter() -> None:
    plan = planned()
    spacing = plan.config.cascade.spacing_mm
    assert plan.config.unresolved() == ()
    assert plan.config.prior_channels == 2
    assert "on this spacing 25%" in plan.reasons[KEY]
    assert "surroundings" not in plan.reasons["sampling.patch_voxels"]
    low = low_config(pipeline(), plan.config)
    assert (low.cascade.spacing_mm, low.preprocess.spacing_mm) == (None, spacing)
    coarse = planned(None, preprocess={"spacing_mm": list(spacing)}).config
    shown = math.prod(coarse.sampling.patch_voxels)
    assert shown >= 0.25 * math.prod(n * a / b for n, a, b in zip(LARGE, FINE, spacing, strict=True))
    assert coarse.sampling.patch_voxels == plan.config.sampling.patch_voxels  # as much memory, more millimetres


def test_the_advice_of_a_plan_without_one_names_the_same_spacing() -> None:
    reason = planned(None).reasons["sampling.patch_voxels"]
    assert str(list(planned().config.cascade.spacing_mm)) in reason
    assert "cascade.spacing_mm auto sees both" in reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"shape": (60, 70, 50)}, "are enough"),
        ({"spacing": None}, "say nothing about their pixel size"),
        ({"shape": (3000, 3000)}, "2-D"),
        ({"shape": (512, 512, 6)}, "2-D"),
    ],
)
def test_no_cascade_where_none_is_needed_or_possible(changes: dict[str, Any], reason: str) -> None:
    if len(changes.get("shape", LARGE)) == 2:
        changes = changes | {"spacing": (1.0, 1.0)}
    plan = planned(**changes)
    assert plan.config.cascade.spacing_mm is None
    assert plan.config.prior_channels == 0
    assert plan.reasons[KEY].startswith("no cascade: ")
    assert reason in plan.reasons[KEY]


def test_a_patch_that_is_given_is_the_one_that_counts() -> None:
    small = planned(sampling={"patch_voxels": [64, 64, 64]})
    large = planned()
    assert math.prod(small.config.cascade.spacing_mm) > math.prod(large.config.cascade.spacing_mm)


def test_a_spacing_that_is_given_is_kept() -> None:
    plan = planned([2.0, 2.0, 2.5])
    assert plan.config.cascade.spacing_mm == (2.0, 2.0, 2.5)
    assert plan.reasons[KEY] == "given in the pipeline file"


def test_without_the_key_nothing_is_said_of_cascades() -> None:
    plan = planned(None)
    assert KEY not in plan.reasons
    assert plan.config.cascade.spacing_mm is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cascade": [0.7, 0.7, 1.0]}, "no coarser"),
        ({"cascade": [2.0, 2.0, 2.0], "spacing": None}, "nothing about their pixel size"),
        ({"cascade": [2.0, 2.0, 2.0], "shape": (512, 512, 6)}, "3-D networks"),
    ],
)
def test_spacings_that_make_no_cascade_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        planned(**changes)
    assert caught.value.where == KEY


def test_a_pipeline_of_pictures_is_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"cascade\.spacing_mm: a cascade is for 3-D networks"):
        pipeline([2.0, 2.0, 2.0], dims=2)
    with pytest.raises(ConfigError, match=r"cascade\.spacing_mm"):
        pipeline([2.0, 2.0])
    assert pipeline().unresolved()
    assert KEY in pipeline().unresolved()


def test_the_page_shows_it() -> None:
    text = "\n".join(explained(planned(), replace(MANIFEST)))
    assert "cascade" in text.split()
    assert "on this spacing 25%" in " ".join(text.split())


def test_channels_that_a_network_sees_are_those_of_the_labels() -> None:
    labels = {"background": 0, "a": 1, "b": 2, "c": 3}
    assert pipeline([2.0, 2.0, 2.0], labels=labels).prior_channels == 3
    assert pipeline([2.0, 2.0, 2.0], labels=labels, regions={"all": [1, 2, 3], "some": [2]}).prior_channels == 3
    assert pipeline(None, labels=labels).prior_channels == 0
