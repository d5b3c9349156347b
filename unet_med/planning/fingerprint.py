"""What the training cases are like: sizes, spacings, intensities, label frequencies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from unet_med.errors import InputRefusedError
from unet_med.geometry import Geometry, reorient
from unet_med.io.cases import Case
from unet_med.planning.sides import CaseSides, measure_sides
from unet_med.volume import Volume, bands, slabs

SAMPLES = 2_000_000
"""Voxels of the foreground that are kept for the intensity statistics, over all cases."""

Progress = Callable[[Iterable[Any], str], Iterable[Any]]


@dataclass(frozen=True)
class CaseFingerprint:
    """One picture or volume, with its axes turned towards R, A, S.

    Attributes:
        shape: Voxels along each axis after cropping to what is not zero.
        spacing_mm: Spacing along the same axes; ``None`` when uncalibrated.
        kept_share: Share of the voxels that cropping to nonzero keeps.
        sides: Where its labels lie from left to right; ``None`` for pictures and uncalibrated volumes.
    """

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...] | None
    kept_share: float
    sides: CaseSides | None = None


@dataclass(frozen=True)
class ChannelStatistics:
    """Intensities of one channel inside the labelled voxels of all cases."""

    mean: float
    sd: float
    percentile_00_5: float
    percentile_99_5: float


@dataclass(frozen=True)
class ObjectStatistics:
    """Objects of all cases: how many, and percentiles of their diameters in voxels (of discs or balls as large)."""

    count: int
    diameter_5: float
    diameter_50: float
    diameter_95: float


@dataclass(frozen=True)
class Fingerprint:
    """The training set in numbers.

    Attributes:
        cases: One entry for each picture or volume (a frame counts as one).
        channels: Foreground intensities of each channel.
        label_voxels: Number of voxels of each label value, background first.
        objects: How large objects are; ``None`` where labels do not count any.
    """

    cases: tuple[CaseFingerprint, ...]
    channels: tuple[ChannelStatistics, ...]
    label_voxels: tuple[int, ...]
    objects: ObjectStatistics | None = None

    @property
    def ndim(self) -> int:
        """2 for pictures, 3 for volumes."""
        return len(self.cases[0].shape)

    @property
    def is_calibrated(self) -> bool:
        """Whether every case has a physical spacing."""
        return all(case.spacing_mm is not None for case in self.cases)

    @property
    def median_shape(self) -> tuple[int, ...]:
        """Median size of the cropped cases along each axis, in voxels."""
        return tuple(round(float(v)) for v in np.median([case.shape for case in self.cases], axis=0))

    @property
    def median_spacing_mm(self) -> tuple[float, ...] | None:
        """Median spacing along each axis; ``None`` when a case is uncalibrated."""
        spacings = self.spacings()
        return None if spacings is None else tuple(float(v) for v in np.median(spacings, axis=0))

    @property
    def kept_share(self) -> float:
        """Median share of the voxels that cropping to nonzero keeps."""
        return float(np.median([case.kept_share for case in self.cases]))

    @property
    def total_voxels(self) -> int:
        """Voxels of all cropped cases together."""
        return int(sum(int(np.prod(case.shape)) for case in self.cases))

    def sides(self) -> tuple[CaseSides, ...]:
        """Returns where labels lie in the volumes of which that is known."""
        return tuple(case.sides for case in self.cases if case.sides is not None)

    def turned(self, axes: Sequence[int] | None) -> Fingerprint:
        """Returns volumes with their axes in another order; ``None``, and pictures: as they are."""
        return self if axes is None else replace(self, cases=tuple(_turned(case, axes) for case in self.cases))

    def spacings(self) -> npt.NDArray[np.float64] | None:
        """Returns the spacings (cases, axes) in mm; ``None`` when a case is uncalibrated."""
        known = [case.spacing_mm for case in self.cases if case.spacing_mm is not None]
        return np.array(known, dtype=np.float64) if len(known) == len(self.cases) else None

    def resampled_shapes(self, spacing_mm: Sequence[float] | None) -> npt.NDArray[np.float64]:
        """Returns the shapes (cases, axes) on a grid of this spacing; an axis it does not name stays as it is."""
        shapes = np.array([case.shape for case in self.cases], dtype=np.float64)
        spacings = self.spacings()
        if spacing_mm is None or spacings is None:
            return shapes
        named = len(spacing_mm)
        shapes[:, :named] = np.maximum(1, np.round(shapes[:, :named] * spacings[:, :named] / np.array(spacing_mm)))
        return shapes

    def as_dict(self) -> dict[str, Any]:
        """Returns a summary for files and records: no entry for single cases."""
        shapes = np.array([case.shape for case in self.cases])
        return {
            "cases": len(self.cases),
            "shape_median": list(self.median_shape),
            "shape_min": shapes.min(axis=0).tolist(),
            "shape_max": shapes.max(axis=0).tolist(),
            "spacing_mm_median": None if self.median_spacing_mm is None else list(self.median_spacing_mm),
            "nonzero_kept_share": round(self.kept_share, 4),
            "total_voxels": self.total_voxels,
            "label_voxels": list(self.label_voxels),
            "channels": [vars(channel) for channel in self.channels],
        } | ({} if self.objects is None else {"objects": vars(self.objects)})


def fingerprint(
    cases: Iterable[Case], labels: int, progress: Progress | None = None, ignore: int | None = None
) -> Fingerprint:
    """Reads images and labels once and measures them.

    Args:
        cases: Labelled cases.
        labels: Number of label values, background included.
        progress: Wraps the iteration over cases, for example with a progress bar.
        ignore: Value of voxels that nobody labelled: they are neither counted nor measured.

    Raises:
        InputRefusedError: naming the case, when image or label cannot be used.
    """
    known = list(cases)
    if not known:
        raise InputRefusedError("there is no training case to plan from", remedy="give a manifest with labelled cases")
    found: list[_Measured] = []
    share = max(1000, SAMPLES // len(known))
    for case in progress(known, "fingerprint") if progress else known:
        frames = (case.frame,) if case.frame is not None else case.frames
        found += [_measure(case, frame, labels, share, ignore) for frame in frames]
    samples = [one.sample for one in found]
    if len({sample.shape[0] for sample in samples}) > 1:
        raise InputRefusedError(
            "the cases differ in their number of channels",
            remedy="make a manifest of those that agree (--images GLOB, or a CSV with split = skip)",
        )
    counts = np.sum([one.voxels for one in found], axis=0)
    shapes = tuple(one.shape for one in found)
    objects = _object_statistics(np.concatenate([one.diameters for one in found]))
    return Fingerprint(shapes, _statistics(samples), tuple(int(n) for n in counts), objects)


class _Measured(NamedTuple):
    """One frame of a case: its shape, some voxels of the foreground, voxels of each label, diameters of its objects."""

    shape: CaseFingerprint
    sample: npt.NDArray[np.float32]
    voxels: npt.NDArray[np.int64]
    diameters: npt.NDArray[np.float64]


def _measure(case: Case, frame: int, labels: int, share: int, ignore: int | None) -> _Measured:
    volume, stored = case.look(frame), case.look_label(frame)
    if not stored.in_memory:
        return _measure_in_parts(case, volume, stored, labels, share, ignore)
    label, unlabelled = _known(stored.array[0], ignore)
    diameters = np.zeros(0)
    if case.instances:
        diameters = _diameters(np.unique(label[label > 0], return_counts=True)[1], label.ndim)
        label = replace(case, unlabelled=None).classes_of(label)
    _check_values(case.id, label, labels)
    order, flips = volume.geometry.canonical_axes()
    array, turned_label = reorient(volume.array, order, flips), reorient(label, order, flips)
    geometry = volume.geometry.reoriented(order, flips)
    inside = np.flatnonzero(turned_label)
    one = _shape_of(array, geometry)
    if geometry.ndim == 3 and geometry.spacing_mm is not None and volume.in_memory:
        one = replace(one, sides=measure_sides(array[0], turned_label, inside, geometry.spacing_mm, labels))
    chosen = np.unravel_index(inside[:: max(1, inside.size // share)], turned_label.shape)
    counts = np.sum([np.bincount(label[part].ravel(), minlength=labels) for part in slabs(label)], axis=0)
    counts[0] -= unlabelled
    return _Measured(one, _values_at(array, chosen), counts.astype(np.int64), diameters)


def _measure_in_parts(
    case: Case, volume: Volume, stored: Volume, labels: int, share: int, ignore: int | None
) -> _Measured:
    """Measures a label that is not in memory: goes through it twice, to count its voxels and to choose some of them."""
    order, flips = volume.geometry.canonical_axes()
    array, label = reorient(volume.array, order, flips), reorient(stored.array, order, flips)

    def classes_in(objects: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.integer[Any]]:
        found = replace(case, unlabelled=None).classes_of(objects) if case.instances else objects
        _check_values(case.id, found, labels)
        return found

    counts = np.zeros(labels, dtype=np.int64)
    sizes: Counter[int] = Counter()
    for _, _, band in bands(label):
        known, unlabelled = _known(band[0], ignore)
        if case.instances:
            numbers, voxels = np.unique(known[known > 0], return_counts=True)
            sizes.update(dict(zip(numbers.tolist(), voxels.tolist(), strict=True)))
        counts += np.bincount(classes_in(known).ravel(), minlength=labels)
        counts[0] -= unlabelled
    step, seen = max(1, int(counts[1:].sum()) // share), 0
    chosen = []
    for along, start, band in bands(label):
        inside = np.array(np.nonzero(classes_in(_known(band[0], ignore)[0])))
        inside[along] += start
        chosen.append(inside[:, -seen % step :: step])
        seen += inside.shape[1]
    places = np.concatenate(chosen, axis=1)
    ordered = tuple(places[:, np.lexsort(places[::-1])])
    shape = _shape_of(array, volume.geometry.reoriented(order, flips))
    diameters = _diameters(np.array(list(sizes.values())), label.ndim - 1)
    return _Measured(shape, _values_at(array, ordered), counts, diameters)


def _known(label: npt.NDArray[np.integer[Any]], ignore: int | None) -> tuple[npt.NDArray[np.integer[Any]], int]:
    """Returns a label with 0 where nobody labelled, and the number of such voxels."""
    if ignore is None:
        return label, 0
    unknown = label == ignore
    return np.where(unknown, 0, label), int(unknown.sum())


def _values_at(array: npt.NDArray[Any], places: tuple[npt.NDArray[np.int64], ...]) -> npt.NDArray[np.float32]:
    """Returns the values of some voxels of an image, (C, n); ``places`` are their indices along each axis."""
    found = np.empty((array.shape[0], len(places[0])), dtype=np.float32)
    for axis, start, band in bands(array):
        own = (places[axis] >= start) & (places[axis] < start + band.shape[axis + 1])
        index = (at[own] - (start if number == axis else 0) for number, at in enumerate(places))
        found[:, own] = band[(slice(None), *index)]
    return found


def _diameters(voxels: npt.NDArray[np.integer[Any]], ndim: int) -> npt.NDArray[np.float64]:
    """Returns the diameters of discs or balls of so many voxels, in voxels."""
    sizes = voxels.astype(np.float64)
    return np.asarray(np.sqrt(sizes * 4 / np.pi) if ndim == 2 else np.cbrt(sizes * 6 / np.pi))


def _turned(case: CaseFingerprint, axes: Sequence[int]) -> CaseFingerprint:
    if len(case.shape) == 2:
        return case
    spacing = case.spacing_mm
    turned = None if spacing is None else tuple(spacing[axis] for axis in axes)
    return replace(case, shape=tuple(case.shape[axis] for axis in axes), spacing_mm=turned)


def _check_values(case_id: str, label: npt.NDArray[Any], labels: int) -> None:
    if label.size and (int(label.max()) >= labels or int(label.min()) < 0):
        raise InputRefusedError(
            f"the label holds the value {int(label.max())}, the manifest knows 0 to {labels - 1}",
            case_id,
            "run `unet-med check M.json`, then `unet-med check M.json --fix DIR`",
        )


def _shape_of(array: npt.NDArray[Any], geometry: Geometry) -> CaseFingerprint:
    lines = [np.zeros(size, dtype=np.bool_) for size in geometry.shape]
    for along, start, band in bands(array):
        nonzero = (band != 0).any(axis=0)
        for axis, line in enumerate(lines):
            part = nonzero.any(axis=tuple(other for other in range(nonzero.ndim) if other != axis))
            line[slice(start, start + len(part)) if axis == along else slice(None)] |= part
    shape: list[int] = []
    for line in lines:
        places = np.flatnonzero(line)
        shape.append(int(places[-1] - places[0] + 1) if places.size else len(line))
    kept = float(np.prod(shape)) / float(np.prod(geometry.shape))
    return CaseFingerprint(tuple(shape), geometry.spacing_mm, kept)


def _object_statistics(diameters: npt.NDArray[np.float64]) -> ObjectStatistics | None:
    if not diameters.size:
        return None
    low, middle, high = (round(float(value), 2) for value in np.percentile(diameters, (5, 50, 95)))
    return ObjectStatistics(len(diameters), low, middle, high)


def _statistics(samples: Sequence[npt.NDArray[np.float32]]) -> tuple[ChannelStatistics, ...]:
    together = np.concatenate(samples, axis=1)
    if together.shape[1] == 0:
        return tuple(ChannelStatistics(0.0, 0.0, 0.0, 0.0) for _ in range(together.shape[0]))
    statistics: list[ChannelStatistics] = []
    for values in together:
        low, high = np.percentile(values, (0.5, 99.5))
        statistics.append(
            ChannelStatistics(
                float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64)), float(low), float(high)
            )
        )
    return tuple(statistics)
