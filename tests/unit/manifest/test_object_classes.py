"""The class of each object: as text, as tables, and on the voxels of a case."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_med.errors import InputRefusedError, UsageError
from unet_med.io.cases import Case
from unet_med.io.tiff import inspect_tiff
from unet_med.manifest.object_classes import as_text, class_values, from_text, read_class_table


@settings(deadline=None)
@given(st.dictionaries(st.integers(1, 2**31), st.integers(1, 9)))
def test_what_is_written_is_read(classes: dict[int, int]) -> None:
    assert from_text(as_text(classes), "m.json") == classes


def test_neighbours_are_joined() -> None:
    assert as_text({1: 2, 2: 2, 3: 2, 7: 1, 9: 2}) == {"1": "7", "2": "1-3,9"}
    assert from_text(None, "m.json") is None


@pytest.mark.parametrize(
    "stored", [["1-3"], {"1": "3-1"}, {"1": "a"}, {"one": "1"}, {"1": ""}, {"1": "0-4"}, {"1": "1-99999999999"}]
)
def test_damaged_classes_are_refused(stored: object) -> None:
    with pytest.raises(UsageError, match="classes of a case are not readable"):
        from_text(stored, "m.json")


def table(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_names_the_class_of_each_object(tmp_path: Path) -> None:
    path = table(tmp_path / "c.csv", "image;label;class\na.tif;1;nucleus\na.tif;2;mitosis\nsub/b.png;1;nucleus\n")
    assert read_class_table(path) == {"a": {1: "nucleus", 2: "mitosis"}, "b": {1: "nucleus"}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,class\na,x\n", "needs the columns"),
        ("id,object,class\na,one,x\n", "no number"),
        ("id,object,class\na,1,\n", "no class"),
        ("id,object,class\na,1,x\na,1,y\n", "two classes"),
    ],
)
def test_tables_that_say_too_little(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_class_table(table(tmp_path / "c.csv", text))


def test_classes_are_numbered_by_the_alphabet_or_as_listed() -> None:
    names = {"a": {1: "Stroma", 2: "tumour"}, "b": {1: "immune"}}
    assert class_values(names, {}) == {"immune": 1, "Stroma": 2, "tumour": 3}
    assert class_values(names, {0: "background", 2: "immune", 1: "tumour", 3: "Stroma"})["immune"] == 2
    with pytest.raises(UsageError, match="'Stroma', which is not listed"):
        class_values(names, {1: "tumour", 2: "immune"})


# ---- on voxels ------------------------------------------------------------------------------------------------------


def picture(path: Path, values: np.ndarray) -> Path:
    tifffile.imwrite(path, values, photometric="minisblack")
    return path


def case_of(tmp_path: Path, objects: np.ndarray, **more: object) -> Case:
    image = inspect_tiff(
        picture(tmp_path / "image.tif", np.arange(objects.size, dtype=np.uint8).reshape(objects.shape))
    )
    label = inspect_tiff(picture(tmp_path / "label.tif", objects))
    return Case("c", (image[0],), label[0], instances=True, **more)  # type: ignore[arg-type]


OBJECTS = np.array([[0, 1, 1], [2, 2, 0], [300, 0, 0]], np.uint16)


def test_each_voxel_gets_the_class_of_its_object(tmp_path: Path) -> None:
    case = case_of(tmp_path, OBJECTS, classes={1: 2, 2: 1, 300: 2})
    found = case.classes_of(case.read_label())
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found.T, [[0, 2, 2], [1, 1, 0], [2, 0, 0]])
    plain = case_of(tmp_path, OBJECTS)
    np.testing.assert_array_equal(plain.classes_of(plain.read_label()).T, OBJECTS > 0)


def test_an_object_without_class_is_refused(tmp_path: Path) -> None:
    case = case_of(tmp_path, OBJECTS, classes={1: 1, 2: 1})
    with pytest.raises(InputRefusedError, match="1 objects have no class, the first is number 300"):
        case.classes_of(case.read_label())


def test_what_nobody_labelled_is_no_object(tmp_path: Path) -> None:
    region = np.array([[1, 1, 255], [1, 1, 1], [0, 0, 0]], np.uint8)
    annotated = inspect_tiff(picture(tmp_path / "region.tif", region))[0]
    case = case_of(tmp_path, OBJECTS, classes={1: 2, 2: 1, 300: 2}, annotated=annotated, unlabelled=65535)
    np.testing.assert_array_equal(case.read_label().T, [[0, 1, 1], [2, 2, 0], [65535] * 3])
    np.testing.assert_array_equal(case.classes_of(case.read_label()).T, [[0, 2, 2], [1, 1, 0], [65535] * 3])
    plain = case_of(tmp_path, OBJECTS.astype(np.uint8), annotated=annotated, unlabelled=65535)
    assert plain.read_label().max() == 65535  # wider than the label is stored
    with pytest.raises(InputRefusedError, match="have no value"):
        case_of(tmp_path, OBJECTS, annotated=annotated).read_label()


def test_a_grey_picture_among_colour_ones_has_three_equal_channels(tmp_path: Path) -> None:
    grey, colour = case_of(tmp_path, OBJECTS), case_of(tmp_path, OBJECTS, colour=True)
    assert (grey.channels, colour.channels) == (1, 3)
    array = colour.read().array
    assert array.shape == (3, 3, 3)
    for channel in array:
        np.testing.assert_array_equal(channel, grey.read().array[0])
