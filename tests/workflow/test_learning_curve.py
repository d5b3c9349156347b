"""Models of nested subsets, scored on the same cases."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_set import PIPELINE, Trained

from unet_med.errors import UsageError
from unet_med.io.source import IntakeOptions
from unet_med.manifest import ManifestCase, load_manifest
from unet_med.workflows.learning_curve import learning_curve, nested_subsets
from unet_med.workflows.manifest import make_manifest
from unet_med.workflows.outcome import Outcome

SHORT = PIPELINE | {
    "training": PIPELINE["training"] | {"epochs": 1, "steps_per_epoch": 4},
    "tracking": {"enabled": False},
}


@pytest.fixture(scope="module")
def one(trained: Trained) -> ManifestCase:
    return load_manifest(trained.manifest).training[0]


def cases(one: ManifestCase, groups: list[int]) -> list[ManifestCase]:
    return [replace(one, id=f"case_{n:02d}", group=f"group_{group}") for n, group in enumerate(groups)]


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.data())
def test_subsets_are_nested_and_groups_whole(one: ManifestCase, groups: list[int], data: st.DataObject) -> None:
    whole = cases(one, groups)
    sizes = sorted(data.draw(st.sets(st.integers(1, len(whole)), min_size=1)))
    subsets = [{case.id for case in subset} for subset in nested_subsets(whole, sizes, seed=0)]
    assert all(small < large for small, large in pairwise(subsets))
    largest = max(groups.count(group) for group in groups)
    assert all(any(size <= len(subset) < size + largest for subset in subsets) for size in sizes)
    for subset in subsets:
        inside = {case.group for case in whole if case.id in subset}
        assert {case.id for case in whole if case.group in inside} == subset


@pytest.mark.parametrize("sizes", [[], [0, 2], [2, 9]])
def test_sizes_that_there_are_not(one: ManifestCase, sizes: list[int]) -> None:
    with pytest.raises(UsageError, match="give 1 to 4"):
        nested_subsets(cases(one, [0, 1, 2, 3]), sizes, seed=0)


def test_a_curve_of_two_points(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained.data, tmp_path / "data")
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(SHORT), encoding="utf-8")
    make_manifest(tmp_path / "data", tmp_path / "M.json", folds=2, intake=IntakeOptions())
    arguments = tmp_path / "toy.yaml", tmp_path / "M.json", tmp_path / "OUT", (1, 3)
    outcome = learning_curve(*arguments, device="cpu")
    assert outcome.result == json.loads((tmp_path / "OUT" / "learning_curve.json").read_text(encoding="utf-8"))
    assert [point["images"] for point in outcome.result["points"]] == [1, 3]
    assert outcome.result["held_out"] == outcome.result["last_step"]["cases"] == 3
    for point in outcome.result["points"]:
        metrics = json.loads((tmp_path / f"OUT/images_000{point['images']}/metrics.json").read_text(encoding="utf-8"))
        assert point["score"] == pytest.approx(metrics["mean"]["dice"])
        assert point["low"] <= point["score"] <= point["high"]
    assert outcome.result["last_step"]["mean"] == pytest.approx(
        outcome.result["points"][1]["score"] - outcome.result["points"][0]["score"]
    )
    text = (tmp_path / "OUT" / "learning_curve.html").read_text(encoding="utf-8")
    assert text.count("<circle ") == 2
    assert all(f"{point['score']:.4f}</td>" in text for point in outcome.result["points"])
    assert "http" not in text.replace("http-equiv", "")
    part = load_manifest(tmp_path / "OUT" / "images_0001.json")
    assert sum(case.fold != 0 for case in part.training) == 1
    assert learning_curve(*arguments, device="cpu").result == outcome.result, "finished runs are not trained again"


def test_the_seed_of_the_pipeline_decides_the_subsets(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unet_med.workflows.learning_curve.train", lambda *_: Outcome({}))
    monkeypatch.setattr("unet_med.workflows.learning_curve.read_scores", lambda _: {"a": {"dice": {"ball": 0.5}}})
    monkeypatch.setattr("unet_med.workflows.learning_curve._last_step", lambda _: None)
    chosen = {}
    for seed in range(6):
        out = tmp_path / str(seed)
        learning_curve(trained.pipeline, trained.manifest, out, (1,), overrides=[f"seed={seed}"])
        part = load_manifest(out / "images_0001.json")
        chosen[seed] = [case.id for case in part.training if case.fold != 0]
    assert len({tuple(ids) for ids in chosen.values()}) > 1
    whole = [case for case in load_manifest(trained.manifest).training if case.fold != 0]
    assert chosen[3] == [case.id for case in nested_subsets(whole, [1], seed=3)[0]]
