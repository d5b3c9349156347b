"""From the headers of one DICOM series to stacks of slices that are a grid, or a reason why they are none.

Slices are sorted by their position projected on the slice normal; instance numbers and file names decide nothing.
What is measured is compared with tolerances in mm, and a stack beyond them is refused: it would be loaded wrong.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.errors import InputRefusedError
from unet_med.geometry import Geometry
from unet_med.io.dicom import EXPORT_AGAIN
from unet_med.io.dicom.headers import SPLIT_ORDER, SPLIT_TAGS, Header, SplitTag
from unet_med.io.dicom.slices import Regrid
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

STILL_PIXELS = 0.01
"""An axis along which untilted slices drift less is left as it is stored."""

MOST_TILT_DEGREES = 45.0
"""A stack that leans over further is no tilted one."""

MOST_PLANES = 3
"""Planes of a grid for each stored slice; beyond that interpolation would make up most of the volume."""

MOST_STACKS = 256
"""A series of more orientations and sizes is refused: radial slices, or none that belong together."""

SMALL_STACK = 3
"""A stack of so few slices beside a bigger one is a scout."""

_CALLED_BY_VALUE = frozenset({"b", "energy"})

_KNOWN_TYPES = frozenset(
    {
        *("M", "P", "R", "I", "MAGNITUDE", "PHASE", "PHASE MAP", "REAL", "IMAGINARY", "MIXED", "FFE", "SE", "IR"),
        *("WATER", "FAT", "W", "F", "IP", "OP", "IN_PHASE", "OUT_PHASE", "OPP_PHASE", "FAT_FRACTION", "T1", "T2"),
        *("T2 MAP", "T1 MAP", "T2_STAR", "R2_STAR", "FIELD_MAP", "B0", "DIFFUSION", "ADC", "TRACEW", "TRACE", "FA"),
        *("ISOTROPIC", "EADC", "EXP", "MEAN", "MAXIMUM", "MINIMUM", "MEDIAN", "SUM", "STDDEV", "ORIGINAL", "DERIVED"),
        *("PRIMARY", "SECONDARY", "AXIAL", "AVERAGE", "MIP", "MINIP", "MPR", "SUBTRACT", "SUB", "PERFUSION", "RCBV"),
        *("VOLUME", "NORM", "DIS2D", "DIS3D", "ND", "MONO", "VMI", "IODINE", "VNC", "LOW", "HIGH", "CBF", "CBV", "MTT"),
    }
)
"""Words of ImageType that may be printed; anything else there could be free text."""


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
    """Returns the slices grouped by size, orientation, pixel spacing, frame of reference and kind, biggest first.

    Where a series has one frame of reference, slices without one belong to it.

    Raises:
        InputRefusedError: There are more groups than any series of volumes has.
    """
    groups: list[list[Header]] = []
    frames = {header.frame_uid for header in headers} - {""}
    only = frames.pop() if len(frames) == 1 else ""
    known: dict[Any, list[Header]] = {}
    for header in headers:
        key = _kind(header, only), header.orientation, header.pixel_spacing
        home = known.get(key) or next((group for group in groups if _alike(group[0], header, only)), None)
        if home is None:
            groups.append([header])
            home = groups[-1]
        else:
            home.append(header)
        known[key] = home
        if len(groups) > MOST_STACKS:
            raise InputRefusedError(
                f"the slices lie in more than {MOST_STACKS} different planes or sizes and make no volume",
                remedy="give a series of parallel slices",
            )
    return sorted(groups, key=lambda group: (-len(group), _first_corner(group)))


def _alike(a: Header, b: Header, frame_uid: str) -> bool:
    return _kind(a, frame_uid) == _kind(b, frame_uid) and (
        (a.orientation == b.orientation and a.pixel_spacing == b.pixel_spacing)
        or (
            all(abs(x - y) <= ORIENTATION_TOLERANCE for x, y in _pairs(a.orientation, b.orientation))
            and all(abs(x - y) <= SPACING_TOLERANCE * x for x, y in _pairs(a.pixel_spacing, b.pixel_spacing))
        )
    )


def _kind(header: Header, frame_uid: str) -> tuple[Any, ...]:
    return header.rows, header.columns, header.frame_uid or frame_uid, header.modality, header.photometric


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
                EXPORT_AGAIN,
            )


def _is_even(places: FloatArray) -> bool:
    steps = np.diff(places)
    mean = float(steps.mean())
    return bool(np.abs(steps - mean).max() <= max(STEP_TOLERANCE_MM, 2 * STEP_TOLERANCE * mean))


# ---- one stack into repeat-free ones ---------------------------------------------------------------------------------


def split_repeats(headers: Sequence[Header]) -> list[Stack]:
    """Returns one stack, or several when positions repeat (echoes, phases, time points, b-values, energies).

    The first tag wins whose values cut the slices into groups that each hold every position once; else the first pair,
    else the first three tags. Slices of different echoes are never one stack, even where no position repeats.

    Raises:
        InputRefusedError: No tag tells the repeats apart.
    """
    places = _places(headers)
    count = max(places) + 1
    if count == len(headers):
        echoes = _groups(headers, SPLIT_TAGS[:1])
        return _named(echoes, SPLIT_TAGS[:1]) if len(echoes) > 1 else [Stack(tuple(headers))]
    if len(headers) % count == 0:
        tags = _splitting(headers, places, count)
        if tags:
            return _named(_groups(headers, tags), tags)
        runs = _runs(headers, places, count)
        if runs is not None:
            return [
                Stack(tuple(run), f"time{number}", (_split_note("InstanceNumber", number, len(runs), count),))
                for number, run in enumerate(runs, start=1)
            ]
    raise InputRefusedError(
        f"{len(headers)} slices at {count} positions, and no tag tells the repeats apart",
        _odd_places(headers, places),
        "export one series for each echo, phase or time point, or remove the surplus files",
    )


def _odd_places(headers: Sequence[Header], places: Sequence[int]) -> str:
    """Says which positions do not hold as many slices as most do; empty where all hold the same."""
    counts = Counter(places)
    usual = Counter(counts.values()).most_common(1)[0][0]
    normal = slice_normal(headers[0])
    odd: dict[int, str] = {}
    for place, header in sorted(zip(places, headers, strict=True), key=lambda pair: pair[0]):
        if counts[place] != usual:
            odd[place] = f"{counts[place]} at {_projection(header, normal):.2f} mm"
    return f"{_some(list(odd.values()))} along the slice normal, {usual} elsewhere" if odd else ""


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


def _splitting(headers: Sequence[Header], places: Sequence[int], count: int) -> tuple[SplitTag, ...]:
    """Returns the first tag, else pair, else three tags that give groups of every position once; empty for none."""
    number = len(headers) // count
    place = np.array(places)
    codes: list[tuple[SplitTag, int, npt.NDArray[np.int64]]] = []
    for tag in SPLIT_ORDER:
        known: dict[Any, int] = {}
        code = np.array([known.setdefault(header.split.get(tag.tag), len(known)) for header in headers], dtype=np.int64)
        if 1 < len(known) <= number:
            codes.append((tag, len(known), code))
    for size in (1, 2, 3):
        for chosen in combinations(codes, size):
            if math.prod(values for _, values, _ in chosen) < number:
                continue
            group = np.zeros(len(headers), dtype=np.int64)
            for _, values, code in chosen:
                group = group * values + code
            if len(np.unique(group)) == number and len(np.unique(group * count + place)) == len(headers):
                return _with_b_value(tuple(chosen), codes, group, number)
    return ()


def _with_b_value(
    chosen: tuple[tuple[SplitTag, int, npt.NDArray[np.int64]], ...],
    codes: Sequence[tuple[SplitTag, int, npt.NDArray[np.int64]]],
    group: npt.NDArray[np.int64],
    number: int,
) -> tuple[SplitTag, ...]:
    """Returns the chosen tags; before a gradient direction the b-value too, where it differs and splits no further."""
    tags = tuple(tag for tag, _, _ in chosen)
    words = {tag.word for tag in tags}
    if "direction" in words and "b" not in words:
        for tag, values, code in codes:
            if tag.word == "b" and len(np.unique(group * values + code)) == number:
                return (tag, *tags)
    return tags


def _groups(headers: Iterable[Header], tags: tuple[SplitTag, ...]) -> dict[Any, list[Header]]:
    """Returns the slices by their values of the tags."""
    groups: dict[Any, list[Header]] = {}
    for header in headers:
        groups.setdefault(tuple(header.split.get(tag.tag) for tag in tags), []).append(header)
    return groups


def _named(groups: dict[Any, list[Header]], tags: tuple[SplitTag, ...]) -> list[Stack]:
    """Returns the groups in the order of their values, with what tells them apart."""
    ordered = sorted(groups, key=lambda values: tuple((value is not None, value) for value in values))
    names = [_names(ordered, axis, tag) for axis, tag in enumerate(tags)]
    told = _told([groups[values] for values in ordered])
    stacks = []
    for number, values in enumerate(ordered):
        suffix = "-".join(f"{tag.word}{names[axis][values[axis]]}" for axis, tag in enumerate(tags))
        note = _split_note(
            " and ".join(tag.word.rstrip("-") for tag in tags), number + 1, len(ordered), len(groups[values])
        )
        stacks.append(Stack(tuple(groups[values]), suffix, (note + told[number],)))
    return stacks


def _names(ordered: Sequence[tuple[Any, ...]], axis: int, tag: SplitTag) -> dict[Any, int]:
    """Returns what each value of one tag is called in an id.

    B-values and tube voltages are called by their number (b0, b1000; energy80); others are counted from 1 in ascending
    order, a missing value first.
    """
    distinct = sorted({values[axis] for values in ordered}, key=lambda value: (value is not None, value))
    if tag.word in _CALLED_BY_VALUE and None not in distinct:
        rounded = [round(_first_number(value)) for value in distinct]
        if len(set(rounded)) == len(distinct) and min(rounded) >= 0:
            return dict(zip(distinct, rounded, strict=True))
    return {value: number for number, value in enumerate(distinct, start=1)}


def _first_number(value: Any) -> float:
    return float(value[0] if isinstance(value, tuple) else value)


def _told(groups: Sequence[Sequence[Header]]) -> list[str]:
    """Returns for each group the values that tell it from the others, where they hold no free text and no time."""
    words: list[list[str]] = [[] for _ in groups]
    for tag in SPLIT_ORDER:
        values = [{header.split.get(tag.tag) for header in group} for group in groups]
        if any(len(own) != 1 for own in values) or len(set.union(*values)) == 1:
            continue
        for text, own in zip(words, values, strict=True):
            value = next(iter(own))
            if tag.unit is not None and value is not None:
                text.append(f"{tag.word} {_first_number(value):g} {tag.unit}".strip())
    for text, own_types in zip(words, _types(groups), strict=True):
        text += own_types
    return [f" ({', '.join(dict.fromkeys(text))})" if text else "" for text in words]


def _types(groups: Sequence[Sequence[Header]]) -> list[list[str]]:
    """Returns for each group the words of its image types that not all groups share; only codes that are known."""
    types = [set.intersection(*({*header.image_type} for header in group)) for group in groups]
    shared = set.intersection(*types)
    return [sorted((own - shared) & _KNOWN_TYPES) for own in types]


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

    With ``options.untilt``, ``resample_slices`` or ``allow_gaps`` the grid may differ from the slices: its planes stay
    parallel to them, it is enlarged so that no voxel of any slice is lost, and the :class:`Regrid` says where they lie.

    Raises:
        InputRefusedError: Slices are missing, unevenly spaced or drift sideways, and the switch for that is off; or the
            step of a single slice is not known.
    """
    first = stack.headers[0]
    row, column = _directions(first)
    normal = np.cross(row, column)
    headers = tuple(sorted(stack.headers, key=lambda header: (_projection(header, normal), header.sop_uid)))
    positions = np.array([header.position for header in headers], dtype=np.float64)
    between_rows, between_columns = first.pixel_spacing or (1.0, 1.0)
    offsets = positions - positions[0]
    if len(headers) == 1:
        planes = _Planes(
            np.zeros(1), 1, _single_step(first), ("a single slice: its thickness is taken from the header",)
        )
    else:
        planes = _planes(offsets @ normal, float(positions[0] @ normal), options)
    sideways = np.stack([offsets @ row / between_columns, offsets @ column / between_rows], axis=1)
    moved = np.linalg.norm(offsets - np.outer(offsets @ normal, normal), axis=1)
    shifts, tilt = _shifts(sideways, offsets @ normal, moved, options)
    low, high = shifts.min(axis=0), shifts.max(axis=0)
    width, height = (n + math.ceil(b - a) for n, a, b in zip((first.columns, first.rows), low, high, strict=True))
    notes, used = [*stack.notes, *planes.notes], dict.fromkeys(planes.switches, True)
    if tilt:
        notes.append(f"{tilt}: regridded from {first.columns} x {first.rows} to {width} x {height} voxels")
        used["untilt"] = True
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = row * between_columns, column * between_rows, normal * planes.step
    affine[:3, 3] = positions[0] + affine[:3, :2] @ low
    geometry = Geometry.from_lps((width, height, planes.count), affine)
    origins = np.column_stack([shifts - low, planes.heights])
    regrid = Regrid(tuple((float(x), float(y), float(k)) for x, y, k in origins), (width, height, planes.count))
    return replace(stack, headers=headers, notes=tuple(notes)), geometry, regrid if used else None, used


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
            "the slice orientation in the header is no pair of perpendicular unit vectors", remedy=EXPORT_AGAIN
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


@dataclass(frozen=True, eq=False)
class _Planes:
    """The planes of a grid along the slice normal.

    Attributes:
        heights: (slices,) place of each slice, in steps.
        count: Number of planes.
        step: Distance of planes in mm.
        notes: What was done to the slices.
        switches: The options that were needed.
    """

    heights: FloatArray
    count: int
    step: float
    notes: tuple[str, ...] = ()
    switches: tuple[str, ...] = ()


def _planes(along: FloatArray, origin: float, options: IntakeOptions) -> _Planes:
    """Returns the planes that hold the slices.

    Args:
        along: Sorted positions along the normal in mm, the first one 0.
        origin: Position of the first slice along the normal, for messages.
        options: ``allow_gaps`` and ``resample_slices``.

    Raises:
        InputRefusedError: Slices are missing or unevenly spaced, and the switch for that is off.
    """
    steps = np.diff(along)
    common = _commonest(steps)
    tolerance = max(STEP_TOLERANCE_MM, STEP_TOLERANCE * common)
    multiples = np.maximum(np.rint(steps / common), 1)
    heights = np.concatenate([[0.0], np.cumsum(multiples)])
    step = float(along[-1] / heights[-1])
    away = float(np.abs(along - step * heights).max())
    agreeing = int((np.abs(steps - common) <= tolerance).sum())
    if (
        (np.abs(steps - multiples * common) > tolerance * multiples).any()
        or away > max(STEP_TOLERANCE_MM, PLACE_TOLERANCE * common)
        or (len(steps) > 2 and agreeing < max(2, len(steps) / 3))
    ):
        return _resampled(along, origin, common, options)
    count = int(heights[-1]) + 1
    missing = count - len(along)
    if not missing:
        return _Planes(heights, count, step)
    gaps = [
        f"{int(multiple) - 1} between {origin + a:.2f} and {origin + b:.2f} mm"
        for (a, b), multiple in zip(pairwise(along), multiples, strict=True)
        if multiple > 1
    ]
    what, where = f"{missing} slice{'s are' if missing > 1 else ' is'} missing", f"{_some(gaps)} along the slice normal"
    if not options.allow_gaps:
        raise InputRefusedError(
            what, where, f"add the missing files, {EXPORT_AGAIN}, or fill gaps by interpolation with --allow-gaps"
        )
    _check_density(count, len(along), where)
    return _Planes(heights, count, step, (f"{what}: filled by linear interpolation, {where}",), ("allow_gaps",))


def _resampled(along: FloatArray, origin: float, common: float, options: IntakeOptions) -> _Planes:
    """Returns even planes from the first to the last of slices with uneven steps, where the options allow it."""
    steps = np.diff(along)
    what = f"the slices are not evenly spaced: steps of {steps.min():.3f} to {steps.max():.3f} mm"
    uneven = origin + float(along[int(np.argmax(np.abs(steps - common)))])
    where = f"the most uneven step begins at {uneven:.2f} mm along the slice normal"
    tolerance = max(STEP_TOLERANCE_MM, STEP_TOLERANCE * common)
    if 2 * int((np.abs(steps - common) <= tolerance).sum()) < len(steps):
        common = float(np.median(steps))
    gaps = int((steps >= 2 * common - tolerance).sum())
    if not options.resample_slices:
        raise InputRefusedError(
            what,
            where,
            "give a series with even steps, or interpolate onto even ones with --resample-slices"
            + (" --allow-gaps" if gaps else ""),
        )
    if gaps and not options.allow_gaps:
        wide = "step is" if gaps == 1 else "steps are"
        raise InputRefusedError(
            f"{what}, and {gaps} {wide} at least twice the usual one of {common:.3f} mm: slices may be missing",
            where,
            "add the missing files, or interpolate over gaps too with --allow-gaps",
        )
    count = max(round(float(along[-1]) / common), 1) + 1
    _check_density(count, len(along), where)
    step = float(along[-1]) / (count - 1)
    note = (
        f"steps of {steps.min():.3f} to {steps.max():.3f} mm: {len(along)} slices interpolated linearly onto {count} "
        f"at every {step:.3f} mm"
    )
    switches = ("resample_slices", "allow_gaps") if gaps else ("resample_slices",)
    return _Planes(np.round(along / step, 6), count, step, (note,), switches)


def _check_density(planes: int, slices: int, where: str) -> None:
    """Refuses to make up most of a volume."""
    if planes > MOST_PLANES * slices:
        raise InputRefusedError(
            f"{slices} slices are too few to fill {planes} planes by interpolation",
            where,
            "add the missing files, or remove the slice that lies far from the others",
        )


def _some(items: Sequence[str], most: int = 3) -> str:
    rest = len(items) - most
    return ", ".join(items[:most]) + (f" and {rest} more" if rest > 0 else "")


def _commonest(steps: FloatArray) -> float:
    """Returns the step that most others agree with; the smallest of several."""
    tolerance = np.maximum(STEP_TOLERANCE_MM, STEP_TOLERANCE * steps)
    ordered = np.sort(steps)
    agreeing = np.searchsorted(ordered, steps + tolerance, "right") - np.searchsorted(ordered, steps - tolerance)
    best = steps[agreeing == agreeing.max()].min()
    close = steps[np.abs(steps - best) <= max(STEP_TOLERANCE_MM, STEP_TOLERANCE * best)]
    return float(np.median(close))


def _shifts(
    sideways: FloatArray, along: FloatArray, moved: FloatArray, options: IntakeOptions
) -> tuple[FloatArray, str]:
    """Returns how far slices lie sideways of the first one, in pixels, and what is to be said of it.

    Args:
        sideways: (slices, 2) in-plane position against the first slice, in pixels.
        along: (slices,) position along the slice normal in mm, against the first slice.
        moved: (slices,) length of ``sideways`` in mm.
        options: ``untilt``.

    Returns:
        (slices, 2) pixels, all 0 within the tolerance; a note, empty where nothing has to be moved.

    Raises:
        InputRefusedError: The slices are of different centres; or they are tilted and ``untilt`` is off.
    """
    worst = float(np.abs(sideways).max())
    if worst <= DRIFT_TOLERANCE_PIXELS:
        return np.zeros_like(sideways), ""
    far, length = float(moved.max()), float(along[-1])
    what = f"they move sideways by {far:.2f} mm over {length:.1f} mm"
    straight = np.outer(along / length, sideways[-1])
    angle = math.degrees(math.atan2(far, length))
    if (
        float(np.abs(sideways - straight).max()) > max(DRIFT_TOLERANCE_PIXELS, 0.02 * worst)
        or angle > MOST_TILT_DEGREES
    ):
        raise InputRefusedError(
            f"the slices are not above each other: {what}",
            remedy=f"{EXPORT_AGAIN}; slices of different centres, or steeply slanted ones, make no volume",
        )
    tilt = f"the stack is tilted by {angle:.2f} degrees (gantry tilt)"
    if not options.untilt:
        raise InputRefusedError(f"{tilt}: {what}", remedy="regrid it to a rectangular grid with --untilt")
    shifts = np.round(sideways, 6)
    shifts[:, np.ptp(shifts, axis=0) <= STILL_PIXELS] = 0.0
    return shifts, f"{tilt}, {what}"
