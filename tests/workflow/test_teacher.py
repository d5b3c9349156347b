"""One network that learns from an ensemble, and what it costs in its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from toy_set import PIPELINE, SPACING, write_toy_set

from unet_med.bundle import load_bundle, read_bundle_info, save_ensemble
from unet_med.config import load_config
from unet_med.data import prepare_cases
from unet_med.errors import ConfigError, ModelError, UsageError
from unet_med.inference.predictor import Predictor
from unet_med.io.source import IntakeOptions
from unet_med.manifest import ManifestCase, load_manifest, save_manifest
from unet_med.training.distributed import Team
from unet_med.workflows.distillation import cost_lines, measured_cost
from unet_med.workflows.manifest import make_manifest
from unet_med.workflows.opinions import Opinions
from unet_med.workflows.outcome import Outcome
from unet_med.workflows.teaching import Teacher
from unet_med.workflows.train import train

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = {"background": 0, "bright": 1, "dark": 2}
STUDENT = PIPELINE | {
    "labels": LABELS,
    "channels": ["c0"],
    "training": PIPELINE["training"] | {"epochs": 1, "steps_per_epoch": 2},
    "tracking": {"enabled": False},
}


def quiet(items: Any, _what: str = "") -> Any:
    return items


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four cases in two folds, and the pipeline of a student."""
    monkeypatch.chdir(tmp_path)
    write_toy_set(tmp_path / "data", cases=4)
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(STUDENT), encoding="utf-8")
    make_manifest(
        tmp_path / "data", tmp_path / "M.json", folds=2, label_names="1=bright,2=dark", intake=IntakeOptions()
    )
    return tmp_path


@pytest.fixture
def ensemble(place: Path, tiny_bundle: Callable[..., Path]) -> Path:
    """Two members that need no training, each as if it had held out a fold; alone, the second finds nothing."""
    members = {}
    for fold in (0, 1):
        training = [case.sha256["image"] for case in cases_of(place) if case.fold != fold]
        members[f"fold_{fold}"] = tiny_bundle(
            f"member_{fold}",
            meta={"training": {"case_sha256": training, "n_cases": 2, "fold": f"fold_{fold}"}},
            postprocess__minimum_voxels=10**6 * fold,
        )
    both = [case.sha256["image"] for case in cases_of(place)]
    config = load_bundle(members["fold_0"]).config
    save_ensemble(place / "teacher", members, config, {"training": {"case_sha256": both, "n_cases": 4, "fold": "cv"}})
    return place / "teacher"


def cases_of(place: Path) -> tuple[ManifestCase, ...]:
    return load_manifest(place / "M.json").training


def go(place: Path, out: str = "RUN", **options: Any) -> Outcome:
    return train(place / "toy.yaml", place / "M.json", place / out, device="cpu", **options)


def test_a_case_is_put_to_members_that_had_not_seen_it(place: Path, ensemble: Path) -> None:
    teacher = Teacher.of(str(ensemble))
    for case in cases_of(place):
        assert [member.folder.name for member in teacher.asked_about(case)] == [f"fold_{case.fold}"]
    new = replace(cases_of(place)[0], sha256={"image": "new", "label": "new"})
    assert teacher.asked_about(new) == teacher.members
    alone = Teacher.of(str(ensemble / "fold_0"))
    assert {alone.asked_about(case) for case in cases_of(place)} == {alone.members}


@pytest.mark.parametrize("spacing", [list(SPACING), [1.5, 1.25, 1.5]])
def test_what_it_says_lies_on_the_grid_of_the_student(place: Path, ensemble: Path, spacing: list[float]) -> None:
    config = load_config(place / "toy.yaml", [f"preprocess.spacing_mm={spacing}"])
    teacher, cases = Teacher.of(str(ensemble)), cases_of(place)
    prepared = prepare_cases(cases, config, teacher.info.labels, place / "cache", quiet)
    found = teacher.taught(prepared, cases, config, Opinions(place / "said", Team(), quiet), "cpu")
    assert [case.id for case in found.cases] == [case.id for case in cases]
    for case, truth in zip(found.cases, cases, strict=True):
        said = case.arrays()["teacher"]
        assert said.dtype == np.uint8
        assert said.shape == (2, *case.shape)
        assert bool(said.max() > 200) == (truth.fold == 0)  # the other member finds nothing
        if spacing == list(SPACING):
            member = load_bundle(ensemble / f"fold_{truth.fold}")
            expected = Predictor([member], "cpu").predict(truth.case.read(), probabilities=True).probabilities
            np.testing.assert_allclose(said / 255, expected, atol=0.5 / 255 + 1e-4)
    times = {case.id: case.teacher_file.stat().st_mtime_ns for case in found.cases if case.teacher_file}
    again = teacher.taught(prepared, cases, config, Opinions(place / "said", Team(), quiet), "cpu")
    assert {case.id: case.teacher_file.stat().st_mtime_ns for case in again.cases if case.teacher_file} == times


def test_a_student_of_its_teacher_alone_makes_its_mistakes(place: Path, ensemble: Path) -> None:
    """The first member calls both balls bright; the truth calls the small one dark."""
    settings = ["loss.teacher_weight=1", "training.steps_per_epoch=40"]
    outcome = go(place, fold="0", teacher=str(ensemble / "fold_0"), overrides=settings)
    cost = outcome.result["distillation"]
    assert outcome.exit_code == 0
    assert (cost["on"], cost["cases"], cost["unseen_cases"]) == ("held out", 2, 2)
    assert cost["dice"]["bright"]["second"] == pytest.approx(outcome.result["per_label"]["bright"]["dice"])
    student = Predictor([load_bundle(place / "RUN")], "cpu")
    for case in cases_of(place):
        mask = student.predict(case.case.read()).labels
        assert (mask[case.case.read_label() == 2] == 1).mean() > 0.8


def test_training_with_a_teacher(place: Path, ensemble: Path) -> None:
    outcome = go(place, fold="1", teacher=str(ensemble))
    known, teacher = read_bundle_info(place / "RUN"), read_bundle_info(ensemble)
    assert known.config.loss.teacher_weight == 0.5
    assert known.meta["training"]["learnt_from"] == {"sha256": teacher.sha256, "name": "tiny", "members": 2}
    assert set(known.meta["training"]["case_sha256"]) == {case.sha256["image"] for case in cases_of(place)}
    metrics = json.loads((place / "RUN" / "metrics.json").read_text(encoding="utf-8"))
    cost = metrics["distillation"]
    assert known.meta["distillation"] == cost == outcome.result["distillation"]
    assert set(cost["dice"]) == {"bright", "dark", "mean"}
    assert cost["dice"]["bright"]["first"] > 0.1
    assert cost["seconds_per_case"]["teacher"] > 0
    assert cost["seconds_per_case"]["student"] > 0
    text = "\n".join(outcome.lines)
    assert "learnt from an ensemble of 2" in text
    assert "on 2 held out cases" in text
    assert "seconds a case" in text
    go(place, "ALONE", fold="1")
    alone, taught = (load_bundle(place / run).state for run in ("ALONE", "RUN"))
    assert any(not torch.equal(taught[name], value) for name, value in alone.items())
    assert "finished already" in go(place, fold="1", teacher=str(ensemble), resume=True).lines[0]
    with pytest.raises(UsageError, match="another pipeline"):
        go(place, fold="1", teacher=str(ensemble / "fold_0"), resume=True)


def test_test_cases_are_new_to_the_whole_teacher(place: Path, ensemble: Path) -> None:
    manifest = load_manifest(place / "M.json")
    one, *others = manifest.training
    new = replace(one, sha256={"image": "new", "label": "new"}, fold=None)
    teacher = Teacher.of(str(ensemble))
    cost = measured_cost(teacher, ensemble, replace(manifest, test=(new,)), others, "cpu", quiet)
    assert (cost["on"], cost["cases"], cost["unseen_cases"]) == ("test", 1, 1)
    assert cost["agreement"]["bright"] == 1
    row = cost["dice"]["bright"]
    assert row["first"] == row["second"] > 0.1
    assert (row["low"], row["shown"]) == (None, False)


def test_without_a_case_nothing_is_measured(place: Path, ensemble: Path) -> None:
    cost = measured_cost(Teacher.of(str(ensemble)), ensemble, load_manifest(place / "M.json"), (), "cpu", quiet)
    assert (cost["cases"], cost["dice"], cost["seconds_per_case"]["student"]) == (0, {}, None)
    assert "not measured" in "\n".join(cost_lines(cost))
    json.dumps(cost, allow_nan=False)


def test_of_cases_that_every_member_knows_only_agreement_is_told(place: Path, ensemble: Path) -> None:
    known = next(case for case in cases_of(place) if case.fold == 1)
    model = ensemble / "fold_0"
    cost = measured_cost(Teacher.of(str(model)), model, load_manifest(place / "M.json"), (known,), "cpu", quiet)
    assert (cost["cases"], cost["unseen_cases"], cost["dice"]) == (1, 0, {})
    assert cost["agreement"]["bright"] == 1
    assert "Dice 1.0000" in "\n".join(cost_lines(cost))


def test_what_is_refused(place: Path, ensemble: Path, tiny_bundle: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="do not become one model"):
        go(place, fold="cv", teacher=str(ensemble))
    with pytest.raises(ConfigError, match="no teacher"):
        go(place, overrides=["loss.teacher_weight=0.5"])
    with pytest.raises(ConfigError, match="one network that labels voxels"):
        go(place, teacher=str(ensemble), overrides=["cascade.spacing_mm=[2, 2, 2]"])
    with pytest.raises(ModelError, match="tells objects apart"):
        go(place, teacher=str(tiny_bundle("objects", task="instance")))
    (place / "other").mkdir()
    manifest = load_manifest(place / "M.json")
    save_manifest(replace(manifest, labels={"background": 0, "small": 1, "large": 2}), place / "other" / "M.json")
    with pytest.raises(ModelError, match="not those that are learnt"):
        train(
            place / "toy.yaml",
            place / "other" / "M.json",
            place / "OTHER",
            device="cpu",
            overrides=["labels=auto"],
            teacher=str(ensemble),
        )
