"""Plans of nnU-Net as pipelines: every value that decides a prediction, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from nnunet_reference import DATASET, arguments_of, plans_of

from unet_med.config import PipelineConfig
from unet_med.errors import ModelError
from unet_med.nnunet import imported_pipeline


def imported(
    plans: dict[str, Any], dataset: dict[str, Any] | None = None, mirror: tuple[int, ...] = ()
) -> PipelineConfig:
    return imported_pipeline(plans, dataset or DATASET, next(iter(plans["configurations"])), mirror).config


def test_a_plan_becomes_a_resolved_pipeline() -> None:
    config = imported(plans_of(), mirror=(0, 1, 2))
    assert config.unresolved() == ()
    assert (config.name, config.dims, config.channels) == ("Dataset001_Toy", 3, ("MR",))
    assert config.label_values == {"background": 0, "large": 1, "small": 2}
    assert config.network.features == (4, 6, 8)
    assert config.network.strides == ((1, 1, 1), (1, 2, 2), (2, 2, 2))
    assert config.network.kernels == ((1, 3, 3), (3, 3, 3), (3, 3, 3))
    assert config.network.bias
    assert config.sampling.patch_voxels == (8, 16, 16)
    assert config.preprocess.spacing_mm == (2.0, 1.0, 1.0)
    assert config.preprocess.crop_to_nonzero is True
    assert (config.preprocess.resampling, config.preprocess.orientation) == ("nnunet", "stored")
    assert (config.inference.overlap, config.inference.gaussian_sigma) == (0.5, 0.125)
    assert config.inference.mirror
    assert config.augment.mirror_axes == (0, 1, 2)
    assert not imported(plans_of()).inference.mirror


@pytest.mark.parametrize(
    ("configuration", "transpose", "axes"),
    [
        ("3d_fullres", [0, 1, 2], (2, 1, 0)),
        ("3d_fullres", [2, 0, 1], (0, 2, 1)),
        ("2d", [0, 1, 2], (1, 0, 2)),
        ("2d", [1, 0, 2], (2, 0, 1)),
    ],
)
def test_the_network_sees_the_axes_in_their_order(
    configuration: str, transpose: list[int], axes: tuple[int, ...]
) -> None:
    """nnU-Net's axes are (z, y, x), ours (x, y, z); in 2-D its first one is left out, and our last."""
    assert imported(plans_of(configuration, transpose_forward=transpose)).preprocess.axes == axes


def test_readers_that_reorient_give_axes_towards_ras() -> None:
    config = imported(plans_of(image_reader_writer="NibabelIOWithReorient"))
    assert (config.preprocess.orientation, config.preprocess.axes) == ("RAS", (2, 1, 0))


@pytest.mark.parametrize(
    ("scheme", "mask", "expected"),
    [
        ("ZScoreNormalization", True, {"scheme": "zscore", "inside": "filled"}),
        ("ZScoreNormalization", False, {"scheme": "zscore", "inside": "all"}),
        ("CTNormalization", False, {"scheme": "ct", "window": (-20.0, 240.0), "mean": 90.0, "sd": 40.0}),
        ("RGBTo01Normalization", False, {"scheme": "ct", "window": (0.0, 255.0), "mean": 0.0, "sd": 255.0}),
        ("RescaleTo01Normalization", False, {"scheme": "rescale"}),
        ("NoNormalization", False, {"scheme": "none"}),
    ],
)
def test_normalisation_is_theirs(scheme: str, mask: bool, expected: dict[str, Any]) -> None:
    config = imported(plans_of(normalization_schemes=[scheme], use_mask_for_norm=[mask]))
    (found,) = config.preprocess.normalisation
    assert found.model_dump(exclude_none=True) == expected  # type: ignore[union-attr]


def test_regions_and_unlabelled_voxels_are_taken_over() -> None:
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
    config = imported(plans_of(), {**DATASET, "labels": labels, "regions_class_order": [1, 2, 3]})
    assert config.regions == {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    assert config.label_values == {"background": 0, "whole_rest": 1, "core_rest": 2, "enhancing": 3}
    assert config.ignore_label == 4


def test_what_a_configuration_inherits_counts() -> None:
    plans = plans_of()
    plans["configurations"]["3d_small"] = {"inherits_from": "3d_fullres", "patch_size": [8, 8, 8]}
    config = imported_pipeline(plans, DATASET, "3d_small", ()).config
    assert config.sampling.patch_voxels == (8, 8, 8)
    assert config.network.features == (4, 6, 8)


def test_the_first_plans_of_version_2_name_no_architecture() -> None:
    plans = plans_of()
    chosen = plans["configurations"]["3d_fullres"]
    del chosen["architecture"]
    chosen |= {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 32,
        "unet_max_num_features": 100,
        "n_conv_per_stage_encoder": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
        "pool_op_kernel_sizes": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
        "conv_kernel_sizes": [[3, 3, 3]] * 3,
    }
    network = imported(plans).network
    assert (network.kind, network.features, network.norm, network.bias) == ("unet", (32, 64, 100), "instance", True)


def test_a_residual_encoder_keeps_its_blocks() -> None:
    network = imported(plans_of(residual=True)).network
    assert (network.kind, network.blocks_per_level, network.decoder_convolutions) == ("residual", (1, 2, 2), 1)


def with_architecture(**changes: Any) -> dict[str, Any]:
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {**arguments_of(3), **changes},
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"previous_stage": "3d_lowres"}, "second stage of a cascade"),
        ({"preprocessor_name": "OwnPreprocessor"}, "OwnPreprocessor"),
        ({"normalization_schemes": ["OwnNormalization"]}, "OwnNormalization"),
        ({"normalization_schemes": []}, "channel 0 has no normalization scheme"),
        ({"image_reader_writer": "OwnIO"}, "OwnIO"),
        ({"resampling_fn_data": "resample_torch_fornnunet"}, "resample_torch_fornnunet"),
        ({"resampling_fn_probabilities_kwargs": {"order": 3}}, "resampled in a way"),
        ({"transpose_forward": [0, 0, 1]}, "no order of three axes"),
        ({"architecture": {"network_class_name": "own.Primus", "arch_kwargs": {}}}, "Primus"),
        ({"architecture": with_architecture(norm_op="torch.nn.GroupNorm")}, "GroupNorm"),
        ({"architecture": with_architecture(norm_op_kwargs={"eps": 1e-3, "affine": True})}, "0.001"),
        ({"architecture": with_architecture(nonlin="torch.nn.GELU")}, "GELU"),
        ({"architecture": with_architecture(nonlin_kwargs={"negative_slope": 0.2})}, "slope 0.2"),
        ({"architecture": with_architecture(n_conv_per_stage=[2, 3, 2])}, "2, 3, 2 convolutions"),
    ],
)
def test_what_cannot_be_done_in_the_same_way_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words) as error:
        imported(plans_of(**changes))
    assert error.value.where == "plans.json"
    assert error.value.remedy


def test_a_configuration_that_is_not_there_is_told_from_those_that_are() -> None:
    with pytest.raises(ModelError, match=r"no configuration '2d'.*3d_fullres"):
        imported_pipeline(plans_of(), DATASET, "2d", ())


@pytest.mark.parametrize("dataset", [{"labels": {"background": 0, "a": 1}}, {"channel_names": {"0": "CT"}}])
def test_a_dataset_without_channels_or_labels_is_refused(dataset: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"names no (channels|labels)"):
        imported(plans_of(), dataset)
