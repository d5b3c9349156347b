"""What of an image is drawn: a picture whole, a volume in three planes in true proportions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.errors import InputRefusedError
from unet_med.geometry import Geometry, reorient
from unet_med.io.export.measure import measure_labels

PERCENTILES = (0.5, 99.5)
"""The grey values shown as black and white."""

_PANEL = 420  # pixels of a plane's longest side
_PICTURE = (512, 1024)  # smallest and largest long side of a 2-D picture


@dataclass(frozen=True)
class Plane:
    """One picture to draw, rows from top to bottom; ``letters`` stand left, right, above and below."""

    grey: npt.NDArray[Any]
    labels: npt.NDArray[np.integer[Any]]
    truth: npt.NDArray[np.integer[Any]] | None
    size: tuple[int, int]
    title: str
    letters: str


def planes_of(
    image: npt.NDArray[Any],
    labels: npt.NDArray[np.integer[Any]],
    truth: npt.NDArray[np.integer[Any]] | None,
    spacing_mm: Sequence[float] | None,
    orientation: str,
    names: tuple[str, str],
) -> list[Plane]:
    """Returns a picture as one plane, a volume as three.

    Args:
        image: (I, J[, K]) or (C, I, J[, K]); of a volume the first channel is shown.
        labels: (I, J[, K]).
        truth: The same, or ``None``.
        spacing_mm: Voxel size along the axes; ``None`` shows voxels as squares.
        orientation: ``Geometry.orientation`` of the axes; empty when unknown.
        names: What ``labels`` and ``truth`` are, for errors.

    Raises:
        InputRefusedError: when the shapes do not fit.
    """
    channels = image if image.ndim == labels.ndim + 1 else image[None]
    if labels.ndim not in (2, 3) or channels.shape[1:] != labels.shape:
        raise InputRefusedError(
            f"{names[0]} of shape {labels.shape} do not fit an image of shape {image.shape}",
            remedy=f"give the {names[0]} on the image's own grid",
        )
    if truth is not None and truth.shape != labels.shape:
        raise InputRefusedError(
            f"{names[1]} of shape {truth.shape} do not fit {names[0]} of shape {labels.shape}",
            remedy=f"give the {names[1]} on the image's own grid",
        )
    spacing = tuple(float(s) for s in spacing_mm) if spacing_mm else (1.0,) * labels.ndim
    if labels.ndim == 2:
        return [whole_picture(channels, labels, truth, spacing)]
    return three_planes(channels[0], labels, truth, spacing, orientation)


def whole_picture(
    channels: npt.NDArray[Any],
    labels: npt.NDArray[np.integer[Any]],
    truth: npt.NDArray[np.integer[Any]] | None,
    spacing: Sequence[float],
) -> Plane:
    """Returns a picture (C, I, J) as one plane, not smaller than it can be seen and not larger than a screen."""
    shown = channels if channels.shape[0] == 3 else channels[:1]
    width, height = (n * s for n, s in zip(labels.shape, spacing, strict=True))
    longest = max(labels.shape)
    scale = min(max(longest, _PICTURE[0]), _PICTURE[1]) / max(width, height)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    return Plane(shown.transpose(2, 1, 0), labels.T, None if truth is None else truth.T, size, "", "")


def three_planes(
    grey: npt.NDArray[Any],
    labels: npt.NDArray[np.integer[Any]],
    truth: npt.NDArray[np.integer[Any]] | None,
    spacing: Sequence[float],
    orientation: str,
) -> list[Plane]:
    """Axial, coronal and sagittal; the arrays are turned so that their axes run to L, P, I (as a screen does)."""
    arrays = [grey, labels] + ([] if truth is None else [truth])
    known = len(orientation) == 3
    flips: tuple[bool, ...] = (False, False, False)
    if known:
        order, flips = to_lpi(orientation)
        arrays = [reorient(array, order, flips) for array in arrays]
        spacing = [spacing[axis] for axis in order]
    centre = centre_voxel(arrays[1:])
    titles = ("axial", "coronal", "sagittal") if known else ("I x J", "I x K", "J x K")
    letters = ("RLAP", "RLSI", "APSI") if known else ("", "", "")
    extent = [n * s for n, s in zip(arrays[0].shape, spacing, strict=True)]
    scale = _PANEL / max(extent)
    planes: list[Plane] = []
    for title, marks, (across, down, through) in zip(titles, letters, ((0, 1, 2), (0, 2, 1), (1, 2, 0)), strict=True):
        cut = [_plane(array, through, centre[through]).T for array in arrays]
        size = max(1, round(extent[down] * scale)), max(1, round(extent[across] * scale))
        slices = arrays[0].shape[through]
        stored = slices - centre[through] if flips[through] else centre[through] + 1
        caption = f"{title} {stored}/{slices}"
        planes.append(Plane(cut[0], cut[1], cut[2] if truth is not None else None, size, caption, marks))
    return planes


def _plane(array: npt.NDArray[Any], axis: int, number: int) -> npt.NDArray[Any]:
    """Returns one plane across an axis: a view, where ``numpy.take`` would copy an array that is turned."""
    return np.asarray(np.moveaxis(array, axis, 0)[number])


def to_lpi(orientation: str) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """How to turn axes that run to ``orientation`` so that they run to the patient's left, back and feet."""
    order: list[int] = []
    flips: list[bool] = []
    for wanted, opposite in ("LR", "PA", "IS"):
        axis = orientation.find(wanted)
        flips.append(axis < 0)
        order.append(axis if axis >= 0 else orientation.index(opposite))
    return tuple(order), tuple(flips)


def centre_voxel(labellings: Iterable[npt.NDArray[np.integer[Any]]]) -> tuple[int, int, int]:
    """The voxel of the largest label that is nearest to its centroid; the middle when there is no label."""
    shape: tuple[int, ...] = (1, 1, 1)
    for labels in labellings:
        shape = labels.shape
        measures = measure_labels(labels, Geometry(shape))
        if measures:
            value = max(measures, key=lambda one: (measures[one].voxels, -one))
            i, j, k = _nearest(labels, value, measures[value].index)
            return i, j, k
    return shape[0] // 2, shape[1] // 2, shape[2] // 2


def _nearest(labels: npt.NDArray[np.integer[Any]], value: int, point: npt.NDArray[np.float64]) -> tuple[int, ...]:
    """Returns the voxel of a label that occurs which is nearest to ``point``, the first in index order of several.

    Planes are searched outwards from the point, along the axis that runs slowest in memory, until no further one can
    hold a nearer voxel.
    """
    slowest = max(range(labels.ndim), key=lambda axis: abs(labels.strides[axis]))
    others = np.delete(point, slowest)
    found: list[tuple[float, tuple[int, ...]]] = []
    for plane in sorted(range(labels.shape[slowest]), key=lambda number: abs(number - point[slowest])):
        away = (plane - point[slowest]) ** 2
        if found and away > min(found)[0]:
            break
        points = np.argwhere(_plane(labels, slowest, plane) == value)
        if len(points):
            distances = ((points - others) ** 2).sum(axis=1) + away
            found += [
                (float(distances[number]), tuple(np.insert(points[number], slowest, plane).tolist()))
                for number in np.flatnonzero(distances == distances.min())
            ]
    return min(found)[1]


def grey_window(planes: Sequence[Plane]) -> tuple[float, float]:
    """Returns the grey values that are shown black and white."""
    values = np.concatenate([plane.grey.ravel() for plane in planes]).astype(np.float64)
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    if planes[0].grey.ndim == 3 and planes[0].grey.shape[-1] == 3 and values.min() >= 0 and 1 < values.max() <= 255:
        return 0.0, 255.0  # a colour photograph keeps its colours
    low, high = (float(v) for v in np.percentile(values, PERCENTILES))
    if high <= low:
        low, high = float(values.min()), float(values.max())
    return low, high if high > low else low + 1.0
