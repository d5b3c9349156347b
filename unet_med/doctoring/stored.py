"""What a label file holds, as it is: also where reading it as a label is refused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.doctoring.labelling import BORDER_SHARE, touches_both_sides
from unet_med.errors import InputRefusedError
from unet_med.io.cases import Case
from unet_med.io.dicom.annotations import open_label
from unet_med.io.picture import PictureSource
from unet_med.volume import ImageSource

NEARLY_WHOLE = 0.1
"""Floats no further than this from whole numbers are repaired by rounding."""

_MOST_BETWEEN = 0.5

Stored = npt.NDArray[Any]


def label_source(case: Case) -> ImageSource:
    """The label of a case on its own grid; contours and segments on that of the image."""
    if case.label is None:
        raise InputRefusedError("the case has no label", case.id, "pair it with a label image in the manifest")
    return open_label(case.label, case.sources[0])


def stored_values(source: ImageSource, frame: int) -> Stored:
    """The stored values (I, J[, K]) of a label, on its own grid."""
    array = source.read_indices() if isinstance(source, PictureSource) else source.read(frame=frame).array
    return np.asarray(array[0])


def is_nearly_whole(values: Stored) -> bool:
    """Whether all values are finite and no further than :data:`NEARLY_WHOLE` from whole numbers."""
    return bool(np.isfinite(values).all() and not _off(values).any())


def is_interpolated(values: Stored) -> bool:
    """Whether values that are no whole numbers occur only at borders between others, as after linear interpolation."""
    off = _off(values)
    if not np.isfinite(values).all() or not off.any() or off.mean() > _MOST_BETWEEN:
        return False
    at_border = touches_both_sides(values)
    alone = np.rint(values[~off & ~at_border])
    return bool(alone.any()) and float(at_border[off].mean()) >= BORDER_SHARE


def without_steps_between(values: Stored, between: npt.NDArray[np.bool_]) -> Stored:
    """Gives voxels that interpolation made the value that was meant.

    Between two values that is the nearer one: the border lies where linear interpolation crosses the middle. Between
    more values it is that of the nearest voxel that was not made so.

    Args:
        values: (I, J[, K]).
        between: Which of them were made by interpolation; not all.
    """
    from scipy import ndimage

    kept = np.rint(values).astype(np.int64)
    real = np.unique(kept[~between])
    if len(real) == 2:
        kept[between] = np.where(values[between] < real.mean(), real[0], real[1])
        return kept
    nearest = ndimage.distance_transform_edt(between, return_distances=False, return_indices=True)
    return np.asarray(kept[tuple(nearest)])


def between_of(values: Stored, made: Iterable[int] = ()) -> npt.NDArray[np.bool_]:
    """Returns where interpolation made what a label holds.

    That is where it holds values that only interpolation makes. If there are any it is also wherever a voxel lies
    between a lower and a higher value: on its way interpolation passes through values that have a meaning elsewhere.

    Args:
        values: (I, J[, K]).
        made: Whole numbers that interpolation made; those that are not whole need not be named.
    """
    between = np.asarray(np.isin(values, list(made)) | _off(values))
    return between | touches_both_sides(values) if between.any() else between


def _off(values: Stored) -> npt.NDArray[np.bool_]:
    if values.dtype.kind != "f":
        return np.zeros(values.shape, dtype=bool)
    return np.asarray(np.abs(values - np.rint(values)) > NEARLY_WHOLE)
