"""Which cases stay together, and in which fold each is held out."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pydicom

from unet_med.errors import UsageError
from unet_med.identity import keyed_hash
from unet_med.io.source import SourceRef
from unet_med.manifest.draft import BuildOptions, Draft
from unet_med.manifest.folds import assign_folds, merge_groups
from unet_med.manifest.model import Split
from unet_med.manifest.nnunet import SPLITS
from unet_med.manifest.tables import Row, group_by_pattern, read_groups


def group_table(group_by: str | None) -> dict[str, Row] | None:
    """Returns the table that ``--group-by`` names; ``None`` for a pattern, or nothing."""
    if group_by is None:
        return None
    path = Path(group_by)
    return read_groups(path) if path.suffix.lower() in (".csv", ".tsv") else None


def apply_table(drafts: Sequence[Draft], table: Mapping[str, Row] | None) -> tuple[list[Draft], list[tuple[str, str]]]:
    """Takes split and fold from the table; cases it marks ``skip`` are left out."""
    if table is None:
        return list(drafts), []
    kept: list[Draft] = []
    left: list[tuple[str, str]] = []
    for draft in drafts:
        row = table.get(draft.case.id)
        if row is None:
            kept.append(draft)
        elif row.split == "skip":
            left.append((draft.case.id, "the table says skip"))
        else:
            split: Split = "test" if draft.case.label is None or draft.split == "test" else row.split
            kept.append(replace(draft, split=split, fold=row.fold if split == "training" else None))
    if not any(draft.case.id in table for draft in kept) and not left:
        raise UsageError(
            "the table names none of the cases", "--group-by", "its column id must hold ids as `scan` shows them"
        )
    return kept, left


def grouped(
    drafts: Sequence[Draft], options: BuildOptions, table: Mapping[str, Row] | None
) -> tuple[list[Draft], list[str]]:
    """Gives every case its group: by table, by pattern, by patient (DICOM), by block of pages, else its own."""
    notes: list[str] = []
    own = _own_groups(drafts, options.folds)
    if table is not None:
        named = {case: row.group for case, row in table.items() if row.group is not None}
        missing = [draft.case.id for draft in drafts if draft.case.id not in table]
        if missing:
            notes.append(f"{len(missing)} cases are not in the table and form groups of their own, first {missing[0]}")
        groups = {d.case.id: _private(named[d.case.id]) if d.case.id in named else own[d.case.id] for d in drafts}
    elif options.group_by is not None:
        names = {d.case.id: (d.case.id, d.pair.relative) for d in drafts}
        named, missing = group_by_pattern(options.group_by, names)
        if missing:
            notes.append(f"{len(missing)} cases do not match the pattern: groups of their own, first {missing[0]}")
        groups = {d.case.id: _private(named[d.case.id]) if d.case.id in named else own[d.case.id] for d in drafts}
    else:
        groups = own
    by_content: dict[str, list[str]] = defaultdict(list)
    for draft in drafts:
        by_content[draft.hashes["image"]].append(draft.case.id)
    twins = [cases for cases in by_content.values() if len(cases) > 1]
    notes += [f"{', '.join(cases[:4])} are the same image: kept in one group" for cases in twins]
    groups = merge_groups(groups, twins)
    return [replace(draft, group=groups[draft.case.id]) for draft in drafts], notes


def _private(group: str) -> str:
    """Marks a group that a user named, so that it is hashed before it is stored."""
    return f"\0{group}"


def _own_groups(drafts: Sequence[Draft], folds: int) -> dict[str, str]:
    """The patient for DICOM, the name shared with other folders for files, a block of neighbours for pages."""
    patients = _patients(drafts)
    groups = {draft.case.id: patients.get(draft.case.id, draft.case.id) for draft in drafts}
    stems = {draft.case.id: draft.pair.stem for draft in drafts if draft.pair.stem}
    if len(set(stems.values())) > 1:
        groups |= stems
    pages: dict[int, list[Draft]] = defaultdict(list)
    for draft in drafts:
        if draft.case.frame is not None:
            groups[draft.case.id] = draft.case.id
            if draft.split == "training":
                pages[id(draft.pair)].append(draft)
    for members in pages.values():
        stem = re.sub(r"_p\d+$", "", members[0].case.id)
        for number, draft in enumerate(members):
            groups[draft.case.id] = f"{stem}_block{number * folds // len(members)}"
    return groups


def _patients(drafts: Sequence[Draft]) -> dict[str, str]:
    """Patient of each DICOM case, to be hidden before it is stored; the study where all seem to be one patient."""
    found = {draft.case.id: _patient_and_study(draft.case.sources[0]) for draft in drafts if _is_dicom(draft)}
    one = len({patient for patient, _ in found.values()}) < 2
    return {case: _private(study if one or not patient else patient) for case, (patient, study) in found.items()}


def group_alone(case_id: str, source: SourceRef) -> str:
    """Returns the group of an image that joins a data set, as manifests hold it: of DICOM its patient, hidden."""
    if source.kind != "dicom":
        return case_id
    patient, study = _patient_and_study(source)
    return _shown(_private(patient or study))


def _is_dicom(draft: Draft) -> bool:
    return draft.case.sources[0].kind == "dicom"


def _patient_and_study(source: SourceRef) -> tuple[str, str]:
    tags = ["PatientID", "IssuerOfPatientID", "StudyInstanceUID"]
    header = pydicom.dcmread(source.files[0], stop_before_pixels=True, force=True, specific_tags=tags)
    patient = str(header.get("PatientID") or "").strip()
    issuer = str(header.get("IssuerOfPatientID") or "").strip()
    return (f"{patient}|{issuer}" if patient else ""), str(header.get("StudyInstanceUID") or source.id)


def with_stored_folds(drafts: Sequence[Draft], stored: Mapping[str, int]) -> tuple[list[Draft], list[str]]:
    """Takes the folds of a ``splits_final.json``, where it has one for each case."""
    training = {draft.case.id for draft in drafts if draft.split == "training"}
    if not stored or not training <= set(stored) or any(draft.fold is not None for draft in drafts):
        return list(drafts), []
    done = [replace(draft, fold=stored[draft.case.id]) if draft.case.id in training else draft for draft in drafts]
    return done, [f"folds are those of {SPLITS}"]


def folded(drafts: Sequence[Draft], options: BuildOptions) -> tuple[list[Draft], list[str]]:
    """Assigns folds to the training cases by the groups' own names, then hides the names that a user gave."""
    training = [draft for draft in drafts if draft.split == "training"]
    notes: list[str] = []
    given = [draft.fold for draft in training if draft.fold is not None]
    if given and len(given) < len(training):
        missing = next(draft.case.id for draft in training if draft.fold is None)
        raise UsageError("the table gives folds for some cases only", missing, "give every training case a fold")
    if given:
        folds = {draft.case.id: draft.fold for draft in training if draft.fold is not None}
        _check_folds(training)
    else:
        folds = assign_folds({draft.case.id: draft.group for draft in training}, options.folds, options.seed)
        groups = len({draft.group for draft in training})
        if groups < options.folds:
            notes.append(
                f"only {groups} groups: {len(set(folds.values()))} folds" if folds else "too few cases for folds"
            )
    _check_splits(drafts)
    done = [
        replace(draft, fold=folds.get(draft.case.id) if draft.split == "training" else None, group=_shown(draft.group))
        for draft in drafts
    ]
    return done, notes


def _shown(group: str) -> str:
    return f"g-{keyed_hash(group)}" if group.startswith("\0") else group


def _check_folds(training: Sequence[Draft]) -> None:
    seen: dict[str, int | None] = {}
    for draft in training:
        if seen.setdefault(draft.group, draft.fold) != draft.fold:
            raise UsageError(
                "the table puts one group (or the same image twice) into two folds",
                draft.case.id,
                "give all cases of a group the same fold",
            )


def _check_splits(drafts: Sequence[Draft]) -> None:
    test = {draft.group for draft in drafts if draft.split == "test" and draft.case.label is not None}
    for draft in drafts:
        if draft.split == "training" and draft.group in test:
            raise UsageError(
                "cases of one group (or the same image) are both for training and for testing",
                draft.case.id,
                "give all cases of a group the same split",
            )
