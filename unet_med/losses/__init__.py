"""What training makes small: a loss of the classes of voxels, and of what tells objects apart."""

from unet_med.losses.building import build_loss
from unet_med.losses.objects import ObjectLoss
from unet_med.losses.segmentation import Reduce, SegmentationLoss, border_weight_map

__all__ = ["ObjectLoss", "Reduce", "SegmentationLoss", "border_weight_map", "build_loss"]
