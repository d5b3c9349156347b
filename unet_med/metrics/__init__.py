"""How good a result is: voxels, objects, tracks, membranes; each by definitions that others have published."""

from unet_med.metrics.objects import AP_THRESHOLDS, match_classes, match_objects, match_overlap, summarise_objects
from unet_med.metrics.overlap import Overlap, overlap_of_blocks, overlap_table
from unet_med.metrics.summary import SCORES, summarise
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
    "SCORES",
    "Overlap",
    "case_metrics",
    "confusion_counts",
    "dice_iou",
    "match_classes",
    "match_objects",
    "match_overlap",
    "overlap_of_blocks",
    "overlap_table",
    "structures",
    "summarise",
    "summarise_objects",
    "surface_scores",
    "without_ignored",
]
