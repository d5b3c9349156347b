"""What a plan says, and why."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from typing import Any

import pytest

from unet_med.config import PipelineConfig, parse_config
from unet_med.errors import ConfigError
from unet_med.manifest import Manifest
from unet_med.planning import (
    CaseFingerprint,
    ChannelStatistics,
    Fingerprint,
    Plan,
    auto_class_weights,
    make_plan,
    plan_from_fingerprint,
)
from unet_med.planning.memory import DILATIONS, dilations_of, network_elements
from unet_med.planning.sides import CaseSides
from unet_med.planning.spacing import target_spacing

CT = ChannelStatistics(99.29, 39.47, -41.0, 176.0)


def seen(
    shape: tuple[int, ...] = (60, 70, 50),
    spacing: tuple[float, ...] | None = (1.0, 1.0, 1.5),
    *,
    cases: int = 20,
    kept: float = 1.0,
    labels: tuple[int, ...] = (900_000, 90_000, 10_000),
    channels: int = 1,
) -> Fingerprint:
    return Fingerprint((CaseFingerprint(shape, spacing, kept),) * cases, (CT,) * channels, labels)


def data(**changes: Any) -> Manifest:
    labels = {"background": 0, "liver": 1, "tumour": 2}
    return replace(Manifest("set", labels, ("MR",), "MR", "semantic", ()), **changes)


def planned(config: dict[str, Any] | None = None, found: Fingerprint | None = None, **more: Any) -> Plan:
    manifest = more.pop("manifest", None) or data()
    return plan_from_fingerprint(pipeline(config), manifest, found or seen(), **more)


def pipeline(config: dict[str, Any] | None = None) -> PipelineConfig:
    return parse_config({"name": "p", **(config or {})}, "test")


def test_nothing_stays_auto_and_everything_has_a_reason() -> None:
    plan = planned()
    assert plan.config.unresolved() == ()
    assert set(plan.reasons) == set(pipeline().unresolved())
    assert all(plan.reasons.values())
    assert plan.config.training.precision == "auto"


def test_a_resolved_plan_is_kept_as_it_is() -> None:
    once = planned().config
    again = plan_from_fingerprint(once, data(), seen(cases=3, kept=0.1), memory_gb=1.0, device="cuda")
    assert again.config == once
    assert all(reason.startswith("given in the pipeline file") for reason in again.reasons.values())


@pytest.mark.parametrize(
    ("shape", "spacing", "dims"),
    [((60, 70, 50), (1.0, 1.0, 1.5), 3), ((60, 70, 8), (1.0, 1.0, 5.0), 2), ((60, 70), None, 2)],
)
def test_dims(shape: tuple[int, ...], spacing: tuple[float, ...] | None, dims: int) -> None:
    plan = planned(found=seen(shape, spacing))
    assert plan.config.dims == dims
    assert len(plan.config.sampling.patch_voxels) == dims
    assert plan.config.augment.mirror_axes == tuple(range(dims))


def test_thin_volumes_are_resampled_in_the_plane_only() -> None:
    assert planned(found=seen((60, 70, 8), (1.0, 1.0, 5.0))).config.preprocess.spacing_mm == (1.0, 1.0)


def test_uncalibrated_images_keep_their_pixels() -> None:
    plan = planned(found=seen((512, 512), None))
    assert plan.config.preprocess.spacing_mm is None
    assert "pixel size" in plan.reasons["preprocess.spacing_mm"]


def test_the_spacing_is_the_median_of_each_axis() -> None:
    cases = tuple(CaseFingerprint((50, 50, 50), (s, 1.0, 2.0), 1.0) for s in (0.9, 1.0, 1.2))
    assert target_spacing(Fingerprint(cases, (CT,), (1, 1)))[0] == (1.0, 1.0, 2.0)


def test_a_coarse_thin_axis_takes_its_tenth_percentile() -> None:
    spacings = [(0.8, 0.8, 5.0)] * 9 + [(0.8, 0.8, 2.0)] * 2
    cases = tuple(CaseFingerprint((400, 400, 40), s, 1.0) for s in spacings)
    spacing, reason = target_spacing(Fingerprint(cases, (CT,), (1, 1)))
    assert spacing == (0.8, 0.8, 2.0)
    assert "S axis is coarse" in reason
    fine = tuple(replace(case, spacing_mm=(0.8, 0.8, z)) for case, z in zip(cases, [0.1] * 3 + [5.0] * 8, strict=True))
    assert target_spacing(Fingerprint(fine, (CT,), (1, 1)))[0] == (0.8, 0.8, 0.8)
    deep = tuple(replace(case, shape=(400, 400, 200)) for case in cases)
    assert target_spacing(Fingerprint(deep, (CT,), (1, 1)))[0] == (0.8, 0.8, 5.0)


def test_ct_is_normalised_by_the_set_and_everything_else_by_itself() -> None:
    manifest = data(channels=("CT",), modality="CT")
    (scheme,) = planned(manifest=manifest).config.preprocess.normalisation
    assert (scheme.scheme, scheme.window, scheme.mean, scheme.sd) == ("ct", (-41.0, 176.0), 99.29, 39.47)
    (scheme,) = planned().config.preprocess.normalisation
    assert scheme.scheme == "zscore"
    manifest = data(channels=("CT", "PET"), modality=None)
    assert [s.scheme for s in planned(found=seen(channels=2), manifest=manifest).config.preprocess.normalisation] == [
        "ct",
        "zscore",
    ]


def test_one_normalisation_stands_for_all_channels() -> None:
    given = {"preprocess": {"normalisation": [{"scheme": "percentile"}]}}
    plan = planned(given, found=seen(channels=3), manifest=data(channels=("red", "green", "blue"), modality=None))
    assert [one.scheme for one in plan.config.preprocess.normalisation] == ["percentile"] * 3
    assert plan.reasons["preprocess.normalisation"] == "given in the pipeline file, the same for each of 3 channels"


@pytest.mark.parametrize(("kept", "crop"), [(0.74, True), (0.76, False)])
def test_cropping_follows_what_it_saves(kept: float, crop: bool) -> None:
    assert planned(found=seen(kept=kept)).config.preprocess.crop_to_nonzero is crop


def test_cpu_networks_start_smaller() -> None:
    found = seen((300, 300, 300), (1.0, 1.0, 1.0))
    cpu, gpu = planned(found=found), planned(found=found, device="cuda")
    assert cpu.config.network.features[0] == 16
    assert max(cpu.config.network.features) <= 256
    assert gpu.config.network.features == (32, 64, 128, 256, 320, 320)
    assert gpu.config.sampling.patch_voxels == (128, 128, 128)
    assert gpu.config.sampling.batch_size == 2
    small = planned(found=found, memory_gb=1.0)
    assert small.config.sampling.patch_voxels < cpu.config.sampling.patch_voxels


def test_hippocampus_on_a_gpu_is_the_golden_plan() -> None:
    found = seen((36, 50, 35), (1.0, 1.0, 1.0), cases=260)
    plan = planned(found=found, device="cuda").config
    assert plan.sampling.patch_voxels == (40, 56, 40)
    assert plan.sampling.batch_size == 9
    assert plan.network.features == (32, 64, 128, 256)


def test_the_classic_network() -> None:
    plan = planned({"network": {"style": "classic"}}, seen((512, 512), None), device="cuda").config
    assert plan.network.features == (64, 128, 256, 512, 1024)
    assert plan.network.strides == ((1, 1), (2, 2), (2, 2), (2, 2), (2, 2))
    assert plan.network.kernels == ((3, 3),) * 5
    assert (plan.network.norm, plan.network.activation, plan.network.downsampling) == ("none", "relu", "maxpool")
    assert all(n % 16 == 4 for n in plan.sampling.patch_voxels)
    given = {"network": {"style": "classic"}, "sampling": {"patch_voxels": [388, 388]}}
    assert planned(given, seen((512, 512), None)).config.sampling.patch_voxels == (388, 388)
    given["sampling"] = {"patch_voxels": [512, 512]}
    with pytest.raises(ConfigError, match=r"\[516, 516\]"):
        planned(given, seen((512, 512), None))


def test_the_networks_agree_on_patches() -> None:
    from unet_med.networks import admissible_patch

    for style in ("classic", "modern"):
        for shape in ((512, 512), (300, 200), (97, 130)):
            plan = planned({"network": {"style": style}}, seen(shape, None)).config
            patch = plan.sampling.patch_voxels
            assert tuple(admissible_patch(plan.network, 2, patch)) == patch


def test_given_values_are_kept_and_the_rest_follows() -> None:
    plan = planned({"sampling": {"patch_voxels": [40, 56, 40], "batch_size": 4}, "network": {"features": [8, 16, 32]}})
    assert plan.config.sampling.patch_voxels == (40, 56, 40)
    assert plan.config.network.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2))
    assert plan.config.sampling.batch_size == 4
    plan = planned({"network": {"strides": [[1, 1, 1], [2, 2, 1]]}})
    assert len(plan.config.network.features) == 2
    assert all(n % 2 == 0 for n in plan.config.sampling.patch_voxels[:2])


def test_a_patch_larger_than_the_images_is_noted() -> None:
    plan = planned({"sampling": {"patch_voxels": [128, 128, 128]}})
    assert "padded" in plan.reasons["sampling.patch_voxels"]


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"dims": 2, "sampling": {"patch_voxels": [8, 8, 8]}}, "sampling.patch_voxels must have 2 numbers"),
        ({"network": {"strides": [[1, 1], [2, 2]]}}, "network.strides must have 3 numbers"),
        ({"network": {"features": [8] * 9}}, "9 levels are given"),
        ({"sampling": {"patch_voxels": [33, 33, 33]}, "network": {"features": [8, 16, 32]}}, "3 levels are given"),
        (
            {"sampling": {"patch_voxels": [33, 33, 33]}, "network": {"strides": [[1, 1, 1], [2, 2, 2]]}},
            "does not fit the strides",
        ),
        ({"channels": ["a", "b"]}, "2 channels are named"),
        ({"loss": {"class_weights": [1, 1]}}, "2 weights for 3 outputs"),
        ({"preprocess": {"normalisation": [{}, {}]}}, "2 normalisations for 1 channels"),
        ({"preprocess": {"spacing_mm": [1.0]}}, "1 spacings for 3-D"),
        ({"dims": 2, "augment": {"mirror_axes": [2]}}, "the network has 2 axes"),
        ({"regions": {"whole": [1, 2], "other": [3]}}, "region 'other'"),
    ],
)
def test_contradictions_are_refused(config: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        planned(config)


def test_pictures_cannot_train_a_3d_network() -> None:
    with pytest.raises(ConfigError, match="pictures"):
        planned({"dims": 3}, seen((64, 64), None))
    with pytest.raises(ConfigError, match="pixel size"):
        planned({"preprocess": {"spacing_mm": [1.0, 1.0]}}, seen((64, 64), None))
    mixed = Fingerprint((CaseFingerprint((9, 9), None, 1.0), CaseFingerprint((9, 9, 9), None, 1.0)), (CT,), (1, 1))
    with pytest.raises(ConfigError, match="mixes pictures and volumes"):
        planned(found=mixed)


# ---- loss, augmentation, training ----------------------------------------------------------------------------------


def test_class_weights() -> None:
    weights = auto_class_weights([900_000, 90_000, 10_000])
    assert sum(weights) / 3 == pytest.approx(1.0, abs=1e-3)
    assert weights[2] / weights[0] == pytest.approx(90**0.5, rel=1e-3)
    assert auto_class_weights([10**9, 1])[1] / auto_class_weights([10**9, 1])[0] == pytest.approx(10, rel=1e-3)
    assert auto_class_weights([100, 0]) == (1.0, 1.0)
    assert auto_class_weights([0, 0]) == (1.0, 1.0)


def test_weights_only_where_something_uses_them() -> None:
    assert planned({"loss": {"kind": "dice"}}).config.loss.class_weights is None
    assert planned({"regions": {"whole": [1, 2], "tumour": [2]}}).config.loss.class_weights is None
    assert len(planned({"loss": {"kind": "dice_ce"}}).config.loss.class_weights) == 3


def test_labels_of_two_sides_are_never_mirrored() -> None:
    manifest = data(labels={"background": 0, "left kidney": 1, "right kidney": 2})
    assert planned(manifest=manifest).config.augment.mirror_axes == (1, 2)
    assert planned(manifest=manifest, found=seen(spacing=None)).config.augment.mirror_axes == ()
    pictures = seen((300, 200), None)
    assert planned(manifest=manifest, found=pictures).config.augment.mirror_axes == (1,)  # columns lie left to right
    assert planned().config.augment.mirror_axes == (0, 1, 2)


def test_labels_that_are_measured_to_be_sided_are_never_mirrored() -> None:
    found = seen()
    sides = CaseSides((None, (70.0, 5.0, 0.0), (-70.0, 4.0, 2.0)), (0, 100, 90), 300.0, whole=False)
    measured = replace(found, cases=tuple(replace(case, sides=sides) for case in found.cases))
    plan = planned(found=measured)
    assert plan.config.augment.mirror_axes == (1, 2)
    assert plan.reasons["augment.mirror_axes"] == (
        "liver and tumour lie on opposite sides of the body in 20 of 20 cases: never mirrored left to right"
    )
    free = planned({"augment": {"mirror_axes": [0, 1, 2]}}, measured)
    assert free.config.augment.mirror_axes == (0, 1, 2)


def test_rotation_follows_the_voxels() -> None:
    assert planned().config.augment.rotation_degrees == (-30.0, 30.0)
    assert planned(found=seen(spacing=(1.0, 1.0, 4.0))).config.augment.rotation_degrees == (-180.0, 180.0)


def test_training_values() -> None:
    plan = planned({"training": {"optimizer": "sgd", "epochs": 200}, "sampling": {"batch_size": 2}}).config.training
    assert plan.learning_rate == 0.01
    assert plan.steps_per_epoch == 20
    assert plan.validation_every_epochs == 10
    assert planned({"training": {"max_minutes": 5}}).config.training.validation_every_epochs == 5


def test_given_labels_must_agree_with_the_manifest() -> None:
    with pytest.raises(ConfigError, match="label values"):
        make_plan(pipeline({"labels": {"background": 0, "liver": 1}}), data())


def test_what_nobody_labelled_is_no_label() -> None:
    manifest = data(labels={"background": 0, "liver": 1, "tumour": 2, "unlabelled": 3})
    plan = planned({"ignore_label": 3}, manifest=manifest)
    assert plan.config.label_values == {"background": 0, "liver": 1, "tumour": 2}
    assert len(plan.config.loss.class_weights) == 3


# ---- kinds of networks -----------------------------------------------------------------------------------------------

WIDE = seen((300, 300, 300), (1.0, 1.0, 1.0))
SIZES = {"M": 8, "L": 24, "XL": 40}


def size_of(plan: Plan) -> int:
    return math.prod(plan.config.sampling.patch_voxels) * plan.config.sampling.batch_size


def test_residual_networks_are_planned_for_the_card_of_their_size() -> None:
    plans = {size: planned({"network": {"kind": "residual", "size": size}}, WIDE, device="cuda") for size in SIZES}
    assert [plan.config.network.features for plan in plans.values()] == [(32, 64, 128, 256, 320, 320)] * 3
    volumes = [size_of(plan) for plan in plans.values()]
    assert volumes == sorted(set(volumes))
    for size, gb in SIZES.items():
        assert f"{gb} GB" in plans[size].reasons["sampling.patch_voxels"]
        given = planned({"network": {"kind": "residual"}}, WIDE, memory_gb=gb, device="cuda")
        assert given.config.sampling == plans[size].config.sampling
    smaller = planned({"network": {"kind": "residual", "size": "XL"}}, WIDE, memory_gb=12, device="cuda")
    assert size_of(smaller) < size_of(plans["XL"])


def test_a_network_of_a_size_is_as_wide_on_a_cpu() -> None:
    config = {"network": {"kind": "residual", "size": "M"}}
    assert planned(config, WIDE).config.network.features[0] == 32
    assert planned({"network": {"kind": "residual"}}, WIDE).config.network.features[0] == 16


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("kind", "sees"), [("dilated", 67), ("naive", 15)])
def test_networks_that_never_pool(kind: str, sees: int, dims: int) -> None:
    plan = planned({"network": {"kind": kind}, "dims": dims}, WIDE)
    network, patch = plan.config.network, plan.config.sampling.patch_voxels
    assert (network.features, network.strides, network.kernels) == ((16,), ((1,) * dims,), ((3,) * dims,))
    assert f"sees {sees} voxels" in plan.reasons["network.kernels"]
    assert "full resolution" in plan.reasons["network.strides"]
    assert network_elements(network, patch, network.strides, network.features, 3) == (7 * 16 + 3) * math.prod(patch)
    more = planned({"network": {"kind": kind}, "dims": dims}, WIDE, memory_gb=8.0)
    assert size_of(more) > size_of(plan)


def test_the_widths_of_each_convolution_may_be_given() -> None:
    config = {"network": {"kind": "dilated", "features": [8, 8, 16, 32, 64, 128, 8]}}
    plan = planned(config, WIDE)
    assert len(plan.config.network.strides) == len(plan.config.network.kernels) == 7
    kept = planned({**config, "sampling": {"patch_voxels": [33, 47, 51]}}, WIDE)
    assert kept.config.sampling.patch_voxels == (33, 47, 51)


@pytest.mark.parametrize(
    "network",
    [
        {"kind": "residual", "deep_supervision": True},
        {"kind": "residual", "size": "L", "blocks_per_level": [1, 2, 2, 2], "norm": "instance"},
        {"kind": "dilated"},
        {"kind": "naive", "dilations": [1, 1, 1]},
        {"kind": "unet", "decoder_convolutions": 1, "attention": True},
        {"style": "classic", "decoder_convolutions": 1},
        {"slices": 3},
    ],
    ids=str,
)
def test_what_is_planned_can_be_built(network: dict[str, Any]) -> None:
    from unet_med.networks import admissible_patch, context_voxels

    plan = planned({"network": network}, seen((100, 120, 30), (1.0, 1.0, 3.5)), memory_gb=0.5).config
    dims = plan.dims
    assert dims == (2 if "slices" in network else 3)
    assert len(context_voxels(plan.network, dims)) == dims
    assert tuple(admissible_patch(plan.network, dims, plan.sampling.patch_voxels)) == plan.sampling.patch_voxels


def test_the_networks_have_the_same_dilations() -> None:
    from unet_med.networks.layout import DILATIONS as BUILT
    from unet_med.networks.layout import layout_of

    assert BUILT == DILATIONS
    plan = planned({"network": {"kind": "dilated"}}, seen((100, 120, 30), (1.0, 1.0, 1.0)), memory_gb=0.5).config
    assert dilations_of(plan.network) == layout_of(plan.network, 3).dilations == (1, 1, 2, 4, 8, 16, 1)


@pytest.mark.parametrize(
    ("network", "what"),
    [
        ({"kind": "residual", "style": "classic"}, "no residual encoder"),
        ({"size": "M"}, "size M is one of residual networks"),
        ({"kind": "residual", "blocks_per_level": [1] * 9}, "9 levels are given"),
        ({"kind": "residual", "features": [8, 16], "blocks_per_level": [1, 1, 1]}, "3 levels are given"),
    ],
)
def test_networks_that_cannot_be_are_refused(network: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        planned({"network": network})


def test_neighbouring_slices() -> None:
    plan = planned({"network": {"slices": 5}})
    assert plan.config.dims == 2
    assert "5 neighbouring slices" in plan.reasons["dims"]
    assert len(plan.config.preprocess.spacing_mm) == len(plan.config.sampling.patch_voxels) == 2
    with pytest.raises(ConfigError, match="pictures have no neighbouring slices"):
        planned({"network": {"slices": 3}}, seen((64, 64), None))
    thin = planned(found=seen((60, 70, 8), (1.0, 1.0, 5.0)))
    assert "network.slices 3" in thin.reasons["dims"]


def test_axes_in_another_order() -> None:
    found = seen((300, 260, 40), (0.5, 0.6, 4.0))
    manifest = data(labels={"background": 0, "left lung": 1, "right lung": 2})
    plain = planned(found=found, manifest=manifest).config
    turned = planned({"preprocess": {"axes": [2, 1, 0]}}, found, manifest=manifest)
    assert turned.config.preprocess.spacing_mm == plain.preprocess.spacing_mm[::-1]
    assert turned.config.sampling.patch_voxels == plain.sampling.patch_voxels[::-1]
    assert (plain.augment.mirror_axes, turned.config.augment.mirror_axes) == ((1, 2), (0, 1))
    assert "the S axis is coarse" in turned.reasons["preprocess.spacing_mm"]
    assert turned.fingerprint["shape_median"] == [300, 260, 40]
    sagittal = planned({"dims": 2, "preprocess": {"axes": [1, 2, 0]}}, found, manifest=manifest).config
    assert sagittal.augment.mirror_axes == (0, 1)
    stored = planned({"preprocess": {"orientation": "stored"}}, found, manifest=manifest)
    assert stored.config.augment.mirror_axes == ()


def test_what_the_manifest_says_of_its_labels_holds_where_the_pipeline_leaves_it_open() -> None:
    regions = {"both": (1, 2), "tumour only": (2,)}
    told = planned(manifest=data(ignore_label=255, regions=regions))
    assert (told.config.ignore_label, told.config.regions) == (255, regions)
    assert told.reasons["ignore_label"] == told.reasons["regions"] == "from the manifest"
    assert told.config.loss.class_weights is None
    own = planned({"ignore_label": 7}, manifest=data(ignore_label=255))
    assert own.config.ignore_label == 7
    assert "ignore_label" not in own.reasons


# ---- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unet", "residual", "dilated"])
@pytest.mark.parametrize(("shape", "spacing"), [((400, 400, 300), (1.0, 1.0, 1.0)), ((900, 700), None)])
def test_more_memory_shows_more_at_once(kind: str, shape: tuple[int, ...], spacing: tuple[float, ...] | None) -> None:
    found = seen(shape, spacing, cases=1000)
    config = {"network": {"kind": kind}}
    plans = [planned(config, found), *(planned(config, found, memory_gb=gb, device="cuda") for gb in (8, 24, 80))]
    volumes = [size_of(plan) for plan in plans]
    assert volumes == sorted(set(volumes))
    assert [plan.config.network.features[0] for plan in plans] == [16, 32, 32, 32]


def test_large_pictures_are_seen_whole_rather_than_many_at_once() -> None:
    plan = planned(found=seen((1000, 1000), None, cases=400), device="cuda")
    assert plan.config.sampling.patch_voxels == (1024, 1024)
    assert 2 <= plan.config.sampling.batch_size < 12
    assert "whole median image" in plan.reasons["sampling.patch_voxels"]


def test_a_patch_that_sees_little_comes_with_advice() -> None:
    found = seen((512, 512, 482), (0.77, 0.77, 1.0))
    reason = planned(found=found, device="cuda").reasons["sampling.patch_voxels"]
    spacing = json.loads(re.search(r"spacing_mm (\[.*?\])", reason).group(1))
    coarser = planned({"preprocess": {"spacing_mm": spacing}}, found, device="cuda")
    assert "surroundings" not in coarser.reasons["sampling.patch_voxels"]
    assert math.prod(coarser.config.sampling.patch_voxels) >= 0.25 * math.prod(
        n * a / b for n, a, b in zip((512, 512, 482), (0.77, 0.77, 1.0), spacing, strict=True)
    )
    blind = planned(found=seen((3000, 3000), None)).reasons["sampling.patch_voxels"]
    assert "more memory (--memory-gb)" in blind
    given = planned({"sampling": {"patch_voxels": [32, 32, 32]}}, found)
    assert given.reasons["sampling.patch_voxels"] == "given in the pipeline file"
