"""A case: the image files that belong together, and their label, on one grid.

The first source is the reference: its grid is that of the case, of its label and of its mask. Other sources give
further channels and are resampled linearly onto it where their grids differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from unet_med.errors import InputRefusedError
from unet_med.geometry import Geometry
from unet_med.io.discover import open_source
from unet_med.io.label_images import LabelArray, label_on_image, remapped, value_type
from unet_med.io.object_truth import OBJECT_KINDS
from unet_med.io.reading import check_frame
from unet_med.io.source import SourceRef
from unet_med.volume import ImageSource, Region, Volume, lazily, slabs

_EXACT_BYTES = 2
"""Types of this size are handed on as stored: float32, in which all computing is done, holds their values exactly."""

_IDENTITY_VOXELS = 0.01
LARGE_BYTES = 2**30
"""Images of more bytes are not read as a whole to be planned with or learnt from."""
_REGION_KINDS = ("tiff", "zarr", "czi", "nd2", "lif")
"""Kinds whose files are read region by region."""

COLOURS_OR_GREYS = ("red or grey", "green or grey", "blue or grey")
"""The channels of a set of colour and grey pictures: of a grey one, all three are its only channel."""


@dataclass(frozen=True)
class Case:
    """One case of a data set; nothing is read until it is asked for.

    Attributes:
        id: Safe name, unique in its data set.
        sources: One or more; their channels are concatenated in this order. The first gives the grid.
        label: The label image, if there is one.
        frame: One frame of a multi-frame source; ``None`` for all.
        label_values: Stored label value to label; every stored value but 0 must be listed.
        instances: Whether stored label values are numbers of objects.
        missing: Names of channels that a model needs and the case lacks; it cannot be read.
        classes: Number of an object -> its label (1, 2, ...); ``None``: every object is label 1.
        annotated: A picture on the image's grid that is 0 where nobody labelled; ``None``: all was labelled.
        unlabelled: Value of voxels that nobody labelled; ``annotated`` needs one.
        colour: Whether one grey channel is read as three equal ones, see :data:`COLOURS_OR_GREYS`.
    """

    id: str
    sources: tuple[SourceRef, ...]
    label: SourceRef | None = None
    frame: int | None = None
    label_values: Mapping[int, int] | None = None
    instances: bool = False
    missing: tuple[str, ...] = ()
    classes: Mapping[int, int] | None = None
    annotated: SourceRef | None = None
    unlabelled: int | None = None
    colour: bool = False

    @property
    def geometry(self) -> Geometry:
        """Grid of one frame, that of the first source."""
        geometry = self.sources[0].geometry
        if geometry is None:
            raise InputRefusedError(self.sources[0].reason or "the image cannot be used", self.id)
        return geometry

    @property
    def channels(self) -> int:
        """Number of channels of all sources together."""
        stored = sum(source.channels for source in self.sources)
        return len(COLOURS_OR_GREYS) if self.colour and stored == 1 else stored

    @property
    def frames(self) -> tuple[int, ...]:
        """The frames that can be read."""
        return tuple(range(self.sources[0].frames)) if self.frame is None else (self.frame,)

    @property
    def is_large(self) -> bool:
        """Whether the image is not to be read as a whole where its parts will do."""
        voxel = sum(one.channels * np.dtype(one.dtype).itemsize for one in self.sources)
        return self.reads_regions and prod(self.geometry.shape) * voxel >= LARGE_BYTES

    @property
    def reads_regions(self) -> bool:
        """Whether regions can be read without the rest: none of its images must be brought to the grid of another."""
        return all(self._gives_regions(source) for source in self.sources)

    @property
    def reads_label_regions(self) -> bool:
        """Whether regions of its label can be read without the rest: it is stored as the image is."""
        given = [part for part in (self.label, self.annotated) if part is not None]
        return bool(given) and all(self._gives_regions(part) for part in given)

    def _gives_regions(self, part: SourceRef) -> bool:
        return part.kind in _REGION_KINDS and _nearly_same(part.geometry, self.geometry)

    def open(self) -> OpenCase:
        """Returns the case with its files opened once, for several reads.

        Raises:
            InputRefusedError: A channel is missing.
        """
        if self.missing:
            names = ", ".join(map(repr, self.missing))
            raise InputRefusedError(
                f"the image of channel {names} is missing"
                if len(self.missing) == 1
                else f"the images of channels {names} are missing",
                self.id,
                "put it beside the others (NAME_0000, NAME_0001, ... or NAME_CHANNEL), or leave the case out",
            )
        return OpenCase(self)

    def read(self, frame: int | None = None) -> Volume:
        """Returns the image (C, I, J[, K]) on the reference grid: as stored up to 16 bits, else float32.

        Args:
            frame: Which one; may be left out where the case has only one.

        Raises:
            InputRefusedError: A file is damaged, holds NaN or infinity, or the grids cannot be brought together.
        """
        return self.open().read(frame=self._frame(frame))

    def look(self, frame: int | None = None) -> Volume:
        """Returns the image as :meth:`read` does; a large one is not in memory, if regions of it can be read alone."""
        return self.open().look(self._frame(frame))

    def read_label(self, frame: int | None = None) -> LabelArray:
        """Returns the label as integers (I, J[, K]) on the reference grid; the smallest type that holds its values.

        Raises:
            InputRefusedError: There is no label, it lies elsewhere, has another shape, is no label image, or holds
                values that are negative, no whole numbers, or not in ``label_values``.
        """
        return self.open().read_label(self._frame(frame))

    def look_label(self, frame: int | None = None) -> Volume:
        """Returns the label as :meth:`read_label` does, as the one channel of a volume.

        That of a large image is not in memory, if regions of it can be read alone.
        """
        return self.open().look_label(self._frame(frame))

    def classes_of(self, objects: LabelArray) -> LabelArray:
        """Returns the label of each voxel of an image of object numbers, of the same shape.

        Background stays 0, and voxels that nobody labelled keep their value.

        Args:
            objects: (I, J[, K]) numbers of objects, as :meth:`read_label` returns them.

        Raises:
            InputRefusedError: The class of an object is not known.
        """
        highest = max(1, self.unlabelled or 0, *(self.classes or {}).values())
        dtype = np.uint8 if highest < 2**8 else np.uint16
        if self.classes is None:
            labels = np.asarray(objects > 0, dtype=dtype)
        else:
            present, inverse = np.unique(objects, return_inverse=True)
            known = {0: 0, **({} if self.unlabelled is None else {self.unlabelled: 0}), **self.classes}
            unknown = [int(number) for number in present if int(number) not in known]
            if unknown:
                raise InputRefusedError(
                    f"{len(unknown)} objects have no class, the first is number {unknown[0]}",
                    self.id,
                    "name the class of every object, then make the manifest again",
                )
            labels = np.array([known[int(number)] for number in present], dtype=dtype)[inverse].reshape(objects.shape)
        if self.unlabelled is not None:
            labels[objects == self.unlabelled] = self.unlabelled
        return labels

    def reference_source(self) -> ImageSource:
        """Returns the first source, opened; only its frame ``frame`` where the case is one frame."""
        source = open_source(self.sources[0])
        return source if self.frame is None or source.frames == 1 else FrameSource(source, self.frame)

    def _frame(self, frame: int | None) -> int:
        if frame is None and len(self.frames) > 1:
            raise InputRefusedError(
                f"the case has {len(self.frames)} frames and none was chosen", self.id, "read it frame by frame"
            )
        chosen = self.frames[0] if frame is None else frame
        if chosen not in self.frames:
            raise InputRefusedError(f"the case has no frame {chosen}", self.id, f"choose one of {list(self.frames)}")
        return chosen


@dataclass(frozen=True)
class FrameSource:
    """One frame of a multi-frame source as a source of its own."""

    source: ImageSource
    frame: int

    @property
    def id(self) -> str:
        """Id of the whole source."""
        return self.source.id

    @property
    def geometry(self) -> Geometry:
        """Grid of the frame."""
        return self.source.geometry

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.source.channels

    @property
    def frames(self) -> int:
        """Always 1."""
        return 1

    def read(self, region: Region | None = None, frame: int = 0) -> Volume:
        """Returns a region of the frame."""
        check_frame(frame, 1, self.id)
        return self.source.read(region, self.frame)


@dataclass(frozen=True)
class OpenCase:
    """A case with its files open; an :class:`ImageSource` whose channels are those of all its sources."""

    case: Case
    _opened: dict[int, ImageSource] = field(default_factory=dict, repr=False, compare=False)

    @property
    def id(self) -> str:
        """Id of the case."""
        return self.case.id

    @property
    def geometry(self) -> Geometry:
        """The reference grid."""
        return self.case.geometry

    @property
    def channels(self) -> int:
        """Number of channels of all sources together."""
        return self.case.channels

    @property
    def frames(self) -> int:
        """Frames of the reference source."""
        return self.case.sources[0].frames

    def read(self, region: Region | None = None, frame: int = 0) -> Volume:
        """Returns (C, I, J[, K]) of a region of the reference grid; see :meth:`Case.read`."""
        check_frame(frame, self.frames, self.id)
        grid = self.geometry if region is None else self.geometry.crop(region)
        parts = [self._channels(number, region, grid, frame) for number in range(len(self.case.sources))]
        array = _together(parts)
        if array.dtype.kind == "f":
            _check_finite(array, self.id)
        if len(array) < self.channels:
            array = np.repeat(array, self.channels, axis=0)
        return Volume(array, grid)

    def look(self, frame: int = 0) -> Volume:
        """Returns the image of one frame; see :meth:`Case.look`."""
        return lazily(self, frame) if self.case.is_large else self.read(frame=frame)

    def look_label(self, frame: int = 0) -> Volume:
        """Returns the label of one frame; see :meth:`Case.look_label`."""
        if self.case.is_large and self.case.reads_label_regions:
            return lazily(_Label(self), frame)
        return Volume(self.read_label(frame)[np.newaxis], self.geometry)

    def read_label(self, frame: int = 0, region: Region | None = None) -> LabelArray:
        """Returns the label of one frame, or of a region of it; see :meth:`Case.read_label`."""
        ref = self.case.label
        if ref is None:
            raise InputRefusedError("the case has no label", self.id, "pair it with a label image in the manifest")
        if ref.frames != self.frames and ref.kind not in OBJECT_KINDS:
            raise InputRefusedError(
                f"the label has {ref.frames} frames and its image {self.frames}",
                self.id,
                "give a label image with one frame for each frame of the image",
            )
        stored = label_on_image(ref, self.case.sources[0], frame, self.id, region)
        return self._where_annotated(remapped(stored, self.case.label_values, self.id), frame, region)

    def _where_annotated(self, labels: LabelArray, frame: int, region: Region | None) -> LabelArray:
        """Gives voxels that nobody labelled the value that says so."""
        ref, value = self.case.annotated, self.case.unlabelled
        if ref is None:
            return labels
        if value is None:
            raise InputRefusedError("unlabelled voxels have no value", self.id, "name one with --ignore-label")
        frame = frame if ref.frames == self.frames else 0
        annotated = label_on_image(ref, self.case.sources[0], frame, self.id, region)
        dtype = np.promote_types(labels.dtype, np.min_scalar_type(value))
        return np.where(annotated == 0, np.asarray(value, dtype=dtype), labels.astype(dtype, copy=False))

    def _source(self, number: int) -> ImageSource:
        if number not in self._opened:
            self._opened[number] = open_source(self.case.sources[number])
        return self._opened[number]

    def _channels(self, number: int, region: Region | None, grid: Geometry, frame: int) -> npt.NDArray[Any]:
        """Returns the channels of one source on ``grid``; float32 where a type of 16 bits does not hold them."""
        source = self._source(number)
        if number and source.frames != self.frames:
            raise InputRefusedError(
                f"channel files have {self.frames} and {source.frames} frames", self.id, "give files of equal length"
            )
        if _nearly_same(source.geometry, self.geometry):
            stored = source.read(region, frame).array
            return stored if stored.dtype.itemsize <= _EXACT_BYTES else stored.astype(np.float32, copy=False)
        if source.geometry.ndim != grid.ndim or not (source.geometry.is_calibrated and grid.is_calibrated):
            raise InputRefusedError(
                f"channel files have the shapes {self.geometry.shape} and {source.geometry.shape} and no common place",
                self.id,
                "give channels of one shape, or images that know their place in mm",
            )
        volume = source.read(frame=frame)
        return np.stack([resample(channel, volume.geometry, grid, self.id) for channel in volume.array])


@dataclass(frozen=True)
class _Label:
    """The label of a case as an :class:`ImageSource` of one channel; every region is of the same type."""

    case: OpenCase

    @property
    def id(self) -> str:
        """Id of the case."""
        return self.case.id

    @property
    def geometry(self) -> Geometry:
        """The reference grid."""
        return self.case.geometry

    @property
    def channels(self) -> int:
        """Always 1."""
        return 1

    @property
    def frames(self) -> int:
        """Frames of the case."""
        return self.case.frames

    def read(self, region: Region | None = None, frame: int = 0) -> Volume:
        """Returns the label (1, I, J[, K]) of a region."""
        labels = self.case.read_label(frame, region)[np.newaxis]
        grid = self.geometry if region is None else self.geometry.crop(region)
        return Volume(labels.astype(self._dtype, copy=False), grid)

    @property
    def _dtype(self) -> npt.DTypeLike:
        """A type that holds all values there may be."""
        case = self.case.case
        stored = np.dtype(np.int64 if case.label is None else case.label.dtype)
        if case.label_values is not None:
            stored = value_type(max(case.label_values.values(), default=0))
        elif stored not in (np.uint8, np.uint16):
            stored = np.dtype(np.int64)
        return np.promote_types(stored, np.min_scalar_type(case.unlabelled or 0))


def _together(parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Returns parts (c, I, J[, K]) as one array, I fastest in memory; the list is emptied so that each is freed."""
    if len(parts) == 1:
        return parts.pop()
    common = np.result_type(*parts)
    dtype = common if common.itemsize <= _EXACT_BYTES else np.float32
    shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
    array = np.empty(shape[:1] + shape[:0:-1], dtype=dtype).transpose(0, *range(len(shape) - 1, 0, -1))
    start = 0
    while parts:
        part = parts.pop(0)
        array[start : start + len(part)] = part
        start += len(part)
    return array


def _check_finite(array: npt.NDArray[Any], where: str) -> None:
    odd = sum(int(np.count_nonzero(~np.isfinite(array[region]))) for region in slabs(array))
    if odd:
        raise InputRefusedError(
            f"the image holds values that are no number or infinite ({odd / array.size:.2%} of it)",
            where,
            "replace them in the file (for example by the lowest value), or leave the case out",
        )


def resample(array: npt.NDArray[Any], source: Geometry, target: Geometry, where: str = "") -> npt.NDArray[np.float32]:
    """Interpolates linearly from one grid onto another (both calibrated); the lowest value outside the source's box.

    Between the outermost voxel centres and the faces of the box, half a voxel further, the outermost value holds.

    Args:
        array: (I, J[, K]) on ``source``.
        source: Grid of ``array``.
        target: Grid of the result.
        where: Safe id for the error.

    Raises:
        InputRefusedError: The two boxes do not meet.
    """
    if source.affine is None or target.affine is None:
        raise InputRefusedError("an uncalibrated image cannot be resampled", where, "give its pixel size")
    transform = np.linalg.inv(source.affine) @ target.affine
    matrix, offset = transform[:-1, :-1], transform[:-1, -1]
    inside = np.ones(target.shape, dtype=bool)
    for row, shift, size in zip(matrix, offset, source.shape, strict=True):
        index = np.full((1,) * target.ndim, shift)
        for axis, (step, length) in enumerate(zip(row, target.shape, strict=True)):
            along = [1] * target.ndim
            along[axis] = length
            index = index + (step * np.arange(length)).reshape(along)
        inside &= (index >= -0.5 - 1e-6) & (index <= size - 0.5 + 1e-6)
    if not inside.any():
        raise InputRefusedError(
            "the channels of the case lie in different places: their boxes do not meet",
            where,
            "check that the files belong to one case and one scanner position",
        )
    values = array.astype(np.float32, copy=False)
    result = ndimage.affine_transform(
        values, matrix, offset, output_shape=target.shape, order=1, mode="nearest", output=np.float32
    )
    result[~inside] = values.min()
    return np.asarray(result, dtype=np.float32)


def _nearly_same(one: Geometry | None, other: Geometry) -> bool:
    """Whether two grids are one: same shape and, where both know their place, corners within 1/100 of a voxel."""
    if one is None or one.shape != other.shape:
        return False
    if one.affine is None or other.affine is None:
        return True
    return one.same_grid(other, _IDENTITY_VOXELS * min(other.spacing_mm or (1.0,)))
