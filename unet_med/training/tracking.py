"""Experiments that can be reviewed: what a training run tells MLflow, and how it is looked at.

A run holds the resolved pipeline (``pipeline.yaml``; as parameters the main choices and all that differ from the
defaults), why each value was chosen (``plan.md``), the content digest of the data, one point per epoch for every
metric, overlays of fixed cases over the epochs, the table of cases, and the model bundle, registered with the alias
``candidate``. What MLflow's pages show was looked at in a browser; the comments below say what they are like.

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
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import yaml

from unet_med.config import Tracking
from unet_med.errors import UsageError
from unet_med.identity import safe_name
from unet_med.training.outbox import PICTURE, Outbox
from unet_med.training.run_page import (
    ALIAS,
    MODEL_NOTE,
    Facts,
    describe,
    experiment_tags,
    flatten,
    framed,
    headline,
    main_choices,
    plan_page,
    short,
    stacked,
)
from unet_med.training.store import (
    DEFAULT_PORT,
    DEFAULT_STORE,
    LEFTOVER_REMEDY,
    Store,
    cannot_open,
    connect,
    experiment_address,
    leftover_file_store,
    quoted,
    resolve_store,
    run_address,
)

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "ALIAS",
    "LEFTOVER_REMEDY",
    "MlflowTracker",
    "NullTracker",
    "Status",
    "Tracker",
    "leftover_file_store",
    "open_tracker",
    "review_lines",
]

logger = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]
Dress = Callable[[Path], bool]
"""Writes a folder; tells whether there is something in it."""

TOOL: Final = "unet-med"
MODEL_FOLDER: Final = "model"
_LONGEST_PARAM: Final = 6000
_LONGEST_TAG: Final = 8000
_PARAMS_PER_CALL: Final = 100
_DIGEST_CHARACTERS: Final = 12
_FINAL: Final = "final/"
PATIENCE_SECONDS: Final = 300.0
"""So long the end of a training waits for a store that is away."""
_HEADLINE: Final = re.compile(r"^Dice \d\.\d{3}, ")
_NOT_IN_KEYS: Final = re.compile(r"[^A-Za-z0-9_\-./ ]")


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

    def picture(self, name: str, image: np.ndarray) -> None:
        """Records a picture that has no course.

        Args:
            name: Where it lies among the artifacts, without its ending.
            image: (rows, columns, 3) uint8, RGB.
        """

    def cases(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Records the table of cases, one row for each; a second call replaces it. Safe case tags only."""

    def bundle(
        self, folder: Path, register_as: str | None, metrics: Mapping[str, float], dress: Dress | None = None
    ) -> str | None:
        """Records the finished bundle and its final metrics, and registers it as a model version.

        Args:
            folder: The bundle.
            register_as: Name of the registered model; None records the bundle only.
            metrics: Final scores, recorded as ``final/...``.
            dress: Writes what lies beside the bundle for MLflow's own tools, see :mod:`unet_med.training.flavour`.

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

    def picture(self, name: str, image: np.ndarray) -> None:
        """Does nothing."""

    def cases(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Does nothing."""

    def bundle(
        self, folder: Path, register_as: str | None, metrics: Mapping[str, float], dress: Dress | None = None
    ) -> str | None:
        """Registers nothing."""

    def finish(self, status: Status) -> None:
        """Does nothing."""


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
        self._facts = Facts()
        self._last_step: int | None = None
        self._overlays: set[tuple[str, int]] = set()
        self._newest: dict[str, np.ndarray] = {}
        self._finals: dict[str, float] = {}
        self._run_name = run_name
        self._has_inputs = False
        self._has_params = False
        self._version: str | None = None
        self._scratch: list[Path] = []
        self._model_uri: str | None = None
        self._client, failures = connect(store)
        self._outbox = Outbox(failures)
        try:
            self.experiment_id: str | None = self._find_experiment(experiment)
            self.run_id: str | None = self._resume(resume_run_id) if resume_run_id else None
            if self.run_id is None:
                self.run_id = self._create(run_name, parent_run_id)
        except failures as error:
            raise cannot_open(store, error) from None
        if store.database is not None and leftover_file_store(Path.cwd()):
            logger.warning("%s", LEFTOVER_REMEDY)

    # --- opening ---

    def _find_experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            artifacts = self.store.artifacts
            location = None if artifacts is None else (artifacts / safe_name(name)[:60]).as_uri()
            try:
                made = str(self._client.create_experiment(name, artifact_location=location, tags=experiment_tags()))
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
        self._finals = {key: value for key, value in run.data.metrics.items() if key.startswith(_FINAL)}
        keys = run.data.metrics.keys() - self._finals.keys()
        histories = [self._client.get_metric_history(run_id, key) for key in keys]
        self._last_step = max((point.step for history in histories for point in history), default=None)
        self._overlays = set(_logged_overlays(self._client.list_artifacts(run_id, "images")))
        self._has_inputs = bool(run.inputs and run.inputs.dataset_inputs)
        self._run_name = _HEADLINE.sub("", run.info.run_name or self._run_name)
        self._has_params = bool(run.data.params)
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
        flat = {key: short(value) for key, value in flatten(params) if not key.startswith("tracking.")}
        known = {_key(key): str(value) for key, value in tags.items() if value is not None}
        digest = str(dataset.get("digest", ""))
        if digest:
            known.setdefault("data_digest", digest)
        known.setdefault("tool_version", _tool_version())
        if "git_revision" in known:
            known["mlflow.source.git.commit"] = known["git_revision"]  # the list of runs has a column for it
        self._facts = Facts(params=flat, dataset=dict(dataset), tags=known)
        if not self._has_params:
            self._record_params(main_choices(flat))
        self._record_tags({**known, "mlflow.note.content": describe(self._facts)})
        self._record_text(_without_store(config_yaml), "pipeline.yaml")
        if reasons:
            self._record_text(plan_page(reasons, flat), "plan.md")
        if digest and not self._has_inputs:
            self._outbox.send("the data digest", lambda: self._log_dataset(dataset, digest))

    def epoch(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records one epoch in one call; see :class:`Tracker`."""
        self._record_finals({key: value for key, value in metrics.items() if key.startswith(_FINAL)})
        points = {key: value for key, value in metrics.items() if not key.startswith(_FINAL)}
        if points and (self._last_step is None or step > self._last_step):
            self._last_step = step
            self._record_metrics(points, step)

    def overlay(self, key: str, image: np.ndarray, step: int) -> None:
        """Records a picture; see :class:`Tracker`."""
        name, picture, now = _key(key), framed(image), _milliseconds()
        self._newest[name] = picture
        if (name, step) in self._overlays:
            return
        self._overlays.add((name, step))
        self._outbox.send(
            PICTURE,
            lambda: self._client.log_image(self.run_id, picture, key=name, step=step, timestamp=now, synchronous=True),
        )

    def picture(self, name: str, image: np.ndarray) -> None:
        """Records a picture; see :class:`Tracker`."""
        shown = framed(image)
        self._outbox.send(PICTURE, lambda: self._client.log_image(self.run_id, shown, artifact_file=f"{name}.png"))

    def cases(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Records the table of cases, in the form of ``mlflow.log_table``; see :class:`Tracker`."""
        if not rows:
            return
        columns = list(dict.fromkeys(column for row in rows for column in row))
        table = {"columns": columns, "data": [[_cell(row.get(column)) for column in columns] for row in rows]}
        self._outbox.send("the table of cases", lambda: self._client.log_dict(self.run_id, table, "cases.json"))
        self._record_tags({"mlflow.loggedArtifacts": json.dumps([{"path": "cases.json", "type": "table"}])})

    def bundle(
        self, folder: Path, register_as: str | None, metrics: Mapping[str, float], dress: Dress | None = None
    ) -> str | None:
        """Records and registers the bundle; see :class:`Tracker`."""
        final = {f"{_FINAL}{key.removeprefix(_FINAL)}": float(v) for key, v in metrics.items() if _finite(v)}
        self._facts.results = {key.removeprefix(_FINAL): value for key, value in final.items()}
        self._record_finals(final)
        self._record_sheet()
        self._version = self._model_uri = None
        self._outbox.send(
            "the model bundle", lambda: self._client.log_artifacts(self.run_id, str(folder), MODEL_FOLDER)
        )
        if dress is not None:
            self._record_dress(dress)
        if register_as:
            self._outbox.send("the model version", lambda: self._register(safe_name(register_as)))
        self._outbox.flush(now=True)
        self._record_tags({"mlflow.note.content": describe(self._facts)})
        self._rename()
        return self._model_uri

    def finish(self, status: Status) -> None:
        """Sends what waits and closes the run; see :class:`Tracker`."""
        now = _milliseconds()
        self._outbox.send("the end of the run", lambda: self._client.set_terminated(self.run_id, status, now))
        self._outbox.drain(PATIENCE_SECONDS if status == "FINISHED" else 0.0)
        if len(self._outbox):
            logger.warning(
                "%d records did not reach the MLflow store; the metrics and the model in the run folder are complete",
                len(self._outbox),
            )
        for folder in self._scratch:
            shutil.rmtree(folder, ignore_errors=True)

    # --- what is sent ---

    def _record_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = _milliseconds()  # fixed here: a call that is repeated writes the same point, not a second one
        points = [Metric(_key(key), float(value), now, step) for key, value in metrics.items() if _finite(value)]
        if points:
            self._outbox.send("metrics", lambda: self._client.log_batch(self.run_id, metrics=points))

    def _record_finals(self, metrics: Mapping[str, float]) -> None:
        """Records final scores once, at step 0: MLflow draws a metric without a course as a bar."""
        new = {k: float(v) for k, v in metrics.items() if _finite(v) and self._finals.get(k) != float(v)}
        self._finals |= new
        self._record_metrics(new, 0)

    def _record_sheet(self) -> None:
        """Records the newest overlays on one sheet, seen without the slider of the charts page."""
        if not self._newest:
            return
        sheet = stacked([self._newest[name] for name in sorted(self._newest)])
        self.picture("overlays", sheet)

    def _record_dress(self, dress: Dress) -> None:
        """Puts beside the bundle what makes it a model of MLflow, and tells the page of the run that it is one."""
        beside = Path(tempfile.mkdtemp(prefix="unet-med-model-"))
        self._scratch.append(beside)
        if not dress(beside):
            return
        self._outbox.send(
            "the model for other tools", lambda: self._client.log_artifacts(self.run_id, str(beside), MODEL_FOLDER)
        )
        model = yaml.safe_load((beside / "MLmodel").read_text(encoding="utf-8"))
        told = [{**model, "run_id": self.run_id, "artifact_path": MODEL_FOLDER}]
        self._record_tags({"mlflow.log-model.history": json.dumps(told, default=str)})

    def _rename(self) -> None:
        """Puts the main score into the name of the run: the list of runs shows no metrics by itself."""
        score = headline(self._facts.results)
        if score is not None:
            name = f"Dice {score:.3f}, {self._run_name}"  # in front: the list cuts long names
            self._outbox.send("the name of the run", lambda: self._client.update_run(self.run_id, name=name))

    def _record_params(self, flat: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        params = [Param(_key(key), value[:_LONGEST_PARAM]) for key, value in flat.items()]
        for first in range(0, len(params), _PARAMS_PER_CALL):
            self._send_params(params[first : first + _PARAMS_PER_CALL])

    def _send_params(self, params: Sequence[Any]) -> None:
        self._outbox.send("parameters", lambda: self._client.log_batch(self.run_id, params=params))

    def _record_tags(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        found = [RunTag(key, value[:_LONGEST_TAG]) for key, value in tags.items()]
        self._outbox.send("tags", lambda: self._client.log_batch(self.run_id, tags=found))

    def _record_text(self, text: str, name: str) -> None:
        self._outbox.send(name, lambda: self._client.log_text(self.run_id, text, name))

    def _log_dataset(self, dataset: Mapping[str, Any], digest: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        facts = {key: value for key, value in dataset.items() if key != "digest"}
        entity = Dataset(
            name="data",
            digest=digest[:_DIGEST_CHARACTERS],  # MLflow takes 36 characters and shows them in the list of runs
            source_type="content digest",
            source=json.dumps({"sha256": digest}),
            profile=json.dumps(facts, default=str),
        )
        self._client.log_inputs(self.run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", "training")])])

    def _register(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name, description=MODEL_NOTE)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        if self._version is None:  # else the call is repeated after a failure further down
            self._version = self._client.create_model_version(
                name,
                source=f"runs:/{self.run_id}/{MODEL_FOLDER}",
                run_id=self.run_id,
                tags={f"{_FINAL}{key}": f"{value:.4f}" for key, value in self._facts.results.items()}
                | {key: value for key, value in self._facts.tags.items() if key in ("data_digest", "fold", "task")},
                await_creation_for=0,
            ).version
        self._facts.model_uri = f"models:/{name}/{self._version}"
        self._client.update_model_version(name, self._version, describe(self._facts))
        self._client.set_registered_model_alias(name, ALIAS, self._version)
        self._model_uri = self._facts.model_uri


def _logged_overlays(artifacts: Sequence[Any]) -> Iterator[tuple[str, int]]:
    for artifact in artifacts:
        parts = artifact.path.rsplit("/", 1)[-1].split("+")
        if len(parts) >= 3 and parts[1] == "step" and parts[2].isdigit():
            yield parts[0].replace("~", "/"), int(parts[2])


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
    if data["tracking"].get("store", DEFAULT_STORE) == DEFAULT_STORE:
        return config_yaml
    data["tracking"].pop("store")
    return yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=100)


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
    lines = ["Review the experiment:", f"  mlflow ui --backend-store-uri {quoted(store.uri)}", *pages]
    if store.database == Path.cwd() / "mlflow.db":
        lines.append(f"  ({LEFTOVER_REMEDY})" if leftover_file_store(Path.cwd()) else _PLAIN)
    return lines


_PLAIN: Final = "  (in this folder plain 'mlflow ui' shows the same, and 'unet-med ui' opens it in the browser)"
