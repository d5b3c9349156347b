"""Large label images as BigTIFF with tiles and a pyramid (OME-TIFF), which QuPath and Bio-Formats open at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from unet_med.io.export.nifti import unlike
from unet_med.io.mapped import let_go
from unet_med.io.sinks.pyramid import Pages
from unet_med.io.sinks.tiff import ome_sizes

TILE = 512
TILED_PIXELS = 2**27
"""A picture of more pixels is written in tiles: programs that only know strips do not open such pictures anyway."""


def save_tiled_tiff(part: Path, levels: Sequence[Pages], axes: str, spacing_mm: tuple[float, ...] | None) -> None:
    """Writes levels of a label image, tile by tile.

    Args:
        part: File to write.
        levels: From full resolution down; each (..., rows, columns).
        axes: Letters of their axes, for example ``ZYX``.
        spacing_mm: Pixel size along X, Y (and Z) of the first level; ``None`` when unknown.
    """
    with tifffile.TiffWriter(part, bigtiff=True, ome=True) as file:
        for number, level in enumerate(levels):
            options: dict[str, Any] = {"subfiletype": 1} if number else {"subifds": len(levels) - 1}
            if spacing_mm is not None:
                options["resolution"] = tuple(10.0 / (mm * 2**number) for mm in spacing_mm[:2])
                options["resolutionunit"] = "CENTIMETER"
            file.write(
                _tiles(level),
                shape=level.shape,
                dtype=level.dtype,
                tile=(TILE, TILE),
                compression="deflate",
                photometric="minisblack",
                metadata=None if number else {"axes": axes} | ome_sizes(spacing_mm),
                maxworkers=1,
                **options,
            )


def check_tiled_tiff(part: Path, levels: Sequence[Pages], axes: str, where: str) -> dict[str, Any]:
    """Reads the file again and compares every pixel of every level; returns what was found.

    Raises:
        InputRefusedError: when it does not say what was meant.
    """
    with tifffile.TiffFile(part) as file:
        series = file.series[0]
        if series.axes != axes or [level.shape for level in series.levels] != [level.shape for level in levels]:
            raise unlike("axes or levels", where)
        for stored, level in zip(series.levels, levels, strict=True):
            for page, lead in zip(stored.pages, np.ndindex(level.shape[:-2]), strict=True):
                if page is None or not _same(page, level[lead]):
                    raise unlike("voxels", where)
    record = {"readers": ["tifffile"], "axes": axes, "levels": len(levels)}
    return record | {"shape": True, "values": True, "passed": True}


def _tiles(level: Pages) -> Iterator[Pages]:
    """Yields the tiles of all pages, row by row; those at the ends are filled up with 0."""
    rows, columns = level.shape[-2:]
    for lead in np.ndindex(level.shape[:-2]):
        for top in range(0, rows, TILE):
            band = np.asarray(level[lead][top : top + TILE])
            for left in range(0, columns, TILE):
                tile = np.zeros((TILE, TILE), dtype=level.dtype)
                own = band[:, left : left + TILE]
                tile[: own.shape[0], : own.shape[1]] = own
                yield tile
            let_go(level)


def _same(page: Any, picture: Pages) -> bool:
    for found, (_, _, top, left, _), _ in page.segments(maxworkers=1):
        own = np.asarray(picture[top : top + TILE, left : left + TILE])
        if found is None or not np.array_equal(found[0, : own.shape[0], : own.shape[1], 0], own):
            return False
        if not left:
            let_go(picture)
    return True
