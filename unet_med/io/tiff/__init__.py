"""TIFF in: pictures, declared stacks (OME-TIFF, ImageJ hyperstacks, tifffile's own), everything else with ``--axes``.

Files may be of several images, of several files (OME-TIFF sets, also with a companion), tiled, planar, compressed,
BigTIFF, of 1 to 32 bits or floating point; whole-slide pyramids are read tile by tile.
"""

from unet_med.io.tiff.headers import inspect_tiff
from unet_med.io.tiff.source import TiffSource

__all__ = ["TiffSource", "inspect_tiff"]
