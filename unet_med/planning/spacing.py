"""The spacing of the network's grid: nnU-Net's choice, and the coarser one that would show more at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from unet_med.planning.fingerprint import Fingerprint

ANISOTROPY = 3.0
"""An axis this many times coarser than the others is taken for itself."""

SMALL_SHARE = 0.25
"""A patch that covers less of the median image than this sees little of what surrounds a place."""

COARSER = 1.03
SIMILAR = 2.0
WORTHWHILE = 2.0
MOST_STEPS = 200
"""The low resolution is looked for in steps of 3 %, fine axes first until all are within twice the coarsest; it must
halve the image at least (nnU-Net's rule)."""


def target_spacing(measured: Fingerprint, axes: str = "RAS") -> tuple[tuple[float, ...], str] | None:
    """Returns nnU-Net's target spacing in mm and the reason; ``None`` when the set is uncalibrated.

    The median of each axis; on an axis more than three times coarser than the others, with fewer voxels than a third
    of theirs, the 10th percentile, but never finer than the others.

    Args:
        measured: The training set.
        axes: Names of its axes.
    """
    spacings = measured.spacings()
    if spacings is None:
        return None
    target = [float(v) for v in np.median(spacings, axis=0)]
    sizes = np.median([case.shape for case in measured.cases], axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(len(target)) if axis != worst]
    coarse = target[worst] > ANISOTROPY * max(target[a] for a in others)
    thin = sizes[worst] * ANISOTROPY < min(sizes[a] for a in others)
    if len(target) == 3 and coarse and thin:
        tenth = float(np.percentile(spacings[:, worst], 10))
        target[worst] = max(tenth, max(target[a] for a in others))
        return _rounded(target), f"median of the cases; the {axes[worst]} axis is coarse: its 10th percentile"
    same = bool((np.ptp(spacings, axis=0) < 1e-6).all())
    return _rounded(target), "all cases have this spacing" if same else f"median of {len(spacings)} cases"


def covered_share(patch: Sequence[int], median: Sequence[float]) -> float:
    """Returns the share of the median image that a patch covers, from 0 to 1."""
    return math.prod(min(p, m) / m for p, m in zip(patch, median, strict=True))


def low_resolution(
    spacing: Sequence[float],
    median: Sequence[float],
    patch_of: Callable[[Sequence[float], Sequence[float]], Sequence[int]],
) -> tuple[float, ...] | None:
    """Returns the spacing on which the patch covers a quarter of the median image; ``None`` when it is hardly coarser.

    Args:
        spacing: Spacing of the axes.
        median: Median image on that spacing, in voxels.
        patch_of: Patch for a spacing and a median image.
    """
    coarser = [float(s) for s in spacing]
    for _ in range(MOST_STEPS):
        shrunk = [max(1, round(m * s / c)) for m, s, c in zip(median, spacing, coarser, strict=True)]
        if math.prod(patch_of(coarser, shrunk)) >= SMALL_SHARE * math.prod(shrunk):
            worthwhile = math.prod(median) >= WORTHWHILE * math.prod(shrunk)
            return tuple(_rounded_up(value) for value in coarser) if worthwhile else None
        fine = [max(coarser) / value > SIMILAR for value in coarser]
        coarser = [
            value * COARSER if chosen or not any(fine) else value for value, chosen in zip(coarser, fine, strict=True)
        ]
    return None


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(f"{value:.9g}") for value in values)


def _rounded_up(value: float) -> float:
    """Three significant digits, never finer."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return float(f"{math.ceil(round(value / unit, 6)) * unit:.3g}")
