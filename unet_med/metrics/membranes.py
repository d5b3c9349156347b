"""How well membranes separate cells: the measures of the ISBI 2012 challenge (Arganda-Carreras et al. 2015).

Two segmentations are compared as partitions of the voxels inside true cells; voxels on the true membrane are left out.
With p_ij the share of them in cell i of the mask and cell j of the truth, s_i and t_j its sums:

* *V_rand* is 2 sum p_ij^2 / (sum s_i^2 + sum t_j^2), its *split* score sum p_ij^2 / sum t_j^2 (low where cells are cut
  apart), its *merge* score sum p_ij^2 / sum s_i^2 (low where cells run together).
* *V_info* is 2 I(S; T) / (H(S) + H(T)), its split score I / H(S), its merge score I / H(T); 1 where there is nothing to
  get wrong (a single cell).

Cells are what hangs together by faces (four neighbours in 2-D) beside the membrane. The membrane of a mask is first
thinned to one voxel by a watershed, so that its width does not count; each voxel that then lies on it is a cell alone.
The challenge takes the best threshold of a probability map, of the mean over all sections, for each measure by itself.
Beside that, a map may be cut by a watershed of its own heights, which closes gaps that a threshold leaves open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from unet_med.metrics.objects import average
from unet_med.metrics.overlap import FloatArray, IntArray, overlap_table

MEMBRANE_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Probabilities above which a voxel is membrane."""

MEMBRANE_DEPTHS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
"""Differences of probability by which a valley must lie below its lowest pass to be a cell of its own."""

MEMBRANE_SCORES = tuple(f"{kind}{part}" for kind in ("v_rand", "v_info") for part in ("", "_split", "_merge"))

Scores = dict[str, float | None]
_ALONE = "0.50"
_SMOOTHING_VOXELS = 1.0


def cells_beside(membrane: npt.NDArray[np.bool_]) -> IntArray:
    """Returns the cells that a membrane leaves, numbered from 1; 0 is the membrane.

    Args:
        membrane: (I, J[, K]) bool.
    """
    return np.asarray(ndimage.label(~membrane)[0])


def thinned(cells: IntArray) -> IntArray:
    """Grows cells until the membrane between them is one voxel wide; where cells touch, they stay as they are.

    Args:
        cells: (I, J[, K]) numbers of cells, 0 is membrane.
    """
    from skimage.segmentation import watershed

    if not cells.any():
        return cells
    return np.asarray(watershed(np.zeros(cells.shape, dtype=np.uint8), cells, watershed_line=True))


def flooded(membrane: npt.NDArray[np.floating[Any]], depth: float) -> IntArray:
    """Cuts a probability map into cells along its crests.

    Args:
        membrane: (I, J[, K]) probability of membrane; it is smoothed by one voxel.
        depth: See :data:`MEMBRANE_DEPTHS`.

    Returns:
        Numbers of cells from 1; 0 is a membrane of one voxel.
    """
    from skimage.morphology import local_minima, reconstruction
    from skimage.segmentation import watershed

    heights = ndimage.gaussian_filter(membrane.astype(np.float64), _SMOOTHING_VOXELS)
    filled = reconstruction(heights + depth, heights, method="erosion")
    valleys = ndimage.label(local_minima(filled, connectivity=1))[0]
    if not valleys.any():  # the bottom of one valley is everywhere
        return np.ones(membrane.shape, dtype=np.int32)
    return np.asarray(watershed(heights, valleys, watershed_line=True))


def membrane_scores(cells: IntArray, true_cells: IntArray) -> Scores:
    """Compares two segmentations.

    Args:
        cells: (I, J[, K]) numbers of the cells of the mask, 0 is membrane.
        true_cells: The true ones, of the same shape.

    Returns:
        ``v_rand``, ``v_rand_split``, ``v_rand_merge``, ``v_info``, ``v_info_split``, ``v_info_merge``, all from 0 to
        1; ``None`` where the truth has no cell.

    Raises:
        InputRefusedError: if the shapes differ.
    """
    table = overlap_table(cells, true_cells)
    voxels = int(table.label_voxels.sum())
    if not voxels:
        return dict.fromkeys(MEMBRANE_SCORES)
    joint, true = table.shared / voxels, table.label_voxels / voxels
    ours = np.bincount(table.rows, weights=table.shared, minlength=1) / voxels
    # Voxels of true cells that lie on the mask's membrane are cells of one voxel, in the joint partition too.
    alone = (voxels - int(table.shared.sum())) / voxels
    return _rand(joint, ours, true, alone / voxels) | _information(joint, ours, true, alone * np.log(voxels))


def _rand(joint: FloatArray, ours: FloatArray, true: FloatArray, alone: float) -> Scores:
    both, s2, t2 = float(joint @ joint) + alone, float(ours @ ours) + alone, float(true @ true)
    return {"v_rand": 2 * both / (s2 + t2), "v_rand_split": both / t2, "v_rand_merge": both / s2}


def _information(joint: FloatArray, ours: FloatArray, true: FloatArray, alone: float) -> Scores:
    s, t = _entropy(ours) + alone, _entropy(true)
    shared = min(max(s + t - (_entropy(joint) + alone), 0.0), s, t)
    return {
        "v_info": 2 * shared / (s + t) if s + t else 1.0,
        "v_info_split": shared / s if s else 1.0,
        "v_info_merge": shared / t if t else 1.0,
    }


def _entropy(shares: FloatArray) -> float:
    existing = shares[(shares > 0) & (shares < 1)]
    return float(-(existing * np.log(existing)).sum())


# ---- thresholds and sections ----------------------------------------------------------------------------------------


def membrane_curve(
    membrane: npt.NDArray[np.floating[Any]],
    true_cells: IntArray,
    thresholds: Sequence[float] = MEMBRANE_THRESHOLDS,
) -> dict[str, Scores]:
    """Compares the cells that a probability map leaves at each threshold, its membrane thinned, with the true ones.

    Args:
        membrane: (I, J[, K]) probability of membrane.
        true_cells: (I, J[, K]) numbers of the true cells, 0 is membrane.
        thresholds: Where the membrane begins.

    Returns:
        For each threshold (as ``"0.50"``) what :func:`membrane_scores` returns.
    """
    return {
        f"{threshold:.2f}": membrane_scores(thinned(cells_beside(membrane > threshold)), true_cells)
        for threshold in thresholds
    }


def watershed_curve(
    membrane: npt.NDArray[np.floating[Any]], true_cells: IntArray, depths: Sequence[float] = MEMBRANE_DEPTHS
) -> dict[str, Scores]:
    """Returns the same of the cells of :func:`flooded`, for each depth in place of a threshold."""
    return {f"{depth:.2f}": membrane_scores(flooded(membrane, depth), true_cells) for depth in depths}


def mask_curve(cells: IntArray, true_cells: IntArray) -> dict[str, Scores]:
    """Returns the same of a mask, which has no threshold to choose: one entry, ``"0.50"``."""
    return {_ALONE: membrane_scores(thinned(cells), true_cells)}


def summarise_membranes(curves: Sequence[Mapping[str, Mapping[str, float | None]]]) -> dict[str, Any]:
    """Returns the scores of all sections together.

    Args:
        curves: What :func:`membrane_curve` or :func:`mask_curve` returned of each section.

    Returns:
        ``v_rand`` with its split and merge score at ``v_rand_threshold``, where the mean over the sections is best,
        and the same of ``v_info``; ``by_threshold`` (the mean scores at thresholds that all sections have),
        ``n_images`` and ``n_empty`` (sections without a true cell, which are left out).
    """
    common = [key for key in (curves[0] if curves else ()) if all(key in curve for curve in curves)]
    means = {key: {kind: average(curve[key][kind] for curve in curves) for kind in MEMBRANE_SCORES} for key in common}
    result: dict[str, Any] = {}
    for kind in ("v_rand", "v_info"):
        scored = [key for key in common if means[key][kind] is not None]
        best = max(scored, key=lambda key: means[key][kind] or 0.0, default=None)
        for part in ("", "_split", "_merge"):
            result[kind + part] = None if best is None else means[best][kind + part]
        result[f"{kind}_threshold"] = best
    empty = sum(all(scores["v_rand"] is None for scores in curve.values()) for curve in curves)
    return result | {"by_threshold": means, "n_images": len(curves), "n_empty": empty}
