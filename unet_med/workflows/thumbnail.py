"""A small picture of one source: its middle slice in true proportions, as a radiologist hangs it.

Only that slice is read. The plane is that of the stored slices; of other volumes the one across the coarsest or
shortest axis, else the axial one. The patient's right is on the viewer's left, anterior and superior are up; letters
say so. A picture that may carry a name in its pixels is not shown.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from unet_med.errors import InputRefusedError
from unet_med.geometry import Geometry
from unet_med.io.dicom.slices import SliceLayout
from unet_med.io.discover import open_source
from unet_med.io.levels import smaller
from unet_med.io.reading import refusing
from unet_med.io.source import SourceRef
from unet_med.overlays import PERCENTILES, to_lpi

GREY_STEP = 4
"""Grey values are rounded to this step, which makes the files a third smaller and is not seen."""

_SAFE_MODALITIES = frozenset({"CR", "CT", "DX", "IO", "MG", "MR", "NM", "PT", "PX", "RF", "RG", "RTIMAGE", "XA"})
"""Modalities whose pixels carry no name unless the header says so; pictures of ultrasound and the like mostly do."""

_INVERTED = "PT"
_SOFT_TISSUE = (-160.0, 240.0)  # HU
_LEAST_INSIDE = 0.02
_AIR = -900.0
_COARSER = 1.5
_FEWER = 3
_SAMPLE = 256
_SMALLEST = 8
_LARGEST = 2**27
_PLANES = {(0, 1): ("axial", "RLAP"), (0, 2): ("coronal", "RLSI"), (1, 2): ("sagittal", "APSI")}


@dataclass(frozen=True)
class Thumbnail:
    """A picture to be shown.

    Attributes:
        png: The file.
        size: Columns and rows, in true proportions.
        letters: Where left, right, top and bottom lie in the patient, one letter each; empty when not known.
        caption: Plane and number of the slice, or of the frame.
        light: Whether the background is white.
    """

    png: bytes
    size: tuple[int, int]
    letters: str
    caption: str
    light: bool = False


@dataclass(frozen=True)
class _Cut:
    """One slice through a source.

    Attributes:
        axis: Axis of the grid that is cut; ``None`` for a picture.
        number: Slice along it.
        across, down: Axes of the grid that run to the right and downwards on the screen.
        flips: Whether they run against the grid.
    """

    axis: int | None
    number: int
    across: int
    down: int
    flips: tuple[bool, bool]
    letters: str
    caption: str


def thumbnail(ref: SourceRef, side: int) -> Thumbnail:
    """Draws the middle slice of a usable source.

    Args:
        ref: The source; its middle frame is taken where it has several.
        side: Pixels of the longest side; fewer where the slice has fewer.

    Raises:
        InputRefusedError: There is no picture: its pixels may carry a name, or cannot be read.
        MachineError: Memory does not suffice.
    """
    ref = smaller(ref, 2 * side)
    geometry = ref.geometry
    if geometry is None:
        raise InputRefusedError("a refused source has no picture", ref.id, "see its reason")
    if may_carry_a_name(ref):
        raise InputRefusedError("the pixels may carry a name", ref.id, "look at it with a viewer")
    if math.prod(geometry.shape[:2]) > _LARGEST:
        raise InputRefusedError("too large, and its file holds no smaller copy", ref.id, "look at it with a viewer")
    cut = _cut(ref, geometry)
    with refusing("the pixels cannot be read", ref.id, "copy it again from its origin"):
        pixels = _screen(_read(ref, geometry, cut), cut, ref.modality)
        spacing = geometry.spacing_mm or (1.0,) * geometry.ndim
        extent = pixels.shape[1] * spacing[cut.across], pixels.shape[0] * spacing[cut.down]
        size = _size(extent, (spacing[cut.across], spacing[cut.down]), side)
        reducing = size[0] < pixels.shape[1] or size[1] < pixels.shape[0]
        kind = Image.Resampling.BOX if reducing else Image.Resampling.BILINEAR
        picture = Image.fromarray(np.ascontiguousarray(pixels)).resize(size, kind)
        file = io.BytesIO()
        Image.fromarray(np.asarray(picture) // GREY_STEP * GREY_STEP).save(file, "PNG", optimize=True)
    return Thumbnail(file.getvalue(), size, cut.letters, cut.caption, light=ref.modality == _INVERTED)


def may_carry_a_name(ref: SourceRef) -> bool:
    """Whether text may be burnt into the pixels of a DICOM picture."""
    if ref.kind != "dicom":
        return False
    return ref.modality not in _SAFE_MODALITIES or any("burnt into the pixels" in note for note in ref.notes)


# ---- which slice ----------------------------------------------------------------------------------------------------


def _cut(ref: SourceRef, geometry: Geometry) -> _Cut:
    if geometry.ndim == 2:
        told = f"{ref.frames // 2 + 1}/{ref.frames}" if ref.frames > 1 else ""
        return _Cut(None, 0, 0, 1, (False, False), "", told)
    axis = 2 if ref.kind == "dicom" else _coarsest(geometry)
    number = geometry.shape[axis] // 2
    slices = len(ref.layout.slices) if isinstance(ref.layout, SliceLayout) else geometry.shape[axis]
    told = f"{slices // 2 + 1}/{slices}"
    if not geometry.orientation:
        across, down = (one for one in range(3) if one != axis)
        return _Cut(axis, number, across, down, (False, False), "", f"{'IJK'[across]} x {'IJK'[down]} {told}")
    order, flips = to_lpi(geometry.orientation)
    first, second = (place for place in range(3) if order[place] != axis)
    plane, letters = _PLANES[first, second]
    return _Cut(axis, number, order[first], order[second], (flips[first], flips[second]), letters, f"{plane} {told}")


def _coarsest(geometry: Geometry) -> int:
    """Returns the axis to cut: of clearly the largest spacing or fewest slices, else from feet to head, else K."""
    spacing = geometry.spacing_mm or (1.0, 1.0, 1.0)
    by_size = sorted(range(3), key=lambda axis: spacing[axis])
    if spacing[by_size[2]] > _COARSER * spacing[by_size[1]]:
        return by_size[2]
    by_count = sorted(range(3), key=lambda axis: geometry.shape[axis])
    if geometry.shape[by_count[0]] * _FEWER < geometry.shape[by_count[1]]:
        return by_count[0]
    vertical = [axis for axis, letter in enumerate(geometry.orientation) if letter in "SI"]
    return vertical[0] if vertical else 2


# ---- its pixels -----------------------------------------------------------------------------------------------------


def _read(ref: SourceRef, geometry: Geometry, cut: _Cut) -> npt.NDArray[Any]:
    """Returns the slice as (C, across, down), float32 or as stored."""
    if isinstance(ref.layout, SliceLayout) and ref.layout.slices:
        return _turned(_stored_slice(ref, ref.layout), cut)
    region = None
    if cut.axis is not None:
        bounds = [slice(0, n) for n in geometry.shape]
        bounds[cut.axis] = slice(cut.number, cut.number + 1)
        region = tuple(bounds)
    array = open_source(ref).read(region, frame=ref.frames // 2).array
    return _turned(array if cut.axis is None else array.take(0, axis=1 + cut.axis), cut)


def _turned(array: npt.NDArray[Any], cut: _Cut) -> npt.NDArray[Any]:
    """Turns the axes that are left of the grid so that the one across comes first."""
    return array if cut.across < cut.down else array.transpose(0, 2, 1)


def _stored_slice(ref: SourceRef, layout: SliceLayout) -> npt.NDArray[Any]:
    """Returns the middle slice of a DICOM series; its padding becomes the lowest value of that slice alone."""
    from unet_med.io.dicom.pixels import read_slice

    stored = layout.slices[len(layout.slices) // 2]
    one = read_slice(ref.files[stored.file], stored.frame)
    values = one.values.copy()
    if one.padding is not None and not one.padding.all():
        values[one.padding] = values[~one.padding].min()
    return values.T[np.newaxis]


def _screen(array: npt.NDArray[Any], cut: _Cut, modality: str | None) -> npt.NDArray[np.uint8]:
    """Returns (rows, columns[, 3]) for the screen."""
    shown = array if array.shape[0] == 3 else array[:1]
    flips = tuple(slice(None, None, -1 if flip else 1) for flip in cut.flips)
    shown = shown[(slice(None), *flips)]
    if shown.dtype == np.uint8 and shown.shape[0] == 3:
        return np.asarray(shown.transpose(2, 1, 0))
    channels = [_grey(channel, modality) for channel in shown]
    return np.asarray(channels[0].T if len(channels) == 1 else np.stack(channels).transpose(2, 1, 0))


def _grey(values: npt.NDArray[Any], modality: str | None) -> npt.NDArray[np.uint8]:
    low, high = _window(values, modality)
    scaled = np.nan_to_num((values.astype(np.float32) - low) / (high - low), nan=0.0, posinf=1.0, neginf=0.0)
    grey = (scaled.clip(0.0, 1.0) * 255.0).astype(np.uint8)
    return np.asarray(255 - grey if modality == _INVERTED else grey)


def _window(values: npt.NDArray[Any], modality: str | None) -> tuple[float, float]:
    """Returns the values shown black and white: soft tissue for Hounsfield units, else percentiles."""
    steps = tuple(slice(None, None, max(1, n // _SAMPLE)) for n in values.shape)
    sample = values[steps].astype(np.float64)
    sample = sample[np.isfinite(sample)]
    if not sample.size:
        return 0.0, 1.0
    lowest, highest = float(sample.min()), float(sample.max())
    if modality == "CT" or (modality is None and lowest < _AIR and highest > _SOFT_TISSUE[0]):
        inside = np.mean((sample > _SOFT_TISSUE[0]) & (sample < _SOFT_TISSUE[1]))
        if inside >= _LEAST_INSIDE:
            return _SOFT_TISSUE
    low, high = (float(value) for value in np.percentile(sample, PERCENTILES))
    if modality == _INVERTED:
        low = min(0.0, low)
    if high <= low:
        low, high = lowest, highest
    return low, high if high > low else low + 1.0


def _size(extent: Sequence[float], spacing: Sequence[float], side: int) -> tuple[int, int]:
    """Returns columns and rows in true proportions: at most ``side``, and no more than the finer axis has."""
    scale = min(side / max(extent), 1.0 / min(spacing))
    width, height = (max(_SMALLEST, round(length * scale)) for length in extent)
    return min(width, side), min(height, side)
