"""The words of nnU-Net's dataset.json: labels, regions, unlabelled voxels, folds, endings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_med.errors import UsageError
from unet_med.io.source import Discovery, SourceRef
from unet_med.labels import LabelMap
from unet_med.manifest.description import described_labels, read_description
from unet_med.manifest.nnunet import LabelBlock, dataset_json, is_nnunet_block, label_block, of_ending, stored_folds

BRATS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
KITS = {"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2}


@pytest.mark.parametrize(
    ("block", "order", "labels", "regions", "ignore"),
    [
        ({"background": 0, "b": 2, "a": 1}, None, {"background": 0, "a": 1, "b": 2}, None, None),
        ({"nothing": 0, "a": "1", "ignore": 2}, None, {"nothing": 0, "a": 1}, None, 2),
        ({"background": 0, "a": [1]}, None, {"background": 0, "a": 1}, None, None),
        (
            BRATS,
            [1, 2, 3],
            {"background": 0, "whole_rest": 1, "core_rest": 2, "enhancing": 3},
            {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)},
            None,
        ),
        (
            {**KITS, "ignore": 4},
            [1, 3, 2],
            {"background": 0, "kidney_rest": 1, "tumor": 2, "masses_rest": 3},
            {"kidney": (1, 2, 3), "masses": (3, 2), "tumor": (2,)},
            4,
        ),
        (
            {"background": 0, "left": [1, 2], "right": [3, 4]},
            [2, 4],
            {"background": 0, "label_1": 1, "left_rest": 2, "label_3": 3, "right_rest": 4},
            {"left": (2, 1), "right": (4, 3)},
            None,
        ),
    ],
)
def test_blocks_are_read(
    block: dict[str, Any],
    order: list[int] | None,
    labels: dict[str, int],
    regions: dict[str, tuple[int, ...]] | None,
    ignore: int | None,
) -> None:
    assert is_nnunet_block(block)
    found = label_block(block, order, "dataset.json")
    assert found == LabelBlock(labels, regions, ignore)
    if order is not None:
        assert LabelMap.from_names(found.labels, found.regions).region_values() == tuple(order)


@pytest.mark.parametrize(
    ("block", "order", "words"),
    [
        (BRATS, None, "regions_class_order"),
        (BRATS, [1, 2], "regions_class_order"),
        (BRATS, [3, 2, 1], "outermost to the innermost"),
        ({"background": 0, "core": [2, 3], "whole": [1, 2, 3]}, [2, 1], "outermost to the innermost|label of its own"),
        ({"background": 0, "a": [1, 3], "b": 3}, [1, 3], "without gap"),
        ({"background": 0, "a": [0, 1], "b": 1}, [0, 1], "no names with whole numbers"),
        ({"background": 0, "a": 1, "ignore": [2, 3]}, None, "one value above"),
    ],
)
def test_blocks_without_sense_are_refused(block: dict[str, Any], order: list[int] | None, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        label_block(block, order, "dataset.json")


@pytest.mark.parametrize(
    "block", [{"0": "background", "1": "liver"}, {"a": 1.5}, {"a": None}, {"a": []}, [], {"a": -1}]
)
def test_other_blocks_are_not_taken_for_nnunets(block: object) -> None:
    assert not is_nnunet_block(block)


@given(count=st.integers(1, 6), nested=st.booleans(), ignored=st.booleans())
def test_what_is_written_is_read_again(count: int, nested: bool, ignored: bool) -> None:
    """Regions that are nested like onion shells, or labels."""
    names = {"background": 0} | {f"l{value}": value for value in range(1, count + 1)}
    regions = {f"r{value}": tuple(range(value, count + 1)) for value in range(1, count + 1)} if nested else None
    ignore = count + 1 if ignored else None
    content = json.loads(json.dumps(dataset_json(names, regions, ignore)))
    found = label_block(content["labels"], content.get("regions_class_order"), "dataset.json")
    assert found.ignore == ignore
    if regions is None or count == 1:  # a single region of a single label is that label
        assert sorted(found.labels.values()) == sorted(names.values())
    else:
        assert found.regions == regions


def test_our_own_words_are_read_too() -> None:
    data = {"labels": {"0": "background", "1": "a", "2": "b"}, "regions": {"all": [1, 2], "b": [2]}, "ignore_label": 9}
    found = described_labels(data, "M.json")
    assert found == LabelBlock({"background": 0, "a": 1, "b": 2}, {"all": (1, 2), "b": (2,)}, 9)
    with pytest.raises(UsageError, match="whole numbers"):
        described_labels({**data, "regions": {"all": ["x"]}}, "M.json")


def test_a_description_of_another_kind_says_nothing(tmp_path: Path) -> None:
    for content in ("{", "[1]", '{"labels": ["a"]}', '{"labels": {"a": {"b": 1}}}'):
        (tmp_path / "dataset.json").write_text(content)
        assert read_description(tmp_path).label_names == {}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": BRATS, "regions_class_order": [3, 2, 1]}))
    with pytest.raises(UsageError):
        read_description(tmp_path)


def test_only_files_of_the_ending_belong_to_the_set(tmp_path: Path) -> None:
    (tmp_path / "imagesTr").mkdir()
    refs = [
        SourceRef(name, "nifti", (tmp_path / "imagesTr" / f"{name}{ending}",), "IJK", (1, 1, 1), None)
        for name, ending in (("a", ".nii.gz"), ("b", ".nrrd"))
    ]
    found, left = of_ending(tmp_path, Discovery(tuple(refs)), ".nii.gz")
    assert [ref.id for ref in found.sources] == ["a"]
    assert [name for name, _ in left] == ["b"]
    assert of_ending(tmp_path, Discovery(tuple(refs)), "") == (Discovery(tuple(refs)), [])


def test_folds_are_those_that_hold_each_case_out_once(tmp_path: Path) -> None:
    assert stored_folds(tmp_path) == {}
    file = tmp_path / "splits_final.json"
    file.write_text(json.dumps([{"train": ["b"], "val": ["a"]}, {"train": ["a"], "val": ["b"]}]))
    assert stored_folds(tmp_path) == {"a": 0, "b": 1}
    file.write_text(json.dumps([{"train": ["b"], "val": ["a"]}, {"train": ["b"], "val": ["a"]}]))
    assert stored_folds(tmp_path) == {}
    file.write_text("[1]")
    assert stored_folds(tmp_path) == {}
