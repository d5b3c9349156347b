"""The geometry stamp: whether a written mask says what the mask in memory says, and says it of the same place.

Every label's centroid, volume and place beside every other label are computed twice, from the mask in memory and from
what another library reads in the file, each with its own array and its own affine. Where the format stores voxels,
grids and voxels must be the same, too, whatever the order of axes in the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.errors import InputRefusedError
from unet_med.geometry import CORNER_TOLERANCE_MM, SHEAR_TOLERANCE, Geometry, reorient, undo_reorient
from unet_med.io.export.mask import MaskExport, ReadBack, parts_of
from unet_med.io.export.measure import FloatArray, LabelMeasure, LabelSums, count_labels
from unet_med.volume import Region, slabs

CONTOUR_DICE = 0.98
"""The Dice that every label reaches in a format that stores no voxels."""

_CONTOUR_VOXELS = 0.25
_REGRIDDED_VOXELS = 0.5
"""How far a centroid may move along an axis of the grid where the format stores no voxels."""

_ALIGNED = 1e-3
_SIDES = (("right", "left"), ("anterior", "posterior"), ("superior", "inferior"))
_ORDERS = ("left_right", "anterior_posterior", "inferior_superior")


def stamp(export: MaskExport, found: ReadBack, dice: float | None = None) -> dict[str, Any]:
    """Compares what was read back with the mask in memory.

    Args:
        export: The mask as it was meant.
        found: What another library reads in the file. Any order and direction of its axes will do, and so will a part
            of the grid with no label outside.
        dice: The lowest Dice that a label may have where ``found.exact`` is false; left out: 0.98. A lower one, for
            masks that were regridded on their way, also lets centroids move by half a voxel instead of a quarter.

    Returns:
        JSON-able: ``reader``, ``exact``, ``passed`` and what was measured: ``labels`` (how many), ``centroid_mm`` and
        ``volume_ml`` (largest differences), ``pairs`` (of labels) and ``order`` (whether they kept it, by axis); for
        exact formats ``corner_mm`` and ``voxels`` (how many differ), else ``dice`` (the lowest).

    Raises:
        InputRefusedError: when the file says anything else.
    """
    return _Stamp(export, found, CONTOUR_DICE if dice is None else dice).record()


class _Stamp:
    """One comparison: the mask in memory, what was found, and how much they may differ."""

    def __init__(self, export: MaskExport, found: ReadBack, dice: float) -> None:
        self.export = export
        self.found = found
        self.dice = dice
        self.own = export.measures
        self.different = 0
        self.theirs = self._read()
        self.names = {label.index: label.name for label in export.label_map.labels}

    def record(self) -> dict[str, Any]:
        found = self.found
        if self.own.keys() != self.theirs.keys():
            odd = min(self.own.keys() ^ self.theirs.keys())
            raise self._wrong(f"{self._name(odd)} is {'missing' if odd in self.own else 'too much'}")
        record: dict[str, Any] = {"reader": found.reader, "exact": found.exact, "labels": len(self.own)}
        record |= self._order()
        record["centroid_mm"] = self._centroids()
        record["volume_ml"] = self._volumes()
        record |= self._voxels() if found.exact else self._overlap()
        return record | {"passed": True}

    def _read(self) -> dict[int, LabelMeasure]:
        """Goes once through what was found: measures its labels, and counts the voxels that differ from the mask."""
        sums = LabelSums(len(self.found.labels.shape))
        meant = self._meant() if self.found.exact else None
        labelled = 0
        for region, values in parts_of(self.found.labels):
            sums.add(values, region)
            if meant is not None:
                self.different += int(np.count_nonzero(values != meant[region]))
                labelled += int(np.count_nonzero(meant[region]))
        if meant is not None:  # where the file has no voxels, the mask has no labels
            self.different += sum(label.voxels for label in self.own.values()) - labelled
        return sums.measures(self.found.geometry)

    def _meant(self) -> npt.NDArray[Any] | None:
        """Returns the mask in the axis order of what was found, where that is possible: a view."""
        try:
            fit = _fit(self.found.geometry, self.export.geometry, _corner_tolerance(self.export.geometry))
        except InputRefusedError:
            return None  # said when sizes and places were compared
        return undo_reorient(self.export.labels[fit.region], fit.order, fit.flips)

    def _order(self) -> dict[str, Any]:
        """Compares for all pairs of labels which one lies more to the right, to the front and above."""
        labels = sorted(self.own)
        ours = _rows(self.own, labels)
        theirs = _rows(self.theirs, labels)
        blur = 2.0 * self._centroid_mm()
        for number, label in enumerate(labels[:-1]):
            meant = ours[number + 1 :] - ours[number]
            got = theirs[number + 1 :] - theirs[number]
            swapped = np.argwhere((np.abs(meant) > blur) & (np.sign(meant) != np.sign(got)))
            if len(swapped):
                other, axis = (int(n) for n in swapped[0])
                side = _SIDES[axis][0 if meant[other, axis] > 0 else 1]
                second = self._name(labels[number + 1 + other])
                raise self._wrong(f"{second} does not lie {side} of {self._name(label)}")
        return {"pairs": len(labels) * (len(labels) - 1) // 2, "order": dict.fromkeys(_ORDERS, True)}

    def _centroids(self) -> float:
        allowed = self._centroid_mm()
        furthest = 0.0
        for label, own in self.own.items():
            move = self.theirs[label].centroid_mm - own.centroid_mm
            if self.found.exact:
                off = float(np.abs(move).max()) > allowed
            else:
                off = float(np.abs(_in_voxels(move, self.export.geometry)).max()) > self._allowed_voxels()
            apart = float(np.linalg.norm(move))
            if off:
                raise self._wrong(f"{self._name(label)} lies {apart:.3g} mm off")
            furthest = max(furthest, apart)
        return _rounded(furthest)

    def _volumes(self) -> float:
        """Compares ml; contours may differ by one voxel, or by as much as their Dice allows."""
        own_ml, found_ml = self.export.geometry.voxel_ml, self.found.geometry.voxel_ml
        if own_ml is None or found_ml is None:
            raise self._wrong("it has no volume")
        share = 1e-5 if self.found.exact else 2.0 * (1.0 - self.dice)
        most = 0.0
        for label, own in self.own.items():
            meant, got = own.voxels * own_ml, self.theirs[label].voxels * found_ml
            spare = 0.0 if self.found.exact else 1.001 * own_ml
            if abs(got - meant) > max(share * meant, spare):
                raise self._wrong(f"{self._name(label)} has {got:.4g} ml instead of {meant:.4g} ml")
            most = max(most, abs(got - meant))
        return _rounded(most)

    def _voxels(self) -> dict[str, Any]:
        grid = self.export.geometry
        try:
            fit = _fit(self.found.geometry, grid, _corner_tolerance(grid))
        except InputRefusedError as error:
            raise self._wrong(error.what) from None
        if self.different:
            raise self._wrong(f"{self.different} voxels differ")
        return {"corner_mm": _rounded(fit.apart_mm), "voxels": 0}

    def _overlap(self) -> dict[str, Any]:
        both, ours, theirs = self._shared()
        lowest = 1.0
        for label in self.own:
            shared, total = int(both[label]), int(ours[label]) + int(theirs[label])
            value = 2.0 * shared / total
            if value < self.dice and total - 2 * shared > 1:
                raise self._wrong(f"{self._name(label)} has a Dice of {value:.3f}, less than {self.dice:g}")
            lowest = min(lowest, value)
        return {"dice": round(lowest, 5)}

    def _shared(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Returns for each label the voxels that both have, that the mask has, and that were found."""
        labels, found = self.export.labels, self._placed(0.1 * min(self.export.geometry.spacing_mm or (1.0,)))
        highest = max(self.own, default=0)
        both = np.zeros(highest + 1, dtype=np.int64)
        for region in slabs(labels):
            mine = labels[region]
            both += np.bincount(mine[mine == found[region]], minlength=highest + 1)
        return both, count_labels(labels, highest), count_labels(found, highest)

    def _placed(self, tolerance_mm: float) -> npt.NDArray[Any]:
        labels = self.found.labels
        if not isinstance(labels, np.ndarray):
            labels = np.concatenate([values for _, values in labels.parts()], axis=-1)
        try:
            return bring_onto(labels, self.found.geometry, self.export.geometry, tolerance_mm)[0]
        except InputRefusedError as error:
            raise self._wrong(error.what) from None

    def _allowed_voxels(self) -> float:
        return _CONTOUR_VOXELS if self.dice >= CONTOUR_DICE else _REGRIDDED_VOXELS

    def _centroid_mm(self) -> float:
        """How far a centroid may move, mm."""
        grid = self.export.geometry
        return _corner_tolerance(grid) if self.found.exact else self._allowed_voxels() * max(grid.spacing_mm or (1.0,))

    def _name(self, label: int) -> str:
        return f"label {self.names.get(label, label)}"

    def _wrong(self, what: str) -> InputRefusedError:
        return InputRefusedError(
            f"the written file does not read back as it was meant: {what}",
            self.export.source.id,
            "the file was removed; report this together with `unet-med scan --json`",
        )


@dataclass(frozen=True)
class _Fit:
    """How the axes of one grid become those of another, which part of that one it is, and how far corners are apart."""

    order: tuple[int, ...]
    flips: tuple[bool, ...]
    region: Region
    apart_mm: float


def _fit(geometry: Geometry, grid: Geometry, tolerance_mm: float) -> _Fit:
    """Raises InputRefusedError when voxels of ``geometry`` are no voxels of ``grid``."""
    order, flips = _turn(geometry, grid)
    turned = geometry.reoriented(order, flips)
    start = np.rint(_in_voxels(turned.to_world(np.zeros(3)) - grid.to_world(np.zeros(3)), grid)).astype(int)
    region = tuple(slice(int(first), int(first) + n) for first, n in zip(start, turned.shape, strict=True))
    if any(part.start < 0 or part.stop > n for part, n in zip(region, grid.shape, strict=True)):
        raise _elsewhere("it lies outside of the image")
    apart = float(np.abs(grid.crop(region).corners() - turned.corners()).max())
    if apart > tolerance_mm:
        raise _elsewhere(f"its grid lies {apart:.3g} mm off")
    return _Fit(order, flips, region, apart)


def bring_onto(
    labels: npt.NDArray[Any], geometry: Geometry, grid: Geometry, tolerance_mm: float
) -> tuple[npt.NDArray[Any], float]:
    """Puts labels (I, J, K) on a grid that differs from theirs by the order and direction of its axes alone.

    The labels may cover a part of ``grid``; the rest becomes 0.

    Returns:
        The labels on ``grid``, and how far corners of the two grids are apart at most, mm.

    Raises:
        InputRefusedError: when voxels of the one are no voxels of the other.
    """
    fit = _fit(geometry, grid, tolerance_mm)
    values = reorient(labels, fit.order, fit.flips)
    if values.shape == grid.shape:
        return values, fit.apart_mm
    full = np.zeros(grid.shape, dtype=labels.dtype)
    full[fit.region] = values
    return full, fit.apart_mm


def _turn(geometry: Geometry, grid: Geometry) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Returns how the axes of ``geometry`` become those of ``grid``, for :func:`reorient`."""
    if geometry.affine is None or grid.affine is None or geometry.ndim != 3 or grid.ndim != 3:
        raise _elsewhere("it has no place in space")
    steps = np.linalg.solve(grid.affine[:3, :3], geometry.affine[:3, :3])  # an axis of the file in each column
    signs = np.rint(steps)
    ones = np.ones(3)
    if np.abs(steps - signs).max() > _ALIGNED or any((np.abs(signs).sum(axis=n) != ones).any() for n in (0, 1)):
        raise _elsewhere("it has another spacing or direction")
    order = tuple(int(axis) for axis in np.abs(signs).argmax(axis=1))
    return order, tuple(bool(signs[row, axis] < 0) for row, axis in enumerate(order))


def _elsewhere(what: str) -> InputRefusedError:
    return InputRefusedError(what, remedy="write it again on the grid of its image")


def _in_voxels(move_mm: FloatArray, grid: Geometry) -> FloatArray:
    """Returns a distance in mm (3,) along the axes of a grid, in voxels."""
    if grid.affine is None:
        return move_mm
    return np.asarray(np.linalg.solve(grid.affine[:3, :3], move_mm), dtype=np.float64)


def _rows(measures: dict[int, LabelMeasure], labels: list[int]) -> FloatArray:
    return np.array([measures[label].centroid_mm for label in labels]).reshape(-1, 3)


def _corner_tolerance(grid: Geometry) -> float:
    """1e-3 mm, less for voxels of micrometres; more where axes that are nearly at right angles are straightened."""
    finest = min(grid.spacing_mm or (1.0,))
    size = float(np.abs(grid.corners() - grid.corners().mean(axis=0)).max())
    farthest = float(np.abs(grid.corners()).max())
    straightened = grid.shear * size if grid.shear <= SHEAR_TOLERANCE else 0.0
    return max(min(CORNER_TOLERANCE_MM, 0.05 * finest), 1e-6 * farthest) + straightened


def _rounded(value: float) -> float:
    return round(value, 7)
