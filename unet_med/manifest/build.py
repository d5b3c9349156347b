"""From a folder that was searched to a manifest: pairs, pages, hashes, groups, folds, labels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unet_med.errors import NothingUsableError, UsageError
from unet_med.identity import safe_name, unique_ids
from unet_med.io.cases import COLOURS_OR_GREYS, Case
from unet_med.io.dicom.annotations import ANNOTATION_KINDS, values_of
from unet_med.io.object_truth import OBJECT_KINDS
from unet_med.io.source import DICOM_KINDS, Discovery, SourceRef
from unet_med.manifest.description import Description, read_description
from unet_med.manifest.draft import BuildOptions, Draft
from unet_med.manifest.groups import apply_table, folded, group_table, grouped, with_stored_folds
from unet_med.manifest.meaning import Meaning, meaning_of, without_ignored
from unet_med.manifest.modalities import agreed
from unet_med.manifest.model import Manifest, ManifestCase, Split, content_sha256
from unet_med.manifest.nnunet import of_ending, stored_folds
from unet_med.manifest.object_classes import as_text
from unet_med.manifest.objects import with_objects
from unet_med.manifest.outlines import pair_outlines
from unet_med.manifest.pairing import CONVENTIONS, Pairing, pair_sources
from unet_med.manifest.set_channels import absent, channel_names, channel_notes, common_modality, in_one_order
from unet_med.manifest.tables import parse_label_list, parse_label_names, parse_label_values
from unet_med.manifest.truth import name_segments, pair_annotations
from unet_med.manifest.values import LabelScan, scan_label

Progress = Callable[[Iterable[Any], str], Iterable[Any]]

NO_LABEL = "no label: kept for prediction (test)"


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
    pairing = pair_outlines(root, pairing, options.labels)
    notes += pairing.notes
    drafts, left = _drafts(pairing)
    left += strays
    table = group_table(options.group_by)
    drafts, skipped = apply_table(drafts, table)
    left += skipped
    if not any(draft.case.label is not None for draft in drafts):
        raise NothingUsableError(
            f"images found: {len(drafts)}, but no label that belongs to one of them", remedy=CONVENTIONS
        )
    drafts, order_notes = in_one_order(drafts)
    notes += order_notes
    drafts = _hashed(follow(drafts, "hashing"))
    drafts, group_notes = grouped(drafts, options, table)
    notes += group_notes
    drafts, stored_notes = with_stored_folds(drafts, {} if options.group_by else stored_folds(root))
    notes += stored_notes
    drafts, fold_notes = folded(drafts, options)
    notes += fold_notes
    drafts, names, name_notes = _named(drafts, options, told)
    notes += name_notes
    names, ignore = without_ignored(names, told.ignore_label if options.ignore_label is None else options.ignore_label)
    objects = with_objects(drafts, options, names, ignore)
    drafts, ignore = [_with_unlabelled(draft, objects.unlabelled) for draft in objects.drafts], objects.unlabelled
    notes += objects.notes
    labelled = [draft for draft in drafts if draft.case.label is not None]
    scans = [scan_label(draft.case) for draft in follow(labelled, "reading labels")]
    annotated = any(_is_annotated(draft) for draft in drafts)
    given = parse_label_values(options.label_values)
    task = "instance" if objects.drawn else options.task
    meaning = meaning_of(scans, task, given, names | objects.names, ignore, annotated=annotated)
    notes += meaning.notes + (_counted(scans, meaning.ignore_label) if meaning.task == "instance" else [])
    lacking = absent(drafts, told)
    notes += channel_notes([draft for draft in drafts if draft.case.id not in {one.case for one in lacking}])
    notes += [f"{scan.case}: the label cannot be used" for scan in scans if scan.finding is not None]
    channels = channel_names(drafts, told)
    used = {draft.fold for draft in drafts if draft.fold is not None}
    manifest = Manifest(
        name=safe_name(name),
        labels=meaning.labels,
        channels=channels,
        modality=common_modality(drafts) or told.modality,
        task=meaning.task,
        training=tuple(_finished(draft, meaning, channels) for draft in drafts if draft.split == "training"),
        test=tuple(_finished(draft, meaning, channels) for draft in drafts if draft.split == "test"),
        folds=1 + max(used) if used else 0,
        label_values=meaning.label_values,
        findings=(*lacking, *[scan.finding for scan in scans if scan.finding is not None], *meaning.findings),
        regions=told.regions if meaning.task == "semantic" else None,
        ignore_label=meaning.ignore_label,
        description=told.description,
        licence=told.licence,
    )
    return BuildReport(manifest, tuple(notes), tuple(left))


def _counted(scans: Sequence[LabelScan], ignore: int | None) -> list[str]:
    """Says how many objects there are."""
    counts = [sum(value not in (0, ignore) for value in scan.values) for scan in scans if scan.finding is None]
    if not counts:
        return []
    return [f"objects: {sum(counts)} in {len(counts)} images, {min(counts)} to {max(counts)} in each"]


def _plain(items: Iterable[Any], description: str) -> Iterable[Any]:
    return items


# ---- cases ----------------------------------------------------------------------------------------------------------


def _drafts(pairing: Pairing) -> tuple[list[Draft], list[tuple[str, str]]]:
    """One draft for each case; the pages of a stack that has a label for each are cases of their own."""
    left = list(pairing.left_over)
    wanted = [pair.stem or pair.images[0].id for pair in pairing.pairs]
    drafts: list[Draft] = []
    for case_id, pair in zip(unique_ids(wanted), pairing.pairs, strict=True):
        images = _renamed(pair.images, case_id)
        label = pair.label
        if label is not None and label.kind not in DICOM_KINDS:
            label = replace(label, id=case_id)
        frames = images[0].frames
        if label is not None and label.kind in OBJECT_KINDS:
            label = replace(label, frames=frames)
        if label is not None and label.frames != frames:
            reason = f"its label has {label.frames} pages, the image {frames}: declare the axes of both with --axes"
            left.append((case_id, reason))
            continue
        split: Split = "training" if label is not None and not pair.test else "test"
        if label is None or frames == 1:
            drafts.append(Draft(Case(case_id, images, label, annotated=pair.annotated), pair, split))
            if label is None and not pair.test:
                left.append((case_id, NO_LABEL))
            continue
        digits = max(3, len(str(frames - 1)))
        drafts += [
            Draft(Case(f"{case_id}_p{frame:0{digits}d}", images, label, frame, annotated=pair.annotated), pair, split)
            for frame in range(frames)
        ]
    return drafts, left


def _renamed(images: Sequence[SourceRef], case_id: str) -> tuple[SourceRef, ...]:
    """Sources under the name of their case; DICOM keeps its id, which the private table knows."""
    if len(images) == 1:
        return (images[0] if images[0].kind == "dicom" else replace(images[0], id=case_id),)
    return tuple(replace(image, id=f"{case_id}_{number:04d}") for number, image in enumerate(images))


def _hashed(drafts: Iterable[Draft]) -> list[Draft]:
    hashed: list[Draft] = []
    for draft in drafts:
        hashes = {"image": content_sha256(draft.case.sources, draft.case.frame)}
        if draft.case.label is not None:
            hashes["label"] = content_sha256([draft.case.label], draft.case.frame)
        if draft.case.annotated is not None:
            hashes["annotated"] = content_sha256([draft.case.annotated], draft.case.frame)
        hashed.append(replace(draft, hashes=hashes))
    return hashed


def _with_unlabelled(draft: Draft, value: int | None) -> Draft:
    return draft if value is None else replace(draft, case=replace(draft.case, unlabelled=value))


def _finished(draft: Draft, meaning: Meaning, channels: tuple[str, ...]) -> ManifestCase:
    case = replace(
        draft.case,
        label_values=meaning.label_values,
        instances=meaning.task == "instance",
        unlabelled=meaning.ignore_label,
        colour=channels == COLOURS_OR_GREYS,
    )
    hashes = dict(draft.hashes)
    if case.classes is not None:
        hashes["classes"] = hashlib.sha256(json.dumps(as_text(case.classes)).encode()).hexdigest()
    return ManifestCase(case.id, case, draft.fold, draft.group, hashes, draft.split)


# ---- labels and channels --------------------------------------------------------------------------------------------


def _is_annotated(draft: Draft) -> bool:
    return draft.case.label is not None and draft.case.label.kind in ANNOTATION_KINDS


def _named(
    drafts: Sequence[Draft], options: BuildOptions, told: Description
) -> tuple[list[Draft], dict[int, str], list[str]]:
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


def _with_values(drafts: Sequence[Draft], values: Sequence[Mapping[int, int]]) -> list[Draft]:
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
