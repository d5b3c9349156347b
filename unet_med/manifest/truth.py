"""Truth in DICOM: which SEG or RTSTRUCT belongs to which series, and which of its segments is which label.

An annotation belongs to the series that it names (see :func:`unet_med.io.dicom.annotations.image_of`).

Segments become labels by code first, then by name. Names are compared without regard to case and signs. Nothing is
guessed: a code that says too little (tissue, lesion, ...) or that one file gives to two segments counts for nothing, a
name that stands for another code elsewhere is no match, and where ``--label-names`` or a ``dataset.json`` lists the
labels, a segment that it does not list is refused until it is named.
"""

from __future__ import annotations

import fnmatch
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from unet_med.errors import UsageError
from unet_med.io.dicom.annotations import ANNOTATION_KINDS, image_of
from unet_med.io.dicom.items import UNNAMED
from unet_med.io.dicom.slices import Annotation, Segment
from unet_med.io.source import Discovery, SourceRef
from unet_med.labels import known_code
from unet_med.manifest.pairing import Pair, Pairing

_VAGUE = frozenset(
    f"SCT:{value}"
    for value in (
        *("85756007", "123037004", "91723000", "113343008", "49755003", "52988006", "108369006", "309825002"),
        *("4421005", "91720002", "260787004", "118956008", "272737002", "276654001"),
    )
)
"""Codes that say too little to tell labels apart: tissue, structure, organ, lesion, neoplasm, body fluid, ..."""

EVERYTHING_ELSE = "*"
"""Stands in ``--label-names 0=*`` for all segments that are not named."""


# ---- pairing --------------------------------------------------------------------------------------------------------


def pair_annotations(root: Path, discovery: Discovery, pairing: Pairing, labels: str | None) -> Pairing:
    """Gives the DICOM series among the pairs the annotations that refer to them.

    Args:
        root: The folder that was searched.
        discovery: What was found in it.
        pairing: What names and folders say; a label file found so stays.
        labels: ``--labels``: pattern of the label files; chooses among annotations, too.
    """
    left: list[tuple[str, str]] = []
    claims: dict[int, list[SourceRef]] = defaultdict(list)
    notes: list[str] = []
    places = {id(pair.images[0]): place for place, pair in enumerate(pairing.pairs) if len(pair.images) == 1}
    images = [pair.images[0] for pair in pairing.pairs if len(pair.images) == 1]
    for one in discovery.annotations:
        if labels is not None and not _matches(root, one, labels):
            left.append((one.id, "does not match --labels"))
        elif not one.usable:
            left.append((one.id, one.reason))
        else:
            image, why = image_of(one, images, discovery.sources)
            if image is None:
                left.append((one.id, why))
                continue
            claims[places[id(image)]].append(one)
            notes += [f"{one.id}: {why}"] if why else []
    pairs: list[Pair] = []
    for place, pair in enumerate(pairing.pairs):
        found = claims.get(place, [])
        if pair.label is not None and found:
            left += [(one.id, "its series has a label file") for one in found]
            found = []
        chosen, others, why = _best(found)
        left += [(one.id, why) for one in others]
        if chosen is None and others:
            left.append((pair.images[0].id, why))
        else:
            pairs.append(pair if chosen is None else replace(pair, label=chosen))
    paired = sum(pair.label is not None and pair.label.kind in ANNOTATION_KINDS for pair in pairs)
    if paired:
        notes.insert(0, f"series paired with the SEG or RTSTRUCT that refers to them: {paired}")
    return Pairing(tuple(pairs), (*pairing.left_over, *left), (*pairing.notes, *notes))


def _matches(root: Path, annotation: SourceRef, pattern: str) -> bool:
    file = annotation.files[0]
    top = root.parent if root.is_file() else root
    try:
        relative = file.relative_to(top).as_posix()
    except ValueError:
        relative = file.resolve().relative_to(top.resolve()).as_posix()
    return fnmatch.fnmatchcase(relative, pattern) or fnmatch.fnmatchcase(relative, pattern.rstrip("/") + "/*")


def _best(found: Sequence[SourceRef]) -> tuple[SourceRef | None, list[SourceRef], str]:
    """Returns the annotation of a series to use, the others, and why they are not used."""
    if len(found) < 2:
        return (found[0] if found else None), [], ""
    exact = [one for one in found if one.kind == "dicom-seg"]
    if len(exact) == 1 and len({_names(one) for one in found}) == 1:
        return exact[0], [one for one in found if one is not exact[0]], "the SEG of the same segments is used"
    why = f"{len(found)} annotations refer to one series: choose one with --labels GLOB or --series ID"
    return None, list(found), why


def _names(annotation: SourceRef) -> frozenset[str]:
    return frozenset(plain_name(segment.name) for segment in segments_of(annotation))


def segments_of(annotation: SourceRef) -> tuple[Segment, ...]:
    """Returns the segments of a SEG or the regions of an RTSTRUCT."""
    return annotation.layout.segments if isinstance(annotation.layout, Annotation) else ()


# ---- names ----------------------------------------------------------------------------------------------------------


def plain_name(name: str) -> str:
    """Returns a name in small letters and digits alone: ``Left Kidney`` and ``left_kidney`` are one."""
    return re.sub(r"[^a-z0-9]+", "", name.lower())


@dataclass
class _Entry:
    """A label on its way: its value, the name it is shown by, and all that stands for it."""

    value: int
    name: str
    names: set[str] = field(default_factory=set)
    codes: set[str] = field(default_factory=set)
    cases: int = 0


@dataclass(frozen=True)
class Naming:
    """What segments were found to be.

    Attributes:
        labels: Label value to name, without the background.
        segments: For each annotation, in order: segment number to label value (0: left out); a segment that is no
            known label is missing.
        notes: What a person should know.
    """

    labels: dict[int, str]
    segments: tuple[dict[int, int], ...]
    notes: tuple[str, ...]


def name_segments(annotations: Sequence[SourceRef], listed: Iterable[tuple[int, str]]) -> Naming:
    """Finds out which segments of several annotations are one label.

    Args:
        annotations: In the order of the cases.
        listed: ``(value, name)`` of the labels, if they are listed; several names may share a value, 0 leaves
            segments out, and ``*`` stands for all others. Empty: every name that occurs is a label.

    Raises:
        UsageError: ``*`` is given for a label.
    """
    given = list(listed)
    entries = _listed(given)
    closed = bool([one for one in entries if one.value])
    rest_out = any(name == EVERYTHING_ELSE for _, name in given)
    useless = _useless_codes(annotations)
    merged: dict[int, set[str]] = defaultdict(set)
    found: list[dict[int, int]] = []
    for annotation in annotations:
        values: dict[int, int] = {}
        for segment in segments_of(annotation):
            code = "" if segment.code in useless else segment.code
            entry, clash = _entry_of(segment, code, entries, by_name_only=closed)
            if entry is None and not clash and not closed and not segment.name.startswith(UNNAMED):
                entry = _Entry(1 + max((one.value for one in entries), default=0), segment.name)
                entries.append(entry)
            if entry is None:
                values |= {segment.number: 0} if rest_out else {}
                continue
            entry.names.add(plain_name(segment.name))
            entry.codes |= {code} if code else set()
            merged[entry.value].add(segment.name)
            values[segment.number] = entry.value
        for entry in entries:
            entry.cases += entry.value in values.values()
        found.append(values)
    labels = {entry.value: entry.name for entry in entries if entry.value}
    return Naming(labels, tuple(found), tuple(_notes(entries, merged, annotations, found)))


def _listed(given: Sequence[tuple[int, str]]) -> list[_Entry]:
    entries: dict[int, _Entry] = {}
    for value, name in given:
        if name == EVERYTHING_ELSE:
            if value:
                raise UsageError("* can only be left out", "--label-names", "write 0=*")
            continue
        entry = entries.setdefault(value, _Entry(value, name))
        entry.names.add(plain_name(name))
        code = known_code(name) if value else None
        if code is not None:
            sided = f"+{code.modifier.scheme}:{code.modifier.value}" if code.modifier is not None else ""
            entry.codes.add(f"{code.type.scheme}:{code.type.value}{sided}")
    return list(entries.values())


def _useless_codes(annotations: Sequence[SourceRef]) -> frozenset[str]:
    """Returns the codes that tell nothing apart: vague ones, and those that one file gives to several segments."""
    useless = set(_VAGUE)
    for annotation in annotations:
        counts = Counter(segment.code for segment in segments_of(annotation))
        useless |= {code for code, count in counts.items() if count > 1}
    return frozenset(useless)


def _entry_of(
    segment: Segment, code: str, entries: Sequence[_Entry], *, by_name_only: bool
) -> tuple[_Entry | None, bool]:
    """Returns the label of a segment, and whether its name and its code contradict each other.

    Args:
        segment: The segment.
        code: Its code, where that tells something.
        entries: The labels so far.
        by_name_only: Whether a name that fits is enough, whatever the code.
    """
    coded = next((entry for entry in entries if code and code in entry.codes), None)
    name = "" if segment.name.startswith(UNNAMED) else plain_name(segment.name)
    named = next((entry for entry in entries if name and name in entry.names), None)
    if by_name_only and named is not None:
        return named, False
    if coded is not None:
        return coded, False
    if named is not None and code and named.codes:
        return None, True
    return named, False


def _notes(
    entries: Sequence[_Entry],
    merged: Mapping[int, set[str]],
    annotations: Sequence[SourceRef],
    found: Sequence[Mapping[int, int]],
) -> list[str]:
    notes = []
    for entry in entries:
        names = sorted(merged.get(entry.value, ()))
        if entry.value and len({plain_name(name) for name in names}) > 1:
            notes.append(f"label {entry.value} {entry.name} is called {', '.join(names)}: one label by code or by list")
        if entry.value and entry.cases < len(annotations):
            notes.append(f"label {entry.value} {entry.name} is in {entry.cases} of {len(annotations)} annotations")
    if len([entry for entry in entries if entry.value and entry.cases < len(annotations)]) > 1:
        notes.append("names that mean one label: --label-names 1=NAME,1=OTHER")
    out = sum(value == 0 for values in found for value in values.values())
    if out:
        notes.append(f"segments left out as --label-names says: {out}")
    unknown = sum(len(segments_of(one)) - len(values) for one, values in zip(annotations, found, strict=True))
    if unknown:
        notes.append(f"segments that are no known label: {unknown}")
    return notes
