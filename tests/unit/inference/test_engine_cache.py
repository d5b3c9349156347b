from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from unet_med.inference.engine.cache import KEPT, EngineCache, cache_folder


def filled(text: str = "network") -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        (folder / "model.bin").write_text(text)

    return fill


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


def test_an_entry_is_found_again(cache: EngineCache) -> None:
    assert cache.get("a") is None
    made = cache.put("a", filled())
    assert made is not None
    assert (made / "model.bin").read_text() == "network"
    assert cache.get("a") == made


@pytest.mark.parametrize("damage", ["changed", "lost", "no checksums", "checksums unreadable"])
def test_a_damaged_entry_is_removed_and_can_be_made_anew(cache: EngineCache, damage: str) -> None:
    made = cache.put("a", filled())
    assert made is not None
    if damage == "changed":
        (made / "model.bin").write_text("netwerk")
    elif damage == "lost":
        (made / "model.bin").unlink()
    elif damage == "no checksums":
        (made / "sha256.json").unlink()
    else:
        (made / "sha256.json").write_text("[1")
    assert cache.get("a") is None
    assert list(made.parent.iterdir()) == []
    assert cache.put("a", filled("again")) == made
    assert cache.get("a") == made


def test_of_two_processes_the_faster_one_makes_the_entry(cache: EngineCache) -> None:
    def fill(folder: Path) -> None:
        cache.put("a", filled("of the faster process"))
        (folder / "model.bin").write_text("of the slower process")

    made = cache.put("a", fill)
    assert made is not None
    assert (made / "model.bin").read_text() == "of the faster process"
    assert [path.name for path in made.parent.iterdir()] == ["a"]


def test_a_failure_leaves_nothing(cache: EngineCache, tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "model.bin").write_text("half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cache.put("a", fill)
    assert list((tmp_path / "engines").iterdir()) == []


def test_where_nothing_can_be_written_there_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    cache = EngineCache(tmp_path / "file" / "engines")
    assert cache.get("a") is None
    assert cache.put("a", filled()) is None
    cache.note("a", "name", 1)
    assert cache.noted("a", "name", 10) is None


def test_the_latest_used_are_kept_and_what_crashes_left_is_not(cache: EngineCache, tmp_path: Path) -> None:
    now = time.time()
    for number in range(KEPT):
        made = cache.put(f"entry {number}", filled())
        assert made is not None
        os.utime(made, (now - 1000 + number, now - 1000 + number))
    for name, age in ((".part-old", 2 * 24 * 3600), (".part-now", 0)):
        (tmp_path / "engines" / name).mkdir()
        os.utime(tmp_path / "engines" / name, (now - age, now - age))
    assert cache.get("entry 0")
    cache.put("new", filled())
    found = {path.name for path in (tmp_path / "engines").iterdir()}
    assert found == {f"entry {number}" for number in range(KEPT) if number != 1} | {"new", ".part-now"}


def test_notes_belong_to_an_entry_and_grow_old(cache: EngineCache) -> None:
    made = cache.put("a", filled())
    assert made is not None
    cache.note("a", "one", {"name": "torch"})
    cache.note("a", "two", 2)
    assert cache.noted("a", "one", 60) == {"name": "torch"}
    assert cache.noted("a", "two", 60) == 2
    assert cache.noted("a", "three", 60) is None
    assert cache.get("a") == made
    os.utime(made / "notes.json", (0, 0))
    assert cache.noted("a", "one", 60) is None
    (made / "notes.json").write_text("{")
    assert cache.noted("a", "one", 60) is None


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="they have folders of their own")
def test_the_folder_is_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "unet-med" / "engines"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "unet-med" / "engines"
