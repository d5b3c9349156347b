"""Label images: which values a file holds, on the grid of the image that they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.errors import InputRefusedError
from unet_med.geometry import Geometry, reorient
from unet_med.io.dicom.annotations import AnnotationSource, open_label
from unet_med.io.object_truth import ObjectTruth
from unet_med.io.picture import PictureSource
from unet_med.io.source import SourceRef
from unet_med.volume import ImageSource, Region

SAME_PLACE_VOXELS = 0.1
"""A label lies on its image when no corner is further off than this, in voxels of the image."""

_WHOLE_NUMBER = 1e-3
_PLACED_KINDS = ("dicom", "dicom-seg", "nifti", "nrrd", "mha")
"""Kinds whose files say where in space they lie; pictures and TIFF stacks have at most a pixel size."""

LabelArray = npt.NDArray[Any]


def label_on_image(
    ref: SourceRef, image: SourceRef, frame: int, where: str, region: Region | None = None
) -> LabelArray:
    """Returns the stored values of a label (I, J[, K]) as integers on the grid of its image.

    Args:
        ref: The label.
        image: The image that it belongs to.
        frame: Of the label.
        where: Safe id for errors.
        region: Of the image, whose voxels the label has one by one; ``None``: all of it.

    Raises:
        InputRefusedError: The label cannot be used, lies elsewhere, has another shape, is no label image, or holds
            values that are negative or no whole numbers.
    """
    if not ref.usable:
        raise InputRefusedError(f"the label cannot be used: {ref.reason}", where)
    source = open_label(ref, image)
    values = _label_values(source, frame, where, region)
    if region is not None:
        return values
    on_image = isinstance(source, AnnotationSource | ObjectTruth) and source.image is not None
    return values if on_image else _on_reference(values, ref, image, where)


def _label_values(source: ImageSource, frame: int, where: str, region: Region | None) -> LabelArray:
    """Returns the stored values (I, J[, K]) as integers."""
    array = source.read_indices() if isinstance(source, PictureSource) else source.read(region, frame).array
    if array.shape[0] > 1 and not (array[1:] == array[:1]).all():
        raise InputRefusedError(
            f"the label is a colour picture of {array.shape[0]} channels",
            where,
            "give a label image with one number for each voxel, not colours",
        )
    values: LabelArray = array[0]
    if values.dtype.kind == "f":
        values = _whole_numbers(values, where)
    if values.size and int(values.min()) < 0:
        raise InputRefusedError(f"the label holds negative values (down to {int(values.min())})", where, "renumber it")
    return np.asarray(values, dtype=value_type(int(values.max())))


def value_type(highest: int) -> np.dtype[Any]:
    """Returns the smallest type of labels up to a value."""
    return np.dtype(np.uint8 if highest < 2**8 else np.uint16 if highest < 2**16 else np.int64)


def _whole_numbers(values: npt.NDArray[Any], where: str) -> LabelArray:
    rounded = np.rint(values)
    off = ~(np.abs(values - rounded) <= _WHOLE_NUMBER)  # also true for NaN
    if off.any():
        example = float(values[off].flat[0])
        raise InputRefusedError(
            f"the label holds values that are not whole numbers (for example {example:g})",
            where,
            "it was probably interpolated or is a probability map: threshold it, or resample it with nearest neighbour",
        )
    return np.asarray(rounded, dtype=np.int64)


def _on_reference(values: LabelArray, label: SourceRef, image: SourceRef, where: str) -> LabelArray:
    """Returns the label on the image's grid: as it is, or with axes permuted and flipped where that is exact."""
    own, reference = label.geometry, image.geometry
    if own is None or reference is None:
        raise InputRefusedError(
            "the label or its image has no grid", where, "`unet-med scan` says what is wrong with them"
        )
    both_placed = label.kind in _PLACED_KINDS and image.kind in _PLACED_KINDS
    if not both_placed or own.affine is None or reference.affine is None or own.ndim != reference.ndim:
        if values.shape == reference.shape:
            return values
        if (*values.shape, 1) == reference.shape:
            return values[..., np.newaxis]
        raise _elsewhere(own, reference, where)
    if _same_place(own, reference):
        return values
    turn = _signed_permutation(own, reference)
    if turn is not None and _same_place(own.reoriented(*turn), reference):
        return reorient(values, *turn)
    raise _elsewhere(own, reference, where)


def _same_place(own: Geometry, reference: Geometry) -> bool:
    """Whether the corners of two grids of one shape are within a tenth of a voxel of the reference."""
    if own.shape != reference.shape or reference.affine is None:
        return False
    apart = (own.corners() - reference.corners()) @ np.linalg.inv(reference.affine[:-1, :-1]).T
    return bool(np.abs(apart).max() <= SAME_PLACE_VOXELS)


def _signed_permutation(own: Geometry, reference: Geometry) -> tuple[tuple[int, ...], tuple[bool, ...]] | None:
    """Returns how :func:`reorient` brings the axes of ``own`` onto those of ``reference``, if it can."""
    if own.affine is None or reference.affine is None:
        return None
    steps = np.linalg.inv(reference.affine[:-1, :-1]) @ own.affine[:-1, :-1]
    order = tuple(int(axis) for axis in np.abs(steps).argmax(axis=1))
    if sorted(order) != list(range(own.ndim)):
        return None
    return order, tuple(bool(steps[row, axis] < 0) for row, axis in enumerate(order))


def _elsewhere(own: Geometry, reference: Geometry, where: str) -> InputRefusedError:
    if sorted(own.shape) != sorted(reference.shape):
        what = f"the label has another shape than its image: {own.shape} instead of {reference.shape}"
    else:
        what = "the label lies elsewhere than its image"
    return InputRefusedError(
        what,
        where,
        "check that the two belong together; resample the label onto the image's grid with nearest neighbour",
    )


def remapped(values: LabelArray, label_values: Mapping[int, int] | None, where: str) -> LabelArray:
    """Returns a label with stored values replaced by those of the manifest; ``None``: they mean themselves.

    Raises:
        InputRefusedError: A stored value but 0 is not listed.
    """
    if label_values is None:
        return values
    present, inverse = np.unique(values, return_inverse=True)
    table = {0: 0, **{int(stored): int(meant) for stored, meant in label_values.items()}}
    unknown = [int(value) for value in present if int(value) not in table]
    if unknown:
        raise InputRefusedError(
            f"the label holds values that the manifest does not list: {unknown[:8]}",
            where,
            "list them under label_values, or correct the label image",
        )
    meant = np.array([table[int(value)] for value in present], dtype=np.int64)
    return meant.astype(value_type(int(meant.max())))[inverse].reshape(values.shape)
