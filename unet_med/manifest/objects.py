"""Objects of a set: drawn ones become labels, each object gets its class, unlabelled regions get their value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from unet_med.errors import InputRefusedError, UsageError
from unet_med.io.object_truth import MASK_FILES, OBJECT_KINDS, UNCLASSIFIED, ObjectTruth
from unet_med.manifest.draft import BuildOptions, Draft
from unet_med.manifest.object_classes import ClassNames, class_values, read_class_table

UNLABELLED = 2**16 - 1
"""Value of voxels that nobody labelled, where nobody named one: no image has as many objects."""


@dataclass(frozen=True)
class ObjectSet:
    """What is known of the objects of a set.

    Attributes:
        drafts: The cases, with the class of each object.
        names: Value -> name of each class; empty where there is but one.
        unlabelled: Value of voxels that nobody labelled; ``None``: all is labelled.
        drawn: Whether there are objects that somebody drew: then the set is one of objects.
        notes: What a person should know.
    """

    drafts: list[Draft]
    names: dict[int, str]
    unlabelled: int | None
    drawn: bool
    notes: list[str]


def with_objects(
    drafts: Sequence[Draft], options: BuildOptions, names: Mapping[int, str], ignore: int | None
) -> ObjectSet:
    """Looks at drawn objects and at the table of classes.

    Args:
        drafts: The cases.
        options: ``classes``, ``task`` and ``ignore_label`` are looked at.
        names: Value -> name of classes, as far as somebody said so.
        ignore: Value of voxels that nobody labelled, as far as somebody said so.

    Raises:
        UsageError: Objects are drawn where kinds of things are asked for, or classes are not listed.
    """
    drawn = [draft for draft in drafts if draft.case.label is not None and draft.case.label.kind in OBJECT_KINDS]
    if (drawn or options.classes) and options.task == "semantic":
        raise UsageError(
            f"the labels of {len(drawn)} cases are single objects" if drawn else "classes are those of objects",
            "--task",
            "leave it out, or give label images whose values are kinds of things",
        )
    kinds, regions = _looked_at(drawn)
    table = read_class_table(options.classes) if options.classes is not None else {}
    found: dict[str, Mapping[int, str]] = {**_classified(kinds), **table}
    values = class_values(found, names) if found else {}
    partly = bool(regions) or any(draft.case.annotated is not None for draft in drafts)
    unlabelled = ignore if ignore is not None else UNLABELLED if partly else None
    done = [_with_classes(draft, found, values, unlabelled if draft.case.id in regions else None) for draft in drafts]
    notes = [f"classes of objects: {', '.join(f'{value} {name}' for name, value in values.items())}"] if values else []
    missing = [case for case in table if case not in {draft.case.id for draft in drafts}]
    if missing:
        notes.append(f"{len(missing)} cases of the table of classes are not in the set, the first is {missing[0]}")
    return ObjectSet(done, {value: name for name, value in values.items()}, unlabelled, bool(drawn or table), notes)


def _looked_at(drawn: Sequence[Draft]) -> tuple[dict[str, Mapping[int, str]], set[str]]:
    """Returns the classes of the objects of each case, and the cases with regions that nobody labelled."""
    kinds: dict[str, Mapping[int, str]] = {}
    regions: set[str] = set()
    for draft in drawn:
        label = draft.case.label
        if label is None or label.kind == MASK_FILES:
            continue
        try:
            seen = ObjectTruth(label, draft.case.sources[0]).look(draft.case.frame or 0)
            kinds[draft.case.id] = seen.painted.kinds
            regions |= {draft.case.id} if seen.partly else set()
        except InputRefusedError:
            continue  # reading the label will say why
    return kinds, regions


def _classified(kinds: ClassNames) -> dict[str, Mapping[int, str]]:
    """Returns the classes of drawn objects; nothing where none has one."""
    if not any(kind for objects in kinds.values() for kind in objects.values()):
        return {}
    return {
        case: {number: kind.strip() or UNCLASSIFIED for number, kind in objects.items()}
        for case, objects in kinds.items()
    }


def _with_classes(draft: Draft, found: ClassNames, values: Mapping[str, int], unlabelled: int | None) -> Draft:
    case, label = draft.case, draft.case.label
    if case.id in found:
        case = replace(case, classes={number: values[name] for number, name in found[case.id].items()})
    if label is not None and unlabelled is not None:
        case = replace(case, label=replace(label, read_as={**label.read_as, "unlabelled": unlabelled}))
    return replace(draft, case=case)
