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

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage, optimize, spatial

from unet_med.errors import InputRefusedError
from unet_med.labels import LabelMap

IntArray = npt.NDArray[np.integer[Any]]
BoolArray = npt.NDArray[np.bool_]
Scores = dict[str, float | int | None]

SCORES = ("dice", "iou", "hd95_mm", "nsd")
"""The scores of ``metrics.json`` that are averaged."""

AP_THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""IoU from which an object counts as found, as in the 2018 Data Science Bowl."""

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
    mask, label = without_ignored(mask, label, labels)
    known = [0, *(one.index for one in labels.labels)]
    joint = np.bincount(
        (_positions(label, known) * len(known) + _positions(mask, known)).ravel(), minlength=len(known) ** 2
    )
    table = joint.reshape(len(known), len(known))
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
    _same_shape(mask, label)
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


def _same_shape(mask: IntArray, label: IntArray) -> None:
    if mask.shape != label.shape:
        raise InputRefusedError(
            f"a mask of {mask.shape} voxels cannot be compared with a truth of {label.shape}",
            remedy="give both on the same grid",
        )


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


# ---- all cases ------------------------------------------------------------------------------------------------------


def summarise(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Builds the content of ``metrics.json``.

    Args:
        cases: One mapping for each case: ``id``, ``labels`` (the result of :func:`case_metrics`) and, for instance
            tasks, ``instance`` (the result of :func:`match_objects`). Other keys are carried into the case's entry.

    Returns:
        ``n_cases``, ``mean``, ``per_label`` (means over cases, with ``n_empty`` and ``n_hd95_undefined``), ``cases``
        (each score by label), and ``instance`` if any case has it. The mean is over the cases of each label first,
        then over labels. JSON-serialisable, never NaN.
    """
    names = list(dict.fromkeys(name for case in cases for name in case.get("labels", {})))
    rows = {name: [case["labels"][name] for case in cases if name in case.get("labels", {})] for name in names}
    kinds = (*SCORES, "hd95_px") if any("hd95_px" in row for name in names for row in rows[name]) else SCORES
    per_label = {name: _label_summary(rows[name], kinds) for name in names}
    result: dict[str, Any] = {
        "n_cases": len(cases),
        "mean": {kind: _average(summary[kind] for summary in per_label.values()) for kind in kinds},
        "per_label": per_label,
    }
    if any("instance" in case for case in cases):
        result["instance"] = summarise_objects([case["instance"] for case in cases if "instance" in case])
    result["cases"] = [_case_entry(case) for case in cases]
    return result


def _label_summary(rows: Sequence[Scores], kinds: Iterable[str]) -> dict[str, float | int | None]:
    summary: dict[str, float | int | None] = {kind: _average(row.get(kind) for row in rows) for kind in kinds}
    errors = [row["volume_error_ml"] for row in rows]
    summary["volume_error_ml"] = _average(errors)
    summary["absolute_volume_error_ml"] = _average(None if error is None else abs(error) for error in errors)
    empty = [not row["mask_voxels"] and not row["label_voxels"] for row in rows]
    one_empty = [not (row["mask_voxels"] and row["label_voxels"]) for row in rows]
    summary["n_empty"] = sum(empty)
    summary["n_hd95_undefined"] = sum(one_empty) - sum(empty)
    return summary


def _average(values: Iterable[float | int | None]) -> float | None:
    """Returns the mean of what exists."""
    existing = [value for value in values if value is not None]
    return float(np.mean(existing)) if existing else None


def _case_entry(case: Mapping[str, Any]) -> dict[str, Any]:
    """Turns label -> score into score -> label."""
    entry: dict[str, Any] = {key: value for key, value in case.items() if key not in ("labels", "instance")}
    for name, scores in case.get("labels", {}).items():
        for kind, value in scores.items():
            entry.setdefault(kind, {})[name] = value
    if "instance" in case:
        entry["instance"] = summarise_objects([case["instance"]])
    return entry


# ---- objects --------------------------------------------------------------------------------------------------------


def match_objects(mask: IntArray, label: IntArray) -> dict[str, Any]:
    """Matches predicted objects with true ones.

    At each threshold the matching has as many pairs of at least that IoU as possible, and among those the largest
    sum of IoU, as in StarDist (Weigert et al. 2020). From 0.5 on only ties leave a choice.

    Args:
        mask: Object ids that were predicted, 0 is background, any shape.
        label: True object ids of the same shape.

    Returns:
        ``n_mask``, ``n_label`` (numbers of objects), ``matched`` (threshold, as ``"0.50"``, to true positives), and
        ``iou_sum`` (sum of the IoU of pairs matched at 0.5).

    Raises:
        InputRefusedError: if the shapes differ.
    """
    _same_shape(mask, label)
    overlap, n_mask, n_label = _object_iou(mask, label)
    matched: dict[str, int] = {}
    iou_sum = 0.0
    for threshold in AP_THRESHOLDS:
        pairs = _best_pairs(overlap, threshold)
        matched[f"{threshold:.2f}"] = len(pairs)
        if threshold == AP_THRESHOLDS[0]:
            iou_sum = math.fsum(pairs)
    return {"n_mask": n_mask, "n_label": n_label, "matched": matched, "iou_sum": iou_sum}


def summarise_objects(matches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns AP = TP / (TP + FP + FN) at each IoU threshold, its mean, and the panoptic quality.

    ``ap`` and ``pq`` (Kirillov et al. 2019: sum of IoU / (TP + FP / 2 + FN / 2), at 0.5) pool the objects of all
    images; ``ap_per_image`` and ``pq_per_image`` average over images, those without any object left out and counted
    in ``n_empty``.
    """
    full = [match for match in matches if match["n_mask"] + match["n_label"]]
    keys = [f"{threshold:.2f}" for threshold in AP_THRESHOLDS]
    pooled = {key: _precision(full, key) for key in keys}
    single = {key: _average(_precision([match], key) for match in full) for key in keys}
    return {
        "ap": pooled,
        "ap_mean": _average(pooled.values()),
        "pq": _panoptic(full),
        "ap_per_image": single,
        "ap_mean_per_image": _average(single.values()),
        "pq_per_image": _average(_panoptic([match]) for match in full),
        "n_mask": sum(match["n_mask"] for match in matches),
        "n_label": sum(match["n_label"] for match in matches),
        "n_empty": len(matches) - len(full),
    }


def _precision(matches: Sequence[Mapping[str, Any]], key: str) -> float | None:
    hits = sum(match["matched"][key] for match in matches)
    objects = sum(match["n_mask"] + match["n_label"] for match in matches)
    return hits / (objects - hits) if objects else None


def _panoptic(matches: Sequence[Mapping[str, Any]]) -> float | None:
    objects = sum(match["n_mask"] + match["n_label"] for match in matches)
    return float(2 * sum(match["iou_sum"] for match in matches) / objects) if objects else None


def _object_iou(mask: IntArray, label: IntArray) -> tuple[npt.NDArray[np.float64], int, int]:
    """Returns the (n, 3) table of overlapping pairs (predicted index, true index, IoU) and the numbers of objects."""
    mask_ids, ours = np.unique(mask, return_inverse=True)
    label_ids, theirs = np.unique(label, return_inverse=True)
    ours, theirs = ours.ravel(), theirs.ravel()
    size, true_size = np.bincount(ours), np.bincount(theirs)
    pairs, shared = np.unique(ours * len(label_ids) + theirs, return_counts=True)
    row, column = pairs // len(label_ids), pairs % len(label_ids)
    iou = shared / (size[row] + true_size[column] - shared)
    objects = (mask_ids[row] != 0) & (label_ids[column] != 0)
    table = np.stack((row, column, iou), axis=1)[objects]
    return table, int(np.count_nonzero(mask_ids)), int(np.count_nonzero(label_ids))


def _best_pairs(overlap: npt.NDArray[np.float64], threshold: float) -> npt.NDArray[np.float64]:
    """Returns the IoU of the matched pairs; only objects with several candidates are left to an assignment."""
    candidates = overlap[overlap[:, 2] >= threshold]
    if not len(candidates):
        return np.zeros(0)
    row, column = (np.unique(candidates[:, side], return_inverse=True)[1].ravel() for side in (0, 1))
    alone = (np.bincount(row)[row] == 1) & (np.bincount(column)[column] == 1)
    contested = candidates[~alone]
    if not len(contested):
        return candidates[:, 2]
    row, column = (np.unique(contested[:, side], return_inverse=True)[1].ravel() for side in (0, 1))
    iou = np.zeros((row.max() + 1, column.max() + 1))
    iou[row, column] = contested[:, 2]
    # One pair more is worth more than any gain in IoU.
    worth = np.where(iou > 0, 1.0 + iou / (2 * min(iou.shape)), 0.0)
    chosen = iou[optimize.linear_sum_assignment(worth, maximize=True)]
    return np.concatenate((candidates[alone, 2], chosen[chosen > 0]))
