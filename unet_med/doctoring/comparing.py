"""Labels that are unlike those of the other cases: inverted, misplaced, swapped, interpolated.

A case is told apart by measures that are alike in the others: how far it lies from their median is counted in their own
spread. What is found so may be as it should be, so it is a warning. With fewer than five cases nothing is said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from unet_med.doctoring.findings import Interpolated
from unet_med.doctoring.labelling import BORDER_SHARE, THICK_SHARE, LabelMeasures
from unet_med.doctoring.looking import Seen, grey_of, labels_of
from unet_med.doctoring.place import LEAST_SHIFT_VOXELS, Placement, best_shift
from unet_med.doctoring.thinning import step_of, thinned
from unet_med.errors import InputRefusedError
from unet_med.io.cases import Case
from unet_med.manifest import Finding, LabelScan
from unet_med.manifest.values import FIX

FEWEST_CASES = 5
"""With fewer labelled cases none is compared with the others."""

FAR = 6.0
"""Further from the median than this, in robust standard deviations, is unlike the others."""

_SUSPICIOUS = 4.0
_SEVERAL = 3
_MAD_TO_SD = 1.4826
_LOOK = "look at it with `unet-med check M.json --html PAGE.html`"


@dataclass(frozen=True)
class _Spread:
    """Median of the cases, and their robust standard deviation (from the median absolute deviation)."""

    median: float
    sd: float

    @classmethod
    def of(cls, values: Sequence[float], least: float = 0.0) -> _Spread:
        median = float(np.median(values))
        return cls(median, max(least, _MAD_TO_SD * float(np.median(np.abs(np.array(values) - median)))))


@dataclass(frozen=True)
class _Measured:
    """A case with all its measures."""

    id: str
    label: LabelMeasures
    placement: Placement
    seen: Seen


def compare_labels(
    seen: Sequence[Seen], names: Mapping[int, str], between: Mapping[str, tuple[int, ...]], ignore: int | None
) -> list[Finding]:
    """Finds labels that are unlike those of the other cases; one that is odd in one way is not asked for the next.

    Args:
        seen: All cases.
        names: Value -> name of each label.
        between: See :func:`made_between`.
        ignore: Value of voxels that nobody labelled.
    """
    cases = [
        _Measured(one.case.id, one.label, one.placement, one)
        for one in seen
        if one.label is not None and one.placement is not None
    ]
    findings = interpolated(seen, between)
    looks: tuple[Callable[[Sequence[_Measured]], list[Finding]], ...] = (
        inverted,
        outside,
        lambda rest: shifted(rest, ignore),
        lambda rest: swapped(rest, names),
    )
    for look in looks:
        odd = {finding.case for finding in findings}
        findings += look([case for case in cases if case.id not in odd])
    return findings


# ---- interpolated ---------------------------------------------------------------------------------------------------


def made_between(seen: Sequence[Seen], names: Mapping[int, str]) -> dict[str, tuple[int, ...]]:
    """Returns for each case the stored values that only interpolation makes; cases without such values are left out.

    They are several, occur everywhere between two others, nobody named them, and most cases that hold them do not show
    them alone or thick. A single value that is thin may be a wall.
    """
    known = [(one, one.label, one.scan) for one in seen if one.label is not None and one.scan is not None]
    things = {one.case.id: _things(label, scan) for one, label, scan in known}
    own = Counter(value for values in things.values() for value in values)
    made = Counter(value for _, label, _ in known for value, share in label.between.items() if share >= BORDER_SHARE)
    found: dict[str, tuple[int, ...]] = {}
    for one, label, _ in known:
        meaning = one.case.case.label_values or {}
        unnamed = [value for value in (*label.between, *label.rare) if not _is_named(meaning.get(value, value), names)]
        sure = [
            value for value in unnamed if label.between.get(value, 0.0) >= BORDER_SHARE and own[value] < made[value]
        ]
        if len(sure) >= _SEVERAL:
            found[one.case.id] = tuple(sorted(value for value in unnamed if value in sure or not own[value]))
    return found


def _things(label: LabelMeasures, scan: LabelScan) -> set[int]:
    """Returns the values that a label shows alone, or thick: no interpolation made them."""
    thick = {value for value, share in label.between.items() if share <= THICK_SHARE}
    return {*scan.values[:1], *scan.values[-1:], *thick}


def _is_named(value: int, names: Mapping[int, str]) -> bool:
    return names.get(value, f"label_{value}") != f"label_{value}"


def interpolated(seen: Sequence[Seen], between: Mapping[str, tuple[int, ...]]) -> list[Finding]:
    """Labels that were interpolated.

    Either they hold values that only interpolation makes; or a value that other cases show alone stands between two
    others at all of their common borders.

    Args:
        seen: All cases.
        between: See :func:`made_between`.
    """
    filled = _filled_in([one for one in seen if one.case.id not in between])
    findings: list[Finding] = []
    for one in seen:
        values = between.get(one.case.id, ())
        if values:
            shown = ", ".join(map(str, values[:4])) + (", ..." if len(values) > 4 else "")
            what = f"the label was interpolated: it holds the values {shown} only at borders of others"
            findings.append(Interpolated(one.case.id, "error", what, FIX, "resampled_edges", values))
        elif one.case.id in filled:
            what = "the label seems interpolated: its labels never touch where they do in the other cases"
            remedy = "resample it again with nearest neighbour"
            findings.append(Finding(one.case.id, "warning", what, remedy, "resampled_edges"))
    return findings


def _filled_in(seen: Sequence[Seen]) -> set[str]:
    known = [(one.case.id, one.label) for one in seen if one.label is not None and one.label.direct is not None]
    if len(known) < FEWEST_CASES:
        return set()
    usual = float(np.median([label.direct for _, label in known if label.direct is not None]))
    if usual < 0.2:
        return set()
    return {
        case
        for case, label in known
        if label.direct is not None and label.direct < 0.1 * usual and label.ramps > 0.3 * usual
    }


# ---- inverted -------------------------------------------------------------------------------------------------------


def inverted(cases: Sequence[_Measured]) -> list[Finding]:
    """Labels whose background and foreground seem to have changed places.

    Such a label fills about as much of its image as the others leave free, and the border of the image with it.
    """
    if len(cases) < FEWEST_CASES:
        return []
    if all(case.label.share > 0.5 and case.label.border_share > 0.99 for case in cases):
        what = "in every case the label fills the border of the image and the background lies inside"
        remedy = 'if background and foreground were swapped, make the manifest with --label-values "0=1,1=0"'
        return [Finding("", "warning", what, remedy, "inverted")]
    shares = np.array([case.label.share for case in cases]).clip(1e-4, 1 - 1e-4)
    logits = np.log(shares / (1 - shares))
    usual = _Spread.of(logits.tolist())
    border = float(np.median([case.label.border_share for case in cases]))
    findings = []
    for case, logit in zip(cases, logits, strict=True):
        far = abs(logit - usual.median) > max(_SUSPICIOUS * usual.sd, 1.5)
        opposite = abs(logit + usual.median) <= max(3 * usual.sd, 1.0) and logit * usual.median < 0
        if far and opposite and (case.label.border_share - 0.5) * (border - 0.5) < 0:
            what = (
                f"background and foreground seem swapped: {case.label.share:.0%} of the image is labelled and its "
                f"border, in the other cases about {_share(usual.median):.0%}"
            )
            findings.append(Finding(case.id, "warning", what, f"{_LOOK}, and correct the label", "inverted"))
    return findings


def _share(logit: float) -> float:
    return float(1.0 / (1.0 + np.exp(-logit)))


# ---- in another place -----------------------------------------------------------------------------------------------


def outside(cases: Sequence[_Measured]) -> list[Finding]:
    """Labels that lie where the image shows nothing: on padding, or on air where others lie in the body."""
    findings = []
    empty = [case.placement.on_nothing for case in cases]
    known = {case.id: case.placement.on_air for case in cases if case.placement.on_air is not None}
    usual = _Spread.of(list(known.values()), 0.02) if len(known) >= FEWEST_CASES else None
    for case in cases:
        nothing, air = case.placement.on_nothing, case.placement.on_air
        alone = nothing >= 0.5 and len(cases) >= FEWEST_CASES and float(np.median(empty)) < 0.1
        if nothing >= 0.9 or alone:
            what = f"{nothing:.0%} of the label lies where the image holds its lowest value only"
        elif air is not None and usual is not None and air > max(0.6, usual.median + FAR * usual.sd):
            what = f"{air:.0%} of the label lies on air, in the other cases about {usual.median:.0%}"
        else:
            continue
        remedy = f"{_LOOK}; it may belong to another image"
        findings.append(Finding(case.id, "warning", what, remedy, "outside"))
    return findings


def shifted(cases: Sequence[_Measured], ignore: int | None) -> list[Finding]:
    """Labels that would stand out from their surroundings as the others do if they were moved."""
    contrasts = {case.id: case.placement.contrast for case in cases if case.placement.contrast is not None}
    if len(contrasts) < FEWEST_CASES:
        return []
    usual = _Spread.of(list(contrasts.values()))
    size, sign = abs(usual.median), float(np.sign(usual.median))
    sd = max(usual.sd, 0.05 * size)
    if size < 0.5 or size < 3 * sd:
        return []
    findings = []
    for case in cases:
        here = sign * contrasts.get(case.id, usual.median)
        if here > size - _SUSPICIOUS * sd:
            continue
        shift, contrast = _better_place(case.seen.case.case, ignore, sign)
        there = sign * contrast
        if there >= 0.9 * size and here <= 0.75 * there and max(map(abs, shift)) >= LEAST_SHIFT_VOXELS:
            move = ", ".join(f"{step:+d}" for step in shift)
            what = f"the label lies beside what it names: moved by about ({move}) voxels it would fit as in other cases"
            findings.append(Finding(case.id, "warning", what, f"{_LOOK}, and correct its place", "shifted"))
    return findings


def _better_place(case: Case, ignore: int | None, sign: float) -> tuple[tuple[int, ...], float]:
    frame, step = case.frames[0], step_of(case)
    opened = Case(case.id, case.sources, case.label, case.frame).open()
    try:
        image, label = thinned(opened.look(frame), step), thinned(opened.look_label(frame), step)
    except InputRefusedError:
        return (0,), 0.0  # the files have changed since they were looked at
    labelled = labels_of(case, label.array[0], ignore)[1] > 0
    shift, contrast = best_shift(grey_of(image.array), labelled, sign)
    return tuple(step * voxels for voxels in shift), contrast


# ---- swapped --------------------------------------------------------------------------------------------------------

_SIDES = (("left", "right"), ("back", "front"), ("feet", "head"))
"""What grows along the axes R, A and S, from and to."""

_MOST_LABELS = 12
_ALIKE = 0.9
_LEAST_DISTANCE = 0.1
_LEAST_SPREAD = 0.03
_MIDDLE = 0


def swapped(cases: Sequence[_Measured], names: Mapping[int, str]) -> list[Finding]:
    """Labels that lie the other way round than in the other cases: left for right, front for back.

    All pairs of labels are looked at (of very many labels those named left and right), and in volumes that know their
    place each label against the middle of the image, from left to right.
    """
    found: dict[str, tuple[float, str]] = {}
    for oriented in (True, False):
        alike = [case for case in cases if case.label.oriented is oriented]
        for ndim in sorted({_ndim(case) for case in alike}):
            members = [case for case in alike if _ndim(case) == ndim]
            for pair, axis in _questions(members, names):
                _ask(members, pair, axis, names, found)
    return [Finding(case, "warning", what, f"{_LOOK}, and correct it", "swapped") for case, (_, what) in found.items()]


def _ndim(case: _Measured) -> int:
    return len(next(iter(case.label.centres.values())))


def _questions(cases: Sequence[_Measured], names: Mapping[int, str]) -> list[tuple[tuple[int, int], int]]:
    """Returns pairs of labels and the axes along which to compare them; ``_MIDDLE`` is the middle of the image."""
    counts = Counter(value for case in cases for value in case.label.centres)
    labels = sorted(value for value, count in counts.items() if count >= FEWEST_CASES)
    if not labels:
        return []
    pairs = list(combinations(labels, 2))
    if len(labels) > _MOST_LABELS:
        pairs = [pair for pair in pairs if _opposite(pair, names)]
    questions = [(pair, axis) for pair in pairs for axis in range(_ndim(cases[0]))]
    return questions + [((value, _MIDDLE), 0) for value in labels if cases[0].label.oriented]


def _opposite(pair: tuple[int, int], names: Mapping[int, str]) -> bool:
    """Whether two labels are named alike but for their side."""
    one, other = (names.get(value, "").lower() for value in pair)
    return one != other and one.replace("left", "right") == other.replace("left", "right")


def _ask(
    cases: Sequence[_Measured],
    pair: tuple[int, int],
    axis: int,
    names: Mapping[int, str],
    found: dict[str, tuple[float, str]],
) -> None:
    """Adds the cases in which a pair lies the other way round; of several pairs the one furthest apart is told."""
    apart = {case.id: between[axis] for case in cases if (between := _apart(case, pair)) is not None}
    if len(apart) < FEWEST_CASES:
        return
    usual = _Spread.of(list(apart.values()))
    size = abs(usual.median)
    if size < _LEAST_DISTANCE:
        return
    sd = max(usual.sd, _LEAST_SPREAD)
    along = {case: distance * float(np.sign(usual.median)) for case, distance in apart.items()}
    wrong = [case for case, distance in along.items() if distance < -0.5 * size and size - distance > FAR * sd]
    right = [case for case, distance in along.items() if distance > 0.25 * size]
    others = len(apart) - len(wrong)
    if not wrong or len(wrong) > 0.2 * len(apart) or len(right) < _ALIKE * others:
        return
    what = _what_is_swapped(pair, axis, names, oriented=cases[0].label.oriented, others=others)
    weight = size * (2.0 if _opposite(pair, names) else 0.5 if _MIDDLE in pair else 1.0)
    for case in wrong:
        found[case] = max(found.get(case, (0.0, "")), (weight, what))


def _apart(case: _Measured, pair: tuple[int, int]) -> npt.NDArray[np.float64] | None:
    """Returns the way from the second label of a pair to the first; ``None`` where one is missing."""
    one, other = (case.label.centres.get(value) for value in pair)
    if one is None:
        return None
    if pair[1] == _MIDDLE:
        return one
    return None if other is None else one - other


def _what_is_swapped(pair: tuple[int, int], axis: int, names: Mapping[int, str], *, oriented: bool, others: int) -> str:
    one, other = (names.get(value, f"label {value}") for value in pair)
    way = f"{_SIDES[axis][0]} and {_SIDES[axis][1]}" if oriented else f"the two ends of axis {'IJK'[axis]}"
    if _MIDDLE in pair:
        return f"{way} seem swapped: {one} lies on the other side of the image than in {others} other cases"
    return f"{way} seem swapped: {one} and {other} lie the other way round than in {others} other cases"
