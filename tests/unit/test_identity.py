"""Names that are safe to print."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_med.identity import (
    case_tag,
    files_sha256,
    keyed_hash,
    safe_name,
    series_id,
    stem_of,
    unique_ids,
    user_key,
    write_private_table,
)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("case.nii.gz", "case"),
        ("case.nii", "case"),
        ("movie.ome.tif", "movie"),
        ("a.b.png", "a.b"),
        ("mask.seg.nrrd", "mask"),
        ("IM0001", "IM0001"),
        (".hidden", ".hidden"),
    ],
)
def test_stem(name: str, stem: str) -> None:
    assert stem_of(Path(name)) == stem


@given(st.text(max_size=40))
def test_safe_names_are_safe(text: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", safe_name(text))


@given(st.lists(st.sampled_from(["a", "A", "b", "a-2"]), max_size=12))
def test_unique_ids_are_unique_on_any_file_system(names: list[str]) -> None:
    unique = unique_ids(names)
    assert len({name.lower() for name in unique}) == len(names)


def test_the_key_is_private_stable_and_decides_the_hash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "one"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "one"))
    user_key.cache_clear()
    first = keyed_hash("1.2.840.1")
    path = tmp_path / "one" / "unet-med" / "identity.key"
    assert len(path.read_bytes()) == 32
    if os.name != "nt":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    user_key.cache_clear()
    assert keyed_hash("1.2.840.1") == first
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "two"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "two"))
    user_key.cache_clear()
    assert keyed_hash("1.2.840.1") != first
    user_key.cache_clear()


def test_series_and_case_names_hold_no_input_text() -> None:
    assert re.fullmatch(r"s013-[0-9a-f]{8}", series_id(13, "1.2.3"))
    assert re.fullmatch(r"sxxx-[0-9a-f]{8}-echo_2", series_id(None, "1.2.3", "echo 2"))
    assert "JANE" not in case_tag("SECRET^JANE")


def test_private_table_is_private(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    write_private_table(path, {"dicom/s001": ["a", "b"]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"dicom/s001": ["a", "b"]}
    if os.name != "nt":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_hash_of_files_depends_on_contents_alone(tmp_path: Path) -> None:
    for name, content in (("a", b"1"), ("b", b"2"), ("c", b"1")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (tmp_path / name for name in "abc")
    assert files_sha256([a, b]) == files_sha256([b, c])
    assert files_sha256([a]) == files_sha256([c])
    assert files_sha256([a]) != files_sha256([b])
