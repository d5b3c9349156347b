"""The page that explains a plan, and what two plans differ in."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from msd_sets import SETS
from toy_set import write_toy_set

from unet_med import cli
from unet_med.bundle import save_bundle
from unet_med.config import parse_config
from unet_med.errors import ConfigError, ModelError, UsageError
from unet_med.planning import Plan, plan_from_fingerprint
from unet_med.workflows.manifest import make_manifest
from unet_med.workflows.outcome import Outcome
from unet_med.workflows.plan import PAGE, explained, plan, shown
from unet_med.workflows.plan_diff import plan_diff

PROSTATE = next(one for one in SETS if one.name == "Prostate")


def planned(device: str = "cpu", **config: object) -> Plan:
    return plan_from_fingerprint(
        parse_config({"name": "p", **config}, "test"), PROSTATE.manifest(), PROSTATE.fingerprint(), device=device
    )


# ---- the page --------------------------------------------------------------------------------------------------------


def test_the_page_names_every_value_and_its_reason_in_short_aligned_lines() -> None:
    plan = planned("cuda")
    lines = explained(plan, PROSTATE.manifest())
    assert len(lines) <= 60
    assert all(len(line) <= PAGE for line in lines)
    text = " ".join(" ".join(lines).split())
    for key, reason in plan.reasons.items():
        assert key.rpartition(".")[2] in text
        assert " ".join(reason.split()) in text
    assert "patch_voxels" in text
    assert shown(list(plan.config.sampling.patch_voxels)) in text
    assert [line for line in lines if line and not line.startswith(" ")][1:] == [
        *("data", "task", "preprocess", "network", "sampling", "loss", "augment", "training")
    ]
    shares = [line.index("%") for line in lines if re.match(r"  label\d ", line)]
    assert len(shares) == 2
    assert len(set(shares)) == 1
    assert not any("None" in line for line in lines)


def test_long_names_do_not_break_the_page() -> None:
    manifest = replace(PROSTATE.manifest(), labels={"background": 0, "x" * 200: 1, "y": 2})
    plan = plan_from_fingerprint(parse_config({"name": "p"}, "test"), manifest, PROSTATE.fingerprint())
    assert all(len(line) <= PAGE for line in explained(plan, manifest))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([40, 56, 40], "[40, 56, 40]"),
        ([[1, 1], [2, 2]], "1x1, 2x2"),
        ({"a": 1, "b": None}, "a 1"),
        ([{"scheme": "zscore", "mean": None}], "[scheme zscore]"),
        (None, "null"),
        (True, "true"),
        (0.001, "0.001"),
        ([], "[]"),
    ],
)
def test_values_are_shown_on_one_line(value: object, text: str) -> None:
    assert shown(value) == text


# ---- what two plans differ in ----------------------------------------------------------------------------------------


def write_run(folder: Path, plan: Plan) -> Path:
    folder.mkdir()
    (folder / "pipeline.yaml").write_text(plan.config.to_yaml(), encoding="utf-8")
    known = {"reasons": plan.reasons, "fingerprint": plan.fingerprint}
    (folder / "plan.json").write_text(json.dumps(known), encoding="utf-8")
    return folder


def test_equal_plans_have_no_difference(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", planned())
    outcome = plan_diff(str(run), str(run / "pipeline.yaml"))
    assert (outcome.exit_code, outcome.result["differences"]) == (0, [])
    assert outcome.lines == ["run and pipeline.yaml: no difference"]


def test_only_differences_are_told_with_the_reasons_of_both(tmp_path: Path) -> None:
    cpu, gpu = planned(), planned("cuda", seed=7)
    a, b = write_run(tmp_path / "a", cpu), write_run(tmp_path / "b", gpu)
    outcome = plan_diff(str(a), str(b))
    found = {one["key"]: one for one in outcome.result["differences"]}
    changed = {"seed", "network.features", "sampling.patch_voxels"}
    assert changed <= set(found)
    assert set(found) <= changed | {
        *("network.strides", "network.kernels", "sampling.batch_size", "training.workers", "training.steps_per_epoch")
    }
    assert found["network.features"]["a"][0] == 16
    assert found["network.features"]["a_reason"] == cpu.reasons["network.features"]
    assert found["network.features"]["b_reason"] == gpu.reasons["network.features"]
    assert (found["seed"]["a"], found["seed"]["b"], found["seed"]["b_reason"]) == (0, 7, "")
    assert json.loads(json.dumps(outcome.result)) == outcome.result
    assert all(len(line) <= PAGE for line in outcome.lines)
    assert not any(str(tmp_path) in line for line in outcome.lines)
    text = " ".join(" ".join(outcome.lines).split())
    assert all(one["a_reason"] in text and one["b_reason"] in text for one in found.values())


def test_the_data_is_told_where_both_are_known(tmp_path: Path) -> None:
    plan = planned()
    other = replace(plan, fingerprint=plan.fingerprint | {"cases": 5})
    a, b = write_run(tmp_path / "a", plan), write_run(tmp_path / "b", other)
    differences = plan_diff(str(a), str(b)).result["differences"]
    assert [(one["key"], one["a"], one["b"]) for one in differences] == [("data.cases", 32, 5)]
    (tmp_path / "p.yaml").write_text("name: p\n", encoding="utf-8")
    keys = {one["key"] for one in plan_diff(str(a), str(tmp_path / "p.yaml")).result["differences"]}
    assert keys == set(plan.reasons)


def test_an_open_pipeline_says_so(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("name: p\n", encoding="utf-8")
    run = write_run(tmp_path / "run", planned())
    outcome = plan_diff(str(tmp_path / "p.yaml"), str(run))
    (dims,) = [one for one in outcome.result["differences"] if one["key"] == "dims"]
    assert (dims["a"], dims["a_reason"], dims["b"]) == ("auto", "resolved when it is planned", 3)
    labels = [one for one in outcome.result["differences"] if one["key"].startswith("labels")]
    assert [one["key"] for one in labels] == ["labels"]


def test_a_model_is_read_from_its_bundle(tmp_path: Path) -> None:
    plan = planned()
    save_bundle(
        tmp_path / "model",
        plan.config,
        {"w": torch.zeros(1)},
        {"reasons": plan.reasons, "fingerprint": plan.fingerprint},
    )
    run = write_run(tmp_path / "run", planned(sampling={"batch_size": 3}))
    (one,) = plan_diff(str(tmp_path / "model"), str(run)).result["differences"]
    assert (one["key"], one["b"], one["b_reason"]) == ("sampling.batch_size", 3, "given in the pipeline file")
    assert one["a_reason"] == plan.reasons["sampling.batch_size"]


def test_the_json_of_a_plan_brings_its_reasons(tmp_path: Path) -> None:
    plan = planned()
    result = {
        "config": plan.config.model_dump(mode="json"),
        "reasons": plan.reasons,
        "fingerprint": plan.fingerprint,
    }
    (tmp_path / "plan.json").write_text(json.dumps(result), encoding="utf-8")
    run = write_run(tmp_path / "run", planned(seed=1))
    assert [one["key"] for one in plan_diff(str(tmp_path / "plan.json"), str(run)).result["differences"]] == ["seed"]
    (tmp_path / "p.yaml").write_text("name: p\n", encoding="utf-8")
    known = {
        one["key"]: one["b_reason"]
        for one in plan_diff(str(tmp_path / "p.yaml"), str(tmp_path / "plan.json")).result["differences"]
    }
    assert known == plan.reasons


def test_what_is_no_plan_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", planned())
    with pytest.raises(ModelError, match="no such model"):
        plan_diff(str(run), str(tmp_path / "nothing"))
    (tmp_path / "list.yaml").write_text("- 1\n", encoding="utf-8")
    with pytest.raises(ConfigError):
        plan_diff(str(run), str(tmp_path / "list.yaml"))
    (tmp_path / "other.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(UsageError, match="cannot be read"):
        plan_diff(str(run), str(tmp_path / "other.json"))
    (run / "plan.json").write_text("{", encoding="utf-8")
    with pytest.raises(UsageError, match="cannot be read"):
        plan_diff(str(run), str(run))


# ---- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "module"), [(["plan"], "plan"), (["train", "--out", "run"], "train")], ids=["plan", "train"]
)
def test_memory_and_device_of_a_plan_reach_it(
    command: list[str], module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    def workflow(*_: object, **options: object) -> Outcome:
        asked.update(options)
        return Outcome({})

    monkeypatch.setattr(f"unet_med.workflows.{module}.{module}", workflow)
    (tmp_path / "p.yaml").write_text("name: p\n", encoding="utf-8")
    (tmp_path / "m.json").write_text("{}", encoding="utf-8")
    files = [str(tmp_path / "p.yaml"), "--data", str(tmp_path / "m.json")]
    assert cli.main([command[0], *files, *command[1:], "--memory-gb", "24", "--device", "cuda"]) == 0
    assert (asked["memory_gb"], asked["device"]) == (24.0, "cuda")


def test_a_machine_without_a_card_plans_for_its_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_manifest: Path
) -> None:
    (tmp_path / "p.yaml").write_text("name: p\n", encoding="utf-8")
    plans = {}
    for device in ("cpu", "cuda", "auto"):
        monkeypatch.setattr("unet_med.inference.device.choose_device", lambda: torch.device("cpu"))
        plans[device] = plan(tmp_path / "p.yaml", toy_manifest, device=device).result["config"]["network"]["features"]
    assert plans["auto"] == plans["cpu"] != plans["cuda"]


@pytest.fixture
def toy_manifest(tmp_path: Path) -> Path:
    out = tmp_path / "m.json"
    make_manifest(write_toy_set(tmp_path / "toy", cases=2), out)
    return out
