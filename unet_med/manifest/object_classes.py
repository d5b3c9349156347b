"""Which class each object of an instance set is of: in tables, and in manifests."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from unet_med.errors import UsageError
from unet_med.manifest.tables import ID_COLUMNS, case_name, read_rows

_OBJECT_COLUMNS = ("object", "label", "number", "object_id")
_CLASS_COLUMNS = ("class", "classification", "type", "category")
_RUN = re.compile(r"(\d+)(?:-(\d+))?")

ClassNames = Mapping[str, Mapping[int, str]]
"""Case id -> number of an object -> name of its class."""


def read_class_table(path: Path) -> ClassNames:
    """Reads a CSV table with a column ``id`` (or ``name``, ``image``), ``object`` (or ``label``) and ``class``.

    Raises:
        UsageError: if it cannot be read, or a line makes no sense.
    """
    lines = read_rows(path, "--classes")
    columns = {name.strip().lower(): name for name in lines[0]} if lines else {}
    keys = [_column(columns, names) for names in (ID_COLUMNS, _OBJECT_COLUMNS, _CLASS_COLUMNS)]
    case, number, name = keys
    if case is None or number is None or name is None:
        raise UsageError(
            "the table needs the columns id (or name, image), object (or label) and class",
            "--classes",
            f"its columns are: {', '.join(sorted(columns)) or 'none'}",
        )
    found: dict[str, dict[int, str]] = defaultdict(dict)
    for place, line in enumerate(lines, start=2):
        objects, text, called = found[case_name(line[case] or "")], (line[number] or "").strip(), line[name] or ""
        if not text.isdecimal() or not called.strip():
            raise UsageError(
                "an object has no number or no class", f"line {place} of the table", "write 1, 2, ... and a name"
            )
        if objects.setdefault(int(text), called.strip()) != called.strip():
            raise UsageError("an object has two classes", f"line {place} of the table", "correct the table")
    return found


def _column(columns: Mapping[str, str], names: Iterable[str]) -> str | None:
    return next((columns[name] for name in names if name in columns), None)


def class_values(names: ClassNames, listed: Mapping[int, str]) -> dict[str, int]:
    """Returns the value of each class.

    Args:
        names: What the objects are.
        listed: Value -> name of classes that somebody numbered; empty: classes go by the alphabet.

    Raises:
        UsageError: An object is of a class that is not listed.
    """
    found = sorted(
        {name for objects in names.values() for name in objects.values()}, key=lambda one: (one.lower(), one)
    )
    values = {name: value for value, name in listed.items() if value}
    if not values:
        return {name: value for value, name in enumerate(found, start=1)}
    if sorted(values.values()) != list(range(1, len(values) + 1)):
        raise UsageError(
            "the classes of objects are not numbered 1, 2, 3, ... without gap", "--label-names", "number them so"
        )
    unknown = [name for name in found if name not in values]
    if unknown:
        raise UsageError(
            f"there are objects of the class {unknown[0]!r}, which is not listed",
            "--label-names",
            "list every class, for example 1=nucleus,2=mitosis",
        )
    return values


def as_text(classes: Mapping[int, int]) -> dict[str, str]:
    """Returns classes as a manifest holds them: ``{1: 2, 2: 2, 3: 2, 7: 1}`` gives ``{"1": "7", "2": "1-3"}``."""
    members: dict[int, list[int]] = defaultdict(list)
    for number, value in sorted(classes.items()):
        members[value].append(number)
    return {str(value): ",".join(_runs(members[value])) for value in sorted(members)}


def _runs(numbers: Sequence[int]) -> list[str]:
    """Returns ascending numbers with neighbours joined."""
    runs = []
    for _, members in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        run = [number for _, number in members]
        runs.append(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]))
    return runs


def from_text(stored: Any, where: str) -> dict[int, int] | None:
    """Returns what :func:`as_text` wrote; ``None`` where a manifest says nothing of classes.

    Raises:
        UsageError: if it is damaged.
    """
    if stored is None:
        return None
    classes: dict[int, int] = {}
    try:
        for value, text in stored.items():
            for run in str(text).split(","):
                first, last = _ends(run)
                classes.update(dict.fromkeys(range(first, last + 1), int(value)))
    except (AttributeError, ValueError, TypeError):
        raise UsageError(
            "the classes of a case are not readable", where, 'write them as {"1": "1-40,43", "2": "41,42"}'
        ) from None
    return classes


def _ends(run: str) -> tuple[int, int]:
    match = _RUN.fullmatch(run.strip())
    if match is None:
        raise ValueError(run)
    first, last = int(match[1]), int(match[2] or match[1])
    if not 1 <= first <= last < 2**32 or last - first > _MOST_OBJECTS:
        raise ValueError(run)
    return first, last


_MOST_OBJECTS = 2**24
"""Longer runs of numbers are no objects of one image."""
