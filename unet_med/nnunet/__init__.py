"""Trained models of nnU-Net v2: its plans as a pipeline, its checkpoints as weights of our networks.

Isensee et al., nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation, Nature
Methods 18, 203-211, 2021. Nothing of nnU-Net is needed: plans are JSON, checkpoints are read as tensors and numbers.
"""

from unet_med.nnunet.folder import Checkpoint, TrainedFolder, load_checkpoint, open_folder, validation_results
from unet_med.nnunet.pipeline import Imported, imported_pipeline
from unet_med.nnunet.weights import translated

__all__ = [
    "Checkpoint",
    "Imported",
    "TrainedFolder",
    "imported_pipeline",
    "load_checkpoint",
    "open_folder",
    "translated",
    "validation_results",
]
