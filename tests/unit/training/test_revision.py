"""The commit of the code that runs, and nobody else's."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from unet_med.training import revision as module
from unet_med.training.revision import code_revision


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@t", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "repo" / "package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("", encoding="utf-8")
    _git(tmp_path / "repo", "init", "-q")
    _git(tmp_path / "repo", "add", ".")
    _git(tmp_path / "repo", "commit", "-q", "-m", "first")
    return folder


def test_the_commit_of_a_checkout(package: Path) -> None:
    commit = _git(package, "rev-parse", "HEAD")
    assert code_revision(package) == commit
    (package.parent / "notes.txt").write_text("not of the package", encoding="utf-8")
    assert code_revision(package) == commit
    (package / "__init__.py").write_text("changed = 1", encoding="utf-8")
    assert code_revision(package) == f"{commit}-changed"


def test_a_repository_that_only_lies_around_the_package_is_not_its_own(package: Path, tmp_path: Path) -> None:
    installed = package.parent / "venv" / "package"
    installed.mkdir(parents=True)
    (installed / "__init__.py").touch()
    assert code_revision(installed) is None
    assert code_revision(tmp_path) is None


def test_an_installed_package_knows_where_it_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    class Distribution:
        text: str | None = '{"url": "u", "vcs_info": {"vcs": "git", "commit_id": "abc123"}}'

        def read_text(self, _: str) -> str | None:
            return self.text

    monkeypatch.setattr(module, "_git", lambda *_: None)
    monkeypatch.setattr(module.importlib.metadata, "distribution", lambda _: Distribution())
    assert code_revision() == "abc123"
    for text in (None, "{}", "no json"):
        monkeypatch.setattr(Distribution, "text", text)
        assert code_revision() is None
