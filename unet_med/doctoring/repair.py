"""Corrected copies of faulty labels, where nothing has to be guessed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unet_med.doctoring.examination import Progress
from unet_med.doctoring.findings import Interpolated, is_fixable
from unet_med.doctoring.stored import between_of, label_source, stored_values, without_steps_between
from unet_med.errors import UsageError
from unet_med.identity import safe_name, unique_ids
from unet_med.io.cases import Case
from unet_med.io.discover import restore_ref
from unet_med.io.sinks import open_mask_sink
from unet_med.io.source import SourceRef
from unet_med.labels import LabelMap
from unet_med.manifest import Finding, Manifest, ManifestCase, content_sha256, scan_label
from unet_med.volume import ImageSource

_Between = Mapping[Path, frozenset[int]]
"""Label files that were interpolated, each with the whole numbers that this made."""


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

    0/255 becomes 0/1, gaps are closed, floats that are nearly whole are rounded, and what interpolation made at borders
    becomes one of the values beside it. Nothing in the input is touched.

    Args:
        manifest: The data set; its ``findings`` are not looked at.
        findings: What :func:`~unet_med.doctoring.examine` found.
        folder: Where to write; must be empty or not exist.
        progress: Wraps the iteration over labels.

    Raises:
        UsageError: if the folder holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError("the folder for the corrected labels is not empty", folder.name, "name a new folder")
    fixable = [finding for finding in findings if is_fixable(finding)]
    faulty = {one.case for one in fixable if one.kind == "label_floats" or isinstance(one, Interpolated)}
    cases = [*manifest.training, *manifest.test]
    between = _interpolated_files(cases, fixable)
    meant = _values_meant(manifest, cases, faulty, between) if fixable else {}
    renumbered = _renumbering(manifest, meant)
    labels = _labels_of(manifest, meant, renumbered)
    wanted = [case for case in cases if case.case.label is not None and (renumbered or case.id in faulty)]
    new = _write_labels(wanted, _Correction(between, renumbered or None, labels), folder, progress)
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


def _interpolated_files(cases: Sequence[ManifestCase], findings: Sequence[Finding]) -> dict[Path, frozenset[int]]:
    """Returns the values that interpolation made in each label file; pages of one file are taken together."""
    made = {finding.case: frozenset(finding.values) for finding in findings if isinstance(finding, Interpolated)}
    files: dict[Path, frozenset[int]] = {}
    for case in cases:
        if case.id in made and case.case.label is not None:
            file = case.case.label.files[0]
            files[file] = files.get(file, frozenset()) | made[case.id]
    return files


# ---- which values ---------------------------------------------------------------------------------------------------


def _values_meant(
    manifest: Manifest, cases: Sequence[ManifestCase], faulty: set[str], between: _Between
) -> dict[int, int]:
    """Returns each value that the label files hold (corrected, where they can be) -> the value meant by it."""
    stored: set[int] = set()
    for case in cases:
        if case.case.label is not None:
            stored.update(
                _corrected_values(case.case, between) or () if case.id in faulty else scan_label(case.case).values
            )
    mapping = manifest.label_values or {}
    return {value: mapping.get(value, value) for value in sorted(stored)}


def _renumbering(manifest: Manifest, meant: Mapping[int, int]) -> dict[int, int]:
    """Returns stored value -> new value for the whole set; empty when the values are fine as they are."""
    foreground = sorted(set(meant.values()) - {0, manifest.ignore_label})
    known = sorted({*manifest.labels.values(), 0})
    without_gap = foreground == list(range(1, len(foreground) + 1))
    declared = set(foreground) <= set(known) and known == list(range(len(known)))
    if manifest.task == "instance" or without_gap or declared:
        return {}
    order = {value: number for number, value in enumerate(foreground, start=1)} | {0: 0}
    if manifest.ignore_label is not None:
        order[manifest.ignore_label] = manifest.ignore_label
    return {stored: order[value] for stored, value in meant.items()}


def _labels_of(manifest: Manifest, meant: Mapping[int, int], renumbered: Mapping[int, int]) -> dict[str, int]:
    """Label names under their new values; a name made of the old value follows it, a new value gets a name."""
    if manifest.task == "instance":
        return dict(manifest.labels)
    moved = {value: renumbered.get(stored, value) for stored, value in meant.items() if value != manifest.ignore_label}
    names = {value: name for name, value in manifest.labels.items()}
    if not renumbered:
        moved |= {value: value for value in names}
    labels = {names.get(0, "background"): 0}
    for old, new in sorted(moved.items(), key=lambda item: item[1]):
        if new != 0:
            name = names.get(old, f"label_{old}")
            labels[f"label_{new}" if name == f"label_{old}" else name] = new
    return labels


# ---- new files ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Correction:
    """What is done to every label: what interpolation made is taken back, then values are renumbered, if at all."""

    between: _Between
    renumbered: Mapping[int, int] | None
    labels: Mapping[str, int]


def _corrected(source: ImageSource, frame: int, case: Case, between: _Between) -> npt.NDArray[np.int64] | None:
    """Returns the whole numbers (I, J[, K]) that a label means; ``None`` where that would be guessing."""
    values = stored_values(source, frame)
    if not np.isfinite(values).all() or case.label is None:
        return None
    file = case.label.files[0]
    made = between_of(values, between.get(file, ()))
    if not made.any():
        return np.asarray(np.rint(values), dtype=np.int64)
    return None if file not in between or made.all() else without_steps_between(values, made)


def _corrected_values(case: Case, between: _Between) -> set[int] | None:
    """Distinct values of a label once it is corrected; ``None`` when it cannot be."""
    source = label_source(case)
    found: set[int] = set()
    for frame in range(source.frames):
        values = _corrected(source, frame, case, between)
        if values is None:
            return None
        found.update(int(value) for value in np.unique(values))
    return found


def _write_labels(
    cases: Sequence[ManifestCase], correction: _Correction, folder: Path, progress: Progress | None
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
        if _corrected_values(members[0].case, correction.between) is None:
            continue
        written = _write_label(members[0].case, correction, folder / "labels" / name)
        for case in members:
            new[case.id] = replace(restore_ref({"id": case.id, "read": {}}, [written]), id=case.id)
    return new


def _file_name(members: Sequence[ManifestCase]) -> str:
    """The case's id; for the pages of a stack what they have in common."""
    first = members[0]
    return safe_name(first.id if first.case.frame is None else first.id.rpartition("_p")[0] or first.id)


def _write_label(case: Case, correction: _Correction, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    labels = correction.labels
    names = dict(labels) if sorted(labels.values()) == list(range(len(labels))) else {"background": 0, "label": 1}
    source = label_source(case)
    sink = open_mask_sink(source, target, LabelMap.from_names(names), {"made_by": "unet-med check --fix"})
    try:
        for frame in range(source.frames):
            values = _corrected(source, frame, case, correction.between)
            if values is not None:
                sink.write(None, _renumbered(values, correction.renumbered), frame)
        return sink.close()[0]
    except BaseException:
        sink.abort()
        raise


def _renumbered(values: npt.NDArray[np.int64], table: Mapping[int, int] | None) -> npt.NDArray[np.int64]:
    if table is None:
        return values
    present, inverse = np.unique(values, return_inverse=True)
    new = np.array([table.get(int(value), int(value)) for value in present], dtype=np.int64)
    return np.asarray(new[inverse].reshape(values.shape))


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
