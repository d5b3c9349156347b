"""Pipeline files: every fault at once, with its key and the nearest valid one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from unet_med.bundle import labels_of
from unet_med.config import PipelineConfig, json_schema, load_config, load_labels, parse_config
from unet_med.errors import ConfigError


def problems(data: dict[str, object]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config({"name": "test"} | data, "pipeline.yaml")
    assert caught.value.exit_code == 2
    assert caught.value.where == "pipeline.yaml"
    return "\n".join(caught.value.problems)


def test_all_faults_are_told_at_once_with_the_nearest_key() -> None:
    text = problems(
        {
            "netwrk": {},
            "network": {"featurs": [8, 16], "dropout": 2},
            "training": {"epochs": "many"},
            "sampling": {"patch_voxels": [1, 2, 3, 4]},
        }
    )
    assert "unknown key 'netwrk', did you mean 'network'?" in text
    assert "unknown key 'network.featurs', did you mean 'network.features'?" in text
    assert "network.dropout: input should be less than 1, got 2" in text
    assert "training.epochs: input should be a valid integer" in text
    assert "sampling.patch_voxels" in text
    assert len(text.splitlines()) == 5


def test_levels_must_agree() -> None:
    text = problems({"network": {"features": [8, 16], "strides": [[1, 1]], "kernels": [[3, 3]]}})
    assert "one entry for each level" in text


def test_an_unresolved_pipeline_says_what_is_open_and_comes_back_from_yaml() -> None:
    config = parse_config({"name": "test"}, "pipeline.yaml")
    assert "sampling.patch_voxels" in config.unresolved()
    assert "training.precision" not in config.unresolved()
    assert parse_config(yaml.safe_load(config.to_yaml()), "again") == config


def test_overrides_are_yaml_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("name: test\ntraining: {epochs: 3}\n", encoding="utf-8")
    config = load_config(path, ["training.epochs=5", "network.features=[8, 16]", "loss.kind=dice"])
    assert config.training.epochs == 5
    assert config.network.features == (8, 16)
    with pytest.raises(ConfigError, match="has no '='"):
        load_config(path, ["training.epochs"])
    with pytest.raises(ConfigError, match=r"unknown key 'training\.epoch', did you mean 'training\.epochs'"):
        load_config(path, ["training.epoch=5"])
    with pytest.raises(ConfigError):
        load_config(path, ["name.deeper=5"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [unclosed", "no valid YAML"),
        ("- a\n- b\n", "must hold keys and values"),
        ("name: !!python/object/apply:os.system ['true']", "no valid YAML"),
    ],
)
def test_a_file_that_is_no_pipeline(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the pipeline file none\.yaml"):
        load_config(tmp_path / "none.yaml")


def test_not_a_number_is_refused() -> None:
    assert "training.learning_rate" in problems({"training": {"learning_rate": float("nan")}})


@given(st.dictionaries(st.text(max_size=8), st.one_of(st.none(), st.integers(), st.text(max_size=5)), max_size=4))
def test_any_mapping_is_a_pipeline_or_a_clear_error(data: dict[str, object]) -> None:
    try:
        assert isinstance(parse_config(data, "fuzz"), PipelineConfig)
    except ConfigError as error:
        assert error.problems


def test_the_schema_describes_every_section() -> None:
    schema = json_schema()
    assert set(schema["properties"]) == set(PipelineConfig.model_fields)
    assert schema["additionalProperties"] is False


CODED = """
labels:
  background: 0
  liver:
    {value: 1, colour: [200, 30, 40], category: [SCT, "91723000", Anatomical Structure], type: [SCT, 10200004, Liver]}
  left kidney:
    value: 2
    category: [SCT, "91723000", Anatomical Structure]
    type: [SCT, "64033007", Kidney]
    modifier: [SCT, "7771000", Left]
  thing: 3
"""


def test_labels_may_carry_colours_and_codes(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("name: x" + CODED, encoding="utf-8")
    config = load_config(path)
    assert config.label_values == {"background": 0, "liver": 1, "left kidney": 2, "thing": 3}
    liver, kidney, thing = labels_of(config).labels
    assert liver.colour == (200, 30, 40)
    assert liver.code is not None
    assert (liver.code.category.value, liver.code.type.value, liver.code.modifier) == ("91723000", "10200004", None)
    assert kidney.code is not None
    assert kidney.code.modifier is not None
    assert kidney.code.modifier.meaning == "Left"
    assert thing.code is None
    assert parse_config(yaml.safe_load(config.to_yaml()), "again") == config
    plain = parse_config({"name": "x", "labels": {"background": 0, "a": 1}}, "p")
    assert plain.model_dump(mode="json")["labels"] == {"background": 0, "a": 1}


def test_all_faults_of_labels_are_told_at_once() -> None:
    labels = {
        "background": 0,
        "a": {"value": 1, "color": [1, 2, 3]},
        "b": {"value": 2, "colour": [1, 2, 300]},
        "c": {"value": 3, "type": ["SCT", "1", "One"]},
        "d": "four",
        "e": {"value": 5, "modifier": ["SCT", "7771000", "Left"]},
        "f": {"value": 6, "category": ["SCT", "1"], "type": ["SCT", "2", "Two"]},
    }
    with pytest.raises(ConfigError) as caught:
        parse_config({"name": "x", "labels": labels}, "p.yaml")
    text = "; ".join(caught.value.problems)
    assert "'labels.a.color', did you mean 'labels.a.colour'" in text
    for part in ("labels.b.colour", "labels.c", "labels.d", "labels.e"):
        assert part in text
    assert "labels.f.category" in text
    assert len(caught.value.problems) == 6
    assert "'auto'" not in text


def test_labels_in_a_file_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "labels.yaml"
    path.write_text(CODED, encoding="utf-8")
    with_key = load_labels(path)
    path.write_text(yaml.safe_dump(yaml.safe_load(CODED)["labels"]), encoding="utf-8")
    assert load_labels(path) == with_key
    assert with_key["liver"].code is not None
    for text, message in (("a: [", "no valid YAML"), ("- 1", "no labels"), ("labels: {a: x, b: y}", "2 problems")):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=message) as caught:
            load_labels(path)
        assert caught.value.remedy
