"""What of a case a page shows: few enough voxels for a phone, as grey values of eight bits, hung as on a screen.

Volumes are turned so that their axes run to the patient's left, back and feet; a picture is a volume of one slice, a
movie one of as many slices as it has frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from unet_med.errors import InputRefusedError
from unet_med.geometry import Geometry, reorient
from unet_med.overlays import PERCENTILES, to_lpi

Grey = npt.NDArray[np.uint8]
Whole = npt.NDArray[np.integer[Any]]

MOST_VOXELS = {2: 2**22, 3: 10**7}
"""Of a picture and of all channels of a volume; ten million make about a megabyte."""
MOST_ALONG = 2**12
"""Of one axis: browsers and formats of pictures have limits."""
MOST_CHANNELS = 4

_FRAMES_LAST = 8.0
"""Pixels of a movie are made that much coarser before frames are left out."""
_ALIKE = 1.001
"""Axes whose voxels differ in size by no more than this are made coarser together."""
_SAMPLE = 2**18
_CT_AIR = -900.0
_CT_WINDOWS = ((-400.0, (-1350.0, 150.0)), (300.0, (-160.0, 240.0)), (np.inf, (-500.0, 1300.0)))
"""Windows of lung, soft tissue and bone: each for labels whose median is below the first number, in HU."""


@dataclass(frozen=True)
class Axis:
    """Where the slices along an axis of a view come from.

    Attributes:
        first: Number of the stored slice, from 1, that the first one shows.
        step: From one shown slice to the next, in stored ones; negative where the axis is turned round.
        stored: How many there are.
    """

    first: int
    step: int
    stored: int


@dataclass(frozen=True, eq=False)
class View:
    """Images and labels on one grid (X, Y, Z), X to the right of a screen and Y down in the first plane.

    Attributes:
        images: (X, Y, Z) grey or (X, Y, Z, 3) colours, one for each channel that is shown.
        names: Of the channels; none for a photograph in colour.
        windows: The values that are black and white in each.
        labels: (X, Y, Z), 0 for background.
        reference: Other labels to compare with, on the same grid.
        sizes: Of a voxel along X, Y, Z in mm; relative to each other where the image is uncalibrated.
        axes: Where slices come from.
        is_calibrated: Whether ``sizes`` are mm.
        letters: Where right, left, front, back, head and feet are, ``RLAPSI``; empty when not known.
        through: What follows along Z: ``slice`` or ``frame``; empty for a single picture.
    """

    images: tuple[Grey, ...]
    names: tuple[str, ...]
    windows: tuple[tuple[float, float], ...]
    labels: Whole
    reference: Whole | None
    sizes: tuple[float, float, float]
    axes: tuple[Axis, Axis, Axis]
    is_calibrated: bool
    letters: str
    through: str

    @property
    def is_volume(self) -> bool:
        """Whether it is seen in three planes."""
        return self.through == "slice"

    def centre(self) -> tuple[int, int, int]:
        """Returns the voxel to look at first: amid the labels of the slice that shows most; else the middle."""
        chosen = self.labels > 0
        if chosen.any():
            return _amid(chosen)
        x, y, z = (size // 2 for size in self.labels.shape)
        return x, y, z

    def centres(self) -> dict[int, tuple[int, int, int]]:
        """Returns for each label that is there the voxel to look at first; not meant for thousands of objects."""
        found: dict[int, tuple[int, int, int]] = {}
        for number, box in enumerate(ndimage.find_objects(self.labels.astype(np.int32)), start=1):
            if box is not None:
                x, y, z = _amid(self.labels[box] == number)
                found[number] = x + box[0].start, y + box[1].start, z + box[2].start
        return found


def _amid(chosen: npt.NDArray[np.bool_]) -> tuple[int, int, int]:
    """Returns the voxel nearest to the middle of what is chosen, on the slice along Z with most of it."""
    z = int(chosen.sum(axis=(0, 1)).argmax())
    points = np.argwhere(chosen[:, :, z])
    x, y = points[((points - points.mean(axis=0)) ** 2).sum(axis=1).argmin()]
    return int(x), int(y), z


def view_of(
    image: npt.NDArray[Any] | None,
    labels: Whole,
    geometry: Geometry,
    reference: Whole | None = None,
    names: Sequence[str] = (),
    modality: str | None = None,
    thin: int = 1,
) -> View:
    """Reduces a case to what a page shows.

    Args:
        image: (C, I, J[, K]); of a movie (C, I, J, frames). ``None``: the labels are shown alone.
        labels: (I, J[, K]).
        geometry: Grid of a volume, or of one frame.
        reference: Other labels of the same shape.
        names: Of the channels; numbers where they are not as many.
        modality: DICOM modality, if known.
        thin: Every how many-th voxel along the axes of the grid the arrays hold.

    Raises:
        InputRefusedError: when the shapes do not fit.
    """
    for other in (None if image is None else image[0], reference):
        if other is not None and other.shape != labels.shape:
            raise InputRefusedError(
                f"labels of shape {labels.shape} do not fit an image of shape {other.shape}",
                remedy="predict again: the files beside the mask were changed",
            )
    turned = _Turned.of(geometry, labels.shape, thin)
    shown = turned.turn(labels)
    channels = [] if image is None else [turned.turn(channel) for channel in image[:MOST_CHANNELS]]
    room = MOST_VOXELS[2 if turned.through == "" else 3] // max(1, len(channels))
    factors = _factors(shown.shape, turned.sizes, room)
    few = np.ascontiguousarray(_sampled(shown, factors))
    reduced = [_averaged(channel, factors) for channel in channels]
    pictures, windows, told = _shown(reduced, few > 0, modality, image is not None and _is_photograph(image, geometry))
    if told and image is not None and len(names) == len(image):
        told = tuple(names[: len(reduced)])
    x, y, z = (
        Axis(axis.first + axis.step * (factor // 2), axis.step * factor, axis.stored)
        for axis, factor in zip(turned.axes, factors, strict=True)
    )
    sizes = [size * factor for size, factor in zip(turned.sizes, factors, strict=True)]
    return View(
        pictures,
        told,
        windows,
        few,
        None if reference is None else np.ascontiguousarray(_sampled(turned.turn(reference), factors)),
        (sizes[0], sizes[1], sizes[2]),
        (x, y, z),
        geometry.is_calibrated,
        turned.letters,
        turned.through,
    )


# ---- turning --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Turned:
    """How arrays of a case become (X, Y, Z)."""

    order: tuple[int, ...]
    flips: tuple[bool, ...]
    sizes: tuple[float, ...]
    axes: tuple[Axis, ...]
    letters: str
    through: str

    @classmethod
    def of(cls, geometry: Geometry, shape: tuple[int, ...], thin: int) -> _Turned:
        """Returns how arrays of a shape are turned that lie on a grid, or on one for each frame."""
        spacing = tuple(thin * size for size in geometry.spacing_mm or (1.0,) * geometry.ndim)
        order, flips = (0, 1, 2), (False, False, False)
        if geometry.ndim == 3:
            counts, steps, through = geometry.shape, (thin, thin, thin), "slice"
            if geometry.orientation:
                turn = to_lpi(geometry.orientation)
                order, flips = (turn[0][0], turn[0][1], turn[0][2]), (turn[1][0], turn[1][1], turn[1][2])
        else:
            frames = shape[2] if len(shape) == 3 else 1
            counts, steps, through = (*geometry.shape, frames), (thin, thin, 1), "frame" if len(shape) == 3 else ""
            spacing = (*spacing, _FRAMES_LAST * max(spacing))
        axes = [
            Axis(counts[axis] if flip else 1, -steps[axis] if flip else steps[axis], counts[axis])
            for axis, flip in zip(order, flips, strict=True)
        ]
        letters = "RLAPSI" if geometry.orientation else ""
        return cls(order, flips, tuple(spacing[axis] for axis in order), tuple(axes), letters, through)

    def turn(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Returns an array (I, J[, K]) as (X, Y, Z)."""
        return reorient(array if array.ndim == 3 else array[..., np.newaxis], self.order, self.flips)


def _numbers(channels: Sequence[object]) -> tuple[str, ...]:
    if len(channels) < 2:
        return ("image",) * len(channels)
    return tuple(f"channel {number}" for number in range(1, len(channels) + 1))


def _is_photograph(image: npt.NDArray[Any], geometry: Geometry) -> bool:
    return geometry.ndim == 2 and image.shape[0] == 3 and image.dtype == np.uint8


# ---- fewer voxels ---------------------------------------------------------------------------------------------------


def _factors(shape: Sequence[int], sizes: Sequence[float], room: int) -> tuple[int, ...]:
    """Returns by which whole numbers the axes are divided: the finest one first, until the voxels fit."""
    factors = [ceil(n / MOST_ALONG) for n in shape]
    while prod(ceil(n / factor) for n, factor in zip(shape, factors, strict=True)) > room:
        open_axes = [axis for axis, n in enumerate(shape) if n > factors[axis]]
        finest = min(sizes[axis] * factors[axis] for axis in open_axes)
        for axis in open_axes:
            factors[axis] += sizes[axis] * factors[axis] <= finest * _ALIKE
    return tuple(factors)


def _sampled(array: npt.NDArray[Any], factors: Sequence[int]) -> npt.NDArray[Any]:
    """Returns the middle voxel of each block, and of the last ones that are not whole what there is."""
    picks = [
        np.minimum(np.arange(0, n, factor) + factor // 2, n - 1) for n, factor in zip(array.shape, factors, strict=True)
    ]
    return array if max(factors) == 1 else np.asarray(array[np.ix_(*picks)])


def _averaged(array: npt.NDArray[Any], factors: Sequence[int]) -> npt.NDArray[np.float32]:
    """Returns the mean of each block; where the last ones are not whole, their last voxels count again."""
    values = array
    for axis, factor in enumerate(factors):
        if factor > 1:
            last = values.shape[axis] - 1
            starts = np.arange(0, last + 1, factor)
            total = values.take(starts, axis=axis).astype(np.float32)
            for offset in range(1, factor):
                total += values.take(np.minimum(starts + offset, last), axis=axis)
            values = total / factor
    return np.asarray(values, dtype=np.float32)


# ---- grey values ----------------------------------------------------------------------------------------------------


def _shown(
    channels: Sequence[npt.NDArray[np.float32]],
    labelled: npt.NDArray[np.bool_],
    modality: str | None,
    photograph: bool,
) -> tuple[tuple[Grey, ...], tuple[tuple[float, float], ...], tuple[str, ...]]:
    """Returns pictures, the values that are black and white in each, and their names; a photograph has none."""
    if photograph:
        return (np.stack(channels, axis=-1).round().astype(np.uint8),), ((0.0, 255.0),), ()
    windows = tuple(_window(channel, labelled, modality) for channel in channels)
    pictures = tuple(_grey(channel, window) for channel, window in zip(channels, windows, strict=True))
    return pictures, windows, _numbers(channels)


def _window(
    values: npt.NDArray[np.float32], labelled: npt.NDArray[np.bool_], modality: str | None
) -> tuple[float, float]:
    """Returns the values shown black and white: of CT a usual window that suits what is labelled, else percentiles."""
    sample = values.ravel()[:: max(1, values.size // _SAMPLE)].astype(np.float64)
    lowest, highest = float(sample.min()), float(sample.max())
    if modality == "CT" or (modality is None and lowest < _CT_AIR and highest > 0):
        own = values[labelled]
        middle = float(np.median(own)) if own.size else 0.0
        return next(window for limit, window in _CT_WINDOWS if middle < limit)
    low, high = (float(value) for value in np.percentile(sample, PERCENTILES))
    if high <= low:
        low, high = lowest, highest
    return low, high if high > low else low + 1.0


def _grey(values: npt.NDArray[np.float32], window: tuple[float, float]) -> Grey:
    low, high = window
    return np.asarray(((values - low) * (255.0 / (high - low))).clip(0.0, 255.0).round(), dtype=np.uint8)
