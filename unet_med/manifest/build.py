"""From a folder that was searched to a manifest: pairs, pages, hashes, groups, folds, labels."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pydicom

from unet_med.errors import NothingUsableError, UsageError
from unet_med.identity import keyed_hash, safe_name, unique_ids
from unet_med.io.cases import Case
from unet_med.io.dicom.annotations import ANNOTATION_KINDS, values_of
from unet_med.io.source import DICOM_KINDS, Discovery, SourceRef
from unet_med.manifest.channels import missing_findings, named_channels
from unet_med.manifest.description import Description, read_description
from unet_med.manifest.folds import assign_folds, merge_groups
from unet_med.manifest.meaning import Meaning, meaning_of, without_ignored
from unet_med.manifest.modalities import agreed
from unet_med.manifest.model import Finding, Manifest, ManifestCase, Split, Task, content_sha256
from unet_med.manifest.nnunet import SPLITS, of_ending, stored_folds
from unet_med.manifest.pairing import CONVENTIONS, Pair, Pairing, pair_sources
from unet_med.manifest.tables import (
    Row,
    group_by_pattern,
    parse_label_list,
    parse_label_names,
    parse_label_values,
    read_groups,
)
from unet_med.manifest.truth import name_segments, pair_annotations
from unet_med.manifest.values import scan_label

Progress = Callable[[Iterable[Any], str], Iterable[Any]]

NO_LABEL = "no label: kept for prediction (test)"


@dataclass(frozen=True)
class BuildOptions:
    """How a manifest is made.

    Attributes:
        images, labels: Patterns of the image and label files, relative to the folder.
        folds: Number of folds.
        group_by: A regular expression, or a CSV file.
        task: ``semantic`` or ``instance``; ``None`` to look at the labels.
        label_values: ``"255=1"``: how stored label values are to be read.
        label_names: ``"1=liver,2=tumour"``; for segments in DICOM several names may mean one value, ``0=NAME`` leaves a
            segment out, and ``0=*`` all that are not named.
        seed: Of the folds.
    """

    images: str | None = None
    labels: str | None = None
    folds: int = 5
    group_by: str | None = None
    task: Task | None = None
    label_values: str | None = None
    label_names: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class BuildReport:
    """The manifest, and what a person should know about how it came about.

    Attributes:
        manifest: The data set; its ``findings`` hold what is wrong with it.
        notes: Decisions that were taken.
        left_over: ``(id, reason)`` of the sources that are not in it.
    """

    manifest: Manifest
    notes: tuple[str, ...]
    left_over: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Draft:
    """A case on its way into the manifest."""

    case: Case
    pair: Pair
    split: Split
    group: str = ""
    fold: int | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)


def build_manifest(
    root: Path, discovery: Discovery, options: BuildOptions, name: str, progress: Progress | None = None
) -> BuildReport:
    """Pairs images with labels, hashes them, and stores groups and folds.

    Args:
        root: The folder that was searched.
        discovery: What was found.
        options: See :class:`BuildOptions`.
        name: Name of the data set.
        progress: Wraps long iterations.

    Raises:
        NothingUsableError: if no image is paired with a label.
        UsageError: if a pattern, table or option makes no sense.
    """
    follow: Progress = progress if progress is not None else _plain
    told = read_description(root)
    notes: list[str] = []
    discovery, strays = of_ending(root, discovery, told.file_ending)
    pairing = agreed(pair_sources(root, discovery, options.images, options.labels))
    pairing = pair_annotations(root, discovery, pairing, options.labels)
    notes += pairing.notes
    drafts, left = _drafts(pairing)
    left += strays
    table = _table(options.group_by)
    drafts, skipped = _apply_table(drafts, table)
    left += skipped
    if not any(draft.case.label is not None for draft in drafts):
        raise NothingUsableError(
            f"images found: {len(drafts)}, but no label that belongs to one of them", remedy=CONVENTIONS
        )
    drafts = _hashed(follow(drafts, "hashing"))
    drafts, group_notes = _grouped(drafts, options, table)
    notes += group_notes
    drafts, stored_notes = _with_stored_folds(drafts, {} if options.group_by else stored_folds(root))
    notes += stored_notes
    drafts, fold_notes = _folded(drafts, options)
    notes += fold_notes
    drafts, names, name_notes = _named(drafts, options, told)
    notes += name_notes
    names, ignore = without_ignored(names, told.ignore_label)
    labelled = [draft for draft in drafts if draft.case.label is not None]
    scans = [scan_label(draft.case) for draft in follow(labelled, "reading labels")]
    annotated = any(_is_annotated(draft) for draft in drafts)
    given = parse_label_values(options.label_values)
    meaning = meaning_of(scans, options.task, given, names, ignore, annotated=annotated)
    notes += meaning.notes
    absent = _absent(drafts, told)
    notes += _channel_notes([draft for draft in drafts if draft.case.id not in {one.case for one in absent}])
    notes += [f"{scan.case}: the label cannot be used" for scan in scans if scan.finding is not None]
    used = {draft.fold for draft in drafts if draft.fold is not None}
    manifest = Manifest(
        name=safe_name(name),
        labels=meaning.labels,
        channels=_channel_names(drafts, told),
        modality=_modality(drafts) or told.modality,
        task=meaning.task,
        training=tuple(_finished(draft, meaning) for draft in drafts if draft.split == "training"),
        test=tuple(_finished(draft, meaning) for draft in drafts if draft.split == "test"),
        folds=1 + max(used) if used else 0,
        label_values=meaning.label_values,
        findings=(*absent, *[scan.finding for scan in scans if scan.finding is not None], *meaning.findings),
        regions=told.regions if meaning.task == "semantic" else None,
        ignore_label=meaning.ignore_label,
        description=told.description,
        licence=told.licence,
    )
    return BuildReport(manifest, tuple(notes), tuple(left))


def _plain(items: Iterable[Any], description: str) -> Iterable[Any]:
    return items


# ---- cases ----------------------------------------------------------------------------------------------------------


def _drafts(pairing: Pairing) -> tuple[list[_Draft], list[tuple[str, str]]]:
    """One draft for each case; the pages of a stack that has a label for each are cases of their own."""
    left = list(pairing.left_over)
    wanted = [pair.stem or pair.images[0].id for pair in pairing.pairs]
    drafts: list[_Draft] = []
    for case_id, pair in zip(unique_ids(wanted), pairing.pairs, strict=True):
        images = _renamed(pair.images, case_id)
        label = pair.label
        if label is not None and label.kind not in DICOM_KINDS:
            label = replace(label, id=case_id)
        frames = images[0].frames
        if label is not None and label.frames != frames:
            reason = f"its label has {label.frames} pages, the image {frames}: declare the axes of both with --axes"
            left.append((case_id, reason))
            continue
        split: Split = "training" if label is not None and not pair.test else "test"
        if label is None or frames == 1:
            drafts.append(_Draft(Case(case_id, images, label), pair, split))
            if label is None and not pair.test:
                left.append((case_id, NO_LABEL))
            continue
        digits = max(3, len(str(frames - 1)))
        drafts += [
            _Draft(Case(f"{case_id}_p{frame:0{digits}d}", images, label, frame), pair, split) for frame in range(frames)
        ]
    return drafts, left


def _renamed(images: Sequence[SourceRef], case_id: str) -> tuple[SourceRef, ...]:
    """Sources under the name of their case; DICOM keeps its id, which the private table knows."""
    if len(images) == 1:
        return (images[0] if images[0].kind == "dicom" else replace(images[0], id=case_id),)
    return tuple(replace(image, id=f"{case_id}_{number:04d}") for number, image in enumerate(images))


def _hashed(drafts: Iterable[_Draft]) -> list[_Draft]:
    hashed: list[_Draft] = []
    for draft in drafts:
        hashes = {"image": content_sha256(draft.case.sources, draft.case.frame)}
        if draft.case.label is not None:
            hashes["label"] = content_sha256([draft.case.label], draft.case.frame)
        hashed.append(replace(draft, hashes=hashes))
    return hashed


def _finished(draft: _Draft, meaning: Meaning) -> ManifestCase:
    case = replace(draft.case, label_values=meaning.label_values, instances=meaning.task == "instance")
    return ManifestCase(case.id, case, draft.fold, draft.group, draft.hashes, draft.split)


# ---- groups and folds -----------------------------------------------------------------------------------------------


def _table(group_by: str | None) -> dict[str, Row] | None:
    if group_by is None:
        return None
    path = Path(group_by)
    return read_groups(path) if path.suffix.lower() in (".csv", ".tsv") else None


def _apply_table(
    drafts: Sequence[_Draft], table: Mapping[str, Row] | None
) -> tuple[list[_Draft], list[tuple[str, str]]]:
    """Takes split and fold from the table; cases it marks ``skip`` are left out."""
    if table is None:
        return list(drafts), []
    kept: list[_Draft] = []
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


def _grouped(
    drafts: Sequence[_Draft], options: BuildOptions, table: Mapping[str, Row] | None
) -> tuple[list[_Draft], list[str]]:
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


def _own_groups(drafts: Sequence[_Draft], folds: int) -> dict[str, str]:
    """The patient for DICOM, the name shared with other folders for files, a block of neighbours for pages."""
    patients = _patients(drafts)
    groups = {draft.case.id: patients.get(draft.case.id, draft.case.id) for draft in drafts}
    stems = {draft.case.id: draft.pair.stem for draft in drafts if draft.pair.stem}
    if len(set(stems.values())) > 1:
        groups |= stems
    pages: dict[int, list[_Draft]] = defaultdict(list)
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


def _patients(drafts: Sequence[_Draft]) -> dict[str, str]:
    """Patient of each DICOM case, to be hidden before it is stored; the study where all seem to be one patient."""
    found = {draft.case.id: _patient_and_study(draft.case.sources[0]) for draft in drafts if _is_dicom(draft)}
    one = len({patient for patient, _ in found.values()}) < 2
    return {case: _private(study if one or not patient else patient) for case, (patient, study) in found.items()}


def _is_dicom(draft: _Draft) -> bool:
    return draft.case.sources[0].kind == "dicom"


def _patient_and_study(source: SourceRef) -> tuple[str, str]:
    tags = ["PatientID", "IssuerOfPatientID", "StudyInstanceUID"]
    header = pydicom.dcmread(source.files[0], stop_before_pixels=True, force=True, specific_tags=tags)
    patient = str(header.get("PatientID") or "").strip()
    issuer = str(header.get("IssuerOfPatientID") or "").strip()
    return (f"{patient}|{issuer}" if patient else ""), str(header.get("StudyInstanceUID") or source.id)


def _with_stored_folds(drafts: Sequence[_Draft], stored: Mapping[str, int]) -> tuple[list[_Draft], list[str]]:
    """Takes the folds of a ``splits_final.json``, where it has one for each case."""
    training = {draft.case.id for draft in drafts if draft.split == "training"}
    if not stored or not training <= set(stored) or any(draft.fold is not None for draft in drafts):
        return list(drafts), []
    done = [replace(draft, fold=stored[draft.case.id]) if draft.case.id in training else draft for draft in drafts]
    return done, [f"folds are those of {SPLITS}"]


def _folded(drafts: Sequence[_Draft], options: BuildOptions) -> tuple[list[_Draft], list[str]]:
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


def _check_folds(training: Sequence[_Draft]) -> None:
    seen: dict[str, int | None] = {}
    for draft in training:
        if seen.setdefault(draft.group, draft.fold) != draft.fold:
            raise UsageError(
                "the table puts one group (or the same image twice) into two folds",
                draft.case.id,
                "give all cases of a group the same fold",
            )


def _check_splits(drafts: Sequence[_Draft]) -> None:
    test = {draft.group for draft in drafts if draft.split == "test" and draft.case.label is not None}
    for draft in drafts:
        if draft.split == "training" and draft.group in test:
            raise UsageError(
                "cases of one group (or the same image) are both for training and for testing",
                draft.case.id,
                "give all cases of a group the same split",
            )


# ---- labels and channels --------------------------------------------------------------------------------------------


def _is_annotated(draft: _Draft) -> bool:
    return draft.case.label is not None and draft.case.label.kind in ANNOTATION_KINDS


def _named(
    drafts: Sequence[_Draft], options: BuildOptions, told: Description
) -> tuple[list[_Draft], dict[int, str], list[str]]:
    """Says which label each segment of a SEG or RTSTRUCT is; returns the drafts, the names of label values and notes.

    Raises:
        UsageError: Label files and annotations stand side by side, and nobody says which value is which.
    """
    annotated = [draft for draft in drafts if _is_annotated(draft)]
    if not annotated:
        return list(drafts), parse_label_names(options.label_names) or dict(told.label_names), []
    listed = parse_label_list(options.label_names) or [item for item in told.label_names.items() if item[0]]
    files = sum(draft.case.label is not None for draft in drafts) - len(annotated)
    if files and not listed:
        raise UsageError(
            f"{files} cases have label files and {len(annotated)} have DICOM annotations",
            "--label-names",
            "say which value is which, for example --label-names 1=liver,2=tumour",
        )
    labels = [draft.case.label for draft in annotated if draft.case.label is not None]
    if options.task == "instance":
        return _with_values(drafts, [values_of(label) for label in labels]), {}, []
    naming = name_segments(labels, listed)
    background = told.label_names.get(0, "background")
    return _with_values(drafts, naming.segments), {0: background, **naming.labels}, list(naming.notes)


def _with_values(drafts: Sequence[_Draft], values: Sequence[Mapping[int, int]]) -> list[_Draft]:
    """Stores with each annotation the label values of its segments."""
    rest = iter(values)
    done = []
    for draft in drafts:
        label = draft.case.label
        if label is not None and label.kind in ANNOTATION_KINDS:
            segments = {str(number): value for number, value in next(rest).items()}
            label = replace(label, read_as={**label.read_as, "segments": segments})
        done.append(replace(draft, case=replace(draft.case, label=label)))
    return done


def _absent(drafts: Sequence[_Draft], told: Description) -> list[Finding]:
    """Findings for the channels that a case lacks, where files are named by channel."""
    keys = {draft.case.id: draft.pair.channels for draft in drafts if draft.pair.channels}
    return missing_findings(keys, told.channels, [d.case.id for d in drafts if d.split == "test"])


def _channel_notes(drafts: Sequence[_Draft]) -> list[str]:
    if not drafts:
        return []
    usual = _usual_channels(drafts)
    other = [draft for draft in drafts if draft.case.channels != usual]
    if not other:
        return []
    what = f"{len(other)} of {len(drafts)} cases have another number of channels than {usual}, the first is"
    remedy = "one network cannot learn from both: use --images GLOB, or a table with split = skip (--group-by)"
    return [f"{what} {other[0].case.id}: {remedy}"]


def _usual_channels(drafts: Sequence[_Draft]) -> int:
    counts = [draft.case.channels for draft in drafts]
    return max(sorted(set(counts)), key=counts.count)


def _channel_names(drafts: Sequence[_Draft], told: Description) -> tuple[str, ...]:
    usual = _usual_channels(drafts)
    if len(told.channels) == usual:
        return told.channels
    modalities = named_channels({draft.case.id: draft.pair.channels for draft in drafts})
    if modalities:
        return modalities
    first = next(draft for draft in drafts if draft.case.channels == usual)
    modality = _modality(drafts)
    if usual == 1 and modality is not None:
        return (modality,)
    source = first.case.sources[0]
    if usual == 3 and len(first.case.sources) == 1 and source.axes.endswith("S"):
        return ("red", "green", "blue")
    return tuple(f"channel_{number}" for number in range(usual))


def _modality(drafts: Sequence[_Draft]) -> str | None:
    found = {source.modality for draft in drafts for source in draft.case.sources}
    return found.pop() if len(found) == 1 else None
