"""TIFF out: ImageJ hyperstacks, OME-TIFF where ImageJ has no such type or size; read back by tifffile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from unet_med.io.export.nifti import same_values, unlike
from unet_med.volume import SLAB_VOXELS, Region

_IMAGEJ_DTYPES = ("uint8", "uint16", "float32")
_IMAGEJ_BYTES = 3 * 2**30
"""ImageJ's format ends at 4 GiB; beyond this the file is an OME-TIFF."""


def pages_of(array: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], str]:
    """Turns (frames, C, X, Y[, Z]) into pages in ImageJ's order TZCYX, axes of length 1 left out, and their letters.

    A volume keeps its Z whatever its length.
    """
    volume = array.ndim == 5
    ordered = array.transpose(0, 4, 1, 3, 2) if volume else array.transpose(0, 1, 3, 2)
    letters = "TZCYX" if volume else "TCYX"
    keep = [axis for axis, letter in enumerate(letters) if letter in "YXZ" or ordered.shape[axis] > 1]
    drop = tuple(axis for axis in range(len(letters)) if axis not in keep)
    return np.ascontiguousarray(ordered.squeeze(drop)), "".join(letters[axis] for axis in keep)


def save_tiff(part: Path, pages: npt.NDArray[Any], axes: str, spacing_mm: tuple[float, ...] | None) -> None:
    """Writes contiguous pages as an ImageJ hyperstack, or as OME-TIFF where ImageJ has no such type or size."""
    imagej = str(pages.dtype) in _IMAGEJ_DTYPES and pages.nbytes < _IMAGEJ_BYTES and not ("S" in axes and axes != "YXS")
    metadata: dict[str, Any] = {"axes": axes}
    options: dict[str, Any] = {"photometric": "rgb" if "S" in axes else "minisblack"}
    if spacing_mm is not None:
        um = [1e3 * value for value in spacing_mm]
        options["resolution"] = (1.0 / um[0], 1.0 / um[1])
        in_imagej = {"unit": "um"} | ({"spacing": um[2]} if len(um) == 3 else {})
        metadata |= in_imagej if imagej else ome_sizes(spacing_mm)
    tifffile.imwrite(part, pages, imagej=imagej, ome=not imagej, metadata=metadata, **options)


def ome_sizes(spacing_mm: tuple[float, ...] | None) -> dict[str, Any]:
    """Returns what OME says of a pixel's size; nothing where it is unknown."""
    sizes: dict[str, Any] = {}
    for letter, value in zip("XYZ", spacing_mm or (), strict=False):
        sizes |= {f"PhysicalSize{letter}": 1e3 * value, f"PhysicalSize{letter}Unit": "\u00b5m"}
    return sizes


def check_tiff(part: Path, pages: npt.NDArray[Any], axes: str, where: str) -> dict[str, Any]:
    """Reads the file again and compares every value; returns what was found."""
    with tifffile.TiffFile(part) as file:
        if file.series[0].axes not in (axes, axes.replace("Z", "")):
            raise unlike("axes", where)
        same_values(_StoredVoxels(file), pages.reshape(-1), where)
    return {"readers": ["tifffile"], "axes": axes, "shape": True, "values": True, "passed": True}


class _StoredVoxels:
    """The first series of a TIFF file that is not compressed, as tifffile finds it: voxels in a row, part by part."""

    def __init__(self, file: tifffile.TiffFile) -> None:
        self._file = file
        self._series = file.series[0]
        self.shape = (int(self._series.size),)

    def parts(self) -> Iterator[tuple[Region, npt.NDArray[Any]]]:
        """Yields regions and their voxels."""
        dtype = self._series.dtype.newbyteorder(self._file.byteorder)
        for start in range(0, self.shape[0], SLAB_VOXELS):
            stop = min(start + SLAB_VOXELS, self.shape[0])
            place = self._series.dataoffset + start * dtype.itemsize
            yield (slice(start, stop),), self._file.filehandle.read_array(dtype, stop - start, place)
