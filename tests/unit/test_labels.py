"""What numbers in a mask mean."""

from __future__ import annotations

from importlib import resources
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_med import labels as labels_module
from unet_med.errors import ConfigError
from unet_med.labels import Code, Label, LabelCode, LabelMap, known_code, label_colour

NESTED = {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}


def test_names_come_in_the_order_of_their_index() -> None:
    labels = LabelMap.from_names({"background": 0, "b": 2, "a": 1})
    assert labels.names == ("a", "b")
    assert labels.outputs == 3


def test_gaps_in_the_values_are_refused() -> None:
    with pytest.raises(ConfigError, match="without gap"):
        LabelMap.from_names({"background": 0, "a": 1, "b": 3})


def test_a_region_of_unknown_labels_is_refused() -> None:
    with pytest.raises(ConfigError, match="do not exist"):
        LabelMap.from_names({"background": 0, "a": 1}, {"r": [1, 2]})


def test_regions_are_painted_from_outside_inwards() -> None:
    labels = LabelMap.from_names({"background": 0, "edema": 1, "core": 2, "enhancing": 3}, NESTED)
    assert labels.outputs == 3
    assert labels.region_values() == (1, 2, 3)
    logits = np.array([[-1.0, 1, 1, 1], [-1, -1, 1, 1], [-1, -1, -1, 1]])
    np.testing.assert_array_equal(labels.from_outputs(logits), [0, 1, 2, 3])


def test_a_region_without_a_label_of_its_own_is_refused() -> None:
    labels = LabelMap.from_names({"background": 0, "a": 1}, {"r": (1,), "s": (1,)})
    with pytest.raises(ConfigError, match="own"):
        labels.region_values()


def test_exclusive_labels_are_the_largest_output() -> None:
    labels = LabelMap.from_names({"background": 0, "a": 1, "b": 2})
    result = labels.from_outputs(np.array([[3.0, 0, 0], [0, 2, 0], [0, 0, 1]]))
    np.testing.assert_array_equal(result, [0, 1, 2])
    assert result.dtype == np.uint8


def test_many_labels_need_two_bytes() -> None:
    labels = LabelMap.from_names({"background": 0} | {f"n{index}": index for index in range(1, 301)})
    assert labels.from_outputs(np.eye(301)[:, 300:]).dtype == np.uint16


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.lists(st.integers(1, 7), min_size=1, max_size=3), st.integers(0, 2**32 - 1))
def test_labels_are_the_arg_max_however_they_are_cut(outputs: int, shape: list[int], seed: int) -> None:
    labels = LabelMap.from_names({"background": 0} | {f"n{index}": index for index in range(1, outputs)})
    logits = np.random.default_rng(seed).integers(-3, 4, (outputs, *shape)).astype(np.float32)  # many are equal
    meant = logits.argmax(axis=0)
    for given_as in (
        logits,
        torch.from_numpy(logits),
        torch.from_numpy(logits).transpose(0, -1).contiguous().transpose(0, -1),
    ):
        with patch.object(labels_module, "_BLOCK_VOXELS", 5):
            found = labels.from_outputs(given_as)
        assert found.dtype == labels.dtype
        np.testing.assert_array_equal(found, meant)


def test_labels_are_written_where_they_belong() -> None:
    labels = LabelMap.from_names({"background": 0, "a": 1, "b": 2})
    logits = torch.randn((3, 4, 5), generator=torch.Generator().manual_seed(1))
    mask = np.full((9, 10), 7, dtype=np.uint16)
    out = mask[8:0:-2, ::2].T[::-1].T
    assert labels.from_outputs(logits, out) is out
    np.testing.assert_array_equal(mask[8:0:-2, ::2].T[::-1].T, logits.argmax(dim=0))
    assert (mask[::2, 1::2] == 7).all()


def test_colours_differ() -> None:
    assert len({label_colour(index) for index in range(1, 60)}) == 59


def _table() -> dict[str, Any]:
    return yaml.safe_load(resources.files("unet_med").joinpath("labels_codes.yaml").read_text(encoding="utf-8"))


def _entries() -> list[dict[str, Any]]:
    table = _table()
    return [entry for group in table["categories"] for entry in table[group]]


def test_every_code_of_the_table_is_one_of_dicom_with_this_meaning() -> None:
    from pydicom.sr._concepts_dict import concepts

    standard = {
        (scheme, value, meaning.lower())
        for scheme, keywords in concepts.items()
        for codes in keywords.values()
        for value, (meaning, *_) in codes.items()
    }
    table = _table()
    ours = [*table["modifiers"].values(), *table["categories"].values(), *(entry["type"] for entry in _entries())]
    assert len(ours) > 150
    assert [code for code in ours if (code[0], code[1], code[2].lower()) not in standard] == []


def test_categories_are_those_of_dicom() -> None:
    from pydicom.sr.codedict import codes

    known = {getattr(codes.cid7150, name).value for name in codes.cid7150.dir()}
    assert {code[1] for code in _table()["categories"].values()} <= known


def test_no_name_of_the_table_fits_two_structures() -> None:
    names = [labels_module._words(name) for entry in _entries() for name in dict.fromkeys(entry["names"])]
    distinct: dict[frozenset[str], set[str]] = {}
    for entry in _entries():
        for name in entry["names"]:
            distinct.setdefault(labels_module._words(name), set()).add(entry["type"][1])
    assert len(names) > 200
    assert [words for words, types in distinct.items() if len(types) > 1] == []


@pytest.mark.parametrize(
    ("name", "value", "modifier"),
    [
        ("liver", "10200004", None),
        ("Left Kidney", "64033007", "7771000"),
        ("kidney_left", "64033007", "7771000"),
        ("Kidney-L", "64033007", "7771000"),
        ("kidneyRight", "64033007", "24028007"),
        ("kidneys", "64033007", None),
        ("lung_upper_lobe_left", "45653009", "7771000"),
        ("upper lobe of right lung", "45653009", "24028007"),
        ("lung_middle_lobe_right", "72481006", None),
        ("heart_ventricle_left", "87878005", None),
        ("lateral ventricle (left)", "66720007", "7771000"),
        ("Hippocampus anterior", "5366008", "255549009"),
        ("vertebrae_L1", "66794005", None),
        ("T12 vertebra", "23215003", None),
        ("tumour", "108369006", None),
        ("GTV", "108369006", None),
        ("GTV-1", None, None),
        ("oedema", "79654002", None),
        ("enhancing tumor", "C113842", None),
        ("nuclei", "84640000", None),
        ("liver left", None, None),
        ("left anterior hippocampus", None, None),
        ("ventricle", None, None),
        ("anterior", None, None),
        ("structure 7", None, None),
        ("", None, None),
    ],
)
def test_common_structures_are_known_by_name(name: str, value: str | None, modifier: str | None) -> None:
    code = known_code(name)
    assert (code and code.type.value) == value
    assert (code and code.modifier and code.modifier.value) == modifier


def test_a_label_keeps_the_code_it_has() -> None:
    own = LabelCode(Code("99X", "1", "Thing"), Code("99X", "2", "Special liver"))
    labels = LabelMap((Label(1, "liver", (1, 2, 3), own), Label(2, "spleen", (4, 5, 6)), Label(3, "what", (7, 8, 9))))
    found = labels.with_known_codes().labels
    assert found[0].code == own
    assert found[1].code is not None
    assert found[1].code.type.value == "78961009"
    assert found[2].code is None


def test_what_is_ignored_is_no_label() -> None:
    names = {"background": 0, "a": 1}
    assert LabelMap.from_names(names, ignored=255).ignored == 255
    assert LabelMap.from_names(names, ignored=255).with_known_codes().ignored == 255
    assert LabelMap.from_names(names).ignored is None
    with pytest.raises(ConfigError, match="1 is a label and at the same time what is ignored"):
        LabelMap.from_names(names, ignored=1)
