"""The label image as TIFF that ImageJ opens, also of a volume whose mask is NIfTI otherwise."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.io.export.mask import MaskExport
from unet_med.io.sinks.pyramid import levels_of
from unet_med.io.sinks.tiff import check_tiff, pages_of, save_tiff
from unet_med.io.sinks.tiled_tiff import TILED_PIXELS, check_tiled_tiff, save_tiled_tiff


def write(export: MaskExport, path: Path) -> None:
    """Writes an ImageJ hyperstack (YX, ZYX, TYX or TZYX); large pictures with tiles and a pyramid."""
    pages, axes = _pages(export)
    if prod(pages.shape[-2:]) > TILED_PIXELS:
        with levels_of(pages, path, keep=True) as levels:  # for the check
            save_tiled_tiff(path, levels, axes, export.geometry.spacing_mm)
    else:
        save_tiff(path, pages, axes, export.geometry.spacing_mm)


def check(path: Path, export: MaskExport) -> dict[str, Any]:
    """Reads the file again by tifffile and compares every value.

    Raises:
        InputRefusedError: It does not say what was meant.
    """
    pages, axes = _pages(export)
    if prod(pages.shape[-2:]) > TILED_PIXELS:
        with levels_of(pages, path) as levels:
            return check_tiled_tiff(path, levels, axes, export.source.id)
    return check_tiff(path, pages, axes, export.source.id)


def _pages(export: MaskExport) -> tuple[npt.NDArray[Any], str]:
    movie = export.labels[np.newaxis] if export.movie is None else export.movie
    return pages_of(movie[:, np.newaxis])
