"""What makes a score too good: one patient, one image or one picture on both sides of a split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import pydicom

from unet_med.doctoring.findings import PairFinding
from unet_med.doctoring.likeness import near_duplicates
from unet_med.doctoring.looking import Seen
from unet_med.doctoring.tiles import neighbours
from unet_med.io.source import SourceRef
from unet_med.manifest import Finding, Manifest, ManifestCase, Severity

_ONE_FOLD = "make the manifest again with --group-by, so that both are in one fold; or remove one of the two"


def apart(one: ManifestCase, other: ManifestCase) -> bool:
    """Whether one of two labelled cases is scored by what was trained on the other."""
    labelled = one.case.label is not None and other.case.label is not None
    return labelled and (one.split, one.fold) != (other.split, other.fold)


def twins(images: Iterable[tuple[ManifestCase, str]]) -> list[Finding]:
    """The same image under two names: an error across folds, or across training and test; else a warning.

    Args:
        images: Each case with the hash of its image; cases without a hash are passed over.
    """
    by_image: dict[str, list[ManifestCase]] = defaultdict(list)
    for case, image in images:
        if image:
            by_image[image].append(case)
    findings: list[Finding] = []
    for first, *others in by_image.values():
        for other in others:
            severity: Severity = "error" if apart(first, other) else "warning"
            kind = "leak" if severity == "error" else "twice"
            what = f"the same image as {first.id}" + (_where(first, other) if kind == "leak" else "")
            remedy = "make the manifest again: equal files share a fold; or remove one of the two"
            findings.append(PairFinding(other.id, severity, what, remedy, kind, first.id))
    return findings


def _where(one: ManifestCase, other: ManifestCase) -> str:
    if one.split != other.split:
        return ", once for training and once for testing"
    return f", in folds {one.fold} and {other.fold}"


def almost_twins(seen: Sequence[Seen]) -> list[Finding]:
    """Images that are nearly the same, on both sides of a split."""
    findings: list[Finding] = []
    for one, other, alike in near_duplicates([case.likeness for case in seen], _matters(seen)):
        first, second = seen[one].case, seen[other].case
        what = f"almost the same image as {first.id} (correlation {alike:.2f}){_where(first, second)}"
        findings.append(PairFinding(second.id, "warning", what, _ONE_FOLD, "near_duplicate", first.id))
    return findings


def tiles_apart(seen: Sequence[Seen]) -> list[Finding]:
    """Pictures that go on in one another, on both sides of a split."""
    findings: list[Finding] = []
    for one, other, side in neighbours([case.edges for case in seen], _matters(seen)):
        first, second = seen[one].case, seen[other].case
        what = f"it goes on at the {side} in {second.id}: tiles of one picture{_where(first, second)}"
        findings.append(PairFinding(first.id, "warning", what, _ONE_FOLD, "tiles_apart", second.id))
    return findings


def _matters(seen: Sequence[Seen]) -> Callable[[int, int], bool]:
    return lambda one, other: seen[one].image != seen[other].image and apart(seen[one].case, seen[other].case)


def split_groups(manifest: Manifest) -> list[Finding]:
    """A group of cases that is in two folds, or in training and test."""
    first: dict[str, ManifestCase] = {}
    for case in _scored(manifest):
        other = first.setdefault(case.group, case)
        if apart(other, case):
            what = f"its group (that of {other.id}) is in two folds, or in training and test"
            remedy = "make the manifest again with --group-by: a patient must stay in one fold"
            return [PairFinding(case.id, "error", what, remedy, "group_split", other.id)]
    return []


def split_patients(manifest: Manifest) -> list[Finding]:
    """DICOM patients in two folds, or in training and test; headers are read, no name is kept.

    Where all cases bear one and the same number it was put there to hide them, and says nothing.
    """
    patients = {case.id: _patient(case.case.sources[0]) for case in _scored(manifest)}
    if len({patient for patient in patients.values() if patient}) < 2:
        return []
    first: dict[str, ManifestCase] = {}
    findings: list[Finding] = []
    for case in _scored(manifest):
        patient = patients[case.id]
        if not patient:
            continue
        other = first.setdefault(patient, case)
        if apart(other, case):
            what = f"the same patient as {other.id}{_where(other, case)}"
            remedy = "make the manifest again: cases of one patient share a fold"
            findings.append(PairFinding(case.id, "error", what, remedy, "patient_split", other.id))
    return findings


def _scored(manifest: Manifest) -> list[ManifestCase]:
    return [*manifest.training, *[case for case in manifest.test if case.case.label is not None]]


def _patient(source: SourceRef) -> str:
    """Returns what tells a patient from others, kept in memory only; empty for other formats and without a number."""
    if source.kind != "dicom":
        return ""
    tags = ["PatientID", "IssuerOfPatientID"]
    header = pydicom.dcmread(source.files[0], stop_before_pixels=True, force=True, specific_tags=tags)
    patient = str(header.get("PatientID") or "").strip()
    return f"{patient}|{str(header.get('IssuerOfPatientID') or '').strip()}" if patient else ""
