"""How the stored slices of a DICOM series make a grid, and back: what readers, annotations and exports share.

Coordinates are LPS mm as DICOM stores them; only :class:`unet_med.geometry.Geometry` turns them into RAS+. UIDs stay in
memory: nothing here is printed or stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
LabelArray = npt.NDArray[np.integer[Any]]
Vector = tuple[float, float, float]


@dataclass(frozen=True)
class StoredSlice:
    """One slice as it is stored.

    Attributes:
        file: Index into the files of its source.
        frame: Frame in that file, from 0.
        position: Centre of its first voxel, LPS mm.
        sop_uid: SOPInstanceUID of the file.
    """

    file: int
    frame: int
    position: Vector
    sop_uid: str = field(repr=False)


@dataclass(frozen=True)
class Regrid:
    """Where stored slices lie on a rectangular grid that is not their own.

    The grid is big enough for every slice: 0 <= x <= X - columns, 0 <= y <= Y - rows, 0 <= k <= K - 1.

    Attributes:
        origins: For each stored slice the place (x, y, k) of its first voxel on the grid, in voxels of the grid; k
            grows from slice to slice.
        shape: Voxels of the grid along X, Y and K.
    """

    origins: tuple[Vector, ...]
    shape: tuple[int, int, int]

    def neighbours(self, plane: int) -> tuple[int, int, float]:
        """Returns the stored slices below and above a plane of the grid and the weight of the upper one, 0 to 1.

        Where a slice lies in the plane, it is the lower one and the weight is 0.
        """
        heights = [origin[2] for origin in self.origins]
        next_one = int(np.searchsorted(heights, plane, side="right"))
        below, above = max(next_one - 1, 0), min(next_one, len(heights) - 1)
        gap = heights[above] - heights[below]
        weight = 0.0 if gap <= 0 else min(max((plane - heights[below]) / gap, 0.0), 1.0)
        return below, above, weight

    def place(self, picture: npt.NDArray[np.float32], number: int, fill: float) -> npt.NDArray[np.float32]:
        """Returns a stored slice (columns, rows), moved to its place (X, Y) on the grid by linear interpolation.

        What lies more than half a voxel outside of the slice becomes ``fill``.
        """
        moved = np.asarray(picture, dtype=np.float32)
        for axis, shift in enumerate(self.origins[number][:2]):
            moved = _shifted(moved, axis, shift, self.shape[axis])
        for axis, shift in enumerate(self.origins[number][:2]):
            index = np.arange(self.shape[axis]) - shift
            outside = (index < -0.5) | (index > picture.shape[axis] - 0.5)
            if outside.any():
                moved[outside if axis == 0 else (slice(None), outside)] = fill
        return moved

    def labels_on_slices(self, labels: LabelArray, size: tuple[int, int]) -> LabelArray:
        """Returns labels (X, Y, K) of the grid on the stored slices (columns, rows, slices), by nearest neighbour."""
        out = np.empty((*size, len(self.origins)), dtype=labels.dtype)
        for number in range(len(self.origins)):
            x, y, k = self._nearest(number)
            out[:, :, number] = labels[x : x + size[0], y : y + size[1], k]
        return out

    def labels_on_grid(self, stored: LabelArray) -> LabelArray:
        """Returns labels of the stored slices (columns, rows, slices) on the grid (X, Y, K), by nearest neighbour.

        Where no slice is, there is 0. What :meth:`labels_on_slices` makes of the result is ``stored`` again, unless
        slices lie closer together than planes.
        """
        out = np.zeros(self.shape, dtype=stored.dtype)
        for plane in range(self.shape[2]):
            below, above, weight = self.neighbours(plane)
            number = above if weight >= 0.5 else below
            x, y, _ = self._nearest(number)
            out[x : x + stored.shape[0], y : y + stored.shape[1], plane] = stored[:, :, number]
        return out

    def _nearest(self, number: int) -> tuple[int, int, int]:
        """Returns the voxel of the grid that is nearest to the first voxel of a stored slice."""
        x, y, k = (math.floor(value + 0.5) for value in self.origins[number])
        return x, y, k


def _shifted(picture: npt.NDArray[np.float32], axis: int, shift: float, length: int) -> npt.NDArray[np.float32]:
    """Returns ``length`` voxels along one axis, the picture's first one at ``shift``; its ends go on outside."""
    if shift == 0 and length == picture.shape[axis]:
        return picture
    whole = math.floor(shift)
    fraction = np.float32(shift - whole)
    last = picture.shape[axis] - 1
    index = np.arange(length) - whole
    moved = picture.take(np.clip(index, 0, last), axis)
    if fraction > 0:
        moved = (1 - fraction) * moved + fraction * picture.take(np.clip(index - 1, 0, last), axis)
    return moved


@dataclass(frozen=True)
class SliceLayout:
    """The stored slices of one volume or picture, in the order of the grid's K.

    Attributes:
        slices: One entry for each stored slice.
        size: Stored columns and rows.
        row: Unit vector along a row (growing column index, X), LPS.
        column: Unit vector down a column (growing row index, Y), LPS, perpendicular to ``row``.
        spacing_mm: Distance of voxels along X (between columns) and along Y (between rows).
        step_mm: Distance of the grid's slices along the normal ``row x column``.
        study_uid, series_uid, frame_uid: What DICOM calls the study, the series and the frame of reference.
        regrid: How slices come onto the grid where it is not their own (untilted, resampled, gaps filled); ``None``
            where voxel (i, j, k) of the grid is pixel (column i, row j) of slice k.
    """

    slices: tuple[StoredSlice, ...]
    size: tuple[int, int]
    row: Vector
    column: Vector
    spacing_mm: tuple[float, float]
    step_mm: float
    study_uid: str = field(default="", repr=False)
    series_uid: str = field(default="", repr=False)
    frame_uid: str = field(default="", repr=False)
    regrid: Regrid | None = None

    @property
    def normal(self) -> FloatArray:
        """Unit vector across the slices, LPS."""
        return np.asarray(np.cross(self.row, self.column), dtype=np.float64)

    def slice_affine(self, number: int) -> FloatArray:
        """Returns the 4x4 matrix from (column, row, 0) of a stored slice to LPS mm; its third column is the step."""
        affine = np.eye(4)
        affine[:3, 0] = np.array(self.row) * self.spacing_mm[0]
        affine[:3, 1] = np.array(self.column) * self.spacing_mm[1]
        affine[:3, 2] = self.normal * self.step_mm
        affine[:3, 3] = self.slices[number].position
        return affine

    def labels_on_slices(self, labels: LabelArray) -> LabelArray:
        """Returns labels of the grid (I, J, K) as (columns, rows, stored slices)."""
        return labels if self.regrid is None else self.regrid.labels_on_slices(labels, self.size)

    def labels_on_grid(self, stored: LabelArray) -> LabelArray:
        """Returns labels (columns, rows, stored slices) as (I, J, K) of the grid."""
        return stored if self.regrid is None else self.regrid.labels_on_grid(stored)


@dataclass(frozen=True)
class Segment:
    """One segment of a SEG, or one region of interest of an RTSTRUCT.

    Attributes:
        number: Segment number, or ROI number.
        name: Its label or name, made safe for printing.
        code: ``scheme:value`` of its type code; empty where there is none.
    """

    number: int
    name: str
    code: str = ""


@dataclass(frozen=True)
class Annotation:
    """What an annotation (SEG, RTSTRUCT) holds and refers to.

    Attributes:
        segments: Its segments.
        series_uids: The series that it refers to.
        sop_uids: The images that it refers to; may name images that are not there.
        frame_uid: Its frame of reference.
        study_uid: Its study.
    """

    segments: tuple[Segment, ...]
    series_uids: frozenset[str] = field(default=frozenset(), repr=False)
    sop_uids: frozenset[str] = field(default=frozenset(), repr=False)
    frame_uid: str = field(default="", repr=False)
    study_uid: str = field(default="", repr=False)
