"""Where experiments are kept, how that place is opened, and the addresses at which it is looked at."""

from __future__ import annotations

import logging
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from unet_med.errors import UsageError

ARTIFACTS: Final = "mlartifacts"
DEFAULT_STORE: Final = "sqlite:///mlflow.db"
DEFAULT_PORT: Final = 5000
_SQLITE: Final = "sqlite:///"
# Into a file of its own: with an existing mlflow.db as the target, migrate-filestore replaces it.
MIGRATE: Final = "mlflow migrate-filestore --source mlruns --target sqlite:///older.db"
LEFTOVER_REMEDY: Final = (
    "plain 'mlflow ui' opens the older ./mlruns here, which MLflow no longer serves: use 'unet-med ui' or name the "
    f"store; '{MIGRATE}' makes the older runs readable again"
)


@dataclass(frozen=True)
class Store:
    """A place for experiments.

    Attributes:
        uri: What MLflow is given: ``sqlite:///`` and an absolute path, or the address of a server.
        database: The SQLite file, None for a server.
    """

    uri: str
    database: Path | None

    @property
    def artifacts(self) -> Path | None:
        """The folder of the artifacts beside the database, None for a server."""
        return None if self.database is None else self.database.parent / ARTIFACTS

    @property
    def public_uri(self) -> str:
        """The URI without user name and password."""
        if self.database is not None:
            return self.uri
        parts = urlsplit(self.uri)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def resolve_store(store: str) -> Store:
    """Reads the ``tracking.store`` of a pipeline.

    Args:
        store: ``sqlite:///FILE`` (relative to the working directory) or the address of an MLflow server.

    Raises:
        UsageError: for MLflow's file store, which it refuses since 3.13, and for any other scheme.
    """
    if store.startswith(_SQLITE):
        path = Path(store.removeprefix(_SQLITE)).absolute()
        if any(mark in path.as_posix() for mark in "?#"):
            raise UsageError(
                "a SQLite store cannot lie in a folder whose name has ? or #", "tracking.store", "use another folder"
            )
        return Store(_SQLITE + path.as_posix(), path)
    parts = urlsplit(store)
    if parts.scheme in ("http", "https") and parts.hostname:
        return Store(store.rstrip("/"), None)
    if parts.scheme in ("", "file"):
        raise UsageError(
            "MLflow no longer writes to a folder of files",
            "tracking.store",
            f"use {DEFAULT_STORE}; '{MIGRATE}' makes older runs readable again",
        )
    raise UsageError(
        f"experiments cannot be stored by {parts.scheme!r}",
        "tracking.store",
        f"use {DEFAULT_STORE} or the http(s) address of an MLflow server",
    )


def leftover_file_store(folder: Path) -> bool:
    """Tells whether ``folder/mlruns`` holds experiments of MLflow's old file store.

    Plain ``mlflow ui`` then opens that store and refuses it, instead of ``mlflow.db``.
    """
    runs = folder / "mlruns"
    return runs.is_dir() and any(entry.name.isdigit() and (entry / "meta.yaml").exists() for entry in runs.iterdir())


def quiet_environment() -> dict[str, str]:
    """Returns the environment in which MLflow neither calls home, nor loads pickles, nor prints addresses."""
    return {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }


def connect(store: Store) -> tuple[Any, tuple[type[Exception], ...]]:
    """Returns a client and the exceptions by which a store fails.

    MLflow reads its switches from the environment: they are set for this process, before it is imported.
    """
    os.environ.update(quiet_environment())
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # by default a lost server is tried for minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    for noisy in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if store.database is None:
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # a warning for every single retry
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    failures: tuple[type[Exception], ...] = (MlflowException, RequestException, SQLAlchemyError, OSError)
    try:
        if store.database is not None:
            store.database.parent.mkdir(parents=True, exist_ok=True)
        return MlflowClient(tracking_uri=store.uri, registry_uri=store.uri), failures
    except failures as error:
        raise cannot_open(store, error) from None


def cannot_open(store: Store, error: Exception) -> UsageError:
    """Returns the error for a store that cannot be opened; MLflow's own text, which holds paths, is left out."""
    without = "or train without a record: --set tracking.enabled=false"
    if store.database is None:
        remedy = f"start the server, give tracking.store another address, {without}"
        return UsageError("the MLflow server does not answer", "tracking.store", remedy)
    if "out-of-date database schema" in str(error):
        remedy = f"make a copy of the file, then run: mlflow db upgrade {quoted(store.uri)}"
        return UsageError("mlflow.db was written by another version of MLflow", "tracking.store", remedy)
    remedy = f"check that its folder can be written and that the file is a database, {without}"
    return UsageError("the MLflow database cannot be opened", "tracking.store", remedy)


def latest_experiment(store: Store) -> str | None:
    """Returns the id of the experiment in which something happened last; None when no run was recorded.

    Raises:
        UsageError: when the store cannot be opened.
    """
    client, failures = connect(store)
    try:
        ids = [found.experiment_id for found in client.search_experiments(order_by=["last_update_time DESC"])]
        runs = client.search_runs(ids, order_by=["attributes.start_time DESC"], max_results=1) if ids else []
    except failures as error:
        raise cannot_open(store, error) from None
    return str(runs[0].info.experiment_id) if runs else None


def experiment_address(experiment_id: str, base: str = f"http://127.0.0.1:{DEFAULT_PORT}") -> str:
    """Returns the page that lists the runs; without the workflow MLflow opens its view for language models."""
    return f"{base}/#/experiments/{experiment_id}?workflowType=machine_learning"


def run_address(experiment_id: str, run_id: str, base: str = f"http://127.0.0.1:{DEFAULT_PORT}") -> str:
    """Returns the page of one run, with the menus of model training around it."""
    return f"{base}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


def quoted(text: str) -> str:
    """Returns an argument as it is typed into a shell of this machine."""
    if os.name == "nt":
        return f'"{text}"' if " " in text or "&" in text else text
    return shlex.quote(text)
