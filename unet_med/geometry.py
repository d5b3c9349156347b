"""Where voxels lie: shape and affine in RAS+ millimetres.

The one axis contract of this package: **an array is indexed (I, J) or (I, J, K), in the order of the affine's
columns.** For files this is (X, Y[, Z]): a picture of 640 columns and 480 rows has shape (640, 480). Channels, where
there are any, come first: (C, I, J[, K]). The affine maps the *centre* of voxel (i, j, k) to millimetres that grow to
the patient's Right, Anterior and Superior. DICOM and ITK use LPS; the two conversions live here and nowhere else.

A picture is 2-D: its shape has two entries and its affine is 3x3. An image of which no physical size is known is
*uncalibrated*: its affine is ``None``, its spacing is ``None``, and no millimetre is ever computed from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.errors import InputRefusedError

FloatArray = npt.NDArray[np.float64]

CORNER_TOLERANCE_MM = 1e-3
"""Two grids are the same when no corner differs by more than this."""

SHEAR_TOLERANCE = 1e-4
"""Largest cosine between two grid axes that still counts as a right angle."""

SPACING_DIGITS = 9
"""Significant digits of a spacing: more than a float32 header stores, fewer than rounding noise needs."""


@dataclass(frozen=True, eq=False)
class Geometry:
    """A grid of voxels in space.

    Attributes:
        shape: Number of voxels along I, J (and K).
        affine: (d+1, d+1) float64, index of the voxel centre to RAS+ mm; ``None`` when uncalibrated.
    """

    shape: tuple[int, ...]
    affine: FloatArray | None = None

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        if len(shape) not in (2, 3) or min(shape) < 1:
            raise InputRefusedError(
                f"a grid of shape {shape} is no picture or volume", remedy="give an image with two or three axes"
            )
        object.__setattr__(self, "shape", shape)
        if self.affine is None:
            return
        affine = np.array(self.affine, dtype=np.float64)
        size = len(shape) + 1
        if affine.shape != (size, size) or not np.isfinite(affine).all():
            raise InputRefusedError(
                "the image's affine is not finite", remedy="correct the header of the file, then run again"
            )
        steps = np.linalg.norm(affine[:-1, :-1], axis=0)
        if steps.min() < 1e-12 or abs(np.linalg.det(affine[:-1, :-1] / steps)) < 1e-6:
            raise InputRefusedError(
                "the image's affine has no volume (two axes coincide or a spacing is zero)",
                remedy="correct the header of the file, then run again",
            )
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)

    # ---- what it says -------------------------------------------------------------------------------------------

    @property
    def ndim(self) -> int:
        """Number of spatial axes, 2 or 3."""
        return len(self.shape)

    @property
    def is_calibrated(self) -> bool:
        """Whether voxels have a physical size."""
        return self.affine is not None

    @property
    def spacing_mm(self) -> tuple[float, ...] | None:
        """Distance of neighbouring voxel centres along each axis in mm; ``None`` when uncalibrated."""
        if self.affine is None:
            return None
        return tuple(float(f"{v:.{SPACING_DIGITS}g}") for v in np.linalg.norm(self.affine[:-1, :-1], axis=0))

    @property
    def voxel_ml(self) -> float | None:
        """Volume of one voxel in millilitres; ``None`` for pictures and uncalibrated images."""
        if self.affine is None or self.ndim != 3:
            return None
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    @property
    def shear(self) -> float:
        """Largest absolute cosine between two different axes: 0 for a rectangular grid."""
        if self.affine is None:
            return 0.0
        directions = self.affine[:-1, :-1] / np.linalg.norm(self.affine[:-1, :-1], axis=0)
        return float(np.abs(directions.T @ directions - np.eye(self.ndim)).max())

    @property
    def affine_4x4(self) -> FloatArray | None:
        """The affine as 4x4, for formats that know nothing else; a picture lies in the plane z = 0."""
        if self.affine is None or self.ndim == 3:
            return self.affine
        full = np.eye(4)
        full[:2, :2] = self.affine[:2, :2]
        full[:2, 3] = self.affine[:2, 2]
        return full

    @property
    def orientation(self) -> str:
        """Nearest anatomical direction of each axis, for example ``RAS``; empty for pictures and uncalibrated."""
        if self.affine is None or self.ndim != 3:
            return ""
        return "".join(
            "RAS"[axis] if sign > 0 else "LPI"[axis] for axis, sign in zip(*self._closest_axes(), strict=True)
        )

    def corners(self) -> FloatArray:
        """Returns the (2**d, d) positions in mm of the outermost voxel centres (index units when uncalibrated)."""
        index = np.array(list(product(*[(0, n - 1) for n in self.shape])), dtype=np.float64)
        return self.to_world(index)

    def to_world(self, index: npt.ArrayLike) -> FloatArray:
        """Maps voxel indices (..., d) to mm (..., d)."""
        points = np.asarray(index, dtype=np.float64)
        if self.affine is None:
            return points
        return np.asarray(points @ self.affine[:-1, :-1].T + self.affine[:-1, -1], dtype=np.float64)

    def same_grid(self, other: Geometry, tolerance_mm: float = CORNER_TOLERANCE_MM) -> bool:
        """Whether both have the same shape and no corner differs by more than ``tolerance_mm``."""
        if self.shape != other.shape or (self.affine is None) != (other.affine is None):
            return False
        return bool(np.abs(self.corners() - other.corners()).max() <= tolerance_mm)

    # ---- what can be made of it ---------------------------------------------------------------------------------

    @classmethod
    def from_spacing(cls, shape: tuple[int, ...], spacing_mm: tuple[float, ...] | None) -> Geometry:
        """Returns a grid along the axes with its first voxel at 0; uncalibrated for ``spacing_mm=None``."""
        if spacing_mm is None:
            return cls(shape)
        return cls(shape, np.diag([*map(float, spacing_mm), 1.0]))

    @classmethod
    def from_lps(cls, shape: tuple[int, ...], affine_lps: npt.ArrayLike) -> Geometry:
        """Returns the grid whose 4x4 affine is given in LPS+ mm (DICOM, ITK)."""
        return cls(shape, np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(affine_lps, dtype=np.float64))

    def to_lps(self) -> FloatArray:
        """Returns the 4x4 affine in LPS+ mm (DICOM, ITK)."""
        if self.affine_4x4 is None:
            raise InputRefusedError(
                "an uncalibrated image has no place in space", remedy="give its pixel size with --pixel-size"
            )
        return np.asarray(np.diag([-1.0, -1.0, 1.0, 1.0]) @ self.affine_4x4, dtype=np.float64)

    def crop(self, region: tuple[slice, ...]) -> Geometry:
        """Returns the grid of ``array[region]`` (step 1)."""
        bounds = [r.indices(n) for r, n in zip(region, self.shape, strict=True)]
        shape = tuple(stop - start for start, stop, _ in bounds)
        if self.affine is None:
            return Geometry(shape)
        affine = self.affine.copy()
        affine[:-1, -1] = self.to_world([start for start, _, _ in bounds])
        return Geometry(shape, affine)

    def resampled(self, spacing_mm: tuple[float, ...]) -> Geometry:
        """Returns the grid of nearly this spacing that covers exactly the same box.

        The number of voxels is rounded, then the spacing is adapted so that the outer faces of the two grids
        coincide (what ``torch.nn.functional.interpolate(align_corners=False)`` does). An axis may be as short as one
        voxel.
        """
        own = self.spacing_mm
        if self.affine is None or own is None:
            raise InputRefusedError(
                "an uncalibrated image cannot be resampled to millimetres",
                remedy="give its pixel size with --pixel-size, or set preprocess.spacing_mm to null",
            )
        shape = tuple(max(1, round(n * a / b)) for n, a, b in zip(self.shape, own, spacing_mm, strict=True))
        return self.with_shape(shape)

    def with_shape(self, shape: tuple[int, ...]) -> Geometry:
        """Returns the grid of this shape that covers exactly the same box."""
        if self.affine is None:
            return Geometry(shape)
        scale = np.array(self.shape, dtype=np.float64) / np.array(shape, dtype=np.float64)
        affine = self.affine.copy()
        affine[:-1, :-1] = self.affine[:-1, :-1] * scale
        affine[:-1, -1] = self.to_world((scale - 1.0) / 2.0)
        return Geometry(shape, affine)

    def canonical_axes(self) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """Returns how to reorient towards RAS: ``(order, flips)`` for :func:`reorient`.

        ``order[n]`` is the axis of this grid that becomes axis n; ``flips[n]`` says whether it is then reversed.
        Pictures and uncalibrated images stay as they are.
        """
        if self.affine is None or self.ndim != 3:
            return tuple(range(self.ndim)), (False,) * self.ndim
        world, signs = self._closest_axes()
        order = tuple(world.index(axis) for axis in range(3))
        return order, tuple(signs[axis] < 0 for axis in order)

    def reoriented(self, order: tuple[int, ...], flips: tuple[bool, ...]) -> Geometry:
        """Returns the grid of :func:`reorient` (array, order, flips)."""
        shape = tuple(self.shape[axis] for axis in order)
        if self.affine is None:
            return Geometry(shape)
        affine = self.affine.copy()
        affine[:-1, :-1] = self.affine[:-1, list(order)]
        for axis, flipped in enumerate(flips):
            if flipped:
                affine[:-1, -1] += affine[:-1, axis] * (shape[axis] - 1)
                affine[:-1, axis] *= -1.0
        return Geometry(shape, affine)

    def _closest_axes(self) -> tuple[list[int], list[int]]:
        """Returns for each grid axis the world axis it follows and its sign; a one-to-one assignment."""
        if self.affine is None:
            return [0, 1, 2], [1, 1, 1]
        cosines = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        remaining = np.abs(cosines)
        world = [0, 0, 0]
        for _ in range(3):
            row, column = np.unravel_index(int(np.argmax(remaining)), remaining.shape)
            world[int(column)] = int(row)
            remaining[row, :] = -1.0
            remaining[:, column] = -1.0
        return world, [1 if cosines[world[axis], axis] >= 0 else -1 for axis in range(3)]


def reorient(array: npt.NDArray[Any], order: tuple[int, ...], flips: tuple[bool, ...]) -> npt.NDArray[Any]:
    """Permutes and flips the last ``len(order)`` axes of ``array``; a view, nothing is copied."""
    lead = array.ndim - len(order)
    turned = array.transpose(*range(lead), *(lead + axis for axis in order))
    index: tuple[Any, ...] = (..., *(slice(None, None, -1 if flipped else 1) for flipped in flips))
    view: npt.NDArray[Any] = turned[index]  # of an image that is not in memory nothing is read
    return view


def undo_reorient(array: npt.NDArray[Any], order: tuple[int, ...], flips: tuple[bool, ...]) -> npt.NDArray[Any]:
    """Inverse of :func:`reorient`; a view."""
    index: tuple[Any, ...] = (..., *(slice(None, None, -1 if flipped else 1) for flipped in flips))
    unflipped = np.asarray(array[index])
    lead = array.ndim - len(order)
    inverse = [order.index(axis) for axis in range(len(order))]
    return unflipped.transpose(*range(lead), *(lead + axis for axis in inverse))
