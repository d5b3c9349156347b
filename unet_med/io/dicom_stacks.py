"""From the headers of one DICOM series to stacks of slices that are a grid, or a reason why they are none.

Slices are sorted by their position projected on the slice normal; instance numbers and file names decide nothing.
What is measured is compared with tolerances in mm, and a stack beyond them is refused: it would be loaded wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.errors import InputRefusedError
from unet_med.geometry import Geometry
from unet_med.io.dicom_headers import SPLIT_TAGS, Header, SplitTag
from unet_med.io.slices import Regrid
from unet_med.io.source import IntakeOptions

FloatArray = npt.NDArray[np.float64]

ORIENTATION_TOLERANCE = 1e-4
"""Largest difference of a direction cosine between slices of one stack."""

SPACING_TOLERANCE = 1e-4
"""Largest relative difference of the pixel spacing between slices of one stack."""

STEP_TOLERANCE_MM = 0.01
STEP_TOLERANCE = 0.01
"""Steps may differ from the commonest by the larger of 0.01 mm and this share of it."""

PLACE_TOLERANCE = 0.1
"""Largest distance of a slice from its place on the even grid, as a share of the step."""

DRIFT_TOLERANCE_PIXELS = 0.1
"""Largest sideways drift of a slice against the slice normal."""

SMALL_STACK = 3
"""A stack of so few slices beside a bigger one is a scout."""

_EXPORT_AGAIN = "export the series again from the archive or the scanner"


@dataclass(frozen=True)
class Stack:
    """Slices that form one image.

    Attributes:
        headers: In slice order once :func:`lay_out` has seen it.
        suffix: What tells it from other stacks of its series; part of its id.
        notes: What was noticed.
    """

    headers: tuple[Header, ...]
    suffix: str = ""
    notes: tuple[str, ...] = ()


# ---- one series into stacks of one orientation, size and spacing ----------------------------------------------------


def cluster(headers: Sequence[Header]) -> list[list[Header]]:
    """Returns the slices grouped by size, orientation, pixel spacing, frame of reference and kind, biggest first."""
    groups: list[list[Header]] = []
    for header in headers:
        home = next((group for group in groups if _alike(group[0], header)), None)
        if home is None:
            groups.append([header])
        else:
            home.append(header)
    return sorted(groups, key=lambda group: (-len(group), _first_corner(group)))


def _alike(a: Header, b: Header) -> bool:
    return _kind(a) == _kind(b) and (
        (a.orientation == b.orientation and a.pixel_spacing == b.pixel_spacing)
        or (
            all(abs(x - y) <= ORIENTATION_TOLERANCE for x, y in _pairs(a.orientation, b.orientation))
            and all(abs(x - y) <= SPACING_TOLERANCE * x for x, y in _pairs(a.pixel_spacing, b.pixel_spacing))
        )
    )


def _kind(header: Header) -> tuple[Any, ...]:
    return header.rows, header.columns, header.frame_uid, header.modality, header.photometric


def _pairs(a: tuple[float, ...] | None, b: tuple[float, ...] | None) -> Iterable[tuple[float, float]]:
    return zip(a or (), b or (), strict=True)


def _first_corner(group: Sequence[Header]) -> tuple[float, ...]:
    return min(header.position or () for header in group)


def leave_out_scouts(groups: list[list[Header]]) -> tuple[list[list[Header]], int]:
    """Returns the groups without small ones beside a bigger one, and how many slices were left out.

    Args:
        groups: As :func:`cluster` gives them, biggest first.

    Raises:
        InputRefusedError: A small group is no scout: its slices belong into a bigger stack but have another size,
            spacing or kind. Or there are only a few slices in many planes.
    """
    for number, stack in enumerate(groups):
        for group in groups[number + 1 :]:
            if len(group) <= SMALL_STACK:
                _check_no_strays(group, stack)
    big = [group for group in groups if len(group) > SMALL_STACK]
    if not big and len(groups) > SMALL_STACK:
        raise InputRefusedError(
            f"the slices lie in {len(groups)} different planes or sizes and make no volume",
            remedy="give a series of parallel slices",
        )
    kept = big or groups
    return kept, sum(map(len, groups)) - sum(map(len, kept))


def _check_no_strays(group: Sequence[Header], stack: Sequence[Header]) -> None:
    """Refuses slices that fill the holes of a stack, or continue it: together they would be evenly spaced."""
    normal = slice_normal(stack[0])
    places = [_projection(header, normal) for header in group if abs(float(slice_normal(header) @ normal)) > 0.99]
    own = sorted(_projection(header, normal) for header in stack)
    distinct = [own[0], *(b for a, b in pairwise(own) if b - a > STEP_TOLERANCE_MM)]
    if len(distinct) < 2:
        return
    alone = [[place] for place in places]
    for strays in [*alone, places] if len(places) > 1 else alone:
        if _is_even(np.sort([*distinct, *strays])):
            raise InputRefusedError(
                "one slice differs in size, orientation, pixel spacing or kind from its neighbours",
                f"at {strays[0]:.2f} mm along the slice normal",
                _EXPORT_AGAIN,
            )


def _is_even(places: FloatArray) -> bool:
    steps = np.diff(places)
    mean = float(steps.mean())
    return bool(np.abs(steps - mean).max() <= max(STEP_TOLERANCE_MM, 2 * STEP_TOLERANCE * mean))


# ---- one stack into repeat-free ones ---------------------------------------------------------------------------------


def split_repeats(headers: Sequence[Header]) -> list[Stack]:
    """Returns one stack, or several when positions repeat (echoes, phases, time points, b-values, energies).

    The first tag, or else pair of tags, wins whose values cut the slices into groups that each hold every position
    once.

    Raises:
        InputRefusedError: No tag tells the repeats apart.
    """
    places = _places(headers)
    count = max(places) + 1
    if count == len(headers):
        return [Stack(tuple(headers))]
    if len(headers) % count == 0:
        for tags in _candidates(headers):
            groups = _groups(headers, tags)
            if _complete(groups, headers, places, count):
                return _named(groups, tags)
        runs = _runs(headers, places, count)
        if runs is not None:
            return [
                Stack(tuple(run), f"time{number}", (_split_note("InstanceNumber", number, len(runs), count),))
                for number, run in enumerate(runs, start=1)
            ]
    raise InputRefusedError(
        f"{len(headers)} slices at {count} positions, and no tag tells the repeats apart",
        remedy="export one series for each echo, phase or time point",
    )


def _places(headers: Sequence[Header]) -> list[int]:
    """Returns for each slice the number of its position along the normal, counted from 0."""
    normal = slice_normal(headers[0])
    tolerance = min(STEP_TOLERANCE_MM, 0.1 * min(headers[0].pixel_spacing or (1.0,)))
    projections = np.array([_projection(header, normal) for header in headers])
    order = np.argsort(projections, kind="stable")
    rank = np.concatenate([[0], np.cumsum(np.diff(projections[order]) > tolerance)])
    places = np.empty(len(headers), dtype=int)
    places[order] = rank
    return [int(place) for place in places]


def _candidates(headers: Sequence[Header]) -> Iterable[tuple[SplitTag, ...]]:
    """Yields the tags that differ between slices, then all pairs of them."""
    differing = [tag for tag in SPLIT_TAGS if len({header.split.get(tag.tag) for header in headers}) > 1]
    yield from ((tag,) for tag in differing)
    yield from combinations(differing, 2)


def _groups(headers: Iterable[Header], tags: tuple[SplitTag, ...]) -> dict[Any, list[Header]]:
    """Returns the slices by their values of the tags."""
    groups: dict[Any, list[Header]] = {}
    for header in headers:
        groups.setdefault(tuple(header.split.get(tag.tag) for tag in tags), []).append(header)
    return groups


def _complete(groups: dict[Any, list[Header]], headers: Sequence[Header], places: Sequence[int], count: int) -> bool:
    """Whether each group holds every position exactly once."""
    place = {id(header): number for header, number in zip(headers, places, strict=True)}
    return all(len(group) == count and len({place[id(one)] for one in group}) == count for group in groups.values())


def _named(groups: dict[Any, list[Header]], tags: tuple[SplitTag, ...]) -> list[Stack]:
    """Returns the groups in the order of their values, with what tells them apart."""
    ordered = sorted(groups, key=lambda values: tuple((value is not None, value) for value in values))
    ranks = [_ranks(ordered, axis) for axis in range(len(tags))]
    stacks = []
    for number, values in enumerate(ordered, start=1):
        words = [f"{tag.word}{ranks[axis][values[axis]]}" for axis, tag in enumerate(tags)]
        told = [text for tag, value in zip(tags, values, strict=True) if (text := _told(tag, value))]
        note = _split_note(" and ".join(tag.word for tag in tags), number, len(ordered), len(groups[values]))
        stacks.append(
            Stack(tuple(groups[values]), "-".join(words), (note + (f" ({', '.join(told)})" if told else ""),))
        )
    return stacks


def _ranks(ordered: Sequence[tuple[Any, ...]], axis: int) -> dict[Any, int]:
    """Returns the number of each value of one tag, counted from 1 in ascending order, a missing value first."""
    distinct = sorted({values[axis] for values in ordered}, key=lambda value: (value is not None, value))
    return {value: number for number, value in enumerate(distinct, start=1)}


def _told(tag: SplitTag, value: Any) -> str:
    """Returns a value for a note; empty where it may hold free text or a time."""
    if tag.unit is None or value is None:
        return ""
    number = value[0] if isinstance(value, tuple) else value
    return f"{tag.word} {number:g} {tag.unit}".strip()


def _split_note(by: str, number: int, total: int, slices: int) -> str:
    return f"positions repeat: split by {by} into {total} stacks of {slices} slices, this is number {number}"


def _runs(headers: Sequence[Header], places: Sequence[int], count: int) -> list[list[Header]] | None:
    """Returns the stacks when instance numbers run through whole stacks one after the other, always in one order."""
    numbers = [header.instance for header in headers]
    if None in numbers or len(set(numbers)) != len(numbers):
        return None
    order = sorted(range(len(headers)), key=lambda index: numbers[index] or 0)
    chunks = [order[start : start + count] for start in range(0, len(order), count)]
    visits = {tuple(places[index] for index in chunk) for chunk in chunks}
    if len(visits) != 1 or len(set(next(iter(visits)))) != count:
        return None
    return [[headers[index] for index in chunk] for chunk in chunks]


# ---- one stack on a grid --------------------------------------------------------------------------------------------


def lay_out(
    stack: Stack,
    options: IntakeOptions = IntakeOptions(),  # noqa: B008
) -> tuple[Stack, Geometry, Regrid | None, dict[str, Any]]:
    """Returns the stack in slice order, its grid, how slices come onto it, and the switches that were used.

    The grid's axes are the row direction (X), the column direction (Y) and the slice normal; its first voxel is the
    first slice's position. So it is rectangular by construction, and what that leaves out has been measured to be
    below the tolerances.

    Raises:
        InputRefusedError: Slices are missing, unevenly spaced or drift sideways; or the step of a single slice is
            not known.
    """
    first = stack.headers[0]
    row, column = _directions(first)
    normal = np.cross(row, column)
    headers = tuple(sorted(stack.headers, key=lambda header: (_projection(header, normal), header.sop_uid)))
    positions = np.array([header.position for header in headers], dtype=np.float64)
    notes = list(stack.notes)
    if len(headers) == 1:
        step = _single_step(headers[0])
        notes.append("a single slice: its thickness is taken from the header")
    else:
        along = (positions - positions[0]) @ normal
        _check_steps(along, float(positions[0] @ normal))
        _check_drift(positions, row, column, normal, first.pixel_spacing or (1.0, 1.0))
        step = float(along[-1]) / (len(headers) - 1)
    between_rows, between_columns = first.pixel_spacing or (1.0, 1.0)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = row * between_columns, column * between_rows, normal * step
    affine[:3, 3] = positions[0]
    geometry = Geometry.from_lps((first.columns, first.rows, len(headers)), affine)
    return replace(stack, headers=headers, notes=tuple(notes)), geometry, None, {}


def slice_normal(header: Header) -> FloatArray:
    """Returns the unit vector across the slice (row direction x column direction), LPS."""
    row, column = _directions(header)
    return np.asarray(np.cross(row, column), dtype=np.float64)


def _directions(header: Header) -> tuple[FloatArray, FloatArray]:
    """Returns the unit vectors along a row and along a column, exactly perpendicular.

    Raises:
        InputRefusedError: The header's cosines are no two perpendicular unit vectors.
    """
    cosines = np.array(header.orientation or (0.0,) * 6, dtype=np.float64)
    row, column = cosines[:3], cosines[3:]
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(length - 1.0) for length in lengths) > 1e-2 or abs(float(row @ column)) > 1e-3:
        raise InputRefusedError(
            "the slice orientation in the header is no pair of perpendicular unit vectors", remedy=_EXPORT_AGAIN
        )
    row = row / lengths[0]
    column = column - (column @ row) * row
    return row, column / np.linalg.norm(column)


def _projection(header: Header, normal: FloatArray) -> float:
    return float(np.array(header.position, dtype=np.float64) @ normal)


def _single_step(header: Header) -> float:
    step = header.between or header.thickness
    if step is None or not math.isfinite(step) or abs(step) <= 0:
        raise InputRefusedError(
            "a single slice whose thickness the header does not tell", remedy="give the whole series of slices"
        )
    return abs(step)


def _check_steps(along: FloatArray, origin: float) -> None:
    """Refuses missing slices and uneven steps.

    Args:
        along: Sorted positions along the normal in mm, the first one 0.
        origin: Position of the first slice along the normal, for messages.
    """
    steps = np.diff(along)
    common = _commonest(steps)
    tolerance = max(STEP_TOLERANCE_MM, STEP_TOLERANCE * common)
    multiples = np.maximum(np.rint(steps / common), 1)
    off = np.abs(steps - multiples * common) > tolerance * multiples
    if not off.any() and (multiples > 1).any():
        gaps = [
            f"{int(multiple) - 1} between {origin + a:.2f} and {origin + b:.2f} mm"
            for (a, b), multiple in zip(pairwise(along), multiples, strict=True)
            if multiple > 1
        ]
        missing = int((multiples - 1).sum())
        raise InputRefusedError(
            f"{missing} slice{'s are' if missing > 1 else ' is'} missing",
            f"{_some(gaps)} along the slice normal",
            "add the missing files, or " + _EXPORT_AGAIN,
        )
    even = along[-1] / len(steps) * np.arange(len(along))
    drift = float(np.abs(along - even).max())
    uneven = origin + float(along[int(np.argmax(np.abs(steps - common)))])
    if off.any() or drift > max(STEP_TOLERANCE_MM, PLACE_TOLERANCE * common):
        raise InputRefusedError(
            f"the slices are not evenly spaced: steps of {steps.min():.3f} to {steps.max():.3f} mm",
            f"the most uneven step begins at {uneven:.2f} mm along the slice normal",
            "give a series with even steps (reconstruct it again, or resample it with other software)",
        )


def _some(items: Sequence[str], most: int = 3) -> str:
    rest = len(items) - most
    return ", ".join(items[:most]) + (f" and {rest} more" if rest > 0 else "")


def _commonest(steps: FloatArray) -> float:
    """Returns the step that most others agree with; the smallest of several."""
    tolerance = np.maximum(STEP_TOLERANCE_MM, STEP_TOLERANCE * steps)
    agreeing = (np.abs(steps[:, None] - steps[None, :]) <= tolerance[:, None]).sum(axis=1)
    best = steps[agreeing == agreeing.max()].min()
    close = steps[np.abs(steps - best) <= max(STEP_TOLERANCE_MM, STEP_TOLERANCE * best)]
    return float(np.median(close))


def _check_drift(
    positions: FloatArray, row: FloatArray, column: FloatArray, normal: FloatArray, spacing: tuple[float, ...]
) -> None:
    """Refuses a stack whose slices move sideways: a tilted gantry, or slices of different centres."""
    offsets = positions - positions[0]
    sideways = np.stack([offsets @ row / spacing[1], offsets @ column / spacing[0]], axis=1)
    worst = float(np.abs(sideways).max())
    if worst <= DRIFT_TOLERANCE_PIXELS:
        return
    length = float(offsets[-1] @ normal)
    moved = float(np.linalg.norm(offsets - np.outer(offsets @ normal, normal), axis=1).max())
    straight = np.outer(np.linspace(0.0, 1.0, len(offsets)), sideways[-1])
    if float(np.abs(sideways - straight).max()) <= max(DRIFT_TOLERANCE_PIXELS, 0.02 * worst):
        what = f"the stack is tilted by {math.degrees(math.atan2(moved, length)):.2f} degrees (gantry tilt)"
    else:
        what = "the slices are not above each other"
    raise InputRefusedError(
        f"{what}: they move sideways by {moved:.2f} mm over {length:.1f} mm",
        remedy="regrid the series to a rectangular grid with other software (for example dcm2niix) and give that",
    )
