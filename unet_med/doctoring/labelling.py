"""What one label is like: how much of the image it fills, where it lies, and whether it was interpolated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from unet_med.geometry import Geometry
from unet_med.io.export.measure import measure_labels
from unet_med.volume import Region

LabelArray = npt.NDArray[np.integer[Any]]

BORDER_SHARE = 0.9
"""A value of which this share lies between a lower and a higher neighbour occurs only at borders."""

THICK_SHARE = 0.5
"""A value of which no more than this share does so is a thing of its own."""

_FEWEST_VOXELS = 8
_FEWEST_STEPS = 100


@dataclass(frozen=True, eq=False)
class LabelMeasures:
    """One label image in numbers; its values are those meant by the manifest, objects of an instance set count as 1.

    Attributes:
        share: Share of the voxels that are not background.
        border_share: The same of the outermost voxels across the axis on which it is least.
        centres: Label -> its centre less that of the image, in parts of the image: along R, A, S of volumes that know
            their place, else along the axes of the grid.
        oriented: Whether it is along R, A, S.
        between: Stored values that lie between two others in the image -> share of their voxels with both a lower and
            a higher neighbour.
        rare: Such values of very few voxels.
        direct: Share of the steps to labels above 1 that leave a value out; ``None`` when there are too few steps.
        ramps: Share of these steps that go on in the same direction within two voxels, as after interpolation.
    """

    share: float
    border_share: float
    centres: Mapping[int, npt.NDArray[np.float64]]
    oriented: bool
    between: Mapping[int, float]
    rare: tuple[int, ...]
    direct: float | None
    ramps: float


def measure_label(stored: LabelArray, meant: LabelArray, geometry: Geometry, instances: bool) -> LabelMeasures:
    """Measures a label.

    Args:
        stored: (I, J[, K]) as the file holds it.
        meant: (I, J[, K]) as the manifest reads it.
        geometry: Their grid.
        instances: Whether values are numbers of objects: then values say nothing of borders.
    """
    labelled = meant > 0
    values = labelled.astype(np.uint8) if instances else meant
    found = measure_labels(values, geometry)
    oriented = geometry.is_calibrated and geometry.ndim == 3
    corners = geometry.corners() if oriented else Geometry(geometry.shape).corners()
    extent = np.maximum(np.ptp(corners, axis=0), 1e-9)
    centres = {
        value: ((one.centroid_mm if oriented else one.index) - corners.mean(axis=0)) / extent
        for value, one in found.items()
    }
    inside = stored[_box(stored != 0)]
    direct, ramps = (None, 0.0) if instances else _steps(inside)
    between, rare = ({}, ()) if instances else between_shares(inside)
    return LabelMeasures(
        share=float(labelled.mean()),
        border_share=_border_share(labelled),
        centres=centres,
        oriented=oriented,
        between=between,
        rare=rare,
        direct=direct,
        ramps=ramps,
    )


def between_shares(label: LabelArray) -> tuple[dict[int, float], tuple[int, ...]]:
    """Returns the values between others -> share of their voxels that have a lower and a higher neighbour.

    Linear interpolation of a label makes such values along every border and nowhere else. Neighbours are those that
    share a face, an edge or a corner. Values of very few voxels, of which a share says little, are returned apart.
    """
    present = np.unique(label)
    if len(present) < 3:
        return {}, ()
    inside = touches_both_sides(label)
    order = np.searchsorted(present, label)
    total = np.bincount(order.ravel(), minlength=len(present))
    at_border = np.bincount(order[inside], minlength=len(present))
    enough = total >= _FEWEST_VOXELS
    middle = range(1, len(present) - 1)
    shares = {int(present[n]): float(at_border[n] / total[n]) for n in middle if enough[n]}
    return shares, tuple(int(present[n]) for n in middle if not enough[n])


def touches_both_sides(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Returns where a lower and a higher value are among the neighbours of a voxel, of values of any type."""
    lowest = ndimage.minimum_filter(values, size=3, mode="nearest")
    highest = ndimage.maximum_filter(values, size=3, mode="nearest")
    return np.asarray((lowest < values) & (values < highest))


def _steps(label: LabelArray) -> tuple[float | None, float]:
    """Returns how many steps to labels above 1 leave a value out, and how many go on within two voxels.

    Interpolation fills in what lies between: no step leaves a value out any more, and where one did there are two.
    """
    steps = direct = ramps = 0
    for axis in range(label.ndim):
        one = np.moveaxis(label, axis, 0)
        low, high = np.minimum(one[:-1], one[1:]), np.maximum(one[:-1], one[1:])
        step = (low != high) & (high > 1)
        steps += int(np.count_nonzero(step))
        direct += int(np.count_nonzero(high[step].astype(np.int64) - low[step] > 1))
        ramps += _ramps(one[:-2], one[1:-1], one[2:])
        flat = one[1:-2] == one[2:-1]
        ramps += _ramps(one[:-3][flat], one[1:-2][flat], one[3:][flat])
    return (direct / steps, ramps / steps) if steps >= _FEWEST_STEPS else (None, 0.0)


def _ramps(first: LabelArray, middle: LabelArray, last: LabelArray) -> int:
    return int(np.count_nonzero(((first < middle) & (middle < last)) | ((first > middle) & (middle > last))))


def _border_share(labelled: npt.NDArray[np.bool_]) -> float:
    shares = [
        float(np.moveaxis(labelled, axis, 0)[[0, -1]].mean())
        for axis, length in enumerate(labelled.shape)
        if length > 2
    ]
    return min(shares, default=0.0)


def _box(labelled: npt.NDArray[np.bool_]) -> Region:
    """Returns the box around all labelled voxels and the background next to them; nothing of an empty label."""
    found = ndimage.find_objects(labelled.astype(np.uint8))
    if not found:
        return (slice(0, 0),) * labelled.ndim
    return tuple(slice(max(0, part.start - 1), part.stop + 1) for part in found[0])
