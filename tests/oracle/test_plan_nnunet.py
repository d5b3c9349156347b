"""Our plans against those that nnU-Net's planner makes of the same sizes, here and now."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from msd_sets import SETS, planned_like_nnunet

PYTHON = os.environ.get("UNET_MED_NNUNET_PYTHON")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="UNET_MED_NNUNET_PYTHON names no interpreter that has nnU-Net"),
]
PLANNERS: dict[str, dict[str, str]] = {
    "plain": {},
    **{size: {"kind": "residual", "size": size} for size in ("M", "L", "XL")},
}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    work = tmp_path_factory.mktemp("nnunet")
    sets = [
        {
            "name": f"Dataset{number:03d}_{one.name}",
            "spacing": one.spacing[::-1],
            "shape": one.shape[::-1],
            "cases": one.cases,
            "labels": one.labels,
            "planners": list(PLANNERS),
        }
        for number, one in enumerate(SETS, start=1)
    ]
    script = Path(__file__).parents[1] / "nnunet_plans.py"
    done = subprocess.run(
        [str(PYTHON), str(script), str(work)],
        input=json.dumps(sets),
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return {name.partition("_")[2]: plans for name, plans in json.loads(done.stdout).items()}


def ras(plans: dict[str, Any], values: list[Any]) -> tuple[Any, ...]:
    """From nnU-Net's order of axes to R, A, S."""
    stored = [values[place] for place in plans["transpose_backward"]]
    return tuple(stored[::-1])


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("one", SETS, ids=lambda one: one.name)
def test_the_same_plan(one: Any, planner: str, theirs: dict[str, Any]) -> None:
    plans = theirs[one.name][planner]
    full = plans["configurations"]["3d_fullres"]
    architecture = full["architecture"]["arch_kwargs"]
    ours = planned_like_nnunet(one, PLANNERS[planner]).config
    assert ours.sampling.patch_voxels == ras(plans, full["patch_size"])
    assert ours.sampling.batch_size == full["batch_size"]
    assert list(ours.network.features) == architecture["features_per_stage"]
    assert [tuple(s) for s in ours.network.strides] == [ras(plans, s) for s in architecture["strides"]]
    assert [tuple(k) for k in ours.network.kernels] == [ras(plans, k) for k in architecture["kernel_sizes"]]


@pytest.mark.parametrize("one", SETS, ids=lambda one: one.name)
def test_the_same_low_resolution(one: Any, theirs: dict[str, Any]) -> None:
    plans = theirs[one.name]["plain"]
    advice = re.search(r"spacing_mm (\[.*?\])", planned_like_nnunet(one, {}).reasons["sampling.patch_voxels"])
    low = plans["configurations"].get("3d_lowres")
    assert (advice is None) == (low is None)
    if low is not None:
        assert json.loads(advice.group(1)) == pytest.approx(ras(plans, low["spacing"]), rel=0.01)


@pytest.mark.parametrize("one", SETS, ids=lambda one: one.name)
def test_the_same_slices(one: Any, theirs: dict[str, Any]) -> None:
    plans = theirs[one.name]["plain"]
    flat = plans["configurations"]["2d"]
    if plans["transpose_forward"][0] != 0:
        pytest.skip("nnU-Net cuts this set along another axis than S")
    ours = planned_like_nnunet(one, {}, dims=2).config
    assert ours.sampling.patch_voxels == tuple(flat["patch_size"][::-1])
    assert ours.sampling.batch_size == flat["batch_size"]
