"""What the label images hold: which values, and whether they are kinds of things or single objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.errors import InputRefusedError
from unet_med.io.cases import Case
from unet_med.manifest.model import Finding
from unet_med.volume import bands

FEWEST_OBJECTS = 10
"""Fewer different values are never taken for object ids."""

FEWEST_OBJECTS_OF_ONE_CASE = 50
"""With a single case nothing can be compared: only very many values are taken for object ids."""

FIX = "correct it with `unet-med check M.json --fix DIR`"


@dataclass(frozen=True)
class LabelScan:
    """The values of one label image.

    Attributes:
        case: Id of the case.
        values: Distinct stored values, ascending; empty when the label cannot be read.
        finding: Why it cannot be read.
    """

    case: str
    values: tuple[int, ...]
    finding: Finding | None = None


def distinct_values(label: npt.NDArray[np.integer[Any]]) -> tuple[int, ...]:
    """Returns the distinct values of a label (1, I, J[, K]), ascending.

    It is looked at part by part, and need not be in memory.
    """
    found: set[int] = set()
    for _, _, part in bands(label):
        found.update(np.unique(part).tolist())
    return tuple(sorted(found))


def scan_label(case: Case) -> LabelScan:
    """Reads a label as training would, and returns its values or why it is refused."""
    plain = Case(case.id, case.sources, case.label, case.frame)
    found: set[int] = set()
    try:
        for frame in plain.frames:
            found.update(distinct_values(plain.look_label(frame).array))
    except InputRefusedError as error:
        return LabelScan(case.id, (), refusal(case.id, error))
    return LabelScan(case.id, tuple(sorted(found)))


_REFUSALS = {
    "another shape": "label_shape",
    "lies elsewhere": "label_place",
    "not whole numbers": "label_floats",
    "negative values": "label_negative",
    "colour picture": "label_colour",
    "no number or infinite": "image_not_finite",
}


def refusal(case_id: str, error: InputRefusedError) -> Finding:
    """Returns the finding that stands for a refused image or label."""
    kind = next((kind for words, kind in _REFUSALS.items() if words in error.what), "refused")
    remedy = f"{FIX} if they are nearly whole; {error.remedy}" if kind == "label_floats" else error.remedy
    return Finding(case_id, "error", error.what, remedy, kind)


def looks_like_objects(scans: Sequence[LabelScan]) -> bool:
    """Whether label values are object ids: many, counted from 1 in each case, and not the same in all cases."""
    sets = [tuple(value for value in scan.values if value != 0) for scan in scans if scan.finding is None]
    sets = [values for values in sets if values]
    if not sets:
        return False
    union = {value for values in sets for value in values}
    counted = [values for values in sets if values == tuple(range(1, len(values) + 1))]
    if len(sets) == 1:
        return len(union) >= FEWEST_OBJECTS_OF_ONE_CASE
    commonest = max(sets.count(values) for values in set(sets))
    differing = commonest <= len(sets) / 2
    return len(union) > FEWEST_OBJECTS and differing and len(counted) >= 0.7 * len(sets)


def remapped(values: Sequence[int], label_values: Mapping[int, int]) -> tuple[int, ...]:
    """Returns the values meant by stored values; those that are not listed mean themselves."""
    return tuple(sorted({label_values.get(value, value) for value in values}))


def value_findings(
    scans: Sequence[LabelScan], label_values: Mapping[int, int], names: Mapping[int, str]
) -> list[Finding]:
    """Returns what is wrong with the values of a semantic set: 0 and 255, gaps, nothing but background.

    Args:
        scans: The readable labels.
        label_values: Stored value -> value meant.
        names: Declared labels; a declared value may be absent from the data.
    """
    found: dict[int, str] = {}
    for scan in scans:
        for value in remapped(scan.values, label_values):
            found.setdefault(value, scan.case)
    foreground = sorted(set(found) - {0})
    if not scans:
        return []
    if not foreground:
        what = "no label holds anything but background"
        return [Finding("", "error", what, "draw labels, or check that the right files are paired", "all_empty")]
    if foreground == [255]:
        what = "the labels hold 0 and 255 where 0 and 1 are meant"
        remedy = f'{FIX}, or make the manifest with --label-values "255=1"'
        return [Finding(found[255], "error", what, remedy, "values_0_255")]
    declared = sorted(set(foreground) | (set(names) - {0}))
    if declared != list(range(1, len(declared) + 1)):
        missing = sorted(set(range(1, max(declared))) - set(declared))
        after = min(value for value in foreground if value > missing[0])
        shown = ", ".join(map(str, [0, *declared][:12])) + (", ..." if len(declared) > 11 else "")
        what = f"the label values {shown} leave gaps"
        remedy = f"{FIX}, or name the absent ones with --label-names"
        return [Finding(found[after], "error", what, remedy, "gaps")]
    return []
