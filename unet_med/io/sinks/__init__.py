"""Masks and images out: NIfTI where there is a place in space, ImageJ-readable TIFF elsewhere; read back before shown.

A volume with a place becomes ``TARGET.nii.gz`` on exactly its source's grid, and whatever other formats were asked for
(:mod:`unet_med.io.export`). Pictures, uncalibrated volumes and multi-frame sources become ``TARGET.tif``. Beside them
lies ``TARGET.json``: labels, provenance and the result of the checks.

Every file is written under a temporary name and opened again by another library; shape, corners (1e-3 mm), every
value and each label's centroid, volume and place beside the others must be what was meant. Then all get their names:
a mask is whole, in all formats, or nothing of it is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unet_med.errors import InputRefusedError
from unet_med.io.export.formats import FORMATS
from unet_med.io.export.mask import ExportOptions, MaskExport
from unet_med.io.export.measure import label_centroids
from unet_med.io.export.sidecars import RESEARCH_ONLY
from unet_med.io.sinks.images import storable, write_image
from unet_med.io.sinks.masks import TiffMaskSink, VolumeMaskSink
from unet_med.labels import LabelMap
from unet_med.volume import ImageSource, MaskSink

__all__ = [
    "RESEARCH_ONLY",
    "TiffMaskSink",
    "VolumeMaskSink",
    "check_formats",
    "label_centroids",
    "open_mask_sink",
    "storable",
    "write_image",
]


def open_mask_sink(
    source: ImageSource,
    target: Path,
    labels: LabelMap,
    provenance: Mapping[str, Any] | None = None,
    options: ExportOptions = ExportOptions(),  # noqa: B008
    work: Path | None = None,
) -> MaskSink:
    """Returns where the mask of ``source`` is written.

    Args:
        source: Gives the grid, for NIfTI the header's forms, for DICOM the series that exports refer to.
        target: Output without suffix, for example ``OUT/case1``.
        labels: What the values mean; more than 255 labels make uint16.
        provenance: JSON-able; goes into the sidecar as it is.
        options: Formats; a picture or an image without a place in space has only one, TIFF.
        work: Folder in whose files labels are collected, for masks larger than memory; what lies there of an earlier
            start is gone on with. ``None``: in memory.

    Raises:
        InputRefusedError: A format cannot hold this image; or the grid is sheared and its source is no NIfTI file:
            such a mask would be read rotated.
    """
    check_formats(source, options)
    if _is_volume(source):
        return VolumeMaskSink(source, target, labels, provenance, options, work)
    return TiffMaskSink(source, target, labels, provenance, options, work)


def check_formats(source: ImageSource, options: ExportOptions) -> None:
    """Refuses an image that a format cannot hold, before anything is computed.

    Raises:
        InputRefusedError: naming the format.
    """
    for name in options.formats:
        wanted = FORMATS[name]
        if wanted.needs_volume and not _is_volume(source):
            what = "a picture" if source.geometry.ndim == 2 else "a volume without a pixel size"
            what = f"{what} of {source.frames} frames" if source.frames > 1 else what
            raise InputRefusedError(
                f"{name} cannot hold the mask of {what}", source.id, "leave --format out: such masks become TIFF"
            )
        if wanted.needs_dicom and MaskExport(source, np.zeros((1,), np.uint8), LabelMap(())).dicom is None:
            raise InputRefusedError(
                f"{name} refers to the slices of a DICOM series, and this image is none",
                source.id,
                "predict on the DICOM series itself, or ask for nifti or seg-nrrd",
            )


def _is_volume(source: ImageSource) -> bool:
    return source.geometry.ndim == 3 and source.geometry.is_calibrated and source.frames == 1
