"""How good a result is: voxels, objects, tracks, membranes; each by definitions that others have published."""

from unet_med.metrics.membranes import (
    MEMBRANE_DEPTHS,
    MEMBRANE_SCORES,
    MEMBRANE_THRESHOLDS,
    cells_beside,
    flooded,
    mask_curve,
    membrane_curve,
    membrane_scores,
    summarise_membranes,
    thinned,
    watershed_curve,
)
from unet_med.metrics.objects import AP_THRESHOLDS, match_classes, match_objects, match_overlap, summarise_objects
from unet_med.metrics.overlap import Overlap, overlap_of_blocks, overlap_table
from unet_med.metrics.summary import SCORES, summarise
from unet_med.metrics.tracking import FrameMatch, match_frame, summarise_tracks, track_scores
from unet_med.metrics.voxels import (
    case_metrics,
    confusion_counts,
    dice_iou,
    structures,
    surface_scores,
    without_ignored,
)

__all__ = [
    "AP_THRESHOLDS",
    "MEMBRANE_DEPTHS",
    "MEMBRANE_SCORES",
    "MEMBRANE_THRESHOLDS",
    "SCORES",
    "FrameMatch",
    "Overlap",
    "case_metrics",
    "cells_beside",
    "confusion_counts",
    "dice_iou",
    "flooded",
    "mask_curve",
    "match_classes",
    "match_frame",
    "match_objects",
    "match_overlap",
    "membrane_curve",
    "membrane_scores",
    "overlap_of_blocks",
    "overlap_table",
    "structures",
    "summarise",
    "summarise_membranes",
    "summarise_objects",
    "summarise_tracks",
    "surface_scores",
    "thinned",
    "track_scores",
    "watershed_curve",
    "without_ignored",
]
