"""Maps of a case as files: NIfTI with the place of its image, TIFF where it has none; read back and compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from unet_med.io.atomic import whole_file
from unet_med.io.export.nifti import NiftiPlace, check_nifti, save_nifti
from unet_med.io.sinks.tiff import check_tiff, pages_of, save_tiff
from unet_med.volume import ImageSource


def write_map(target: Path, values: npt.NDArray[np.float32], source: ImageSource) -> Path:
    """Writes ``TARGET.nii.gz``, or ``TARGET.tif`` for a picture or an uncalibrated volume.

    Args:
        target: Path without suffix.
        values: (I, J[, K]).
        source: The image, on whose grid they are.

    Returns:
        The file.

    Raises:
        InputRefusedError: The grid is sheared, or the file was not read back as it was written.
        MachineError: The disk is full or the folder cannot be written.
    """
    geometry = source.geometry
    if geometry.ndim == 3 and geometry.is_calibrated:
        place = NiftiPlace(source)
        path = target.with_name(f"{target.name}.nii.gz")
        with whole_file(path, source.id) as part:
            save_nifti(part, values, place)
            check_nifti(part, values, place, source.id)
        return path
    pages, axes = pages_of(values[None, None])
    path = target.with_name(f"{target.name}.tif")
    with whole_file(path, source.id) as part:
        save_tiff(part, pages, axes, geometry.spacing_mm)
        check_tiff(part, pages, axes, source.id)
    return path
