"""What training makes small: a loss of the classes of voxels, and of what tells objects apart."""

from unet_med.losses.building import build_loss
from unet_med.losses.objects import ObjectLoss
from unet_med.losses.segmentation import Reduce, SegmentationLoss, border_weight_map
from unet_med.losses.teaching import TaughtLoss

__all__ = ["ObjectLoss", "Reduce", "SegmentationLoss", "TaughtLoss", "border_weight_map", "build_loss"]
