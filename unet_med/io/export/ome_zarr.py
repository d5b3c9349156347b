"""The label image as OME-Zarr, with its pyramid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from unet_med.io.export.mask import MaskExport
from unet_med.io.sinks.ome_zarr import check_ome_zarr, save_ome_zarr
from unet_med.io.sinks.pyramid import levels_of
from unet_med.io.sinks.tiff import pages_of


def write(export: MaskExport, path: Path) -> None:
    """Writes a folder whose ``labels`` hold the mask."""
    pages, axes = pages_of(_movie(export)[:, np.newaxis])
    with levels_of(pages, path, keep=True) as levels:  # for the check
        save_ome_zarr(path, levels, axes, export.geometry.spacing_mm, export.label_map)


def check(path: Path, export: MaskExport) -> dict[str, Any]:
    """Opens the folder again and compares every value.

    Raises:
        InputRefusedError: It does not say what was meant.
    """
    pages, axes = pages_of(_movie(export)[:, np.newaxis])
    with levels_of(pages, path) as levels:
        return check_ome_zarr(path, levels, axes, export.source.id)


def _movie(export: MaskExport) -> Any:
    return export.labels[np.newaxis] if export.movie is None else export.movie
