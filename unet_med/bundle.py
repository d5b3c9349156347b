"""The deployable model: weights as safetensors, everything else as JSON; loading it executes nothing.

A bundle is a folder of three files: ``model.safetensors``, ``bundle.json`` (schema version, resolved pipeline,
labels, channels, where the model comes from, checksums) and ``pipeline.yaml`` (the same pipeline, for people; never
read back). Reading the description alone imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet_med.config import PipelineConfig, dressed, parse_config
from unet_med.errors import ConfigError, MachineError, ModelError
from unet_med.identity import file_sha256
from unet_med.labels import LabelMap

if TYPE_CHECKING:
    from torch import Tensor, nn

SCHEMA_VERSION = 1
WEIGHTS = "model.safetensors"
DESCRIPTION = "bundle.json"
PIPELINE = "pipeline.yaml"

_AGAIN = "copy the model again from where it was trained, or train it again"
_RETRIES = 5
_RETRY_SECONDS = 0.2


@dataclass(frozen=True, eq=False)
class BundleInfo:
    """What a bundle says of itself; no weights are loaded.

    Attributes:
        folder: Where the bundle lies.
        config: The resolved pipeline.
        labels: The labels of its masks.
        channels: Names of the channels it needs, in this order.
        meta: Where it comes from: versions, training data, fingerprint, results, reasons.
        sha256: Checksum over weights and description.
    """

    folder: Path
    config: PipelineConfig
    labels: LabelMap
    channels: tuple[str, ...]
    meta: dict[str, Any]
    sha256: str


@dataclass(frozen=True, eq=False)
class Bundle:
    """A loaded model.

    Attributes:
        config: The resolved pipeline.
        labels: The labels of its masks.
        channels: Names of the channels it needs, in this order.
        state: Weights by name, float32 on the CPU.
        meta: Where it comes from.
        sha256: Checksum over weights and description.
    """

    config: PipelineConfig
    labels: LabelMap
    channels: tuple[str, ...]
    state: dict[str, Tensor]
    meta: dict[str, Any]
    sha256: str

    @property
    def dims(self) -> int:
        """Number of spatial axes of the network, 2 or 3."""
        return 2 if self.config.dims == 2 else 3

    def network(self) -> nn.Module:
        """Returns the network in evaluation mode; its weights are those of :attr:`state`, not copies.

        Raises:
            ModelError: when the weights do not fit the network that the pipeline describes.
        """
        import torch

        from unet_med.networks import build_network

        with torch.device("meta"):  # no random numbers for weights that are replaced at once
            network = build_network(self.config.network, self.dims, len(self.channels), self.labels.outputs)
        try:
            network.load_state_dict(self.state, strict=True, assign=True)
        except RuntimeError as error:
            raise ModelError("the weights do not fit the network that the bundle describes", WEIGHTS, _AGAIN) from error
        return network.eval()


def save_bundle(folder: Path, config: PipelineConfig, state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> str:
    """Writes a bundle; readers see the old one or the new one, never half of it.

    Args:
        folder: Where to write; made if it does not exist.
        config: The resolved pipeline, labels and channels included.
        state: ``state_dict`` of the network that ``build_network`` makes of it.
        meta: Where the model comes from, JSON-serialisable; numbers that are not finite become null.

    Returns:
        The sha256 of the bundle.

    Raises:
        ConfigError: when the pipeline still holds ``auto`` values.
        MachineError: when the disk is full.
    """
    from safetensors.torch import save_file

    unresolved = config.unresolved()
    if unresolved:
        raise ConfigError(
            "a model needs a resolved pipeline", unresolved[0], "resolve the pipeline with `unet-med plan`"
        )
    labels_of(config)
    tensors = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in state.items()}
    temporary: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".bundle-", dir=folder))
        save_file(tensors, str(temporary / WEIGHTS), metadata={"format": "pt"})
        description: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "use": "Research use only",
            "weights_sha256": file_sha256(temporary / WEIGHTS),
            "config": config.model_dump(mode="json"),
            "meta": json.loads(json.dumps(_finite(meta), allow_nan=False)),
        }
        description["sha256"] = _digest(description)
        (temporary / DESCRIPTION).write_text(json.dumps(description, indent=1), encoding="utf-8")
        (temporary / PIPELINE).write_text(config.to_yaml(), encoding="utf-8")
        for name in (WEIGHTS, DESCRIPTION, PIPELINE):
            with (temporary / name).open("rb+") as file:
                os.fsync(file.fileno())
        for name in (PIPELINE, WEIGHTS, DESCRIPTION):
            (temporary / name).replace(folder / name)
    except OSError as error:
        raise MachineError(
            f"cannot write the model ({error.strerror or 'disk error'})",
            DESCRIPTION,
            "free some disk space or choose another --out, then run again",
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return str(description["sha256"])


def load_bundle(model: str | Path) -> Bundle:
    """Loads a model and verifies it.

    Args:
        model: A bundle folder, a run folder (``RUN/model`` is taken), or an MLflow address (``models:/name@alias``,
            ``models:/name/3``, ``runs:/ID/model``); MLflow is only imported for these.

    Raises:
        ModelError: when nothing is there, or it is damaged, or made by a newer version.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    info = read_bundle_info(model)
    try:
        state = load_file(str(info.folder / WEIGHTS), device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError("the file is damaged or cut short", WEIGHTS, _AGAIN) from error
    return Bundle(info.config, info.labels, info.channels, state, info.meta, info.sha256)


def read_bundle_info(model: str | Path) -> BundleInfo:
    """Reads and verifies the description of a model, and the checksum of its weights; loads no weights.

    Args and errors as :func:`load_bundle`.
    """
    folder = resolve_model(model)
    for attempt in range(_RETRIES):
        description = _read_description(folder / DESCRIPTION)
        weights = _weights_sha256(folder / WEIGHTS)
        if description.get("weights_sha256") == weights:
            break
        if attempt + 1 < _RETRIES and _changed_lately(folder):
            time.sleep(_RETRY_SECONDS)  # another process is replacing the bundle at this moment
            continue
        raise ModelError("the file is damaged or cut short: its checksum is another", WEIGHTS, _AGAIN)
    if description.get("sha256") != _digest(description):
        raise ModelError("the file was changed after it was written: its checksum is another", DESCRIPTION, _AGAIN)
    try:
        config = parse_config(description["config"], DESCRIPTION)
        labels = labels_of(config)
        meta = dict(description["meta"])
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise ModelError("the file describes no model", DESCRIPTION, _AGAIN) from error
    if config.unresolved():
        raise ModelError("the file leaves values open", DESCRIPTION, _AGAIN)
    channels = tuple(config.channels) if config.channels != "auto" else ()
    return BundleInfo(folder, config, labels, channels, meta, str(description["sha256"]))


def labels_of(config: PipelineConfig) -> LabelMap:
    """Returns the label map of a resolved pipeline."""
    values = config.label_values
    if config.labels == "auto" or values is None:
        raise ConfigError("the labels are not resolved", "labels", "resolve the pipeline with `unet-med plan`")
    return dressed(LabelMap.from_names(values, config.regions), config.labels)


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
        raise ModelError(f"the folder holds weights but no {DESCRIPTION}", name, _AGAIN)
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


def _read_description(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError("the file is damaged or cut short", DESCRIPTION, _AGAIN) from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise ModelError("the file describes no model: it has no schema_version", DESCRIPTION, _AGAIN)
    if version > SCHEMA_VERSION:
        raise ModelError(
            f"made by a newer unet-med (schema {version} > {SCHEMA_VERSION})",
            DESCRIPTION,
            "update with `pip install --upgrade unet-med`",
        )
    return dict(data)


def _weights_sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise ModelError("the file is missing or cannot be read", WEIGHTS, _AGAIN) from error


def _changed_lately(folder: Path, seconds: float = 10.0) -> bool:
    return abs(time.time() - (folder / WEIGHTS).stat().st_mtime) < seconds


def _finite(value: Any) -> Any:
    """The same value with NaN and infinity as ``None``, which JSON can say."""
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _digest(description: Mapping[str, Any]) -> str:
    """The sha256 of the description (its own entry left out); the weights are in it by their checksum."""
    content = {key: value for key, value in description.items() if key != "sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
