"""What a user says about groups, folds, values and names, as text or as a CSV table."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from unet_med.errors import UsageError
from unet_med.identity import safe_name, stem_of

ID_COLUMNS = ("id", "name", "image", "case")
"""A column of one of these names says which case a line is about."""

_GROUP_COLUMNS = ("group", "patient", "subject")
_SPLITS: Mapping[str, Literal["training", "test", "skip"]] = {
    **{"": "training", "train": "training", "training": "training"},
    **{"test": "test", "skip": "skip", "no": "skip"},
}


@dataclass(frozen=True)
class Row:
    """What a table says of one case.

    Attributes:
        group: Its group; ``None`` when the table has no such column.
        fold: The fold it is held out in, if the table says so.
        split: ``training``, ``test``, or ``skip`` to leave it out.
    """

    group: str | None
    fold: int | None
    split: Literal["training", "test", "skip"]


def read_groups(path: Path) -> dict[str, Row]:
    """Reads a table with a column ``id`` (or ``name``, ``image``) and ``group`` (``patient``), ``fold``, ``split``.

    Returns:
        Case id -> row.

    Raises:
        UsageError: if it cannot be read, or holds a value that makes no sense; the line is named, never a patient.
    """
    lines = read_rows(path, "--group-by")
    columns = {name.strip().lower(): name for name in lines[0]} if lines else {}
    key = next((columns[name] for name in ID_COLUMNS if name in columns), None)
    group = next((columns[name] for name in _GROUP_COLUMNS if name in columns), None)
    if key is None or (group is None and not {"fold", "split"} & columns.keys()):
        raise UsageError(
            "the table needs a column id (or name, image) and one of group (or patient), fold, split",
            "--group-by",
            f"its columns are: {', '.join(sorted(columns)) or 'none'}",
        )
    rows: dict[str, Row] = {}
    for number, line in enumerate(lines, start=2):
        case = case_name(line[key] or "")
        row = Row(
            (line[group] or "").strip() or None if group else None,
            _fold(line, columns.get("fold"), number),
            _split(line, columns.get("split"), number),
        )
        if rows.get(case, row) != row:
            raise UsageError("the table names a case twice, differently", f"line {number}", "correct the table")
        rows[case] = row
    return rows


def read_rows(path: Path, option: str) -> list[dict[str, str]]:
    """Returns the lines of a CSV table (comma, semicolon or tab) by the names in its header.

    Args:
        path: The file.
        option: What named it, for the error.

    Raises:
        UsageError: if it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise UsageError("cannot read the table", option, "give a CSV file (UTF-8) with a header line") from None
    first = text.splitlines()[0] if text.strip() else ""
    delimiter = max(",;\t", key=first.count)
    return list(csv.DictReader(text.splitlines(), delimiter=delimiter))


def case_name(text: str) -> str:
    """Returns the case that a table names: ``images/case_1.nii.gz``, ``case_1.nii.gz`` and ``case_1`` are one."""
    name = PurePosixPath(text.strip().replace("\\", "/")).name
    known = re.search(r"\.(nii|tiff?|png|jpe?g|nrrd|mh[ad])(\.gz)?$", name, re.I)
    return safe_name(stem_of(Path(name)) if known else name)


def _fold(line: Mapping[str, str], column: str | None, number: int) -> int | None:
    text = (line[column] or "").strip() if column else ""
    if not text:
        return None
    if not text.isdecimal():
        raise UsageError("a fold is no number", f"line {number} of the table", "write 0, 1, 2, ...")
    return int(text)


def _split(line: Mapping[str, str], column: str | None, number: int) -> Literal["training", "test", "skip"]:
    text = (line[column] or "").strip().lower() if column else ""
    if text not in _SPLITS:
        raise UsageError("a split is not known", f"line {number} of the table", "write train, test or skip")
    return _SPLITS[text]


def group_by_pattern(pattern: str, names: Mapping[str, Sequence[str]]) -> tuple[dict[str, str], list[str]]:
    """Applies a regular expression to the names of each case.

    Args:
        pattern: Its first group, or all that it matches, names the group of a case.
        names: Case id -> names to search in, the first match counts.

    Returns:
        Case id -> group for the cases that match, and the ids of those that do not.

    Raises:
        UsageError: if the expression is faulty or matches no case.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UsageError(
            f"the pattern is no regular expression ({error.msg})", "--group-by", "for example '(patient[0-9]+)_'"
        ) from None
    groups: dict[str, str] = {}
    for case, texts in names.items():
        for text in texts:
            match = expression.search(text)
            if match is not None:
                groups[case] = (match.group(1) if match.re.groups else match.group()) or ""
                break
    if not groups:
        raise UsageError(
            "the pattern matches no case", "--group-by", "write it for file names such as the ids that `scan` shows"
        )
    return groups, [case for case in names if case not in groups]


def parse_label_values(text: str | None) -> dict[int, int]:
    """Reads ``"255=1"`` or ``"0=1,255=0"`` into stored value -> value meant."""
    return {int(stored): int(meant) for stored, meant in _assignments(text, "--label-values", "255=1", numbers=True)}


def parse_label_names(text: str | None) -> dict[int, str]:
    """Reads ``"1=liver,2=tumour"`` into value -> name."""
    pairs = _assignments(text, "--label-names", "1=liver,2=tumour", numbers=False)
    names = {int(value): name for value, name in pairs}
    if len(set(names.values())) < len(names) or "" in names.values():
        raise UsageError("two labels share a name, or one has none", "--label-names", "name each label once")
    return names


def parse_label_list(text: str | None) -> list[tuple[int, str]]:
    """Reads ``"1=liver,1=hepar,0=couch,0=*"`` into (value, name): several names may mean one value."""
    example = "1=liver,2=tumour,0=couch"
    pairs = _assignments(text, "--label-names", example, numbers=False, repeats=True)
    names = [name.lower() for _, name in pairs]
    if len(set(names)) < len(names) or "" in names:
        raise UsageError("a name is listed twice, or missing", "--label-names", f"write it like {example}")
    return [(int(value), name) for value, name in pairs]


def _assignments(
    text: str | None, option: str, example: str, *, numbers: bool, repeats: bool = False
) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for part in (text or "").split(","):
        if not part.strip():
            continue
        left, separator, right = (piece.strip() for piece in part.partition("="))
        if not separator or not left.isdecimal() or (numbers and not right.isdecimal()):
            raise UsageError(f"cannot read {part.strip()!r}", option, f"write it like {example}")
        pairs.append((left, right))
    if not repeats and len({left for left, _ in pairs}) < len(pairs):
        raise UsageError("a value is named twice", option, f"write it like {example}")
    return pairs
