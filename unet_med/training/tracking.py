"""Experiments that can be reviewed: what a training run tells MLflow, and how it is looked at.

A run holds the resolved pipeline (parameters and ``pipeline.yaml``), why each value was chosen (``plan.md``), the
content digest of the data, one point per epoch for every metric, overlays of fixed cases over the epochs, the table
of cases, and the model bundle, registered with the alias ``candidate``.

Three rules shape this module:

* Recording never stops training. Once a run is open, a server that goes away or a locked database costs one
  warning; what could not be sent waits in a queue and goes out with the next call that succeeds.
* Nothing that names a person or a place goes in. MLflow's own tags for user and source, which would carry the login
  name and the path of a script, are set to ``unet-med``; where the experiments are kept (``tracking.*``) is not
  recorded. One path remains, because MLflow's database cannot do without: the absolute folder of the artifacts.
* A resumed run is the same run: its id is kept and steps that it already holds are not sent again.

MLflow is imported when a tracker is opened, never before, with its telemetry off.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import math
import numbers
import os
import re
import shlex
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol
from urllib.parse import urlsplit, urlunsplit

import yaml

from unet_med.config import Tracking
from unet_med.errors import UsageError
from unet_med.identity import safe_name

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]

TOOL: Final = "unet-med"
ALIAS: Final = "candidate"
MODEL_FOLDER: Final = "model"
ARTIFACTS: Final = "mlartifacts"
DEFAULT_PORT: Final = 5000
_SQLITE: Final = "sqlite:///"
_DEFAULT_STORE: Final = "sqlite:///mlflow.db"
_RETRY_SECONDS: Final = 30.0
_MOST_WAITING: Final = 2000
_MOST_WAITING_IMAGES: Final = 100
_LONGEST_PARAM: Final = 6000
_LONGEST_TAG: Final = 8000
_PARAMS_PER_CALL: Final = 100
_DIGEST_CHARACTERS: Final = 32
_NOT_IN_KEYS: Final = re.compile(r"[^A-Za-z0-9_\-./ ]")
_REFUSALS: Final = frozenset(
    {
        "INVALID_PARAMETER_VALUE",
        "BAD_REQUEST",
        "MALFORMED_REQUEST",
        "INVALID_STATE",
        "RESOURCE_DOES_NOT_EXIST",
        "RESOURCE_ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",
        "ENDPOINT_NOT_FOUND",
    }
)


class Tracker(Protocol):
    """Where a training run reports to."""

    run_id: str | None
    experiment_id: str | None

    def start(
        self,
        config_yaml: str,
        params: Mapping[str, Any],
        reasons: Mapping[str, str],
        dataset: Mapping[str, Any],
        tags: Mapping[str, Any],
    ) -> None:
        """Records what the run is: pipeline, reasons, data, tags. Called again after a resume.

        Args:
            config_yaml: The resolved pipeline.
            params: The resolved pipeline as a (nested) mapping.
            reasons: From dotted key to the sentence that explains the planned value.
            dataset: ``digest`` and counts or label names; no file or folder names.
            tags: Short facts such as task, seed and fold.
        """

    def epoch(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records one epoch; a step that the run already holds is left out.

        Args:
            step: The epoch, counted from any start, rising.
            metrics: From name (slashes group the charts) to value; values that are not finite are left out.
        """

    def overlay(self, key: str, image: np.ndarray, step: int) -> None:
        """Records a picture of one case at one epoch.

        Args:
            key: Name of the series of pictures, the same at every epoch.
            image: (rows, columns, 3) uint8, RGB.
            step: The epoch.
        """

    def cases(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Records the table of cases, one row for each; a second call replaces it. Safe case tags only."""

    def bundle(self, folder: Path, register_as: str | None, metrics: Mapping[str, float]) -> str | None:
        """Records the finished bundle and its final metrics, and registers it as a model version.

        Args:
            folder: The bundle.
            register_as: Name of the registered model; None records the bundle only.
            metrics: Final scores, recorded as ``final/...``.

        Returns:
            The URI of the version (``models:/NAME/1``), or None when nothing was registered.
        """

    def finish(self, status: Status) -> None:
        """Sends what waits and closes the run."""


@dataclass
class NullTracker:
    """Records nothing."""

    run_id: str | None = None
    experiment_id: str | None = None

    def start(
        self,
        config_yaml: str,
        params: Mapping[str, Any],
        reasons: Mapping[str, str],
        dataset: Mapping[str, Any],
        tags: Mapping[str, Any],
    ) -> None:
        """Does nothing."""

    def epoch(self, step: int, metrics: Mapping[str, float]) -> None:
        """Does nothing."""

    def overlay(self, key: str, image: np.ndarray, step: int) -> None:
        """Does nothing."""

    def cases(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Does nothing."""

    def bundle(self, folder: Path, register_as: str | None, metrics: Mapping[str, float]) -> str | None:
        """Registers nothing."""

    def finish(self, status: Status) -> None:
        """Does nothing."""


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
            f"use {_DEFAULT_STORE}; older runs move with "
            f"'mlflow migrate-filestore --source mlruns --target {_DEFAULT_STORE}'",
        )
    raise UsageError(
        f"experiments cannot be stored by {parts.scheme!r}",
        "tracking.store",
        f"use {_DEFAULT_STORE} or the http(s) address of an MLflow server",
    )


def leftover_file_store(folder: Path) -> bool:
    """Tells whether ``folder/mlruns`` holds experiments of MLflow's old file store.

    Plain ``mlflow ui`` then opens that store and refuses it, instead of ``mlflow.db``.
    """
    runs = folder / "mlruns"
    return runs.is_dir() and any(entry.name.isdigit() and (entry / "meta.yaml").exists() for entry in runs.iterdir())


def quiet_environment() -> dict[str, str]:
    """Returns the environment variables under which MLflow neither calls home nor loads pickles nor stalls long."""
    return {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }


def open_tracker(
    tracking: Tracking,
    experiment: str,
    run_name: str,
    resume_run_id: str | None = None,
    parent_run_id: str | None = None,
) -> Tracker:
    """Opens a run, new or resumed.

    Args:
        tracking: Where experiments are recorded.
        experiment: Name of the experiment when the configuration gives none.
        run_name: Name of a new run.
        resume_run_id: The run to go on with. One that the store does not know any more is replaced by a new run,
            with a warning.
        parent_run_id: The run below which a new one is shown (a fold of a cross-validation).

    Raises:
        UsageError: when the store cannot be opened now. Later failures never raise.
    """
    if not tracking.enabled:
        return NullTracker()
    store = resolve_store(tracking.store)
    return MlflowTracker(store, tracking.experiment or experiment, run_name, resume_run_id, parent_run_id)


@dataclass
class _Waiting:
    what: str
    send: Callable[[], None]


@dataclass
class _Facts:
    """What the description of a run is written from."""

    params: dict[str, str] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    results: dict[str, float] = field(default_factory=dict)
    model_uri: str | None = None
    epochs_done: int | None = None


class MlflowTracker:
    """Reports to MLflow, by a client of its own; MLflow's global active run is never touched.

    Args:
        store: Where to.
        experiment: Name of the experiment, made when missing.
        run_name: Name of a new run.
        resume_run_id: The run to go on with.
        parent_run_id: The run above a new one.

    Raises:
        UsageError: when the store cannot be opened.
    """

    def __init__(
        self,
        store: Store,
        experiment: str,
        run_name: str,
        resume_run_id: str | None = None,
        parent_run_id: str | None = None,
    ) -> None:
        self.store = store
        self._waiting: deque[_Waiting] = deque()
        self._retry_at = 0.0
        self._warned: set[str] = set()
        self._facts = _Facts()
        self._last_step: int | None = None
        self._overlays: set[tuple[str, int]] = set()
        self._has_inputs = False
        self._resumed = False
        self._model_uri: str | None = None
        self._client, self._failures = _connect(store)
        try:
            self.experiment_id: str | None = self._find_experiment(experiment)
            self.run_id: str | None = self._resume(resume_run_id) if resume_run_id else None
            if self.run_id is None:
                self.run_id = self._create(run_name, parent_run_id)
        except self._failures as error:
            raise _cannot_open(store, error) from None
        if store.database is not None and leftover_file_store(Path.cwd()):
            logger.warning("%s", _LEFTOVER)

    # --- opening ---

    def _find_experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            artifacts = self.store.artifacts
            location = None if artifacts is None else (artifacts / safe_name(name)[:60]).as_uri()
            try:
                made = str(self._client.create_experiment(name, artifact_location=location, tags=_experiment_tags()))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self._client.get_experiment_by_name(name)  # another process was faster
                if found is None:
                    raise
            else:
                return made
        if found.lifecycle_stage == "deleted":
            raise UsageError(
                f"the experiment {name!r} was deleted in MLflow",
                "tracking.experiment",
                f"give another name, or restore it: mlflow experiments restore --experiment-id {found.experiment_id}",
            )
        if self.store.database is not None and found.artifact_location.startswith("mlflow-artifacts:"):
            raise UsageError(
                f"the experiment {name!r} keeps its artifacts behind an MLflow server",
                "tracking.store",
                "set tracking.store to the server's address, or tracking.experiment to another name",
            )
        return str(found.experiment_id)

    def _create(self, run_name: str, parent_run_id: str | None) -> str:
        tags = {"mlflow.user": TOOL, "mlflow.source.name": TOOL, "mlflow.source.type": "LOCAL"}
        if parent_run_id:
            tags["mlflow.parentRunId"] = parent_run_id
        run = self._client.create_run(self.experiment_id, tags=tags, run_name=run_name)
        return str(run.info.run_id)

    def _resume(self, run_id: str) -> str | None:
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            run = None
        if run is None or run.info.lifecycle_stage == "deleted":
            logger.warning("the run to resume is no longer in the MLflow store; the epochs go on in a new run")
            return None
        self._client.update_run(run_id, status="RUNNING")
        histories = [self._client.get_metric_history(run_id, key) for key in run.data.metrics if "final/" not in key]
        self._last_step = max((point.step for history in histories for point in history), default=None)
        self._overlays = set(_logged_overlays(self._client.list_artifacts(run_id, "images")))
        self._has_inputs = bool(run.inputs and run.inputs.dataset_inputs)
        self._resumed = True
        self.experiment_id = str(run.info.experiment_id)
        return run_id

    # --- recording ---

    def start(
        self,
        config_yaml: str,
        params: Mapping[str, Any],
        reasons: Mapping[str, str],
        dataset: Mapping[str, Any],
        tags: Mapping[str, Any],
    ) -> None:
        """Records pipeline, reasons, data and tags; see :class:`Tracker`."""
        flat = {key: _short(value) for key, value in _flatten(params) if not key.startswith("tracking.")}
        known = {_key(key): str(value) for key, value in tags.items() if value is not None}
        digest = str(dataset.get("digest", ""))
        if digest:
            known.setdefault("data_digest", digest)
        known.setdefault("tool_version", _tool_version())
        self._facts = _Facts(params=flat, dataset=dict(dataset), tags=known)
        if not self._resumed:
            self._record_params(flat)
        self._record_tags({**known, "mlflow.note.content": describe(self._facts)})
        self._record_text(_without_store(config_yaml), "pipeline.yaml")
        if reasons:
            self._record_text(plan_page(reasons, flat), "plan.md")
        if digest and not self._has_inputs:
            self._send("the data digest", lambda: self._log_dataset(dataset, digest))

    def epoch(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records one epoch in one call; see :class:`Tracker`."""
        if self._last_step is not None and step <= self._last_step:
            return
        self._last_step = step
        self._facts.epochs_done = step
        self._record_metrics(metrics, step)

    def overlay(self, key: str, image: np.ndarray, step: int) -> None:
        """Records a picture; see :class:`Tracker`."""
        name = _key(key)
        if (name, step) in self._overlays:
            return
        self._overlays.add((name, step))
        now = _milliseconds()
        picture = image.copy()
        self._send(
            "an overlay",
            lambda: self._client.log_image(self.run_id, picture, key=name, step=step, timestamp=now, synchronous=True),
        )

    def cases(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Records the table of cases, in the form of ``mlflow.log_table``; see :class:`Tracker`."""
        if not rows:
            return
        columns = list(dict.fromkeys(column for row in rows for column in row))
        table = {"columns": columns, "data": [[_cell(row.get(column)) for column in columns] for row in rows]}
        self._send("the table of cases", lambda: self._client.log_dict(self.run_id, table, "cases.json"))
        self._record_tags({"mlflow.loggedArtifacts": json.dumps([{"path": "cases.json", "type": "table"}])})

    def bundle(self, folder: Path, register_as: str | None, metrics: Mapping[str, float]) -> str | None:
        """Records and registers the bundle; see :class:`Tracker`."""
        self._facts.results = {key: float(value) for key, value in metrics.items() if _finite(value)}
        self._record_metrics(
            {f"final/{key.removeprefix('final/')}": value for key, value in metrics.items()}, self._last_step or 0
        )
        self._send("the model bundle", lambda: self._client.log_artifacts(self.run_id, str(folder), MODEL_FOLDER))
        if register_as:
            self._send("the model version", lambda: self._register(safe_name(register_as)))
        self._flush(now=True)
        self._facts.model_uri = self._model_uri
        self._record_tags({"mlflow.note.content": describe(self._facts)})
        return self._model_uri

    def finish(self, status: Status) -> None:
        """Sends what waits and closes the run; see :class:`Tracker`."""
        now = _milliseconds()
        self._send("the end of the run", lambda: self._client.set_terminated(self.run_id, status, now))
        self._flush(now=True)
        if self._waiting:
            logger.warning(
                "%d records did not reach the MLflow store; the metrics and the model in the run folder are complete",
                len(self._waiting),
            )

    # --- what is sent ---

    def _record_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = _milliseconds()  # fixed here: a call that is repeated writes the same point, not a second one
        points = [Metric(_key(key), float(value), now, step) for key, value in metrics.items() if _finite(value)]
        if points:
            self._send("metrics", lambda: self._client.log_batch(self.run_id, metrics=points))

    def _record_params(self, flat: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        params = [Param(_key(key), value[:_LONGEST_PARAM]) for key, value in flat.items()]
        for first in range(0, len(params), _PARAMS_PER_CALL):
            self._send_params(params[first : first + _PARAMS_PER_CALL])

    def _send_params(self, params: Sequence[Any]) -> None:
        self._send("parameters", lambda: self._client.log_batch(self.run_id, params=params))

    def _record_tags(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        found = [RunTag(key, value[:_LONGEST_TAG]) for key, value in tags.items()]
        self._send("tags", lambda: self._client.log_batch(self.run_id, tags=found))

    def _record_text(self, text: str, name: str) -> None:
        self._send(name, lambda: self._client.log_text(self.run_id, text, name))

    def _log_dataset(self, dataset: Mapping[str, Any], digest: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        facts = {key: value for key, value in dataset.items() if key != "digest"}
        entity = Dataset(
            name=f"data {digest[:8]}",
            digest=digest[:_DIGEST_CHARACTERS],
            source_type="content digest",
            source=json.dumps({"sha256": digest}),
            profile=json.dumps(facts, default=str),
        )
        self._client.log_inputs(self.run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", "training")])])

    def _register(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name, description=_MODEL_NOTE)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = self._client.create_model_version(
            name,
            source=f"runs:/{self.run_id}/{MODEL_FOLDER}",
            run_id=self.run_id,
            tags={f"final/{key}": f"{value:.4f}" for key, value in self._facts.results.items()}
            | {key: value for key, value in self._facts.tags.items() if key in ("data_digest", "fold", "task")},
            description=describe(self._facts),
            await_creation_for=0,
        )
        self._client.set_registered_model_alias(name, ALIAS, version.version)
        self._model_uri = f"models:/{name}/{version.version}"

    # --- the queue ---

    def _send(self, what: str, call: Callable[[], Any]) -> None:
        self._waiting.append(_Waiting(what, call))
        self._shed()
        self._flush()

    def _flush(self, *, now: bool = False) -> None:
        """Sends what waits, in order; gives up until later at the first failure of the connection."""
        if not now and time.monotonic() < self._retry_at:
            return
        while self._waiting:
            entry = self._waiting[0]
            try:
                entry.send()
            except self._failures as error:
                if not _is_refusal(error):
                    self._retry_at = time.monotonic() + _RETRY_SECONDS
                    self._warn_once("away", "the MLflow store does not answer; training goes on, records wait")
                    return
                self._warn_once(entry.what, f"MLflow refused {entry.what} ({type(error).__name__}); it is left out")
            self._waiting.popleft()
        self._warned.discard("away")

    def _shed(self) -> None:
        """Keeps the queue within bounds during a long outage: the oldest pictures go first."""
        images = [entry for entry in self._waiting if entry.what == "an overlay"]
        if len(images) > _MOST_WAITING_IMAGES:
            self._waiting.remove(images[0])
        if len(self._waiting) > _MOST_WAITING:
            self._waiting.popleft()

    def _warn_once(self, topic: str, text: str) -> None:
        if topic not in self._warned:
            self._warned.add(topic)
            logger.warning("%s", text)


# --- connecting ---


def _connect(store: Store) -> tuple[Any, tuple[type[Exception], ...]]:
    """Returns a client and the exceptions by which a store fails."""
    os.environ.update(quiet_environment())
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    for noisy in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
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
        raise _cannot_open(store, error) from None


def _cannot_open(store: Store, error: Exception) -> UsageError:
    """Returns the error for a store that cannot be opened; MLflow's own text, which holds paths, is left out."""
    without = "or train without a record: --set tracking.enabled=false"
    if store.database is None:
        remedy = f"start the server, give tracking.store another address, {without}"
        return UsageError("the MLflow server does not answer", "tracking.store", remedy)
    if "out-of-date database schema" in str(error):
        remedy = f"make a copy of the file, then run: mlflow db upgrade {_quoted(store.uri)}"
        return UsageError("mlflow.db was written by another version of MLflow", "tracking.store", remedy)
    remedy = f"check that its folder can be written and that the file is a database, {without}"
    return UsageError("the MLflow database cannot be opened", "tracking.store", remedy)


def _is_refusal(error: Exception) -> bool:
    """Tells a call that would fail again from a connection that may come back."""
    return getattr(error, "error_code", None) in _REFUSALS


def _logged_overlays(artifacts: Sequence[Any]) -> Iterator[tuple[str, int]]:
    for artifact in artifacts:
        parts = artifact.path.rsplit("/", 1)[-1].split("+")
        if len(parts) >= 3 and parts[1] == "step" and parts[2].isdigit():
            yield parts[0].replace("~", "/"), int(parts[2])


# --- values ---


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _short(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _key(name: str) -> str:
    return _NOT_IN_KEYS.sub("_", str(name))[:250]


def _finite(value: object) -> bool:
    return isinstance(value, numbers.Real) and math.isfinite(value)


def _cell(value: object) -> object:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    item = getattr(value, "item", None)
    return _cell(item()) if callable(item) else str(value)


def _milliseconds() -> int:
    return int(time.time() * 1000)


def _tool_version() -> str:
    try:
        return importlib.metadata.version(TOOL)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _without_store(config_yaml: str) -> str:
    """Returns the pipeline without the place of the store, which may hold a path or a password."""
    data = yaml.safe_load(config_yaml)
    if not isinstance(data, dict) or not isinstance(data.get("tracking"), dict):
        return config_yaml
    if data["tracking"].get("store", _DEFAULT_STORE) == _DEFAULT_STORE:
        return config_yaml
    data["tracking"].pop("store")
    return yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=100)


# --- pages ---

_MODEL_NOTE: Final = (
    "Segmentation models trained by unet-med. Each version is a bundle: weights, labels, preprocessing and pipeline. "
    f"Use: `unet-med predict models:/NAME@{ALIAS} FOLDER OUT`."
)
_LEFTOVER: Final = (
    "plain 'mlflow ui' would open the older ./mlruns here, which MLflow no longer serves: move it over with "
    f"'mlflow migrate-filestore --source mlruns --target {_DEFAULT_STORE}' and put mlruns aside, or use 'unet-med ui'"
)


def _experiment_tags() -> dict[str, str]:
    return {
        "mlflow.note.content": "Segmentation training by unet-med, one run for each model. `val/dice/...` is measured "
        "on held-out cases after each epoch, `final/...` on the finished model.",
        "mlflow.experimentKind": "custom_model_development",
    }


def plan_page(reasons: Mapping[str, str], params: Mapping[str, str]) -> str:
    """Returns the planner's choices as a Markdown table: key, value, reason."""
    lines = ["# Why these values", "", "| value | chosen | because |", "|---|---|---|"]
    for key, reason in reasons.items():
        sentence = " ".join(str(reason).split()).replace("|", "\\|")
        lines.append(f"| {key} | {params.get(key, '').replace('|', chr(92) + '|')} | {sentence} |")
    return "\n".join(lines) + "\n"


def describe(facts: _Facts) -> str:
    """Returns the description of a run in Markdown: what it learned, on which data, how well, how to use it."""
    params, tags = facts.params, facts.tags
    lines = [f"## {params.get('name', 'Segmentation')}", "", *_task_lines(params, tags), ""]
    lines += ["| data | |", "|---|---|"]
    lines += [f"| {key.replace('_', ' ')} | {_short(value)} |" for key, value in facts.dataset.items()]
    if facts.results:
        lines += ["", "| result | |", "|---|---|"]
        lines += [f"| {key} | {value:.4g} |" for key, value in facts.results.items()]
    if facts.model_uri:
        name = facts.model_uri.removeprefix("models:/").rpartition("/")[0]
        lines += ["", "### Use it", "", "```", f"unet-med predict {facts.model_uri} FOLDER OUT", "```"]
        lines += [f"`models:/{name}@{ALIAS}` is the newest version of this model."]
    lines += ["", "### Where to look", "", *_LEGEND]
    return "\n".join(lines)


_LEGEND: Final = (
    "- **Model metrics**: `train/...` and `val/...` over the epochs.",
    "- **Artifacts**: `images` overlays of the same cases over the epochs, `cases.json` scores of each case, "
    "`pipeline.yaml` the whole configuration, `plan.md` why each value was chosen, `model` the bundle.",
)


def _task_lines(params: Mapping[str, str], tags: Mapping[str, str]) -> list[str]:
    facts = {
        "task": tags.get("task") or params.get("task"),
        "dimensions": params.get("dims"),
        "channels": params.get("channels"),
        "labels": ", ".join(key.removeprefix("labels.") for key in params if key.startswith("labels.")) or None,
        "held-out fold": tags.get("fold"),
        "seed": tags.get("seed") or params.get("seed"),
        "patch (voxels)": params.get("sampling.patch_voxels"),
        "loss": params.get("loss.kind"),
    }
    return ["| task | |", "|---|---|", *(f"| {key} | {value} |" for key, value in facts.items() if value)]


# --- looking at it ---


def latest_experiment(store: Store) -> str | None:
    """Returns the id of the experiment in which something happened last; None when no run was recorded.

    Raises:
        UsageError: when the store cannot be opened.
    """
    client, failures = _connect(store)
    try:
        ids = [found.experiment_id for found in client.search_experiments(order_by=["last_update_time DESC"])]
        runs = client.search_runs(ids, order_by=["attributes.start_time DESC"], max_results=1) if ids else []
    except failures as error:
        raise _cannot_open(store, error) from None
    return str(runs[0].info.experiment_id) if runs else None


def experiment_address(experiment_id: str, base: str = f"http://127.0.0.1:{DEFAULT_PORT}") -> str:
    """Returns the page that lists the runs; without the workflow MLflow opens its view for language models."""
    return f"{base}/#/experiments/{experiment_id}?workflowType=machine_learning"


def run_address(experiment_id: str, run_id: str, base: str = f"http://127.0.0.1:{DEFAULT_PORT}") -> str:
    """Returns the page of one run."""
    return f"{base}/#/experiments/{experiment_id}/runs/{run_id}"


def _quoted(text: str) -> str:
    if os.name == "nt":
        return f'"{text}"' if " " in text or "&" in text else text
    return shlex.quote(text)


def review_lines(tracking: Tracking, tracker: Tracker) -> list[str]:
    """Returns the lines that tell how to look at the experiment; none when it was not recorded."""
    if tracker.experiment_id is None or tracker.run_id is None:
        return []
    store = resolve_store(tracking.store)
    base = f"http://127.0.0.1:{DEFAULT_PORT}" if store.database is not None else store.public_uri
    pages = [
        f"  runs: {experiment_address(tracker.experiment_id, base)}",
        f"  this run: {run_address(tracker.experiment_id, tracker.run_id, base)}",
    ]
    if store.database is None:
        return ["Review the experiment in a browser:", *pages]
    lines = ["Review the experiment:", f"  mlflow ui --backend-store-uri {_quoted(store.uri)}", *pages]
    if store.database == Path.cwd() / "mlflow.db":
        lines.append(f"  ({_LEFTOVER})" if leftover_file_store(Path.cwd()) else _PLAIN)
    return lines


_PLAIN: Final = "  (in this folder plain 'mlflow ui' shows the same, and 'unet-med ui' opens it in the browser)"
