"""What every object is like: size, place, shape and intensities, one row for each, and how many there are.

Definitions are those of scikit-image's ``regionprops``. An image of any size is measured in one pass over its blocks:
sizes, boxes, extremes, perimeters and hulls are exact whatever the blocks, the rest agrees to the last digits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.geometry import Geometry
from unet_med.instances.convexity import Whole
from unet_med.instances.sums import Floats, ObjectSums, sums_of_image
from unet_med.io.objects.boxes import LabelImage, blocks
from unet_med.io.objects.table import Column, ObjectTable

_SQUARE = 1e-3
"""Pixels whose sides differ by less than this share are square: a perimeter in micrometres has a meaning."""


def measure_objects(
    labels: LabelImage,
    geometry: Geometry,
    *,
    image: Any = None,
    channels: Sequence[str] = (),
    classes: Sequence[int] | npt.NDArray[np.integer[Any]] | None = None,
    names: Sequence[str] = (),
    confidence: Sequence[float] | npt.NDArray[np.floating[Any]] | None = None,
    side: int | None = None,
) -> ObjectTable:
    """Returns one row for each object of a label image.

    Args:
        labels: (I, J[, K]) numbers of objects, 0 for background; anything that is cut by slices.
        geometry: Its grid.
        image: (C, I, J[, K]) intensities, cut by slices, too; ``None`` for none.
        channels: Names of its channels.
        classes: Class of object 1, 2, ...; from 1.
        names: Name of class 1, 2, ...
        confidence: Of object 1, 2, ...; from 0 to 1.
        side: Voxels of a block along each axis.

    Returns:
        ``label``, ``class``, ``confidence``, ``border`` (whether it touches the image's edge); ``area_px`` or
        ``voxels``, ``x_px``, ``y_px``, ``z_px`` (the first voxel's centre is 0), axes of the ellipse or ellipsoid of
        the same moments, ``orientation_deg`` of the long one (pictures: from the x axis, counter-clockwise as they are
        shown, 0 to 180) or its direction ``axis_x``, ``axis_y``, ``axis_z`` (volumes), ``perimeter_px`` (pictures),
        ``solidity``; the same in micrometres as ``..._um`` (``area_um2``, ``volume_um3``) where the pixel size is
        known; ``NAME_mean``, ``NAME_min``, ``NAME_max``, ``NAME_sd`` for each channel.
    """
    count = 0 if image is None else int(image.shape[0])
    found = sums_of_image(labels, image, list(blocks(labels.shape, side)))
    columns: dict[str, Column] = {"label": found.numbers, "class": _kinds(found.numbers, classes, names)}
    columns["confidence"] = _given(found.numbers, confidence)
    free = [axis for axis, n in enumerate(labels.shape) if n > 1]
    ends = np.array(labels.shape)[free]
    columns["border"] = ((found.low[:, free] == 0) | (found.high[:, free] == ends)).any(axis=1)
    columns |= _sizes(found, geometry) | _axes(found, geometry)
    if geometry.ndim == 2:
        columns |= _perimeters(found, geometry)
    columns["solidity"] = found.voxels / np.maximum(found.hull, 1)
    return ObjectTable(columns | _intensities(found, channels, count))


def count_objects(table: ObjectTable, geometry: Geometry, names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns how many objects of each class an image holds, and how densely they lie.

    Args:
        table: Of :func:`measure_objects`, of one frame.
        geometry: The grid of the image.
        names: Classes; one without an object is told, too.

    Returns:
        For each class: ``class``, ``objects``, ``density`` per mm2 or mm3 and its ``unit`` (``None`` without a pixel
        size), ``covered`` (share of the image), ``mean_size`` (voxels; ``None`` without objects).
    """
    sizes = table.columns["area_px" if geometry.ndim == 2 else "voxels"]
    spacing = geometry.spacing_mm
    total = math.prod(geometry.shape)
    rows: list[dict[str, Any]] = []
    for name in names:
        own = sizes[table.columns["class"] == name]
        extent = None if spacing is None else total * math.prod(spacing)
        rows.append(
            {
                "class": name,
                "objects": len(own),
                "density": None if extent is None else float(f"{len(own) / extent:.6g}"),
                "unit": None if extent is None else "1/mm2" if geometry.ndim == 2 else "1/mm3",
                "covered": float(f"{own.sum() / total:.6g}"),
                "mean_size": float(f"{own.mean():.6g}") if len(own) else None,
            }
        )
    return rows


# ---- columns --------------------------------------------------------------------------------------------------------


def _given(numbers: Whole, values: Any) -> Floats:
    if values is None:
        return np.full(len(numbers), np.nan)
    return np.asarray(values, dtype=np.float64)[numbers - 1]


def _kinds(numbers: Whole, classes: Any, names: Sequence[str]) -> npt.NDArray[Any]:
    if not names:
        return np.full(len(numbers), "", dtype=object)
    chosen = np.zeros(len(numbers), dtype=np.intp) if classes is None else np.asarray(classes)[numbers - 1] - 1
    return np.asarray(np.array(names, dtype=object)[chosen])


def _um(geometry: Geometry) -> Floats | None:
    return None if geometry.spacing_mm is None else 1e3 * np.array(geometry.spacing_mm)


def _sizes(found: ObjectSums, geometry: Geometry) -> dict[str, Column]:
    um, letters = _um(geometry), "xyz"[: geometry.ndim]
    size, physical = ("area_px", "area_um2") if geometry.ndim == 2 else ("voxels", "volume_um3")
    columns: dict[str, Column] = {size: found.voxels}
    if um is not None:
        columns[physical] = found.voxels * um.prod()
    columns |= {f"{letter}_px": found.mean[:, axis] for axis, letter in enumerate(letters)}
    if um is not None:
        columns |= {f"{letter}_um": found.mean[:, axis] * um[axis] for axis, letter in enumerate(letters)}
    return columns


def _axes(found: ObjectSums, geometry: Geometry) -> dict[str, Column]:
    """Returns the axes of the ellipse or ellipsoid of the same moments, and where the long one points."""
    covariance = found.scatter / found.voxels[:, np.newaxis, np.newaxis]
    um = _um(geometry)
    columns = _axis_lengths(covariance, "px")
    if um is not None:
        covariance = covariance * np.outer(um, um)
        columns |= _axis_lengths(covariance, "um")
    if geometry.ndim == 2:
        (xx, xy), (_, yy) = covariance[:, 0].T, covariance[:, 1].T
        return columns | {"orientation_deg": np.degrees(0.5 * np.arctan2(-2 * xy, xx - yy)) % 180.0}
    long = np.linalg.eigh(covariance)[1][:, :, -1]
    long = long * np.where(long[np.arange(len(long)), np.abs(long).argmax(axis=1)] < 0, -1.0, 1.0)[:, np.newaxis]
    return columns | {f"axis_{letter}": long[:, axis] for axis, letter in enumerate("xyz")}


def _axis_lengths(covariance: Floats, unit: str) -> dict[str, Column]:
    """Returns full lengths, the longest first: twice the root of (d + 2) variances."""
    variances = np.linalg.eigvalsh(covariance)
    lengths = 2.0 * np.sqrt((variances.shape[1] + 2) * np.maximum(variances, 0.0))[:, ::-1]
    names = ("major", "minor") if lengths.shape[1] == 2 else ("major", "middle", "minor")
    return {f"axis_{name}_{unit}": lengths[:, place] for place, name in enumerate(names)}


def _perimeters(found: ObjectSums, geometry: Geometry) -> dict[str, Column]:
    columns: dict[str, Column] = {"perimeter_px": found.perimeter}
    um = _um(geometry)
    if um is not None and float(np.ptp(um)) <= _SQUARE * float(um.max()):
        columns["perimeter_um"] = found.perimeter * float(um.mean())
    return columns


def _intensities(found: ObjectSums, channels: Sequence[str], count: int) -> dict[str, Column]:
    names = list(channels) if len(channels) == count else [f"channel_{number}" for number in range(count)]
    names = ["intensity"] if count == 1 and not channels else names
    mean, spread, low, high = found.values
    columns: dict[str, Column] = {}
    for channel, name in enumerate(names):
        own = {"mean": mean, "min": low, "max": high, "sd": np.sqrt(spread / found.voxels[:, np.newaxis])}
        columns |= {f"{name}_{what}": values[:, channel] for what, values in own.items()}
    return columns
