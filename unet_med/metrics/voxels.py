"""How good a mask is, in numbers that a radiologist or a biologist would ask for.

Definitions, all exact and all MONAI's (the tests compare with it):

* *Dice* 2 TP / (2 TP + FP + FN), *IoU* TP / (TP + FP + FN), over voxels.
* *Surface* voxels are those that a binary erosion with the cross of nearest neighbours removes; the image border
  counts as outside.
* *HD95*: the 95th percentile (linear interpolation) of the distances from the surface voxels of one mask to the
  nearest of the other, in each direction; the larger of the two.
* *NSD* (normalised surface Dice, Nikolov et al. 2018, by voxels): the share of all surface voxels of both masks that
  lie within a tolerance of the other surface.
* *Volume error*: volume of the mask minus volume of the truth.

What does not exist is ``None``, never NaN and never infinite. Truth and mask both empty: nothing can be compared,
every score is ``None`` and the case is counted in ``n_empty``. Only one of them empty: Dice, IoU and NSD are 0, HD95
is ``None`` and the case is counted in ``n_hd95_undefined``.

Voxels that nobody labelled (``LabelMap.ignored``) are left out: they count as background in both, so that surfaces
end there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage, spatial

from unet_med.labels import LabelMap
from unet_med.metrics.overlap import IntArray, same_shape

BoolArray = npt.NDArray[np.bool_]
Scores = dict[str, float | int | None]

_ROUNDING = 1e-9


# ---- voxels ---------------------------------------------------------------------------------------------------------


def structures(labels: LabelMap) -> dict[str, tuple[int, ...]]:
    """Returns what is scored: every label, and for overlapping regions every region, with its label values."""
    singles = {label.name: (label.index,) for label in labels.labels}
    return singles | dict(labels.regions)


def confusion_counts(mask: IntArray, label: IntArray, labels: LabelMap) -> dict[str, tuple[int, int, int]]:
    """Returns true positives, false positives and false negatives of each structure, in voxels.

    Args:
        mask: Labels that were predicted, any shape.
        label: True labels of the same shape.
        labels: What the values mean; values it does not know belong to no structure; what it ignores is left out.

    Raises:
        InputRefusedError: if the shapes differ.
    """
    return counts_of(confusion_table(mask, label, labels), labels)


def confusion_table(mask: IntArray, label: IntArray, labels: LabelMap) -> npt.NDArray[np.int64]:
    """Returns how many voxels of each true label, background first, were given which label: (true, predicted).

    Args and errors as :func:`confusion_counts`.
    """
    mask, label = without_ignored(mask, label, labels)
    known = [0, *(one.index for one in labels.labels)]
    joint = np.bincount(
        (_positions(label, known) * len(known) + _positions(mask, known)).ravel(), minlength=len(known) ** 2
    )
    return joint.reshape(len(known), len(known))


def counts_of(table: npt.NDArray[np.int64], labels: LabelMap) -> dict[str, tuple[int, int, int]]:
    """Returns what :func:`confusion_counts` does, from a :func:`confusion_table` or a sum of some."""
    known = [0, *(one.index for one in labels.labels)]
    counts: dict[str, tuple[int, int, int]] = {}
    for name, values in structures(labels).items():
        members = [known.index(value) for value in values]
        hits = int(table[np.ix_(members, members)].sum())
        counts[name] = (hits, int(table[:, members].sum()) - hits, int(table[members].sum()) - hits)
    return counts


def without_ignored(mask: IntArray, label: IntArray, labels: LabelMap) -> tuple[IntArray, IntArray]:
    """Returns mask and true labels with background in both wherever nobody labelled.

    Raises:
        InputRefusedError: if the shapes differ.
    """
    same_shape(mask, label)
    if labels.ignored is None:
        return mask, label
    known = label != labels.ignored
    return mask * known, label * known


def dice_iou(counts: Mapping[str, tuple[int, int, int]]) -> dict[str, tuple[float | None, float | None]]:
    """Returns Dice and IoU of each structure from :func:`confusion_counts`; ``None`` where both masks are empty."""
    return {name: _dice_iou(*numbers) for name, numbers in counts.items()}


def _dice_iou(hits: int, false_positives: int, false_negatives: int) -> tuple[float | None, float | None]:
    union = hits + false_positives + false_negatives
    return (2 * hits / (union + hits), hits / union) if union else (None, None)


def _positions(array: IntArray, known: Sequence[int]) -> IntArray:
    """Returns the position of each value in ``known``; 0 for values that are not there."""
    table = np.zeros(max(known) + 1, dtype=np.int64)
    table[list(known)] = range(len(known))
    inside = (array >= 0) & (array <= max(known))
    return table[array * inside]


# ---- one case -------------------------------------------------------------------------------------------------------


def case_metrics(
    mask: IntArray,
    label: IntArray,
    spacing_mm: Sequence[float] | None,
    labels: LabelMap,
    tolerance_mm: float = 1.0,
) -> dict[str, Scores]:
    """Scores one mask against its truth.

    Args:
        mask: (I, J[, K]) labels that were predicted.
        label: (I, J[, K]) true labels.
        spacing_mm: Voxel size along each axis; ``None`` when uncalibrated.
        labels: What the values mean.
        tolerance_mm: Distance within which two surfaces agree; in pixels when uncalibrated.

    Returns:
        For each structure ``dice``, ``iou``, ``hd95_mm``, ``nsd``, ``volume_error_ml`` (3-D and calibrated only),
        ``mask_voxels`` and ``label_voxels``; when uncalibrated ``hd95_mm`` is ``None`` and there is ``hd95_px``.

    Raises:
        InputRefusedError: if the shapes differ.
    """
    mask, label = without_ignored(mask, label, labels)
    voxel_ml = float(np.prod(spacing_mm)) / 1000.0 if spacing_mm is not None and mask.ndim == 3 else None
    found: dict[str, Scores] = {}
    for name, values in structures(labels).items():
        ours, truth = _members(mask, values), _members(label, values)
        hits, size, true_size = (int(np.count_nonzero(a)) for a in (ours & truth, ours, truth))
        dice, iou = _dice_iou(hits, size - hits, true_size - hits)
        hd95, nsd = surface_scores(ours, truth, spacing_mm or (1.0,) * mask.ndim, tolerance_mm)
        scores: Scores = {"dice": dice, "iou": iou, "hd95_mm": hd95, "nsd": nsd}
        if spacing_mm is None:
            scores |= {"hd95_mm": None, "hd95_px": hd95}
        scores["volume_error_ml"] = None if voxel_ml is None else (size - true_size) * voxel_ml
        found[name] = scores | {"mask_voxels": size, "label_voxels": true_size}
    return found


def _members(array: IntArray, values: Sequence[int]) -> BoolArray:
    return array == values[0] if len(values) == 1 else np.isin(array, values)


def surface_scores(
    mask: BoolArray, truth: BoolArray, spacing: Sequence[float], tolerance: float
) -> tuple[float | None, float | None]:
    """Returns HD95 and NSD (see the head of this module) in the unit of ``spacing``.

    Args:
        mask: (I, J[, K]) bool.
        truth: (I, J[, K]) bool.
        spacing: Voxel size along each axis.
        tolerance: Distance within which surfaces agree.

    Returns:
        ``(None, None)`` when both are empty, ``(None, 0.0)`` when one is.
    """
    box = _bounding_box(mask | truth)
    if box is None:
        return None, None
    ours, theirs = _surface_points(mask[box], spacing), _surface_points(truth[box], spacing)
    if not len(ours) or not len(theirs):
        return None, 0.0
    there, back = _distances(ours, theirs), _distances(theirs, ours)
    within = tolerance * (1 + _ROUNDING) + _ROUNDING
    agreeing = np.count_nonzero(there <= within) + np.count_nonzero(back <= within)
    hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
    return float(hd95), float(agreeing / (len(there) + len(back)))


def _bounding_box(mask: BoolArray) -> tuple[slice, ...] | None:
    """Returns the smallest box around what is true, or ``None``."""
    box: list[slice] = []
    for axis in range(mask.ndim):
        used = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        if not len(used):
            return None
        box.append(slice(int(used[0]), int(used[-1]) + 1))
    return tuple(box)


def _surface_points(mask: BoolArray, spacing: Sequence[float]) -> npt.NDArray[np.float64]:
    """Returns the (n, d) positions of surface voxels."""
    surface = mask & ~ndimage.binary_erosion(mask)
    return np.argwhere(surface).astype(np.float64) * np.asarray(spacing, dtype=np.float64)


def _distances(points: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Returns the distance of each point to the nearest of the others: exact, and only surfaces cost anything."""
    distances, _ = spatial.cKDTree(others, balanced_tree=False).query(points)
    return np.asarray(distances, dtype=np.float64)
