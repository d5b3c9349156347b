"""unet-med: a folder of scans in, masks out, every experiment reviewable."""
