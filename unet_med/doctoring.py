"""The label doctor: what would spoil training, and what of it can be put right without guessing.

Looked for: labels that hold 0 and 255, leave gaps, are no whole numbers, are empty, or have another shape or place
than their image; images that hold NaN or the same value everywhere; the same image twice, in two folds or in training
and test; a label that is the image; files that have changed. Repaired, on copies: 0/255, gaps, and floats that are
nearly whole.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.errors import InputRefusedError, UsageError
from unet_med.identity import safe_name, unique_ids
from unet_med.io.cases import Case
from unet_med.io.dicom.annotations import open_label
from unet_med.io.discover import restore_ref
from unet_med.io.picture import PictureSource
from unet_med.io.sinks import open_mask_sink
from unet_med.io.source import SourceRef
from unet_med.labels import LabelMap
from unet_med.manifest import (
    Finding,
    LabelScan,
    Manifest,
    ManifestCase,
    Severity,
    content_sha256,
    refusal,
    remapped,
    scan_label,
    value_findings,
    verify,
)
from unet_med.volume import ImageSource

NEARLY_WHOLE = 0.1
"""Floats no further than this from whole numbers are repaired by rounding."""

FEWEST_CASES_OF_MASKS = 3

Progress = Callable[[Iterable[Any], str], Iterable[Any]]


@dataclass(frozen=True)
class _Seen:
    """What was seen of one case."""

    case: ManifestCase
    findings: tuple[Finding, ...]
    scan: LabelScan | None
    image: str
    """Hash of the voxels; empty when they cannot be read."""


def examine(manifest: Manifest, progress: Progress | None = None) -> list[Finding]:
    """Looks for faults in every case of a manifest.

    Args:
        manifest: The data set.
        progress: Wraps the iteration over cases.

    Returns:
        Errors first; empty for a clean set.
    """
    cases = [*manifest.training, *manifest.test]
    seen = [_look(case) for case in (progress(cases, "checking") if progress else cases)]
    findings = [finding for one in seen for finding in one.findings]
    findings += _label_faults(manifest, [one.scan for one in seen if one.scan is not None])
    findings += _twins(seen)
    findings += _split_groups(manifest)
    return sorted(findings, key=lambda finding: finding.severity != "error")


# ---- one case -------------------------------------------------------------------------------------------------------


def _look(case: ManifestCase) -> _Seen:
    findings: list[Finding] = []
    try:
        verify(case)
    except InputRefusedError as error:
        findings.append(Finding(case.id, "error", error.what, error.remedy, "changed"))
        return _Seen(case, tuple(findings), None, "")
    digest = hashlib.blake2b(digest_size=16)
    readable = True
    for frame in case.case.frames:
        try:
            volume = case.case.read(frame)
        except InputRefusedError as error:
            findings.append(refusal(case.id, error))
            readable = False
            break
        digest.update(repr(volume.array.shape).encode())
        digest.update(np.ascontiguousarray(volume.array, dtype=np.float32).tobytes())
        findings += _image_faults(case, volume.array, frame)
    scan = None
    if case.case.label is not None:
        scan = scan_label(case.case)
        if scan.finding is not None:
            findings.append(scan.finding)
    return _Seen(case, tuple(dict.fromkeys(findings)), scan, digest.hexdigest() if readable else "")


def _image_faults(case: ManifestCase, array: npt.NDArray[np.float32], frame: int) -> list[Finding]:
    found: list[Finding] = []
    for number, channel in enumerate(array):
        if channel.min() == channel.max():
            what = "the image holds the same value everywhere" + (f" (channel {number})" if len(array) > 1 else "")
            found.append(Finding(case.id, "error", what, "leave the case out, or give its real image", "constant"))
    if case.case.label is not None and not found and _is_its_label(case.case, array, frame):
        what = "the label is the image itself"
        found.append(Finding(case.id, "error", what, "give the label that was drawn on it", "label_is_image"))
    return found


def _is_its_label(case: Case, array: npt.NDArray[np.float32], frame: int) -> bool:
    try:
        label = Case(case.id, case.sources, case.label, case.frame).read_label(frame)
    except InputRefusedError:
        return False
    return any(np.array_equal(channel, label) for channel in array)


# ---- the set --------------------------------------------------------------------------------------------------------


def _label_faults(manifest: Manifest, scans: Sequence[LabelScan]) -> list[Finding]:
    readable = [scan for scan in scans if scan.finding is None]
    mapping = manifest.label_values or {}
    empty = [scan for scan in readable if not any(remapped(scan.values, mapping))]
    remedy = "make sure that there is really nothing to find in it"
    if len(empty) == len(readable):
        return value_findings(readable, mapping, {})
    findings = [Finding(scan.case, "warning", "the label is empty", remedy, "empty") for scan in empty]
    if manifest.task == "instance":
        return findings + _masks_not_objects(readable)
    findings += value_findings(readable, mapping, {value: name for name, value in manifest.labels.items()})
    if not any(finding.severity == "error" for finding in findings):
        findings += _unknown_values(manifest, readable, mapping)
    return findings


def _masks_not_objects(scans: Sequence[LabelScan]) -> list[Finding]:
    """Label images of an instance set that all hold one and the same value are masks."""
    sets = {tuple(value for value in scan.values if value) for scan in scans}
    if len(scans) < FEWEST_CASES_OF_MASKS or len(sets) != 1 or len(next(iter(sets))) != 1:
        return []
    what = "every label holds one value: masks, not objects"
    return [Finding("", "warning", what, "make the manifest with --task semantic", "one_object")]


def _unknown_values(manifest: Manifest, scans: Sequence[LabelScan], mapping: Mapping[int, int]) -> list[Finding]:
    known = set(mapping) | {0} if mapping else set(manifest.labels.values())
    for scan in scans:
        unknown = sorted(set(scan.values) - known)
        if unknown:
            what = f"the label holds the value {unknown[0]}, which the manifest does not know"
            remedy = "correct the label, or make the manifest again"
            return [Finding(scan.case, "error", what, remedy, "unknown_value")]
    return []


def _twins(seen: Sequence[_Seen]) -> list[Finding]:
    """The same voxels under two names: an error across folds, or across training and test; else a warning."""
    by_image: dict[str, list[ManifestCase]] = defaultdict(list)
    for one in seen:
        if one.image:
            by_image[one.image].append(one.case)
    findings: list[Finding] = []
    for cases in by_image.values():
        for other in cases[1:]:
            first = cases[0]
            unlabelled = first.case.label is None or other.case.label is None
            if unlabelled:
                what, kind = f"the same image as {first.id}", "twice"
            elif first.split != other.split:
                what, kind = f"the same image as {first.id}, once for training and once for testing", "leak"
            elif first.fold != other.fold:
                what, kind = f"the same image as {first.id}, in folds {first.fold} and {other.fold}", "leak"
            else:
                what, kind = f"the same image as {first.id}", "twice"
            severity: Severity = "error" if kind == "leak" else "warning"
            remedy = "make the manifest again: equal files share a fold; or remove one of the two"
            findings.append(Finding(other.id, severity, what, remedy, kind))
    return findings


def _split_groups(manifest: Manifest) -> list[Finding]:
    first: dict[str, ManifestCase] = {}
    for case in (*manifest.training, *[case for case in manifest.test if case.case.label is not None]):
        other = first.setdefault(case.group, case)
        if (other.split, other.fold) != (case.split, case.fold):
            what = f"its group (that of {other.id}) is in two folds, or in training and test"
            remedy = "make the manifest again with --group-by: a patient must stay in one fold"
            return [Finding(case.id, "error", what, remedy, "group_split")]
    return []


# ---- repair ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Repair:
    """What was put right.

    Attributes:
        manifest: The corrected data set.
        rewritten: Ids of the cases whose label was written anew.
        values: Old value -> new value of the labels that were renumbered.
    """

    manifest: Manifest
    rewritten: tuple[str, ...]
    values: Mapping[int, int]


def repair(manifest: Manifest, findings: Sequence[Finding], folder: Path, progress: Progress | None = None) -> Repair:
    """Writes corrected copies of faulty labels to ``folder/labels`` and returns a manifest that names them.

    0/255 becomes 0/1, gaps are closed, floats that are nearly whole are rounded. Nothing in the input is touched.

    Args:
        manifest: The data set; its ``findings`` are not looked at.
        findings: What :func:`examine` found.
        folder: Where to write; must be empty or not exist.
        progress: Wraps the iteration over labels.

    Raises:
        UsageError: if the folder holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError("the folder for the corrected labels is not empty", folder.name, "name a new folder")
    kinds = {finding.kind for finding in findings}
    rounded = {finding.case for finding in findings if finding.kind == "label_floats"}
    cases = [*manifest.training, *manifest.test]
    meant = _values_meant(manifest, cases, rounded) if kinds & {"values_0_255", "gaps", "label_floats"} else {}
    renumbered = _renumbering(manifest, meant)
    labels = _labels_of(manifest, meant, renumbered)
    wanted = [case for case in cases if case.case.label is not None]
    if not renumbered:
        wanted = [case for case in wanted if case.id in rounded]
    new = _write_labels(wanted, renumbered, labels, folder, progress, keep=not renumbered)
    kept = None if renumbered else manifest.label_values
    corrected = replace(
        manifest,
        labels=labels,
        label_values=kept,
        findings=(),
        training=tuple(_with_label(case, new, kept) for case in manifest.training),
        test=tuple(_with_label(case, new, kept) for case in manifest.test),
    )
    return Repair(corrected, tuple(case.id for case in cases if case.id in new), renumbered)


def _values_meant(manifest: Manifest, cases: Sequence[ManifestCase], rounded: set[str]) -> dict[int, int]:
    """Returns each value that the label files hold (rounded, where they can be) -> the value meant by it."""
    stored: set[int] = set()
    for case in cases:
        if case.case.label is None:
            continue
        values = _whole_values(case.case) if case.id in rounded else scan_label(case.case).values
        stored.update(values or ())
    mapping = manifest.label_values or {}
    return {value: mapping.get(value, value) for value in sorted(stored)}


def _renumbering(manifest: Manifest, meant: Mapping[int, int]) -> dict[int, int]:
    """Returns stored value -> new value for the whole set; empty when the values are fine as they are."""
    foreground = sorted(set(meant.values()) - {0})
    known = sorted({*manifest.labels.values(), 0})
    without_gap = foreground == list(range(1, len(foreground) + 1))
    declared = set(foreground) <= set(known) and known == list(range(len(known)))
    if manifest.task == "instance" or without_gap or declared:
        return {}
    order = {value: number for number, value in enumerate(foreground, start=1)} | {0: 0}
    return {stored: order[value] for stored, value in meant.items()}


def _labels_of(manifest: Manifest, meant: Mapping[int, int], renumbered: Mapping[int, int]) -> dict[str, int]:
    """Label names under their new values; a name made of the old value follows it, a new value gets a name."""
    if manifest.task == "instance":
        return dict(manifest.labels)
    moved = {value: renumbered.get(stored, value) for stored, value in meant.items()}
    names = {value: name for name, value in manifest.labels.items()}
    if not renumbered:
        moved |= {value: value for value in names}
    labels = {names.get(0, "background"): 0}
    for old, new in sorted(moved.items(), key=lambda item: item[1]):
        if new != 0:
            name = names.get(old, f"label_{old}")
            labels[f"label_{new}" if name == f"label_{old}" else name] = new
    return labels


def _whole_values(case: Case) -> set[int] | None:
    """Distinct values of a label after rounding; ``None`` when they are not nearly whole."""
    found: set[int] = set()
    for frame in range(case.label.frames if case.label is not None else 0):
        values = _stored(_label_source(case), frame)
        if not np.isfinite(values).all() or float(np.abs(values - np.rint(values)).max()) > NEARLY_WHOLE:
            return None
        found.update(int(value) for value in np.unique(np.rint(values)))
    return found


def _label_source(case: Case) -> ImageSource:
    """The label of a case on its own grid; contours and segments on that of the image."""
    if case.label is None:
        raise InputRefusedError("the case has no label", case.id, "pair it with a label image in the manifest")
    return open_label(case.label, case.sources[0])


def _stored(source: ImageSource, frame: int) -> npt.NDArray[Any]:
    """The stored values (I, J[, K]) of a label, on its own grid."""
    array = source.read_indices() if isinstance(source, PictureSource) else source.read(frame=frame).array
    return np.asarray(array[0])


def _write_labels(
    cases: Sequence[ManifestCase],
    renumbered: Mapping[int, int],
    labels: Mapping[str, int],
    folder: Path,
    progress: Progress | None,
    *,
    keep: bool,
) -> dict[str, SourceRef]:
    """Writes each label file once; returns the new label of each case (pages of a stack share one)."""
    by_file: dict[Path, list[ManifestCase]] = defaultdict(list)
    for case in cases:
        if case.case.label is not None:
            by_file[case.case.label.files[0]].append(case)
    groups = list(by_file.values())
    names = unique_ids([_file_name(members) for members in groups])
    new: dict[str, SourceRef] = {}
    pairs = list(zip(names, groups, strict=True))
    for name, members in progress(pairs, "correcting") if progress else pairs:
        if _whole_values(members[0].case) is None:
            continue
        written = _write_label(members[0].case, None if keep else renumbered, labels, folder / "labels" / name)
        for case in members:
            new[case.id] = replace(restore_ref({"id": case.id, "read": {}}, [written]), id=case.id)
    return new


def _file_name(members: Sequence[ManifestCase]) -> str:
    """The case's id; for the pages of a stack what they have in common."""
    first = members[0]
    return safe_name(first.id if first.case.frame is None else first.id.rpartition("_p")[0] or first.id)


def _write_label(case: Case, renumbered: Mapping[int, int] | None, labels: Mapping[str, int], target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    names = dict(labels) if sorted(labels.values()) == list(range(len(labels))) else {"background": 0, "label": 1}
    source = _label_source(case)
    sink = open_mask_sink(source, target, LabelMap.from_names(names), {"made_by": "unet-med check --fix"})
    try:
        for frame in range(source.frames):
            values = np.rint(_stored(source, frame)).astype(np.int64)
            if renumbered is not None:
                present, inverse = np.unique(values, return_inverse=True)
                table = np.array([renumbered.get(int(value), int(value)) for value in present], dtype=np.int64)
                values = table[inverse].reshape(values.shape)
            sink.write(None, values, frame)
        return sink.close()[0]
    except BaseException:
        sink.abort()
        raise


def _with_label(
    case: ManifestCase, new: Mapping[str, SourceRef], label_values: Mapping[int, int] | None
) -> ManifestCase:
    """The case with its corrected label, if it has one."""
    plain = replace(case.case, label_values=label_values)
    label = new.get(case.id)
    if label is None:
        return replace(case, case=plain)
    hashes = {"image": case.sha256["image"], "label": content_sha256([label], case.case.frame)}
    return replace(case, case=replace(plain, label=label), sha256=hashes)
