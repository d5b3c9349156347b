"""unet-med: a folder of scans in, masks out, every experiment reviewable."""

__version__ = "0.1.0"
