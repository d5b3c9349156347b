"""The pipeline files are valid, complete and say what they are for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from unet_med.config import PipelineConfig, json_schema, load_config

FOLDER = Path(__file__).parents[2] / "pipelines"
FILES = sorted(FOLDER.glob("*.yaml"))


def keys(data: dict[str, Any], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for key, value in data.items():
        sections = PipelineConfig.model_fields.keys() if not prefix else ()
        nested = isinstance(value, dict) and key in sections and key not in ("labels", "regions")
        found |= keys(value, f"{key}.") if nested else {prefix + key}
    return found


def test_there_are_pipelines() -> None:
    assert {path.stem for path in FILES} == {
        "hippocampus_3d",
        "membrane_2d",
        "nuclei_2d",
        "nuclei_3d",
        "semantic_2d",
        "semantic_3d",
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_pipeline_is_valid_and_complete(path: Path) -> None:
    config = load_config(path)
    assert config.name == path.stem
    every = keys(PipelineConfig(name="x").model_dump())
    assert keys(yaml.safe_load(path.read_text(encoding="utf-8"))) == every


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_header_says_data_score_time_hardware_and_commands(path: Path) -> None:
    header = path.read_text(encoding="utf-8").split("schema_version")[0]
    for word in ("data:", "expected:", "time:", "hardware:", "commands:", f"pipelines/{path.name}"):
        assert word in header


def test_the_schema_is_not_stale() -> None:
    stored = json.loads((FOLDER / "schema.json").read_text(encoding="utf-8"))
    assert stored == json.loads(json.dumps(json_schema())), "see pipelines/README.md for the command that makes it"
