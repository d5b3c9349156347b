"""OME-Zarr in: images of versions 0.4 (Zarr 2) and 0.5 (Zarr 3), older ones too, in a local folder.

Only the chunks are read that a region needs. What the metadata claims is checked before the Zarr library sees it: only
codecs of numbers are let through, none that could carry code.
"""

from unet_med.io.ome_zarr.metadata import METADATA_NAMES, is_image, label_images
from unet_med.io.ome_zarr.source import ZarrSource, inspect_zarr

__all__ = ["METADATA_NAMES", "ZarrSource", "inspect_zarr", "is_image", "label_images"]
