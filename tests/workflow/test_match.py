"""Networks of several kinds, trained and compared by one command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from toy_set import PIPELINE, Trained

from unet_med.bundle import load_bundle
from unet_med.errors import ConfigError
from unet_med.io.source import IntakeOptions
from unet_med.workflows.manifest import make_manifest
from unet_med.workflows.match import match, matched_settings, parameter_count

SHORT = PIPELINE | {
    "training": PIPELINE["training"] | {"epochs": 1, "steps_per_epoch": 2},
    "tracking": {"enabled": False},
}


@pytest.mark.parametrize("kind", ["dilated", "naive"])
def test_as_many_parameters(trained: Trained, kind: str) -> None:
    planned = load_bundle(trained.run).config
    changed = planned.replacing(matched_settings(planned, kind))
    assert parameter_count(changed) == pytest.approx(parameter_count(planned), rel=0.3), "whole channels, few of them"
    wider = changed.replacing({"network.features": [changed.network.features[0] + 1]})
    narrower = changed.replacing({"network.features": [max(1, changed.network.features[0] - 1)]})
    gaps = [abs(parameter_count(c) - parameter_count(planned)) for c in (changed, wider, narrower)]
    assert gaps[0] == min(gaps)
    assert changed.sampling.patch_voxels == planned.sampling.patch_voxels


def test_a_network_of_nothing_cannot_be_matched(trained: Trained) -> None:
    planned = load_bundle(trained.run).config
    tiny = planned.replacing(
        {"network.features": [1, 1], "network.strides": [[1] * 3, [2] * 3], "network.kernels": [[1] * 3] * 2},
    )
    with pytest.raises(ConfigError, match="one channel"):
        matched_settings(tiny, "dilated")


def test_three_kinds_are_trained_and_compared(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained.data, tmp_path / "data")
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(SHORT), encoding="utf-8")
    make_manifest(tmp_path / "data", tmp_path / "M.json", folds=3, intake=IntakeOptions())
    outcome = match(tmp_path / "toy.yaml", tmp_path / "M.json", tmp_path / "OUT", ("unet", "dilated"), device="cpu")
    stored = json.loads((tmp_path / "OUT" / "comparison.json").read_text(encoding="utf-8"))
    assert stored == outcome.result
    assert load_bundle(tmp_path / "OUT" / "dilated").config.network.kind == "dilated"
    assert stored["differences"]["unet -> dilated"]["cases"] == 2
    again = match(tmp_path / "toy.yaml", tmp_path / "M.json", tmp_path / "OUT", ("unet", "dilated"), device="cpu")
    assert again.result == outcome.result, "finished runs are not trained again"
