"""What a JSON file says of a set: labels, regions and channels, in the words of Decathlon, nnU-Net or our manifests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unet_med.errors import UsageError
from unet_med.manifest.nnunet import LabelBlock, is_nnunet_block, label_block

_MODALITIES = {"MRI": "MR", "PET": "PT", **{name: name for name in ("CT", "MR", "PT", "US", "MG", "CR", "DX")}}


@dataclass(frozen=True)
class Description:
    """What a ``dataset.json`` (Decathlon, nnU-Net) beside the images says of a set.

    Attributes:
        label_names: Value -> name.
        channels: Names of the channels.
        modality: DICOM modality, if all channels share one.
        description, licence: Free text.
        regions: Overlapping regions of label values, outermost first.
        ignore_label: Value of voxels that nobody labelled.
        file_ending: Images and labels are the files that end so; empty: any.
    """

    label_names: Mapping[int, str] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    modality: str | None = None
    description: str = ""
    licence: str = ""
    regions: Mapping[str, tuple[int, ...]] | None = None
    ignore_label: int | None = None
    file_ending: str = ""


def read_description(folder: Path) -> Description:
    """Returns what ``folder/dataset.json`` says; empty when there is none, or one of another kind.

    Raises:
        UsageError: if its labels are those of nnU-Net and make no sense.
    """
    path = folder / "dataset.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Description()
    if not isinstance(data, Mapping) or not isinstance(data.get("labels"), Mapping):
        return Description()
    try:
        told = described_labels(data, path.name)
    except UsageError:
        if is_nnunet_block(data["labels"]):
            raise
        return Description()
    return Description(
        {value: name for name, value in told.labels.items()},
        described_channels(data),
        described_modality(data),
        str(data.get("description", "")),
        described_licence(data),
        told.regions,
        told.ignore,
        str(data.get("file_ending") or ""),
    )


def described_labels(data: Mapping[str, Any], where: str) -> LabelBlock:
    """Returns what label values mean.

    Args:
        data: The whole file.
        where: Its name, for errors.

    Raises:
        UsageError: if it does not say so.
    """
    raw = data.get("labels")
    if isinstance(raw, Mapping) and raw and "regions" not in data and is_nnunet_block(raw):
        return label_block(raw, data.get("regions_class_order"), where)
    regions, ignore = data.get("regions"), data.get("ignore_label")
    labels = _labels(raw, where)
    try:
        members = {str(name): tuple(int(value) for value in values) for name, values in (regions or {}).items()}
        return LabelBlock(labels, members or None, None if ignore is None else int(ignore))
    except (TypeError, ValueError, AttributeError):
        raise UsageError(
            "regions or ignore_label are no whole numbers", where, "make the manifest again with `unet-med manifest`"
        ) from None


def _labels(raw: object, where: str) -> dict[str, int]:
    if not isinstance(raw, Mapping) or not raw:
        raise UsageError(
            "the manifest does not say what its labels mean", where, 'add "labels": {"0": "background", "1": "..."}'
        )
    labels: dict[str, int] = {}
    for key, value in raw.items():
        pair = _label_pair(str(key), value)
        if pair is None:
            raise UsageError(
                f"the label {key!r} of the manifest has no single whole number",
                where,
                "give each label one value, and overlapping regions in the pipeline file (regions)",
            )
        labels[pair[0]] = pair[1]
    if 0 not in labels.values():
        labels = {"background": 0, **labels}
    return dict(sorted(labels.items(), key=lambda item: item[1]))


def _label_pair(key: str, value: object) -> tuple[str, int] | None:
    """``("0", "background")`` and ``("background", 0)`` both give ``("background", 0)``."""
    if isinstance(value, str) and key.lstrip("-").isdigit():
        return value, int(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return key, value
    if isinstance(value, str) and value.lstrip("-").isdigit():
        return key, int(value)
    return None


def described_channels(data: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the names of the channels; empty where it does not say."""
    return _named(data, "channel_names") or _named(data, "modality")


def described_modality(data: Mapping[str, Any]) -> str | None:
    """Returns the DICOM name of the modality, if all channels share one."""
    names = {name.upper() for name in _named(data, "modality") or _named(data, "channel_names")}
    found = {_MODALITIES.get(name) for name in names}
    return found.pop() if len(found) == 1 else None


def described_licence(data: Mapping[str, Any]) -> str:
    """Returns the licence; empty where it does not say."""
    return str(data.get("licence", data.get("license", "")))


def _named(data: Mapping[str, Any], key: str) -> tuple[str, ...]:
    raw = data.get(key)
    if isinstance(raw, str):
        return (raw,)
    if isinstance(raw, Mapping):
        return tuple(str(raw[index]) for index in sorted(raw, key=lambda text: (len(str(text)), str(text))))
    return tuple(map(str, raw)) if isinstance(raw, Sequence) else ()
