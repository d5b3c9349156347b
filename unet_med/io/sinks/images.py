"""Images out, unchanged: what ``convert`` writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.io.atomic import whole_file, write_json
from unet_med.io.export.nifti import NiftiPlace, check_nifti, save_nifti
from unet_med.io.export.sidecars import sidecar_content
from unet_med.io.reading import FileSource, native
from unet_med.io.sinks.masks import named, sidecar_path
from unet_med.io.sinks.tiff import check_tiff, pages_of, save_tiff
from unet_med.volume import ImageSource


def write_image(
    source: ImageSource, target: Path, provenance: Mapping[str, Any] | None = None
) -> tuple[list[Path], dict[str, Any]]:
    """Writes the voxels of ``source`` unchanged, as integers where they are stored so, else float32.

    A volume with a place becomes ``TARGET.nii.gz``; several channels ``TARGET_0000.nii.gz``, ``TARGET_0001.nii.gz``;
    several time points ``TARGET_t000.nii.gz``. Anything else becomes one ``TARGET.tif`` with all channels and frames.

    Returns:
        The files, images first, then the sidecar; and the checks by file name.
    """
    writer = _write_volumes if source.geometry.ndim == 3 and source.geometry.is_calibrated else _write_picture
    files, checks = writer(source, target)
    sidecar = sidecar_path(target)
    content = sidecar_content(target.name, "image", source.geometry, files, provenance, checks)
    write_json(sidecar, content, source.id)
    return [*files, sidecar], checks


def _write_volumes(source: ImageSource, target: Path) -> tuple[list[Path], dict[str, Any]]:
    place = NiftiPlace(source)
    files: list[Path] = []
    checks: dict[str, Any] = {}
    for frame in range(source.frames):
        volume = source.read(frame=frame)
        for channel in range(source.channels):
            ending = (f"_t{frame:03d}" if source.frames > 1 else "") + (
                f"_{channel:04d}" if source.channels > 1 else ""
            )
            path = named(target, f"{ending}.nii.gz")
            array = storable(volume.array[channel])
            with whole_file(path, source.id) as part:
                save_nifti(part, array, place)
                checks[path.name] = check_nifti(part, array, place, source.id)
            files.append(path)
    return files, checks


def _write_picture(source: ImageSource, target: Path) -> tuple[list[Path], dict[str, Any]]:
    frames = np.stack([storable(source.read(frame=frame).array) for frame in range(source.frames)])
    pages, axes = pages_of(frames)
    colours = isinstance(source, FileSource) and "S" in source.ref.axes and source.channels == 3
    if colours and axes == "CYX" and pages.dtype == np.uint8:
        pages, axes = np.ascontiguousarray(pages.transpose(1, 2, 0)), "YXS"
    path = named(target, ".tif")
    with whole_file(path, source.id) as part:
        save_tiff(part, pages, axes, source.geometry.spacing_mm)
        checks = check_tiff(part, pages, axes, source.id)
    return [path], {path.name: checks}


def storable(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns the values in a type that every reader knows: float64 as float32, 64-bit integers as 32-bit if they fit.

    64-bit integers beyond that become float64, which holds them up to 2**53.
    """
    array = native(array)
    if array.dtype.kind == "f":
        return array.astype(np.float32, copy=False)
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        lowest, highest = int(array.min()), int(array.max())
        if lowest >= -(2**31) and highest < 2**31:
            return array.astype(np.int32)
        return array.astype(np.float64)
    return array
