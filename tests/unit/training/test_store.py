"""Where experiments are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from unet_med.errors import UsageError
from unet_med.training.store import leftover_file_store, resolve_store


def test_the_default_lies_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = resolve_store("sqlite:///mlflow.db")
    assert store.database == Path.cwd() / "mlflow.db"
    assert store.uri == f"sqlite:///{(Path.cwd() / 'mlflow.db').as_posix()}"
    assert store.artifacts == Path.cwd() / "mlartifacts"
    assert resolve_store(store.uri) == store


def test_a_server_keeps_its_address_and_shows_no_password() -> None:
    store = resolve_store("https://jane:secret@server:8080/mlflow/")
    assert store.uri == "https://jane:secret@server:8080/mlflow"
    assert store.public_uri == "https://server:8080/mlflow"
    assert (store.database, store.artifacts) == (None, None)


@pytest.mark.parametrize("store", ["./mlruns", "mlruns", "file:///data/mlruns"])
def test_the_old_file_store_is_refused_with_the_way_out(store: str) -> None:
    with pytest.raises(UsageError, match=r"mlflow migrate-filestore --source mlruns --target sqlite:///older\.db"):
        resolve_store(store)


@pytest.mark.parametrize("store", ["postgresql://u:p@h/db", "databricks://profile", "http://", "ftp://server"])
def test_other_places_are_refused(store: str) -> None:
    with pytest.raises(UsageError, match=r"use sqlite:///mlflow\.db or the http") as caught:
        resolve_store(store)
    assert "u:p" not in str(caught.value)


def test_a_folder_that_breaks_the_uri_is_refused() -> None:
    with pytest.raises(UsageError, match=r"has \? or #"):
        resolve_store("sqlite:///what?/mlflow.db")


def test_only_a_file_store_with_experiments_is_a_leftover(tmp_path: Path) -> None:
    assert not leftover_file_store(tmp_path)
    (tmp_path / "mlruns" / "hippocampus" / "x").mkdir(parents=True)
    (tmp_path / "mlruns" / "1").mkdir()
    assert not leftover_file_store(tmp_path)
    (tmp_path / "mlruns" / "1" / "meta.yaml").touch()
    assert leftover_file_store(tmp_path)
