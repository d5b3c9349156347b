"""Our plans against those that nnU-Net published for the sets of the Medical Segmentation Decathlon."""

from __future__ import annotations

import math

import pytest
from msd_sets import SETS, DecathlonSet, planned_like_nnunet

from unet_med.planning.memory import REFERENCE_ELEMENTS, network_elements

LARGER = {"Colon": (192, 192, 56)}
"""Where ours sees more: the published patch was cut once more although this one fits the same memory."""


def in_plane_sorted(patch: tuple[int, ...]) -> tuple[int, ...]:
    return (*sorted(patch[:2]), patch[2])


@pytest.mark.parametrize("one", SETS, ids=lambda one: one.name)
def test_patch_and_batch_are_the_published_ones_or_larger(one: DecathlonSet) -> None:
    plan = planned_like_nnunet(one, {}).config
    network, patch = plan.network, plan.sampling.patch_voxels
    wanted = LARGER.get(one.name, one.patch)
    # the two axes of a square plane are alike; of the long ones of the hippocampus the order matters
    assert patch == wanted if one.name == "Hippocampus" else in_plane_sorted(patch) == in_plane_sorted(wanted)
    assert plan.sampling.batch_size == one.batch
    assert math.prod(patch) >= math.prod(one.patch)
    elements = network_elements(network, patch, network.strides, network.features, one.labels)
    assert elements <= REFERENCE_ELEMENTS[3]


def test_the_spacing_of_every_set_is_kept() -> None:
    assert [planned_like_nnunet(one, {}).config.preprocess.spacing_mm for one in SETS] == [one.spacing for one in SETS]


def test_spleen_is_normalised_as_published() -> None:
    from dataclasses import replace

    from unet_med.config import parse_config
    from unet_med.planning import plan_from_fingerprint

    spleen = next(one for one in SETS if one.name == "Spleen")
    manifest = replace(spleen.manifest(), channels=("CT",), modality="CT")
    plan = plan_from_fingerprint(parse_config({"name": "p"}, "test"), manifest, spleen.fingerprint())
    (scheme,) = plan.config.preprocess.normalisation
    assert (scheme.scheme, scheme.window, scheme.mean, scheme.sd) == ("ct", (-41.0, 176.0), 99.29, 39.47)
