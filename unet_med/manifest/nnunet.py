"""The ``dataset.json`` of nnU-Net v2: what its labels, regions and channels mean.

A region is a list of label values. nnU-Net paints regions one over the other and writes for each the value that
``regions_class_order`` gives; what is painted over is what inner regions leave of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unet_med.errors import ConfigError, UsageError
from unet_med.io.source import DICOM_KINDS, Discovery
from unet_med.labels import LabelMap

IGNORE = "ignore"
"""Name of the value of voxels that nobody labelled."""

SPLITS = "splits_final.json"
"""nnU-Net's folds: a list of the ids that each fold trains on and holds out."""

REST = "_rest"
"""Ends the name of the label that inner regions leave of a region."""


@dataclass(frozen=True)
class LabelBlock:
    """What label values mean.

    Attributes:
        labels: Name -> value, ``background`` included, ``ignore`` not.
        regions: Overlapping regions, outermost first; ``None`` for exclusive labels.
        ignore: Value of voxels that are neither learnt from nor scored.
    """

    labels: dict[str, int]
    regions: dict[str, tuple[int, ...]] | None = None
    ignore: int | None = None


def is_nnunet_block(block: object) -> bool:
    """Whether a ``labels`` entry is in the form of nnU-Net v2: names -> values or lists of values."""
    return isinstance(block, Mapping) and all(_values(value) is not None for value in block.values())


def label_block(block: Mapping[str, Any], order: Sequence[int] | None, where: str) -> LabelBlock:
    """Reads the entries ``labels`` and ``regions_class_order``.

    Args:
        block: Name -> value, or list of values.
        order: Value written for each region.
        where: Name of the file for errors.

    Raises:
        UsageError: for labels that make no sense, or regions that no order from outside inwards paints.
    """
    entries = {str(name): _values(value) for name, value in block.items()}
    ignore = entries.pop(IGNORE, None)
    meant = {name: values for name, values in entries.items() if values is not None and values != (0,)}
    if None in entries.values() or any(0 in values for values in meant.values()):
        raise UsageError(
            "the labels are no names with whole numbers", where, 'write them as {"background": 0, "liver": 1}'
        )
    background = next((name for name, values in entries.items() if values == (0,)), "background")
    if all(len(values) == 1 for values in meant.values()):
        found = sorted((values[0], name) for name, values in meant.items())
        return LabelBlock({background: 0} | {name: value for value, name in found}, None, _single(ignore, where))
    if order is None or len(order) != len(meant):
        raise UsageError(
            "labels are regions, and regions_class_order does not say with which value each is painted",
            where,
            "add regions_class_order to dataset.json",
        )
    labels, regions = _painted(meant, [int(value) for value in order], where)
    return LabelBlock({background: 0} | labels, regions, _single(ignore, where))


def dataset_json(
    labels: Mapping[str, int],
    regions: Mapping[str, Sequence[int]] | None,
    ignore: int | None,
) -> dict[str, Any]:
    """Returns the entries ``labels`` and, for regions, ``regions_class_order`` that :func:`label_block` reads."""
    background = next((name for name, value in labels.items() if value == 0), "background")
    content: dict[str, Any] = {"labels": {background: 0}}
    if regions:
        content["labels"] |= {name: sorted(members) for name, members in regions.items()}
        content["regions_class_order"] = list(LabelMap.from_names(labels, regions).region_values())
    else:
        content["labels"] |= {name: value for name, value in labels.items() if value != 0}
    if ignore is not None:
        content["labels"][IGNORE] = ignore
    return content


def of_ending(root: Path, discovery: Discovery, ending: str) -> tuple[Discovery, list[tuple[str, str]]]:
    """Returns the discovery without what nnU-Net would not see, and ``(id, reason)`` of what is left out.

    Args:
        root: The folder that was searched.
        discovery: What was found.
        ending: ``file_ending`` of the description; empty: everything is seen.
    """
    if not ending or not (root / "imagesTr").is_dir():
        return discovery, []
    kept, left = [], []
    for source in discovery.sources:
        if source.kind in DICOM_KINDS or source.files[0].name.endswith(ending):
            kept.append(source)
        else:
            left.append((source.id, f"does not end in {ending}, as dataset.json says that files do"))
    return replace(discovery, sources=tuple(kept)), left


def stored_folds(folder: Path) -> dict[str, int]:
    """Returns the fold that holds each case out by ``splits_final.json``; empty without one, or where folds overlap."""
    try:
        splits = json.loads((folder / SPLITS).read_text(encoding="utf-8"))
        held_out = [(str(case), fold) for fold, split in enumerate(splits) for case in split["val"]]
    except (OSError, ValueError, TypeError, KeyError):
        return {}
    folds = dict(held_out)
    return folds if len(folds) == len(held_out) else {}


def _painted(
    regions: Mapping[str, tuple[int, ...]], order: Sequence[int], where: str
) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
    """Returns labels that are what is left of each region, and the regions, each with its own value first."""
    painter = dict(zip(order, regions, strict=True))
    used = sorted({value for values in regions.values() for value in values})
    labels: dict[str, int] = {}
    for value in used:
        name = painter.get(value)
        whole = name is not None and regions[name] == (value,)
        labels[f"label_{value}" if name is None else name if whole else name + REST] = value
    sorted_regions = {
        name: (value, *(other for other in values if other != value)) if value in values else values
        for (name, values), value in zip(regions.items(), order, strict=True)
    }
    try:
        painted = LabelMap.from_names(labels, sorted_regions).region_values()
    except ConfigError as error:
        raise UsageError(error.what, where, error.remedy) from None
    if painted != tuple(order):
        raise UsageError(
            f"regions_class_order {list(order)} does not paint the regions from the outermost to the innermost",
            where,
            "list the regions from the outermost to the innermost, each with the value that inner ones do not hold",
        )
    return labels, sorted_regions


def _values(value: object) -> tuple[int, ...] | None:
    """``1``, ``"1"`` and ``[1, 2]`` as values; ``None`` for anything else."""
    entries = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    numbers = []
    for entry in entries:
        if isinstance(entry, bool) or not isinstance(entry, int | str):
            return None
        if isinstance(entry, str) and not entry.isdecimal():
            return None
        numbers.append(int(entry))
    return tuple(dict.fromkeys(numbers)) if numbers and min(numbers) >= 0 else None


def _single(values: tuple[int, ...] | None, where: str) -> int | None:
    if values is None:
        return None
    if len(values) != 1 or values[0] == 0:
        raise UsageError("'ignore' is one value above all others", where, "correct the labels of dataset.json")
    return values[0]
