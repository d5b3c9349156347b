"""What a plan says where objects are told apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from unet_med.config import parse_config
from unet_med.errors import ConfigError
from unet_med.io.cases import Case
from unet_med.io.nifti import inspect_nifti
from unet_med.manifest import Manifest
from unet_med.planning import CaseFingerprint, ChannelStatistics, Fingerprint, Plan, fingerprint, make_plan
from unet_med.planning.fingerprint import ObjectStatistics
from unet_med.planning.plan import plan_from_fingerprint

SOME = ChannelStatistics(10.0, 2.0, 1.0, 20.0)
LABELS = {"background": 0, "nucleus": 1}


def measured(objects: ObjectStatistics | None, spacing: tuple[float, ...] | None = None) -> Fingerprint:
    return Fingerprint((CaseFingerprint((256, 256), spacing, 1.0),) * 20, (SOME,), (900, 100), objects)


def planned(objects: ObjectStatistics | None, spacing: tuple[float, ...] | None = None, **config: Any) -> Plan:
    manifest = Manifest("set", LABELS, ("grey",), None, "instance", ())
    return plan_from_fingerprint(
        parse_config({"name": "p", "task": "instance", **config}, "test"), manifest, measured(objects, spacing)
    )


def reason(plan: Plan) -> str:
    return plan.reasons["sampling.patch_voxels"]


def test_a_plan_has_weights_for_classes_alone() -> None:
    plan = planned(None)
    assert plan.config.unresolved() == ()
    assert plan.config.loss.class_weights is not None
    assert len(plan.config.loss.class_weights) == 2
    with pytest.raises(ConfigError, match="4 weights for 2 outputs"):
        planned(None, loss={"class_weights": [1, 1, 1, 1]})


def test_labels_that_count_no_objects_are_refused() -> None:
    manifest = Manifest("set", LABELS, ("grey",), None, "semantic", ())
    with pytest.raises(ConfigError, match="kinds, not numbers of objects"):
        make_plan(parse_config({"name": "p", "task": "instance"}, "test"), manifest)


def test_the_size_of_objects_is_told_beside_the_patch() -> None:
    plain = reason(planned(None))
    fitting = planned(ObjectStatistics(500, 8.0, 16.2, 30.0))
    assert reason(fitting) == f"{plain}; objects are about 16.2 voxels across (8 to 30)"
    assert reason(planned(ObjectStatistics(500, 2.0, 16.2, 30.0))).endswith("a finer preprocess.spacing_mm helps")
    large = reason(planned(ObjectStatistics(500, 8.0, 90.0, 200.0), sampling={"patch_voxels": [128, 128]}))
    assert "too large for a patch of 128" in large
    semantic = Manifest("set", LABELS, ("grey",), None, "instance", ())
    config = parse_config({"name": "p"}, "test")
    objects = ObjectStatistics(500, 8.0, 16.2, 30.0)
    assert "objects are" not in reason(plan_from_fingerprint(config, semantic, measured(objects)))


def test_objects_are_measured_on_the_networks_grid() -> None:
    objects = ObjectStatistics(500, 8.0, 16.0, 30.0)
    plan = planned(objects, (0.5, 0.5), preprocess={"spacing_mm": [2.0, 2.0]})
    assert "objects are about 4 voxels across (2 to 7.5)" in reason(plan)


def test_diameters_are_those_of_discs_and_balls(tmp_path: Path) -> None:
    grid = np.stack(np.mgrid[:40, :40, :40], axis=-1)
    label = np.zeros((40, 40, 40), dtype=np.uint16)
    for number, (centre, radius) in enumerate([((10, 10, 10), 5.0), ((28, 28, 28), 9.0), ((30, 8, 8), 5.0)], start=1):
        label[((grid - np.array(centre)) ** 2).sum(-1) < radius**2] = number * 100
    label[0] = 7  # what nobody labelled
    image = np.random.default_rng(0).normal(size=label.shape).astype(np.float32)
    for name, values in {"image": image, "label": label}.items():
        nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / f"{name}.nii.gz")
    ref = [inspect_nifti(tmp_path / f"{name}.nii.gz")[0] for name in ("image", "label")]
    case = Case("a", (ref[0],), ref[1], instances=True, unlabelled=7)
    found = fingerprint([case], 2, ignore=7)
    assert found.objects is not None
    assert found.objects.count == 3
    assert found.objects.diameter_50 == pytest.approx(10.0, abs=0.3)
    assert found.objects.diameter_95 == pytest.approx(17.2, abs=0.5)
    assert found.as_dict()["objects"]["count"] == 3
    assert found.label_voxels[1] == int((label >= 100).sum())
    two = replace(case, classes={100: 1, 200: 2, 300: 1})
    assert fingerprint([two], 3, ignore=7).label_voxels[2] == int((label == 200).sum())
    assert (
        fingerprint(
            [replace(case, instances=False, label_values={0: 0, 7: 7, 100: 1, 200: 1, 300: 1})], 2, ignore=7
        ).objects
        is None
    )
