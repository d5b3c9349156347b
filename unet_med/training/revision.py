"""Which state of the source code is running."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
from pathlib import Path

_GIT_SECONDS = 10.0


def code_revision(folder: Path | None = None) -> str | None:
    """Returns the git commit of the code, ``-changed`` behind it where files differ from it; ``None``: not known.

    Of an installed package it is the commit that it was installed from, if the installer recorded one (PEP 610).

    Args:
        folder: Of the package; left out: this one's.
    """
    package = Path(__file__).parents[1] if folder is None else folder
    commit = _git(package, "rev-parse", "HEAD") if _git(package, "ls-files", "__init__.py") else None
    if commit is None:
        return _installed_commit() if folder is None else None
    return commit + ("-changed" if _git(package, "status", "--porcelain", "--untracked-files=no", ".") else "")


def _git(folder: Path, *words: str) -> str | None:
    """Returns what git says about a folder; ``None`` where there is no git, no repository, or nothing to say."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=_GIT_SECONDS
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _installed_commit() -> str | None:
    try:
        record = importlib.metadata.distribution("unet-med").read_text("direct_url.json")
        return str(json.loads(record or "{}")["vcs_info"]["commit_id"])
    except (importlib.metadata.PackageNotFoundError, ValueError, KeyError, TypeError):
        return None
