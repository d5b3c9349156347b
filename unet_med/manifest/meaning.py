"""What the values in label images mean: object ids, or kinds of things with names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from unet_med.manifest.model import Finding, Task
from unet_med.manifest.nnunet import IGNORE
from unet_med.manifest.values import LabelScan, looks_like_objects, remapped, value_findings


@dataclass(frozen=True)
class Meaning:
    """What label values mean.

    Attributes:
        task: ``semantic`` or ``instance``.
        labels: Name -> value, background included.
        ignore_label: Value of voxels that nobody labelled.
        label_values: Stored value -> value meant; ``None``: they are the same.
        findings: What is wrong with the values.
        notes: Decisions that were taken.
    """

    task: Task
    labels: dict[str, int]
    ignore_label: int | None
    label_values: dict[int, int] | None
    findings: list[Finding]
    notes: list[str]


def without_ignored(names: Mapping[int, str], ignore: int | None) -> tuple[dict[int, str], int | None]:
    """Parts the names of labels from the value that is called ``ignore``.

    Args:
        names: Value -> name.
        ignore: That value, where it is known already.
    """
    called = [value for value, name in names.items() if name.casefold() == IGNORE and value != 0]
    value = called[0] if called else ignore
    return {one: name for one, name in names.items() if one != value}, value


def meaning_of(
    scans: Sequence[LabelScan],
    task: Task | None,
    given: Mapping[int, int],
    names: Mapping[int, str],
    ignore: int | None = None,
    *,
    annotated: bool,
) -> Meaning:
    """Says what label values mean.

    Args:
        scans: The label images.
        task: ``None`` to look at them.
        given: Stored value -> value meant, as far as somebody said so.
        names: Value -> name, as far as known.
        ignore: Value of voxels that nobody labelled.
        annotated: Whether there are labels that name their values themselves.
    """
    readable = [scan for scan in scans if scan.finding is None]
    notes: list[str] = []
    if ignore is not None:
        readable = [_without(scan, given, ignore) for scan in readable]
    if task is None and not given and not annotated and looks_like_objects(readable):
        task = "instance"
        notes.append("label values count objects (many, different in each image): task instance; else --task semantic")
    label_values = _complete(given, readable) if given else None
    if task == "instance":
        empty = bool(readable) and not any(value for scan in readable for value in scan.values)
        findings = value_findings(readable, given, names) if empty else []
        classes = {value: name for value, name in names.items() if value} or {1: "object"}
        labels = {"background": 0, **{name: value for value, name in sorted(classes.items())}}
        return Meaning(task, labels, ignore, label_values, findings, notes)
    found = sorted({value for scan in readable for value in remapped(scan.values, given)} | set(names))
    labels = {names.get(0, "background"): 0}
    labels.update({names.get(value, f"label_{value}"): value for value in found if value != 0})
    return Meaning("semantic", labels, ignore, label_values, value_findings(readable, given, names), notes)


def _without(scan: LabelScan, given: Mapping[int, int], ignore: int) -> LabelScan:
    return replace(scan, values=tuple(value for value in scan.values if given.get(value, value) != ignore))


def _complete(given: Mapping[int, int], scans: Sequence[LabelScan]) -> dict[int, int]:
    """Lists every value that occurs, so that a value never seen is noticed when a label is read."""
    found = {value for scan in scans for value in scan.values}
    return {**{value: value for value in sorted(found | {0})}, **given}
