"""What a user asks for, checked before any case is touched."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from unet_med.errors import ConfigError, UsageError
from unet_med.io.export.choices import export_options, labels_block
from unet_med.labels import LabelMap

LABELS = LabelMap.from_names({"background": 0, "liver": 1, "odd: name": 2, "left kidney": 3, "yes": 4})


def test_nothing_asked_for_is_nifti_and_needs_no_code() -> None:
    options = export_options(LABELS)
    assert (options.formats, options.seg_type, options.deidentify) == (("nifti",), "binary", False)
    assert options.labels is not None
    assert [label.code is None for label in options.labels.labels] == [False, True, False, True]


@pytest.mark.parametrize("name", ["dicom-seg", "sr"])
def test_missing_codes_are_told_with_the_block_to_add(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="2 of 4 have none") as caught:
        export_options(LABELS, ["nifti", name])
    assert "--labels FILE.yaml" in caught.value.remedy
    path = tmp_path / "labels.yaml"
    path.write_text(caught.value.example, encoding="utf-8")
    found = export_options(LABELS, [name], labels_file=path).labels
    assert found is not None
    codes = [label.code for label in found.labels]
    assert [code and code.type.value for code in codes] == ["10200004", "85756007", "64033007", "85756007"]
    assert codes[2] is not None
    assert codes[2].modifier is not None
    assert list(yaml.safe_load(caught.value.example)["labels"]) == [
        "background",
        "liver",
        "odd: name",
        "left kidney",
        "yes",
    ]


def test_formats_without_codes_do_not_ask_for_them() -> None:
    assert export_options(LABELS, ["rtstruct,sc,nrrd"]).formats == ("seg-nrrd", "rtstruct", "dicom-sc")


def test_a_file_of_labels_must_fit_the_model(tmp_path: Path) -> None:
    path = tmp_path / "labels.yaml"
    path.write_text("labels: {background: 0, liver: 2, spleen: 1}", encoding="utf-8")
    with pytest.raises(ConfigError, match="not those of the model") as caught:
        export_options(LABELS, labels_file=path)
    assert caught.value.problems == ("liver: the model's value is 1", "spleen: the model has no such label")


def test_a_part_of_the_labels_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "labels.yaml"
    path.write_text("liver: {value: 1, colour: [1, 2, 3]}", encoding="utf-8")
    found = export_options(LABELS, labels_file=path).labels
    assert found is not None
    assert found.labels[0].colour == (1, 2, 3)
    assert found.labels[1] == LABELS.labels[1]


def test_a_kind_of_seg_without_a_seg_is_a_mistake() -> None:
    with pytest.raises(UsageError, match="without a DICOM SEG"):
        export_options(LABELS, ["nifti"], "fractional")


def test_the_block_of_known_labels_needs_no_remark() -> None:
    block = labels_block(LabelMap.from_names({"liver": 1}).with_known_codes())
    assert "#" not in block
