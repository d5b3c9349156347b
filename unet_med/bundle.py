"""The deployable model: weights as safetensors, everything else as JSON; loading it executes nothing.

A bundle is a folder of four files: ``model.safetensors``, ``bundle.json`` (schema version, resolved pipeline, labels,
channels, where the model comes from, checksums) and, for people and never read back, ``pipeline.yaml`` (the same
pipeline) and ``MODEL_CARD.md`` (what the model is for, and how good it is). An ensemble is a bundle that holds others
in place of weights: one folder for each member, whose logits are averaged; labels, post-processing and origin are the
ensemble's own. A cascade holds, beside its weights, one folder for each model of its low-resolution stage. Reading the
description alone imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet_med.config import PipelineConfig, dressed, parse_config
from unet_med.errors import ConfigError, MachineError, ModelError
from unet_med.identity import file_sha256
from unet_med.labels import LabelMap
from unet_med.model_address import COPY_AGAIN, DESCRIPTION, WEIGHTS, resolve_model
from unet_med.model_card import card_text, model_card

if TYPE_CHECKING:
    from torch import Tensor, nn

SCHEMA_VERSION = 3
"""Of a cascade; what older versions can read is still described as in theirs."""
_SINGLE_VERSION = 1
_ENSEMBLE_VERSION = 2
PIPELINE = "pipeline.yaml"
CARD = "MODEL_CARD.md"

_FILES = (WEIGHTS, DESCRIPTION, PIPELINE, CARD)
_LOW = "low_"
_MEMBER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
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
        sha256: Checksum over weights (or members) and description.
        members: The models of an ensemble; none for a single model.
        low: The models of a cascade's low-resolution stage.
    """

    folder: Path
    config: PipelineConfig
    labels: LabelMap
    channels: tuple[str, ...]
    meta: dict[str, Any]
    sha256: str
    members: tuple[BundleInfo, ...] = ()
    low: tuple[BundleInfo, ...] = ()

    @property
    def parts(self) -> tuple[BundleInfo, ...]:
        """The models that lie in folders of this one."""
        return (*self.members, *self.low)


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
        low: The models of a cascade's low-resolution stage, whose logits are averaged.
    """

    config: PipelineConfig
    labels: LabelMap
    channels: tuple[str, ...]
    state: dict[str, Tensor]
    meta: dict[str, Any]
    sha256: str
    low: tuple[Bundle, ...] = ()

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

        from unet_med.networks import build_network, input_channels

        with torch.device("meta"):  # no random numbers for weights that are replaced at once
            entering = input_channels(self.config.network, self.channels, self.config.prior_channels)
            network = build_network(self.config.network, self.dims, entering, self.labels.outputs)
        try:
            network.load_state_dict(self.state, strict=True, assign=True)
        except RuntimeError as error:
            raise ModelError(
                "the weights do not fit the network that the bundle describes", WEIGHTS, COPY_AGAIN
            ) from error
        return network.eval()


def save_bundle(
    folder: Path,
    config: PipelineConfig,
    state: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    low: Sequence[str | Path] = (),
) -> str:
    """Writes a bundle; readers see the old one or the new one, never half of it.

    Args:
        folder: Where to write; made if it does not exist.
        config: The resolved pipeline, labels and channels included.
        state: ``state_dict`` of the network that ``build_network`` makes of it.
        meta: Where the model comes from, JSON-serialisable; numbers that are not finite become null.
        low: The models of a cascade's low-resolution stage: linked where the disk can, else copied.

    Returns:
        The sha256 of the bundle.

    Raises:
        ConfigError: when the pipeline still holds ``auto`` values.
        ModelError: when a model of the low-resolution stage is missing, damaged, or made for another task.
        MachineError: when the disk is full.
    """
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in state.items()}
    stage = {f"{_LOW}{number}": read_bundle_info(model) for number, model in enumerate(low)}
    if stage or config.prior_channels:
        _check_members(stage, config)
        if not config.prior_channels or any(info.low for info in stage.values()):
            raise ModelError("a cascade has two stages", "low", "give models of one network each, to a cascade only")

    def write_weights(part: Path) -> dict[str, Any]:
        save_file(tensors, str(part / WEIGHTS), metadata={"format": "pt"})
        described = {"schema_version": _SINGLE_VERSION, "weights_sha256": file_sha256(part / WEIGHTS)}
        if not stage:
            return described
        return described | {"schema_version": SCHEMA_VERSION, "low": _link_models(stage, part)}

    return _save(folder, config, meta, write_weights)


def save_ensemble(
    folder: Path, members: Mapping[str, str | Path], config: PipelineConfig, meta: Mapping[str, Any]
) -> str:
    """Writes an ensemble: members as they are, linked where the disk can, else copied.

    Args:
        folder: Where to write; made if it does not exist.
        members: Name of each member (letters, digits, ``_``, ``-``) and its model; their order is kept.
        config: A resolved pipeline with the members' labels and channels; its post-processing is the ensemble's.
        meta: Where the ensemble comes from, as for :func:`save_bundle`.

    Returns:
        The sha256 of the ensemble.

    Raises:
        ConfigError: when the pipeline still holds ``auto`` values.
        ModelError: when a member is damaged, is an ensemble itself, or is made for another task.
        MachineError: when the disk is full.
    """
    infos = {name: read_bundle_info(model) for name, model in members.items()}
    _check_members(infos, config)

    def link_members(part: Path) -> dict[str, Any]:
        return {"schema_version": _ENSEMBLE_VERSION, "members": _link_models(infos, part)}

    return _save(folder, config, meta, link_members)


def _save(
    folder: Path, config: PipelineConfig, meta: Mapping[str, Any], write_model: Callable[[Path], dict[str, Any]]
) -> str:
    """Writes what ``write_model`` makes, with its description; the description gets its name last."""
    unresolved = config.unresolved()
    if unresolved:
        raise ConfigError(
            "a model needs a resolved pipeline", unresolved[0], "resolve the pipeline with `unet-med plan`"
        )
    labels_of(config)
    temporary: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".bundle-", dir=folder))
        description = {
            **write_model(temporary),
            "use": "Research use only",
            "config": config.model_dump(mode="json"),
            "meta": json.loads(json.dumps(_finite(meta), allow_nan=False)),
        }
        description["sha256"] = _digest(description)
        (temporary / DESCRIPTION).write_text(json.dumps(description, indent=1), encoding="utf-8")
        (temporary / PIPELINE).write_text(config.to_yaml(), encoding="utf-8")
        (temporary / CARD).write_text(card_text(config.name, model_card(config, description["meta"])), encoding="utf-8")
        parts = [path for path in temporary.rglob("*") if path.is_file()]
        for part in sorted(parts, key=lambda path: path == temporary / DESCRIPTION):
            if part.parent == temporary:  # the files of other models are on the disk already
                with part.open("rb+") as file:
                    os.fsync(file.fileno())
            target = folder / part.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            part.replace(target)
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


def _check_members(infos: Mapping[str, BundleInfo], config: PipelineConfig) -> None:
    labels = labels_of(config)
    wanted = (labels.names, labels.regions, config.channels)
    if not infos:
        raise ModelError("an ensemble needs a member, a cascade a first stage", remedy="give at least one model")
    for name, info in infos.items():
        if info.members:
            raise ModelError("an ensemble is no member of another", name, "name its members one by one")
        if not _MEMBER_NAME.fullmatch(name):
            raise ModelError(f"{name!r} is no name of a member", "members", "use letters, digits, _ and -")
        if (info.labels.names, info.labels.regions, info.channels) != wanted:
            raise ModelError(
                "its labels or channels are not those of the others", name, "combine models of one task only"
            )


def _link_models(infos: Mapping[str, BundleInfo], part: Path) -> list[dict[str, str]]:
    """Puts models into folders of ``part``, those that they hold too; returns how they are described."""
    for name, info in infos.items():
        (part / name).mkdir()
        for file in _FILES:
            if file != CARD or (info.folder / CARD).exists():  # older bundles have none
                _link(info.folder / file, part / name / file)
        _link_models({inner.folder.name: inner for inner in info.parts}, part / name)
    return [{"name": name, "sha256": info.sha256} for name, info in infos.items()]


def _link(source: Path, target: Path) -> None:
    """Files of a bundle are replaced, never changed, so that two may share what is on the disk."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def change_bundle(folder: Path, changes: Mapping[str, Any], meta: Mapping[str, Any]) -> str:
    """Writes a bundle, or an ensemble, anew with other settings and the same weights.

    Args:
        folder: The bundle.
        changes: Dotted keys of the pipeline and their values, none that the weights depend on.
        meta: Replaces entries of where the model comes from.

    Returns:
        The sha256 of the bundle.

    Raises:
        ConfigError: for a key that does not exist or a value that it cannot have.
        ModelError: when the bundle is damaged.
        MachineError: when the disk is full.
    """
    info = read_bundle_info(folder)
    config, told = info.config.replacing(changes), {**info.meta, **meta}
    if info.members:
        return save_ensemble(info.folder, {one.folder.name: one.folder for one in info.members}, config, told)
    return save_bundle(info.folder, config, _load(info).state, told, [one.folder for one in info.low])


def load_bundle(model: str | Path) -> Bundle:
    """Loads a model that is no ensemble, and verifies it.

    Args:
        model: A bundle folder, a run folder (``RUN/model`` is taken), or an MLflow address (``models:/name@alias``,
            ``models:/name/3``, ``runs:/ID/model``); MLflow is only imported for these.

    Raises:
        ModelError: when nothing is there, or it is damaged, an ensemble, or made by a newer version.
    """
    info = read_bundle_info(model)
    if info.members:
        raise ModelError(
            f"an ensemble of {len(info.members)} models is not one network",
            info.folder.name,
            f"name one of its members, for example {info.folder.name}/{info.members[0].folder.name}",
        )
    return _load(info)


def load_bundles(model: str | Path) -> tuple[Bundle, ...]:
    """Loads all networks of a model: one, or the members of an ensemble.

    Members have the labels, the post-processing and the thresholds of objects of the ensemble, and in ``meta`` what it
    says beside their own.

    Args and errors as :func:`load_bundle`, ensembles aside.
    """
    info = read_bundle_info(model)
    if not info.members:
        return (_load(info),)
    shared = {"postprocess": info.config.postprocess, "instances": info.config.instances}
    return tuple(
        replace(
            _load(member),
            config=member.config.model_copy(update=shared),
            labels=info.labels,
            meta={**member.meta, **info.meta},
        )
        for member in info.members
    )


def _load(info: BundleInfo) -> Bundle:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(str(info.folder / WEIGHTS), device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError("the file is damaged or cut short", WEIGHTS, COPY_AGAIN) from error
    return Bundle(info.config, info.labels, info.channels, state, info.meta, info.sha256, tuple(map(_load, info.low)))


def read_bundle_info(model: str | Path) -> BundleInfo:
    """Reads and verifies the description of a model, and the checksum of all weights; loads no weights.

    Args and errors as :func:`load_bundle`, ensembles aside.
    """
    return _read_info(resolve_model(model))


def _read_info(folder: Path) -> BundleInfo:
    for attempt in range(_RETRIES):
        description = _read_description(folder / DESCRIPTION)
        members, low = (
            tuple(_read_info(folder / _member_name(entry)) for entry in description.get(kind, ()))
            for kind in ("members", "low")
        )
        if _is_whole(folder, description, members, low):
            break
        if attempt + 1 < _RETRIES and _changed_lately(folder):
            time.sleep(_RETRY_SECONDS)  # another process is replacing the bundle at this moment
            continue
        raise ModelError(
            "the file is damaged or cut short: its checksum is another", DESCRIPTION if members else WEIGHTS, COPY_AGAIN
        )
    try:
        config = parse_config(description["config"], DESCRIPTION)
        labels = labels_of(config)
        meta = dict(description["meta"])
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise ModelError("the file describes no model", DESCRIPTION, COPY_AGAIN) from error
    if config.unresolved():
        raise ModelError("the file leaves values open", DESCRIPTION, COPY_AGAIN)
    channels = tuple(config.channels) if config.channels != "auto" else ()
    if bool(low) != bool(config.prior_channels) and not members:
        raise ModelError("the file describes no cascade: its low-resolution stage is missing", DESCRIPTION, COPY_AGAIN)
    return BundleInfo(folder, config, labels, channels, meta, str(description["sha256"]), members, low)


def _member_name(entry: Any) -> str:
    name = str(entry.get("name") if isinstance(entry, dict) else entry)
    if not _MEMBER_NAME.fullmatch(name):
        raise ModelError("the file describes no model: a member has no proper name", DESCRIPTION, COPY_AGAIN)
    return name


def _is_whole(
    folder: Path, description: Mapping[str, Any], members: tuple[BundleInfo, ...], low: tuple[BundleInfo, ...]
) -> bool:
    """Whether weights, members and the models of a first stage are those that were described."""
    for kind, found in (("members", members), ("low", low)):
        if [entry.get("sha256") for entry in description.get(kind, ())] != [info.sha256 for info in found]:
            return False
    return bool(members) or bool(description.get("weights_sha256") == _weights_sha256(folder / WEIGHTS))


def labels_of(config: PipelineConfig) -> LabelMap:
    """Returns the label map of a resolved pipeline."""
    values = config.label_values
    if config.labels == "auto" or values is None:
        raise ConfigError("the labels are not resolved", "labels", "resolve the pipeline with `unet-med plan`")
    objects = config.task == "instance"
    return dressed(LabelMap.from_names(values, config.regions, config.ignore_label, objects=objects), config.labels)


def _read_description(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError("the file is damaged or cut short", DESCRIPTION, COPY_AGAIN) from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise ModelError("the file describes no model: it has no schema_version", DESCRIPTION, COPY_AGAIN)
    if version > SCHEMA_VERSION:
        raise ModelError(
            f"made by a newer unet-med (schema {version} > {SCHEMA_VERSION})",
            DESCRIPTION,
            "update with `pip install --upgrade unet-med`",
        )
    if data.get("sha256") != _digest(data):
        raise ModelError("the file was changed after it was written: its checksum is another", DESCRIPTION, COPY_AGAIN)
    return dict(data)


def _weights_sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise ModelError("the file is missing or cannot be read", WEIGHTS, COPY_AGAIN) from error


def _changed_lately(folder: Path, seconds: float = 10.0) -> bool:
    return abs(time.time() - folder.stat().st_mtime) < seconds


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
