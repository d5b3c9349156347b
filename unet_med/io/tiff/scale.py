"""What the headers of a TIFF series say of sizes, times and the names of channels.

A pixel size counts when it is declared for microscopes (OME PhysicalSize, ImageJ's unit, Zeiss LSM's voxel size, a
slide scanner's MPP, or the resolution of Hamamatsu's slides); that tag of plain TIFF is a printer's and does not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import tifffile

from unet_med.io.channels import RGB, names_of
from unet_med.io.pixel_size import is_printers, known_sizes, mm_per_unit, seconds_per_unit, sensible
from unet_med.io.stack import count
from unet_med.io.tiff import ome

_TAG_X_RESOLUTION = 282
_TAG_Y_RESOLUTION = 283
_TAG_RESOLUTION_UNIT = 296
_CENTIMETRE = 3
_INCH = 25.4
_RGB_PHOTOMETRIC = (2, 6)
_MICRONS_PER_PIXEL = re.compile(r"\bMPP\s*=\s*([0-9.]+)")
_FILE_NAME = re.compile(r"[/\\]|\.[a-z]{2,4}$", re.IGNORECASE)
_PLACE_IN_LABEL = re.compile(r"^(?:[czt]:\d+/\d+\s*)+-?\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Scale:
    """Spacing along X, Y (and Z) in mm and seconds between time points; ``None`` where the file does not say."""

    spacing_mm: tuple[float, ...] | None
    seconds: float | None
    notes: tuple[str, ...] = ()


def scale_of(
    file: tifffile.TiffFile, series: tifffile.TiffPageSeries, ndim: int, pixels: ElementTree.Element | None
) -> Scale:
    """Returns what a series says of its scale, with notes where it says nothing.

    Args:
        file: The file.
        series: The series.
        ndim: 2 or 3 spatial axes.
        pixels: What the OME-XML says of it, if there is any.
    """
    if pixels is not None:
        return _scale([ome.size(pixels, letter) for letter in "XYZ"[:ndim]], ome.time_step(pixels))
    if series.kind == "imagej":
        metadata = file.imagej_metadata or {}
        seconds = _frame_interval(metadata)
        printers = _printers_resolution(metadata, series)
        return Scale(None, seconds, (printers,)) if printers else _scale(_imagej_sizes(metadata, series, ndim), seconds)
    if series.kind == "lsm":
        return _lsm_scale(file.lsm_metadata or {}, ndim)
    if series.kind == "svs" and (found := _MICRONS_PER_PIXEL.search(series.keyframe.description)):
        microns = sensible(float(found[1]), 1e-3)
        return _scale([microns, microns, None][:ndim], None)
    if series.kind == "ndpi" and series.keyframe.tags.valueof(_TAG_RESOLUTION_UNIT) == _CENTIMETRE:
        sizes = [sensible(1 / dots, 10.0) if dots else None for dots in _resolutions(series)]
        return _scale([*sizes, None][:ndim], None)
    return Scale(None, None, ("no pixel size",))


def _lsm_scale(metadata: Mapping[str, Any], ndim: int) -> Scale:
    """Returns what a Zeiss LSM file says: metres and seconds; no interval is stored as 0."""
    sizes = [sensible(float(metadata.get(f"VoxelSize{letter}") or 0), 1e3) for letter in "XYZ"[:ndim]]
    return _scale(sizes, sensible(float(metadata.get("TimeIntervall") or 0), 1.0))


def _scale(sizes: list[float | None], seconds: float | None) -> Scale:
    spacing, notes = known_sizes(sizes)
    return Scale(spacing, seconds, tuple(notes))


def _imagej_sizes(metadata: Mapping[str, Any], series: tifffile.TiffPageSeries, ndim: int) -> list[float | None]:
    """Returns ImageJ's pixel width, height and depth in mm; ``None`` where its unit is the pixel or unknown."""
    scale = mm_per_unit(str(metadata.get("unit", "")))
    spacing = metadata.get("spacing")
    depth = abs(float(spacing)) if isinstance(spacing, (int, float)) else math.nan
    steps = [*(1 / dots if dots else math.nan for dots in _resolutions(series)), depth]
    return [sensible(step, scale) for step in steps[:ndim]]


def _resolutions(series: tifffile.TiffPageSeries) -> list[float]:
    """Returns the pixels in one unit of length along X and Y; 0 where the file does not say."""
    found = [series.keyframe.tags.valueof(code) or (0, 1) for code in (_TAG_X_RESOLUTION, _TAG_Y_RESOLUTION)]
    return [numerator / denominator if denominator else 0.0 for numerator, denominator in found]


def _printers_resolution(metadata: Mapping[str, Any], series: tifffile.TiffPageSeries) -> str:
    """Returns a note where ImageJ kept the resolution of the picture that it was made of, in dots per inch."""
    if mm_per_unit(str(metadata.get("unit", ""))) != _INCH:
        return ""
    dots = _resolutions(series)[0]
    return f"no pixel size: its {dots:.4g} dots per inch are a printer's resolution" if is_printers(dots) else ""


def _frame_interval(metadata: Mapping[str, Any]) -> float | None:
    interval = metadata.get("finterval")
    unit = str(metadata.get("tunit", "s"))
    return sensible(float(interval), seconds_per_unit(unit)) if isinstance(interval, (int, float)) else None


# ---- channels -----------------------------------------------------------------------------------------------------


def colour_samples(series: tifffile.TiffPageSeries, samples: int) -> int:
    """Returns how many of the samples of a pixel are values; the rest is alpha."""
    page = series.keyframe
    if page.photometric in _RGB_PHOTOMETRIC:
        return min(samples, 3)
    return samples - sum(1 for kind in page.extrasamples if kind in (1, 2))


def channel_names(
    file: tifffile.TiffFile, series: tifffile.TiffPageSeries, axes: str, pixels: ElementTree.Element | None
) -> tuple[str, ...]:
    """Returns a name for each channel that is read: OME's, ImageJ's labels, red, green and blue, or its number."""
    channels = count(axes, series.shape, "C")
    if "S" in axes:
        samples = colour_samples(series, count(axes, series.shape, "S"))
        channels *= samples
        if samples == channels == len(RGB) and series.keyframe.photometric in _RGB_PHOTOMETRIC:
            return RGB
    if pixels is not None:
        return names_of(ome.channel_names(pixels), channels)
    if series.kind == "lsm":
        told = ((file.lsm_metadata or {}).get("ChannelColors") or {}).get("ColorNames") or ()
        return names_of([str(name) for name in told], channels)
    if series.kind == "imagej":
        return names_of(_slice_labels(file.imagej_metadata or {}, channels), channels)
    return names_of((), channels)


def _slice_labels(metadata: Mapping[str, Any], channels: int) -> list[str]:
    """Returns the label that all planes of a channel share in an ImageJ stack, whose channels run fastest.

    ImageJ labels a plane with the name of the file that it came from: that is no channel's name.
    """
    labels = [_PLACE_IN_LABEL.sub("", str(label)).strip() for label in metadata.get("Labels") or ()]
    if len(labels) < channels or str(metadata.get("order", "czt")).lower() not in ("czt", "ctz", "default"):
        return []
    shared = [set(labels[number::channels]) for number in range(channels)]
    return [one.pop() if len(one) == 1 and not _FILE_NAME.search(min(one)) else "" for one in shared]
