from __future__ import annotations

import json
from pathlib import Path

import pytest

from unet_med.errors import NothingUsableError, UsageError
from unet_med.workflows.compare import compare


def run_of(folder: Path, dice: dict[str, dict[str, float | None]]) -> Path:
    folder.mkdir()
    cases = [{"id": name, "dice": labels, "hd95_mm": dict.fromkeys(labels, 2.0)} for name, labels in dice.items()]
    (folder / "metrics.json").write_text(json.dumps({"cases": cases}))
    return folder


def test_shared_cases_are_compared_label_by_label(tmp_path: Path) -> None:
    a = run_of(
        tmp_path / "a", {f"c{n}": {"liver": 0.80 + n / 100, "spleen": 0.7} for n in range(8)} | {"x": {"liver": 1}}
    )
    b = run_of(tmp_path / "b", {f"c{n}": {"liver": 0.85 + n / 90, "spleen": 0.7} for n in range(8)})
    outcome = compare(a, b)
    dice = outcome.result["differences"]["dice"]
    assert (outcome.result["cases"], outcome.result["only_a"], outcome.result["only_b"]) == (8, 1, 0)
    assert dice["liver"]["shown"] and dice["liver"]["effect"] == 1 and dice["liver"]["mean"] > 0.05
    assert not dice["spleen"]["shown"] and dice["spleen"]["mean"] == 0
    assert dice["mean"]["mean"] == pytest.approx(dice["liver"]["mean"] / 2)
    assert any("no difference shown" in line for line in outcome.lines if "spleen" in line)
    assert "1 cases only in A" in "\n".join(outcome.lines)


def test_the_largest_loss_comes_first(tmp_path: Path) -> None:
    a = run_of(tmp_path / "a", {"one": {"liver": 0.9}, "two": {"liver": 0.9}, "three": {"liver": 0.5}})
    b = run_of(tmp_path / "b", {"one": {"liver": 0.8}, "two": {"liver": 0.3}, "three": {"liver": 0.6}})
    outcome = compare(a, b)
    assert [change["id"] for change in outcome.result["changes"]] == ["two", "one", "three"]
    assert "two -0.6000, one -0.1000" in outcome.lines[-1]


def test_a_missing_score_leaves_the_case_out(tmp_path: Path) -> None:
    a = run_of(tmp_path / "a", {"one": {"liver": None}, "two": {"liver": 0.9}})
    b = run_of(tmp_path / "b", {"one": {"liver": 0.8}, "two": {"liver": 0.9}})
    assert compare(a, b).result["differences"]["dice"]["liver"]["cases"] == 1


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    a = run_of(tmp_path / "a", {"one": {"liver": 0.9}})
    b = run_of(tmp_path / "b", {"two": {"liver": 0.9}})
    with pytest.raises(NothingUsableError, match="no case was scored in both"):
        compare(a, b)
    with pytest.raises(UsageError, match="no scores"):
        compare(a, tmp_path)
