"""The examination of a whole set: each case for itself, then all against each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from unet_med.doctoring.comparing import compare_labels, made_between
from unet_med.doctoring.leaks import almost_twins, split_groups, split_patients, tiles_apart, twins
from unet_med.doctoring.likeness import cell_size
from unet_med.doctoring.looking import Seen, look
from unet_med.doctoring.objects import FEWEST_MASKS, object_findings
from unet_med.errors import InputRefusedError
from unet_med.manifest import Finding, LabelScan, Manifest, ManifestCase, remapped, value_findings, verify

QUICK_VOXELS = 150_000_000
"""So much is looked at before a training: some twenty seconds on one core."""

Progress = Callable[[Iterable[Any], str], Iterable[Any]]


def examine(manifest: Manifest, progress: Progress | None = None) -> list[Finding]:
    """Looks for faults in every case of a manifest.

    Args:
        manifest: The data set.
        progress: Wraps the iteration over cases.

    Returns:
        Errors first; empty for a clean set.
    """
    cases = [*manifest.training, *manifest.test]
    cells = _cells(cases)
    seen = [
        _changed(case) or look(case, cells, manifest.ignore_label)
        for case in (progress(cases, "checking") if progress else cases)
    ]
    return _sorted([*_of_all(manifest, seen), *twins((one.case, one.image) for one in seen)])


def quick_findings(manifest: Manifest, progress: Progress | None = None) -> list[Finding]:
    """What :func:`examine` finds in some seconds, for a look before each training.

    Of a large set evenly spread cases are looked at, together no more than :data:`QUICK_VOXELS`; groups, patients and
    equal files are checked of all. Files that have changed are left to training, which leaves them out.

    Args:
        manifest: The data set.
        progress: Wraps the iteration over cases.

    Returns:
        Errors first; those of an error stop a training by ``replace(manifest, findings=...).require_clean()``.
    """
    cases = [*manifest.training, *[case for case in manifest.test if case.case.label is not None]]
    chosen = cases[:: max(1, -(-sum(map(_voxels, cases)) // QUICK_VOXELS))]
    cells = _cells(chosen)
    seen = [
        look(case, cells, manifest.ignore_label)
        for case in (progress(chosen, "looking at labels") if progress else chosen)
    ]
    seen = [one for one in seen if not (one.findings and _changed(one.case))]
    stored = ((case, case.sha256["image"]) for case in cases if isinstance(case.sha256, dict))
    findings = [*_of_all(manifest, seen), *twins((one.case, one.image) for one in seen)]
    known = {(finding.case, finding.kind) for finding in findings}
    return _sorted([*findings, *[one for one in twins(stored) if (one.case, one.kind) not in known]])


def _of_all(manifest: Manifest, seen: Sequence[Seen]) -> list[Finding]:
    """The faults of single cases and those of the set, but for equal images."""
    names = {value: name for name, value in manifest.labels.items()}
    between = made_between(seen, names)
    return [
        *[finding for one in seen for finding in one.findings],
        *_value_faults(manifest, [_without(one.scan, between) for one in seen if one.scan is not None]),
        *compare_labels(seen, names, between, manifest.ignore_label),
        *object_findings(manifest, seen),
        *split_groups(manifest),
        *split_patients(manifest),
        *almost_twins(seen),
        *tiles_apart(seen),
    ]


def _cells(cases: Sequence[ManifestCase]) -> dict[int, tuple[int, ...]]:
    return cell_size([case.case.geometry.shape for case in cases])


def _voxels(case: ManifestCase) -> int:
    return prod(case.case.geometry.shape) * len(case.case.frames) * case.case.channels


def _changed(case: ManifestCase) -> Seen | None:
    try:
        verify(case)
    except InputRefusedError as error:
        return Seen(case, (Finding(case.id, "error", error.what, error.remedy, "changed"),))
    return None


def _sorted(findings: Iterable[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: finding.severity != "error")


# ---- values ---------------------------------------------------------------------------------------------------------


def _without(scan: LabelScan, between: Mapping[str, tuple[int, ...]]) -> LabelScan:
    """The values of a label without those that interpolation made: these are told on their own."""
    made = between.get(scan.case, ())
    return replace(scan, values=tuple(value for value in scan.values if value not in made)) if made else scan


def _value_faults(manifest: Manifest, scans: Sequence[LabelScan]) -> list[Finding]:
    mapping = manifest.label_values or {}
    ignored = {manifest.ignore_label, *[old for old, new in mapping.items() if new == manifest.ignore_label]}
    readable = [
        replace(scan, values=tuple(value for value in scan.values if value not in ignored))
        for scan in scans
        if scan.finding is None
    ]
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
    if len(scans) < FEWEST_MASKS or len(sets) != 1 or len(next(iter(sets))) != 1:
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
