"""The headers of a TIFF file: which sources it holds, and what each of them is."""

from __future__ import annotations

import logging
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import tifffile

from unet_med.errors import InputRefusedError
from unet_med.io.channels import chosen_channels, named
from unet_med.io.pixel_size import calibrated
from unet_med.io.reading import COPY_FILE_AGAIN, native_dtype, provisional_id, refused_ref, refusing
from unet_med.io.source import IntakeOptions, SourceRef
from unet_med.io.stack import CHANNEL_LETTERS, FRAME_LETTERS, count, grid_of, meaning
from unet_med.io.tiff.checks import check_chain, check_complete, check_encoding, is_besides, shows_the_slide
from unet_med.io.tiff.ome import is_partner, pixels_of, root_of, set_names
from unet_med.io.tiff.pixels import open_tiff
from unet_med.io.tiff.scale import channel_names, scale_of

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # its messages name files; what matters is refused here

DAMAGED = "the TIFF file is damaged or truncated"
FAULTS = (tifffile.TiffFileError, ElementTree.ParseError, struct.error, AssertionError, AttributeError, SyntaxError)


def inspect_tiff(path: Path, options: IntakeOptions = IntakeOptions()) -> list[SourceRef]:  # noqa: B008
    """Returns the sources of a TIFF file, or of a set that a companion file describes, from headers alone.

    There is one for each series of images in it. A file that is a later part of an OME-TIFF set of several files gives
    none: the set is read through its first file, or through its companion.
    """
    try:
        with refusing(DAMAGED, "", COPY_FILE_AGAIN, *FAULTS), open_tiff(path) as file:
            ome = root_of(file)
            if ome is not None and is_partner(ome, path):
                return []
            for part in [] if ome is None else set_names(ome):
                if (path.parent / part).is_file():
                    check_chain(path.parent / part)
            kept = [number for number, series in enumerate(file.series) if not is_besides(series)]
            slide = any(shows_the_slide(series) for series in file.series)
            found = [_inspect_series(path, file, number, kept, ome, options) for number in kept or [0]]
    except InputRefusedError as error:
        return [refused_ref(path, "tiff", error)]
    note = ("pictures of the whole slide and of its label are left out",) if slide else ()
    return [replace(ref, notes=(*ref.notes, *note)) for ref in found]


def _inspect_series(
    path: Path,
    file: tifffile.TiffFile,
    number: int,
    kept: list[int],
    ome: ElementTree.Element | None,
    options: IntakeOptions,
) -> SourceRef:
    """Returns the source of one series; unusable with a reason where it is refused."""
    series = file.series[number]
    stored = tuple(int(n) for n in series.shape)
    name = provisional_id(path) + (f"-s{kept.index(number) + 1}" if len(kept) > 1 else "")
    used: dict[str, Any] = {"series": number} if number else {}
    notes = [f"image {kept.index(number) + 1} of {len(kept)} in its file"] if len(kept) > 1 else []
    try:
        check_complete(file, series)
        notes += check_encoding(series)
        axes, axes_used = meaning(_declared(series), stored, options)
        pixels = pixels_of(ome, file.series, number)
        names = channel_names(file, series, axes, pixels)
        if len(names) < count(axes, stored, CHANNEL_LETTERS):
            notes.append("alpha (transparency) is dropped")
        picked, channels_used = chosen_channels(names, options)
        grid = grid_of(axes, stored)
        scale = scale_of(file, series, len(grid), pixels)
        geometry, size_used, more = calibrated(grid, scale.spacing_mm, options, microscope=True)
    except InputRefusedError as error:
        refused = refused_ref(path, "tiff", error, axes=series.axes, shape=stored)
        return replace(refused, id=name, read_as=used)
    return SourceRef(
        id=name,
        kind="tiff",
        files=_files(path, series),
        axes=axes,
        shape=stored,
        geometry=geometry,
        channels=len(picked),
        channel_names=named(names, picked),
        frames=count(axes, stored, FRAME_LETTERS),
        seconds_per_frame=scale.seconds if "T" in axes else None,
        levels=_levels(file, series),
        dtype=native_dtype(series.dtype),
        notes=(*notes, *([] if size_used else scale.notes), *more),
        read_as=used | axes_used | channels_used | size_used,
    )


def _declared(series: tifffile.TiffPageSeries) -> str:
    """Returns the axes as the file declares them; tifffile calls pages ``I`` of which it knows nothing."""
    axes = str(series.axes)
    return axes if series.kind == "shaped" else axes.replace("I", "Q")


def _levels(file: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> tuple[tuple[int, ...], ...]:
    """Returns the shapes of the smaller copies, up to one that is damaged or has other axes."""
    shapes = []
    for copy in series.levels[1:]:
        try:
            check_complete(file, copy)
            check_encoding(copy)
        except InputRefusedError:
            break
        if copy.axes != series.axes or copy.dtype != series.dtype:
            break
        shapes.append(tuple(int(n) for n in copy.shape))
    return tuple(shapes)


def _files(path: Path, series: tifffile.TiffPageSeries) -> tuple[Path, ...]:
    """Returns the file itself first, then the others of its set."""
    names = dict.fromkeys(str(page.parent.filename) for page in series.pages if page is not None)
    if series.is_multifile or path.name not in names:
        return (path, *(path.parent / name for name in names if name != path.name))
    return (path,)
