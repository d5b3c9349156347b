"""How well objects were found: nuclei, cells, lesions, each with a number of its own in a label image.

* *AP* at an IoU threshold is TP / (TP + FP + FN), as in the 2018 Data Science Bowl (Caicedo et al. 2019) and StarDist
  (Weigert et al. 2020). It is no area under a curve: COCO's AP of the same name is another number.
* *F1* 2 TP / (2 TP + FP + FN) at the same thresholds.
* *PQ* (panoptic quality, Kirillov et al. 2019) is *SQ* times *RQ* at IoU 0.5: SQ is the mean IoU of matched pairs, RQ
  the F1 at 0.5.
* *AJI* (aggregated Jaccard index, Kumar et al. 2017): every true object takes the predicted one of the largest IoU;
  the sum of these intersections over the sum of the unions and of all predicted objects that none took. *AJI+* (Graham
  et al. 2019) takes pairs so that none is used twice and the sum of IoU is largest.

Pooled scores count the objects of all images together, so that images with many objects weigh more; those ``per_image``
are averages over images. What does not exist (no object at all) is ``None``.

Where objects have classes they are matched once without looking at these, and once for each class among its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from unet_med.errors import InputRefusedError
from unet_med.metrics.overlap import FloatArray, Index, IntArray, Overlap, distinct, overlap_table

AP_THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""IoU from which an object counts as found, as in the 2018 Data Science Bowl."""

_KEYS = tuple(f"{threshold:.2f}" for threshold in AP_THRESHOLDS)


# ---- one image ------------------------------------------------------------------------------------------------------


def match_objects(mask: IntArray, label: IntArray) -> dict[str, Any]:
    """Matches predicted objects with true ones.

    At each threshold the matching has as many pairs of at least that IoU as possible, and among those the largest
    sum of IoU, as in StarDist (Weigert et al. 2020). From 0.5 on only ties leave a choice.

    Args:
        mask: Object ids that were predicted, 0 is background, any shape.
        label: True object ids of the same shape.

    Returns:
        What :func:`match_overlap` returns.

    Raises:
        InputRefusedError: if the shapes differ.
    """
    return match_overlap(overlap_table(mask, label))


def match_overlap(table: Overlap) -> dict[str, Any]:
    """Matches the objects of a table, which may come from an image larger than the memory.

    Returns:
        ``n_mask``, ``n_label`` (numbers of objects), ``matched`` (threshold, as ``"0.50"``, to true positives),
        ``iou_sum`` (sum of the IoU of pairs matched at 0.5), ``aji`` and ``aji_plus`` (voxels of the intersections
        and of the unions, whose quotient is the score). JSON-serialisable.
    """
    iou = table.iou
    pairs = {key: _best_pairs(table, iou, threshold) for key, threshold in zip(_KEYS, AP_THRESHOLDS, strict=True)}
    return {
        "n_mask": len(table.mask_ids),
        "n_label": len(table.label_ids),
        "matched": {key: len(found) for key, found in pairs.items()},
        "iou_sum": math.fsum(pairs[_KEYS[0]]),
        "aji": _aggregated(table, _largest_of_each_label(table, iou)),
        "aji_plus": _aggregated(table, np.flatnonzero(assignment(table.rows, table.columns, iou))),
    }


def match_classes(
    table: Overlap, mask_classes: Mapping[int, str], label_classes: Mapping[int, str]
) -> dict[str, dict[str, Any]]:
    """Matches the objects of each class among themselves: a nucleus found as another kind of nucleus is not found.

    Args:
        table: All objects.
        mask_classes: Class of each predicted object by its number.
        label_classes: Class of each true object by its number.

    Returns:
        For each class that occurs, by the alphabet, what :func:`match_overlap` returns of it.

    Raises:
        InputRefusedError: The class of an object is not known.
    """
    ours, theirs = _kinds(table.mask_ids, mask_classes), _kinds(table.label_ids, label_classes)
    return {kind: match_overlap(table.only(ours == kind, theirs == kind)) for kind in sorted({*ours, *theirs})}


def _kinds(numbers: Index, classes: Mapping[int, str]) -> npt.NDArray[np.object_]:
    unknown = [number for number in numbers.tolist() if number not in classes]
    if unknown:
        raise InputRefusedError(
            f"{len(unknown)} objects have no class, the first is number {unknown[0]}",
            remedy="give a class for every object, or for none",
        )
    return np.array([classes[number] for number in numbers.tolist()], dtype=object)


def _by_class(matches: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Returns the matches of each class, of the images in which it occurs."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for match in matches:
        for kind, own in match.get("classes", {}).items():
            found.setdefault(kind, []).append(own)
    return found


def _best_pairs(table: Overlap, iou: FloatArray, threshold: float) -> FloatArray:
    """Returns the IoU of the matched pairs; only objects with several candidates are left to an assignment."""
    candidates = iou >= threshold
    iou, rows, columns = iou[candidates], table.rows[candidates], table.columns[candidates]
    alone = (np.bincount(rows)[rows] == 1) & (np.bincount(columns)[columns] == 1)
    contested = iou[~alone]
    # One pair more is worth more than any gain in IoU.
    worth = 1.0 + contested / (2 * max(1, len(contested)))
    chosen = assignment(rows[~alone], columns[~alone], worth)
    return np.concatenate((iou[alone], contested[chosen]))


def assignment(rows: Index, columns: Index, worth: FloatArray) -> npt.NDArray[np.bool_]:
    """Returns which pairs to take so that none is used twice and the sum of their worth is as large as it can be.

    Args:
        rows: (p,) first member of each pair; no pair is listed twice.
        columns: (p,) second member.
        worth: (p,) above 0.

    Returns:
        (p,) bool.
    """
    if not len(worth):
        return np.zeros(0, dtype=bool)
    left, right = distinct(rows)[1], distinct(columns)[1]
    n, m = int(left.max()) + 1, int(right.max()) + 1
    # Only full matchings can be asked for: each member gets a stand-in, and stand-ins of a pair may meet, for nothing.
    first = np.concatenate((left, np.arange(n), n + np.arange(m), n + right))
    second = np.concatenate((right, m + np.arange(n), np.arange(m), m + left))
    nothing = float(worth.max()) + 1.0
    cost = np.concatenate((nothing - worth, np.full(n + m + len(worth), nothing)))
    graph = sparse.csr_array((cost, (first, second)), shape=(n + m, n + m))
    partner = min_weight_full_bipartite_matching(graph)[1]
    return np.asarray(partner[left] == right, dtype=bool)


def _largest_of_each_label(table: Overlap, iou: FloatArray) -> Index:
    """Returns the pair of the largest IoU of each true object; of equal ones the larger, then the lower number."""
    order = np.lexsort((table.rows, -table.shared, -iou, table.columns))
    return np.asarray(order[np.unique(table.columns[order], return_index=True)[1]], dtype=np.int64)


def _aggregated(table: Overlap, pairs: Index) -> list[int]:
    """Returns the voxels of all intersections, and of all unions with what no pair holds."""
    lonely = np.ones(len(table.mask_ids), dtype=bool), np.ones(len(table.label_ids), dtype=bool)
    lonely[0][table.rows[pairs]] = False
    lonely[1][table.columns[pairs]] = False
    left_over = int(table.mask_voxels[lonely[0]].sum()) + int(table.label_voxels[lonely[1]].sum())
    return [int(table.shared[pairs].sum()), int(table.union[pairs].sum()) + left_over]


# ---- all images -----------------------------------------------------------------------------------------------------


def summarise_objects(matches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the scores of all images (see the head of this module).

    Args:
        matches: What :func:`match_objects` returned of each image.

    Returns:
        ``ap`` and ``f1`` by threshold, ``ap_mean``, ``f1_mean``, ``pq``, ``sq``, ``rq``, ``aji``, ``aji_plus``, of the
        objects of all images together; the same names with ``_per_image`` are means over images, those without any
        object left out and counted in ``n_empty``; ``n_mask``, ``n_label`` (objects) and ``n_images``. Where objects
        have ``classes``, the same of each class, over the images in which it occurs.
    """
    full = [match for match in matches if match["n_mask"] + match["n_label"]]
    single = [_scores([match]) for match in full]
    result = _scores(full)
    for kind, value in list(result.items()):
        result[f"{kind}_per_image"] = (
            {key: average(one[kind][key] for one in single) for key in value}
            if isinstance(value, dict)
            else average(one[kind] for one in single)
        )
    classes = {kind: summarise_objects(own) for kind, own in _by_class(matches).items()}
    return result | {
        "n_mask": sum(match["n_mask"] for match in matches),
        "n_label": sum(match["n_label"] for match in matches),
        "n_images": len(matches),
        "n_empty": len(matches) - len(full),
        **({"classes": classes} if classes else {}),
    }


def _scores(matches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    objects = sum(match["n_mask"] + match["n_label"] for match in matches)
    hits = {key: sum(match["matched"][key] for match in matches) for key in _KEYS}
    ap = {key: _ratio(hits[key], objects - hits[key]) for key in _KEYS}
    f1 = {key: _ratio(2 * hits[key], objects) for key in _KEYS}
    iou_sum = math.fsum(match["iou_sum"] for match in matches)
    return {
        "ap": ap,
        "ap_mean": average(ap.values()),
        "f1": f1,
        "f1_mean": average(f1.values()),
        "pq": _ratio(2 * iou_sum, objects),
        "sq": _ratio(iou_sum, hits[_KEYS[0]]),
        "rq": f1[_KEYS[0]],
        **{
            kind: _ratio(sum(match[kind][0] for match in matches), sum(match[kind][1] for match in matches))
            for kind in ("aji", "aji_plus")
        },
    }


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def average(values: Iterable[float | int | None]) -> float | None:
    """Returns the mean of what exists."""
    existing = [value for value in values if value is not None]
    return float(np.mean(existing)) if existing else None
