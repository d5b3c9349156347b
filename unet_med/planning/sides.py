"""Left and right: whether mirroring would turn one label into another.

A network that is shown mirrored patients cannot tell a left kidney from a right one. Labels are sided by their names
(*left kidney*, *right kidney*), or because they are measured to be: two that lie across the middle of the body from
one another, or one that always lies on the same side of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import bdtrc

FloatArray = npt.NDArray[np.float64]

CONFIDENCE = 0.95
"""With which all claims of one data set together are made."""

MOST = 0.5
ALWAYS = 0.8
"""Shares of all cases, not only of those at hand, that are claimed for two labels and for a single one."""

BESIDE = 0.05
"""A single label lies beside the middle when its centroid is this share of the body's width away from it."""

ALIKE = 2.0
"""Twins differ at most by this factor in volume."""

SEEN = 0.1
"""A sagittal plane shows the body when it is this bright, as a share of the brightest one."""

PLANE_SAMPLES = 64
"""Voxels along each axis of a sagittal plane that are looked at for the outline of the body."""

_SIDE = re.compile(r"(?<![a-z])(left|right|l|r)(?![a-z])")
_OTHER_SIDE = {"left": "right", "right": "left", "l": "r", "r": "l"}


@dataclass(frozen=True)
class CaseSides:
    """Where the labels of one volume lie.

    Attributes:
        centroids_mm: For each label value the centroid along R, A and S in mm, R counted from the middle of the body;
            ``None`` where the label does not occur, and for the background.
        voxels: Number of voxels of each label value, 0 for the background.
        width_mm: Width of the body from left to right.
        whole: Whether both flanks of the body lie inside the image; else middle and width are those of the image.
    """

    centroids_mm: tuple[tuple[float, float, float] | None, ...]
    voxels: tuple[int, ...]
    width_mm: float
    whole: bool


def measure_sides(
    channel: npt.NDArray[Any],
    label: npt.NDArray[Any],
    foreground: npt.NDArray[np.intp],
    spacing_mm: Sequence[float],
    labels: int,
) -> CaseSides:
    """Measures where labels lie.

    Args:
        channel: One channel (R, A, S) of the image.
        label: Its label image (R, A, S).
        foreground: ``np.flatnonzero(label)``.
        spacing_mm: Spacing along R, A and S.
        labels: Number of label values, background included.
    """
    middle, width, whole = _body(channel)
    values = np.take(label, foreground)
    voxels = np.bincount(values, minlength=labels)
    means = np.empty((3, labels))
    stride = label.size
    for axis, size in enumerate(label.shape):
        stride //= size
        places = foreground // stride % size
        means[axis] = np.bincount(values, weights=places, minlength=labels) / np.maximum(voxels, 1)
    means[0] -= middle
    centroids = (means.T * np.asarray(spacing_mm, dtype=np.float64)).tolist()
    known = tuple((c[0], c[1], c[2]) if n else None for c, n in zip(centroids, voxels.tolist(), strict=True))
    return CaseSides(known, tuple(voxels.tolist()), width * float(spacing_mm[0]), whole)


def paired_sides(names: Sequence[str]) -> tuple[str, str] | None:
    """Returns the first two label names that differ only in left and right; ``None`` when there are none."""
    lower = {name.lower(): name for name in names}
    for name in names:
        swapped = _SIDE.sub(lambda found: _OTHER_SIDE[found.group()], name.lower())
        if swapped != name.lower() and swapped in lower:
            return name, lower[swapped]
    return None


def sidedness(labels: Mapping[str, int], cases: Sequence[CaseSides]) -> str | None:
    """Returns a sentence that says why left and right matter; ``None`` when nothing shows that they do.

    A measured claim holds for more than these cases: the exact lower bound of the binomial share, at 95 % for all
    claims together, must exceed one half for two labels and four fifths for a single one.

    Args:
        labels: Label name -> value.
        cases: What was measured of each volume; may be empty.
    """
    named = paired_sides([name for name, value in labels.items() if value != 0])
    if named is not None:
        return f"{named[0]} and {named[1]} are sides"
    names = {value: name for name, value in labels.items() if value != 0}
    if not cases or not names:
        return None
    claims = len(names) * (len(names) + 1)  # each label and each two of them, on either side
    return _measured_twins(names, cases, claims) or _measured_single(names, cases, claims)


def _measured_twins(names: Mapping[int, str], cases: Sequence[CaseSides], claims: int) -> str | None:
    """Two labels of like volume, on opposite sides of the middle, further apart across it than along it."""
    places, sizes = _places(cases), np.array([case.voxels for case in cases], dtype=np.float64)
    for one, other in combinations(sorted(names), 2):
        both = (sizes[:, one] > 0) & (sizes[:, other] > 0)
        first, second = places[both, one], places[both, other]
        apart = np.abs(first - second)
        ratio = sizes[both, one] / sizes[both, other]
        alike = (ratio <= ALIKE) & (ratio >= 1 / ALIKE) & (apart[:, 0] >= apart[:, 1:].max(axis=1, initial=0.0))
        rights = int((alike & (first[:, 0] > 0) & (second[:, 0] < 0)).sum())
        lefts = int((alike & (first[:, 0] < 0) & (second[:, 0] > 0)).sum())
        hits, count = max(rights, lefts), int(both.sum())
        if _holds(hits, count, MOST, claims):
            return f"{names[one]} and {names[other]} lie on opposite sides of the body in {hits} of {count} cases"
    return None


def _measured_single(names: Mapping[int, str], cases: Sequence[CaseSides], claims: int) -> str | None:
    """A label beside the middle of bodies that are seen whole, always on the same side."""
    whole = [case for case in cases if case.whole]
    if not whole:
        return None
    beside = _places(whole)[..., 0] / np.array([case.width_mm for case in whole])[:, np.newaxis]
    for value in sorted(names):
        shares = beside[:, value]
        rights, lefts = int((shares > BESIDE).sum()), int((shares < -BESIDE).sum())
        hits, count = max(rights, lefts), int(np.isfinite(shares).sum())
        if _holds(hits, count, ALWAYS, claims):
            side = "right" if rights > lefts else "left"
            return f"{names[value]} lies on the {side} of the body in {hits} of {count} cases"
    return None


def _places(cases: Sequence[CaseSides]) -> FloatArray:
    """Centroids (cases, label values, 3) in mm; NaN where a label does not occur."""
    absent = (np.nan,) * 3
    return np.array([[absent if place is None else place for place in case.centroids_mm] for case in cases])


def _holds(hits: int, count: int, share: float, claims: int) -> bool:
    """Whether the lower bound of ``hits / count`` exceeds ``share``, with confidence in all claims together."""
    return hits > 0 and float(bdtrc(hits - 1, count, share)) < (1 - CONFIDENCE) / claims


def _body(channel: npt.NDArray[Any]) -> tuple[float, float, bool]:
    """Returns middle and width of the body from left to right in voxels, and whether both flanks are in the image.

    The body is what is brighter than the mean; where it reaches the border (a crop, or no air around it) its middle is
    unknown, and that of the image stands for it.
    """
    size = channel.shape[0]
    steps = [max(1, length // PLANE_SAMPLES) for length in channel.shape[1:]]
    thin = channel[:, :: steps[0], :: steps[1]].astype(np.float32)
    profile = (thin > thin.mean(dtype=np.float64)).mean(axis=(1, 2))
    seen = np.flatnonzero(profile > SEEN * profile.max())
    if seen.size == 0 or seen[0] == 0 or seen[-1] == size - 1:
        return (size - 1) / 2, float(size), False
    return float(seen[0] + seen[-1]) / 2, float(seen[-1] - seen[0] + 1), True
