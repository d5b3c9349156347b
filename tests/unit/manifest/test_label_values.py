"""What label values mean."""

from __future__ import annotations

import numpy as np
import pytest

from unet_med.manifest.values import LabelScan, distinct_values, looks_like_objects, remapped, value_findings


def scans(*values: tuple[int, ...]) -> list[LabelScan]:
    return [LabelScan(f"case{number}", one) for number, one in enumerate(values)]


def kinds(*values: tuple[int, ...], mapping: dict[int, int] | None = None, names: dict[int, str] | None = None) -> list:
    return [(f.kind, f.case) for f in value_findings(scans(*values), mapping or {}, names or {})]


def test_distinct_values() -> None:
    label = np.zeros((3, 4, 5), dtype=np.uint16)
    label[0, 0, 4], label[2, 1, 0] = 700, 3
    assert distinct_values(label[np.newaxis]) == (0, 3, 700)


@pytest.mark.parametrize(
    ("values", "objects"),
    [
        ([tuple(range(n)) for n in (13, 40, 7, 25)], True),
        ([tuple(range(60))], True),
        ([tuple(range(20))], False),
        ([(0, 1, 2)] * 5, False),
        ([tuple(range(118))] * 4, False),
        ([(0, 255)] * 4, False),
        ([tuple(range(n)) for n in (2, 5, 3, 4)], False),
        ([(0,), (0,)], False),
        ([], False),
    ],
)
def test_object_ids_are_told_from_kinds_of_things(values: list[tuple[int, ...]], objects: bool) -> None:
    assert looks_like_objects(scans(*values)) is objects


def test_clean_values() -> None:
    assert kinds((0, 1, 2), (0, 2)) == []
    assert kinds((0, 1)) == []
    assert kinds((0, 1, 3), names={1: "a", 2: "b", 3: "c"}) == []
    assert kinds((0, 255), mapping={255: 1}) == []
    assert kinds((0, 255), mapping={0: 1, 255: 0}) == []


def test_faulty_values_name_the_first_case() -> None:
    assert kinds((0,), (0, 255)) == [("values_0_255", "case1")]
    assert kinds((0, 1), (0, 1, 3)) == [("gaps", "case1")]
    assert kinds((0, 2)) == [("gaps", "case0")]
    assert kinds((0, 1, 255)) == [("gaps", "case0")]
    assert kinds((0,), (0,)) == [("all_empty", "")]


def test_findings_say_what_to_do() -> None:
    (finding,) = value_findings(scans((0, 255)), {}, {})
    assert "check M.json --fix DIR" in str(finding)
    assert '--label-values "255=1"' in str(finding)


def test_remapping() -> None:
    assert remapped((0, 255), {0: 1, 255: 0}) == (0, 1)
    assert remapped((0, 3, 4), {3: 1}) == (0, 1, 4)
