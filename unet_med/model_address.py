"""Where a model lies: a bundle folder, a run folder that holds one, or an address in MLflow."""

from __future__ import annotations

import os
from pathlib import Path

from unet_med.errors import ModelError

WEIGHTS = "model.safetensors"
DESCRIPTION = "bundle.json"
COPY_AGAIN = "copy the model again from where it was trained, or train it again"


def resolve_model(model: str | Path) -> Path:
    """Returns the folder of a bundle; MLflow addresses are downloaded (see :func:`load_bundle`)."""
    text = str(model)
    if text.startswith(("models:/", "runs:/")):
        return _bundle_in(_download(text), text)
    return _bundle_in(Path(model), Path(model).name)


def _bundle_in(folder: Path, name: str) -> Path:
    for candidate in (folder, folder / "model"):
        if (candidate / DESCRIPTION).is_file():
            return candidate
    if (folder / WEIGHTS).is_file():
        raise ModelError(f"the folder holds weights but no {DESCRIPTION}", name, COPY_AGAIN)
    if not folder.exists():
        raise ModelError("there is no such model", name, "give a bundle folder, a run folder or models:/NAME@candidate")
    folds = sorted(path.parent.parent.name for path in folder.glob(f"*/model/{DESCRIPTION}"))
    if folds:
        rest = " ".join(f"--also {name}/{fold}" for fold in folds[1:])
        raise ModelError(
            f"the run holds {len(folds)} models, one for each fold", name, f"use {name}/{folds[0]} {rest}".rstrip()
        )
    raise ModelError(
        f"no model is in this folder: it has no {DESCRIPTION}", name, "give a bundle folder or a finished run folder"
    )


def _download(address: str) -> Path:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    try:
        import mlflow
    except ImportError as error:
        raise ModelError(
            "MLflow is not installed", address, "install mlflow, or give the folder of the model"
        ) from error
    if not mlflow.is_tracking_uri_set():
        store = Path.cwd() / "mlflow.db"
        if not store.exists():
            raise ModelError(
                "no mlflow.db is in the working directory",
                address,
                "change to the folder of the experiments, or set MLFLOW_TRACKING_URI",
            )
        mlflow.set_tracking_uri(f"sqlite:///{store.as_posix()}")
    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=address))
    except (mlflow.exceptions.MlflowException, OSError) as error:
        raise ModelError(
            "MLflow has no such model", address, "look its name, version or alias up with `unet-med ui`"
        ) from error
