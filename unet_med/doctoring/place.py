"""Whether a label lies on what it names: measured in its own image, judged against the other cases.

A label stands out from its surroundings in a way that is much the same in all cases of most sets. Where one case
differs, and its label would stand out as the others do if it were moved, it is shifted against its image. In sets whose
labels do not stand out alike, nothing is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

Grey = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]

RING_VOXELS = 3
"""How far around a label its surroundings reach."""

LEAST_SHIFT_VOXELS = 2
_SEARCH_EDGE = {2: 256, 3: 64}
_SHIFT_SHARE = 0.25
_STAYS_INSIDE = 0.8
_AIR_SHARE = 0.1
_AIR_DEPTH = 0.12
_AIR_NOISE = 0.06
_NOTHING_SHARE = 0.05
_SAMPLE = 200_000


@dataclass(frozen=True)
class Placement:
    """How a label lies on its image.

    Attributes:
        contrast: Mean grey value of the labelled voxels less that of their surroundings, in standard deviations of both
            together; ``None`` where either is missing.
        on_air: Share of the labelled voxels on air; ``None`` where the image shows none.
        on_nothing: Share of the labelled voxels where the image holds its lowest value only, as padding does.
    """

    contrast: float | None
    on_air: float | None
    on_nothing: float


def place(grey: Grey, labelled: Mask) -> Placement:
    """Measures how a label lies on its image.

    Args:
        grey: (I, J[, K]) finite.
        labelled: The same shape, not empty.
    """
    lowest = grey == grey.min()
    on_nothing = float(lowest[labelled].mean()) if lowest.mean() >= _NOTHING_SHARE else 0.0
    limit = air_limit(grey)
    on_air = None if limit is None else float((grey[labelled] < limit).mean())
    return Placement(_contrast(grey, labelled), on_air, on_nothing)


def air_limit(grey: Grey) -> float | None:
    """Returns the grey value below which there is only air, or ``None`` where the image shows none.

    Air is what lies below Otsu's threshold, if it is dark, even, and at least a tenth of the image.
    """
    from skimage.filters import threshold_otsu

    sample = np.asarray(grey.ravel(order="K")[:: max(1, grey.size // _SAMPLE)], dtype=np.float64)
    low, high = np.percentile(sample, (0.5, 99.5))
    if high <= low:
        return None
    clipped = sample.clip(low, high)
    limit = float(threshold_otsu(clipped))
    air = clipped[clipped < limit]
    if air.size < _AIR_SHARE * clipped.size:
        return None
    dark = (air.mean() - low) / (high - low) <= _AIR_DEPTH
    even = air.std() / (high - low) <= _AIR_NOISE
    return limit if dark and even else None


def _contrast(grey: Grey, labelled: Mask) -> float | None:
    box = tuple(
        slice(max(0, part.start - RING_VOXELS), part.stop + RING_VOXELS)
        for part in ndimage.find_objects(labelled.astype(np.uint8))[0]
    )
    inside = labelled[box]
    ring = _ring(inside)
    if not ring.any():
        return None
    one = grey[box][inside].astype(np.float64)
    other = grey[box][ring].astype(np.float64)
    sd = float(np.concatenate([one, other]).std())
    return float((one.mean() - other.mean()) / sd) if sd > 0 else None


def _ring(labelled: Mask, reach: int = RING_VOXELS) -> Mask:
    grown = ndimage.maximum_filter(labelled.astype(np.uint8), size=2 * reach + 1, mode="constant")
    return np.asarray((grown > 0) & ~labelled)


def best_shift(grey: Grey, labelled: Mask, sign: float) -> tuple[tuple[int, ...], float]:
    """Finds where a label would stand out most.

    Shifts of up to a quarter of the image are tried that keep four fifths of the label inside of it.

    Args:
        grey: (I, J[, K]) finite.
        labelled: The same shape, not empty.
        sign: 1 for a label that is brighter than its surroundings, -1 for a darker one.

    Returns:
        The voxels to move the label by, and the contrast there (see :class:`Placement`).
    """
    factor = max(1, -(-max(grey.shape) // _SEARCH_EDGE[grey.ndim]))
    steps = (slice(None, None, factor),) * grey.ndim
    image = grey[steps].astype(np.float64)
    image -= image.mean()
    mask = labelled[steps]
    if not mask.any():
        return (0,) * grey.ndim, 0.0
    reach = tuple(max(1, round(_SHIFT_SHARE * length)) for length in image.shape)
    shape = tuple(fft.next_fast_len(n + r, real=True) for n, r in zip(image.shape, reach, strict=True))
    fields = [fft.rfftn(field, shape) for field in (np.ones_like(image), image, image**2)]
    ring = _ring(mask, max(1, RING_VOXELS // factor))
    in_count, in_sum, in_squares = _moved(fields, mask, shape)
    out_count, out_sum, out_squares = _moved(fields, ring, shape)
    count = in_count + out_count
    usable = (in_count >= _STAYS_INSIDE * mask.sum()) & (out_count >= 1) & _near(shape, reach)
    count, in_count, out_count = (np.where(usable, number, 1.0) for number in (count, in_count, out_count))
    variance = (in_squares + out_squares) / count - ((in_sum + out_sum) / count) ** 2
    least = 1e-6 * max(float(image.var()), np.finfo(np.float64).tiny)
    contrast = sign * (in_sum / in_count - out_sum / out_count) / np.sqrt(np.maximum(variance, least))
    contrast = np.where(usable & (variance > least), contrast, -np.inf)
    best = np.unravel_index(int(contrast.argmax()), shape)
    shift = tuple(
        int(at if at <= length // 2 else at - length) * factor for at, length in zip(best, shape, strict=True)
    )
    return shift, sign * float(contrast.max())


def _moved(fields: Sequence[npt.NDArray[Any]], mask: Mask, shape: tuple[int, ...]) -> list[npt.NDArray[np.float64]]:
    """Returns for every shift of a mask the sum of each field under it (correlation, by Fourier transforms)."""
    moving = np.conj(fft.rfftn(mask.astype(np.float64), shape))
    sums = [fft.irfftn(field * moving, shape) for field in fields]
    return [np.rint(sums[0]), *sums[1:]]


def _near(shape: tuple[int, ...], reach: tuple[int, ...]) -> Mask:
    """Returns which shifts are no longer than ``reach``; those of the upper half are negative."""
    near = np.ones(shape, dtype=bool)
    for axis, (length, most) in enumerate(zip(shape, reach, strict=True)):
        along = np.arange(length)
        allowed = np.minimum(along, length - along) <= most
        near &= allowed.reshape([-1 if other == axis else 1 for other in range(len(shape))])
    return near
