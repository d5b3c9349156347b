"""What users say about groups, folds, values and names."""

from __future__ import annotations

from pathlib import Path

import pytest

from unet_med.errors import UsageError
from unet_med.manifest.tables import Row, group_by_pattern, parse_label_names, parse_label_values, read_groups


def table(tmp_path: Path, text: str) -> dict[str, Row]:
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    return read_groups(path)


def test_a_table_of_groups_folds_and_splits(tmp_path: Path) -> None:
    rows = table(tmp_path, "\ufeffName;Patient;Fold;Split\nimages/a.nii.gz;Anna;1;train\nb.v2;;0;\nc;Cleo;;skip\n")
    assert rows == {"a": Row("Anna", 1, "training"), "b.v2": Row(None, 0, "training"), "c": Row("Cleo", None, "skip")}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("name,colour\na,red\n", "needs a column id"),
        ("group\nx\n", "needs a column id"),
        ("", "needs a column id"),
        ("id,fold\na,first\n", "a fold is no number"),
        ("id,split\na,maybe\n", "a split is not known"),
        ("id,group\na,x\na,y\n", "twice"),
    ],
)
def test_faulty_tables_are_refused(tmp_path: Path, text: str, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        table(tmp_path, text)


def test_errors_name_the_line_and_no_patient(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        table(tmp_path, "id,patient,split\na,SECRET,train\nb,SECRET,perhaps\n")
    assert "line 3" in str(error.value)
    assert "SECRET" not in str(error.value)


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the table"):
        read_groups(tmp_path / "none.csv")


def test_patterns_take_their_first_group() -> None:
    names = {"p1_a": ("p1_a", "x/p1_a.tif"), "p1_b": ("p1_b",), "q": ("q", "p7/q.tif"), "z": ("z",)}
    groups, missing = group_by_pattern(r"(p\d+)", names)
    assert groups == {"p1_a": "p1", "p1_b": "p1", "q": "p7"}
    assert missing == ["z"]
    assert group_by_pattern(r"p\d", {"p1_a": ("p1_a",)})[0] == {"p1_a": "p1"}


@pytest.mark.parametrize("pattern", ["(", "nothing"])
def test_patterns_that_do_not_work_are_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="--group-by"):
        group_by_pattern(pattern, {"a": ("a",)})


def test_values_and_names() -> None:
    assert parse_label_values("0=1, 255=0") == {0: 1, 255: 0}
    assert parse_label_values(None) == {}
    assert parse_label_names("1=liver, 2=left kidney") == {1: "liver", 2: "left kidney"}


@pytest.mark.parametrize("text", ["255", "a=1", "1=b", "=1", "1=2,1=3"])
def test_faulty_values_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--label-values"):
        parse_label_values(text)


@pytest.mark.parametrize("text", ["liver", "1=a,2=a", "1=", "1=a,1=b"])
def test_faulty_names_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--label-names"):
        parse_label_names(text)
