"""What a run left in MLflow of how it was trained: enough to train it again on the same data."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unet_med.config import PipelineConfig, Tracking, load_config
from unet_med.errors import UsageError
from unet_med.training.store import cannot_open, connect, resolve_store

_STORE = "tracking.store="
_PIPELINE = "pipeline.yaml"
_GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
_FOLD = "fold_"


@dataclass(frozen=True)
class PastRun:
    """How a run was trained.

    Attributes:
        config: Its pipeline as it was resolved, with the changes that are wanted now.
        fold: As ``train`` takes it: a number, ``cv`` or ``all``.
        data_digest: Of the data set, as :attr:`unet_med.manifest.Manifest.digest`.
        started_from: sha256 of the model that it began with; ``None``: with fresh weights.
        revision: Git commit of the code; ``None``: not recorded.
        version: Of this package then.
    """

    config: PipelineConfig
    fold: str
    data_digest: str
    started_from: str | None
    revision: str | None
    version: str | None

    def require_same(self, data_digest: str, started_from: str | None) -> None:
        """Checks that a run is trained again on the same data, from the same weights.

        Raises:
            UsageError: otherwise.
        """
        if data_digest != self.data_digest:
            raise UsageError(
                "the images or labels are not those of the run: their digest is another",
                "--data",
                "give the manifest that the run was trained on, or train a pipeline file on these",
            )
        if started_from != self.started_from:
            begun = "with fresh weights" if self.started_from is None else f"with the model {self.started_from[:16]}"
            raise UsageError(
                f"the run began {begun}", "--start-from", "give the same, or train a pipeline file instead"
            )

    def remarks(self, revision: str | None, version: str) -> list[str]:
        """Returns in sentences why the result may differ from that of the run.

        Args:
            revision: Git commit of the code that runs now.
            version: Version of this package now.
        """
        remarks = []
        if (self.revision, self.version) != (revision, version):
            then, now = _named(self.version, self.revision), _named(version, revision)
            remarks.append(f"trained again with unet-med {now}, the run was made by {then}")
        if self.config.training.max_minutes is not None:
            remarks.append("trained again for as long, not for as many steps: a faster machine takes more")
        return remarks


def _named(version: str | None, revision: str | None) -> str:
    return f"{version or 'an unknown version'}{f' ({revision})' if revision else ''}"


def read_past_run(run_id: str, overrides: Sequence[str]) -> PastRun:
    """Reads a run.

    Args:
        run_id: Its id, also as ``runs:/ID``.
        overrides: ``a.b=c`` changes of its pipeline; ``tracking.store`` also says where the run is looked for.

    Raises:
        UsageError: if there is no such run, or it does not say how it was trained.
        ConfigError: for a change that the pipeline does not know.
    """
    wanted = run_id.removeprefix("runs:/").strip("/")
    stores = [one.removeprefix(_STORE) for one in overrides if one.startswith(_STORE)]
    store = resolve_store(stores[-1] if stores else Tracking().store)
    if store.database is not None and not store.database.is_file():
        raise UsageError(
            "there is no record of experiments here", "--from-run", "name it: --set tracking.store=sqlite:///FILE"
        )
    client, failures = connect(store)
    with tempfile.TemporaryDirectory() as folder:
        try:
            run = client.get_run(wanted)
            file = Path(client.download_artifacts(wanted, _PIPELINE, folder))
        except failures as error:
            no_file = store.database is not None and isinstance(error, OSError)
            if no_file or getattr(error, "error_code", None) in _GONE:
                raise _no_such_run(wanted) from None
            raise cannot_open(store, error) from None
        config = load_config(file, overrides)
    tags = run.data.tags
    if "data_digest" not in tags or "fold" not in tags:
        raise _no_such_run(wanted)
    return PastRun(
        config=config,
        fold=_fold(tags["fold"]),
        data_digest=tags["data_digest"],
        started_from=tags.get("started_from"),
        revision=tags.get("git_revision"),
        version=tags.get("tool_version"),
    )


def _fold(recorded: str) -> str:
    number = recorded.removeprefix(_FOLD)
    if number in ("cv", "all") or number.isdecimal():
        return number
    raise UsageError(
        f"the run trained a part of {recorded.partition('-')[0]} alone",
        "--from-run",
        "give the run above it, of which it is a part",
    )


def _no_such_run(run_id: str) -> UsageError:
    return UsageError(
        "the store holds no training of this id",
        f"--from-run {run_id}",
        "copy the Run ID from the page of a training, and name its store with --set tracking.store=...",
    )
