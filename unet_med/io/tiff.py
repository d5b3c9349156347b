"""TIFF in: pictures, declared stacks (OME-TIFF, ImageJ hyperstacks, tifffile's own), everything else with ``--axes``.

What an axis means is never guessed. Letters: X columns, Y rows, Z depth, C channels, S samples of a pixel (RGB), T time
points, I independent pictures. T and I become frames, C and S channels, Z makes a volume. A page (rows, columns) is
transposed, so that arrays are (C, X, Y[, Z]).

A pixel size counts when it is declared for microscopes (OME PhysicalSize, ImageJ's unit); the resolution tag of plain
TIFF is a printer's and does not.
"""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import tifffile

from unet_med.errors import InputRefusedError
from unet_med.io.reading import (
    COPY_FILE_AGAIN,
    FileSource,
    calibrated,
    check_frame,
    chosen_channels,
    mm_per_unit,
    native,
    native_dtype,
    provisional_id,
    read_channels,
    refused_ref,
    refusing,
    whole,
)
from unet_med.io.source import IntakeOptions, SourceRef
from unet_med.volume import Region, Volume

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # its messages name files; what matters is refused here

_DAMAGED = "the TIFF file is damaged or truncated"
_FAULTS = (tifffile.TiffFileError, ElementTree.ParseError, struct.error)
_FRAME_LETTERS = "TI"
_CHANNEL_LETTERS = "CS"
_KNOWN_LETTERS = "XYZCTSI"
_PAGES_CHECKED = 256
_ABSURD_RATIO = 50_000
_ABSURD_BYTES = 2**30
_TAG_X_RESOLUTION = 282
_TAG_Y_RESOLUTION = 283
_JPEG_COMPRESSIONS = (6, 7, 33007, 34892)
_REDUCED_OR_MASK = 5  # bits 0 and 2 of NewSubfileType


def inspect_tiff(path: Path, options: IntakeOptions = IntakeOptions()) -> list[SourceRef]:  # noqa: B008
    """Returns the sources of a TIFF file from its headers: one for each series of images in it.

    A file that is a later part of an OME-TIFF set of several files gives none: the set is read through its first file.
    """
    try:
        with refusing(_DAMAGED, "", COPY_FILE_AGAIN, *_FAULTS), tifffile.TiffFile(path) as file:
            ome = _ome_root(file)
            if ome is not None and _is_partner(ome, path):
                return []
            kept = [number for number, series in enumerate(file.series) if not _is_reduced(series)]
            return [_inspect_series(path, file, number, kept, ome, options) for number in kept or [0]]
    except InputRefusedError as error:
        return [refused_ref(path, "tiff", error)]


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
        _check_complete(file, series)
        notes += _check_encoding(series)
        axes, axes_used = _meaning(series, options)
        channel_names = _channel_names(series, axes, ome, number)
        if len(channel_names) < _count(axes, stored, _CHANNEL_LETTERS):
            notes.append("alpha (transparency) is dropped")
        picked, channels_used = chosen_channels(channel_names, options)
        grid = tuple(_count(axes, stored, letter) for letter in ("XYZ" if "Z" in axes else "XY"))
        own, size_notes = _pixel_size(file, series, len(grid), ome, number)
        geometry, size_used, more = calibrated(grid, own, options)
    except InputRefusedError as error:
        return _named(refused_ref(path, "tiff", error, axes=series.axes, shape=stored), name, used)
    return SourceRef(
        id=name,
        kind="tiff",
        files=_files(path, series),
        axes=axes,
        shape=stored,
        geometry=geometry,
        channels=len(picked),
        frames=_count(axes, stored, _FRAME_LETTERS),
        dtype=native_dtype(series.dtype),
        notes=(*notes, *([] if size_used else size_notes), *more),
        read_as=used | axes_used | channels_used | size_used,
    )


@dataclass(frozen=True)
class TiffSource(FileSource):
    """One series of images of a TIFF file. Only the pages that a frame and region need are read."""

    def read(self, region: Region | None = None, frame: int = 0) -> Volume:
        """Returns (C, X, Y[, Z]) values as stored, of one frame.

        Raises:
            InputRefusedError: The file is damaged or truncated, or has no such frame.
        """
        check_frame(frame, self.frames, self.id)
        bounds = whole(region, self.geometry)
        with refusing(_DAMAGED, self.id, COPY_FILE_AGAIN, *_FAULTS), tifffile.TiffFile(self.ref.files[0]) as file:
            series = file.series[int(self.ref.read_as.get("series", 0))]
            array = _select(file, series, self._index(bounds, frame))
            colours = _colour_samples(series, _count(self.ref.axes, self.ref.shape, "S"))
        channels = self._channels_first(array, colours)
        picked = read_channels(self.ref.read_as)
        return Volume(native(channels if picked is None else channels[list(picked)]), self.geometry.crop(bounds))

    def _index(self, bounds: Region, frame: int) -> tuple[int | slice, ...]:
        """Returns what to take of each stored axis."""
        frame_axes = [letter for letter in self.ref.axes if letter in _FRAME_LETTERS]
        sizes = [self.ref.shape[self.ref.axes.index(letter)] for letter in frame_axes]
        places = dict(zip(frame_axes, np.unravel_index(frame, sizes or [1]), strict=False))
        spatial = dict(zip("XYZ", bounds, strict=False))
        return tuple(
            int(places[letter]) if letter in places else spatial.get(letter, slice(None)) for letter in self.ref.axes
        )

    def _channels_first(self, array: npt.NDArray[Any], colours: int) -> npt.NDArray[Any]:
        """Turns the stored order of axes, frames taken out, into (C, X, Y[, Z]) without alpha."""
        left = [letter for letter in self.ref.axes if letter not in _FRAME_LETTERS]
        if "S" in left:
            array = array.take(range(colours), axis=left.index("S"))
        lead = [letter for letter in _CHANNEL_LETTERS if letter in left]
        spatial = "XYZ" if "Z" in left else "XY"
        ordered = array.transpose([left.index(letter) for letter in (*lead, *spatial)])
        return ordered.reshape(-1, *ordered.shape[len(lead) :])


def _select(
    file: tifffile.TiffFile, series: tifffile.TiffPageSeries, index: tuple[int | slice, ...]
) -> npt.NDArray[Any]:
    """Returns ``series.asarray()[index]`` and reads no more pages than it needs."""
    if series.dataoffset is not None and not series.is_multifile:
        stored = np.memmap(
            file.filehandle.path,
            dtype=series.dtype.newbyteorder(file.byteorder),
            mode="r",
            offset=series.dataoffset,
            shape=series.shape,
        )
        return np.array(stored[index])
    page = series.keyframe
    lead = len(series.shape) - len(page.shape)
    if lead < 0 or series.shape[lead:] != page.shape or math.prod(series.shape[:lead]) != len(series.pages):
        return np.asarray(series.asarray()[index])
    wanted = [
        [part] if isinstance(part, int) else range(n)[part] for part, n in zip(index, series.shape[:lead], strict=False)
    ]
    numbers = [int(np.ravel_multi_index(place, series.shape[:lead])) if lead else 0 for place in product(*wanted)]
    pages = np.stack([_page(series, number)[index[lead:]] for number in numbers])
    kept = [len(places) for places, part in zip(wanted, index, strict=False) if not isinstance(part, int)]
    return pages.reshape(*kept, *pages.shape[1:])


def _page(series: tifffile.TiffPageSeries, number: int) -> npt.NDArray[Any]:
    page = series.pages[number]
    if page is None:
        raise InputRefusedError("a plane of the series is missing", remedy=COPY_FILE_AGAIN)
    handle = page.parent.filehandle  # of another file where the set has several
    if not handle.closed:
        return np.asarray(page.asarray())
    handle.open()
    try:
        return np.asarray(page.asarray())
    finally:
        handle.close()


# ---- axes and channels --------------------------------------------------------------------------------------------


def _meaning(series: tifffile.TiffPageSeries, options: IntakeOptions) -> tuple[str, dict[str, Any]]:
    """Returns a letter for each stored axis and the switch that was used.

    Raises:
        InputRefusedError: The file does not say and ``--axes`` does not fit, or an axis is of another kind.
    """
    declared = series.axes
    if "Q" not in declared and not ("I" in declared and series.kind != "shaped"):
        return _checked_letters(declared), {}
    shape = " x ".join(map(str, series.shape))
    if options.axes is None:
        raise InputRefusedError(
            f"the TIFF stack ({shape}) does not say what its axes are",
            remedy="give --axes, for example ZYX for a volume, TYX for a film, IYX for independent pictures",
        )
    letters = options.axes.upper()
    if declared.endswith("S") and "S" not in letters:
        letters += "S"
    if len(letters) != len(declared) or len(set(letters)) != len(letters):
        raise InputRefusedError(
            f"--axes {options.axes} does not fit a stack of {shape}", remedy=f"give {len(declared)} different letters"
        )
    return _checked_letters(letters), {"axes": letters}


def _checked_letters(axes: str) -> str:
    if "X" not in axes or "Y" not in axes:
        raise InputRefusedError(f"the TIFF axes {axes} hold no picture", remedy="give axes with X and Y")
    strange = sorted(set(axes) - set(_KNOWN_LETTERS))
    if strange:
        raise InputRefusedError(
            f"the TIFF axes {axes} hold {', '.join(strange)}, which are not supported",
            remedy="save the images with axes out of T, Z, C, Y, X",
        )
    return axes


def _count(axes: str, shape: tuple[int, ...], letters: str) -> int:
    return math.prod(shape[axes.index(letter)] for letter in letters if letter in axes)


def _colour_samples(series: tifffile.TiffPageSeries, samples: int) -> int:
    """Returns how many of the samples of a pixel are values; the rest is alpha."""
    page = series.keyframe
    extra = len(page.extrasamples)
    if page.photometric in (2, 6):
        return min(samples, 3)
    alpha = sum(1 for kind in page.extrasamples if kind in (1, 2))
    return samples - alpha if extra else samples


def _channel_names(
    series: tifffile.TiffPageSeries, axes: str, ome: ElementTree.Element | None, number: int
) -> list[str]:
    """Returns a name for each channel that is read: OME's, or its number."""
    count = _count(axes, series.shape, "C")
    if "S" in axes:
        count *= _colour_samples(series, _count(axes, series.shape, "S"))
    pixels = _ome_pixels(ome, series, number)
    names = [] if pixels is None else [entry.get("Name", "") for entry in pixels.findall("{*}Channel")]
    if len(names) != count or len(set(names)) != count or "" in names:
        return [str(index) for index in range(count)]
    return names


# ---- pixel size ---------------------------------------------------------------------------------------------------


def _pixel_size(
    file: tifffile.TiffFile,
    series: tifffile.TiffPageSeries,
    ndim: int,
    ome: ElementTree.Element | None,
    number: int,
) -> tuple[tuple[float, ...] | None, list[str]]:
    """Returns the declared spacing in mm along X, Y (and Z), and notes when there is none."""
    pixels = _ome_pixels(ome, series, number)
    if pixels is not None:
        sizes = [_ome_size(pixels, letter) for letter in "XYZ"[:ndim]]
    elif series.kind == "imagej":
        sizes = _imagej_sizes(file, series)[:ndim]
    else:
        return None, ["no pixel size"]
    if any(size is None for size in sizes):
        if sizes[0] is not None:
            return None, ["pixel size known in plane only: used with none; give all three with --pixel-size"]
        return None, ["no pixel size"]
    return tuple(size for size in sizes if size is not None), []


def _ome_size(pixels: ElementTree.Element, letter: str) -> float | None:
    """Returns an OME PhysicalSize in mm; micrometres where no unit is named (the schema's default)."""
    scale = mm_per_unit(pixels.get(f"PhysicalSize{letter}Unit", "um"))
    try:
        size = float(pixels.get(f"PhysicalSize{letter}", "nan"))
    except ValueError:
        return None
    return _sensible(size, scale)


def _imagej_sizes(file: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> list[float | None]:
    """Returns ImageJ's pixel width, height and depth in mm; None where its unit is the pixel or unknown."""
    metadata = file.imagej_metadata or {}
    scale = mm_per_unit(str(metadata.get("unit", "")))
    tags = series.keyframe.tags
    sizes: list[float | None] = []
    for code in (_TAG_X_RESOLUTION, _TAG_Y_RESOLUTION):
        value = tags.valueof(code)
        numerator, denominator = value if value is not None else (0, 1)
        sizes.append(_sensible(denominator / numerator if numerator else math.nan, scale))
    spacing = metadata.get("spacing")
    depth = abs(float(spacing)) if isinstance(spacing, (int, float)) else math.nan
    return [*sizes, _sensible(depth, scale)]


def _sensible(size: float, scale: float | None) -> float | None:
    if scale is None or not math.isfinite(size) or size <= 0:
        return None
    return size * scale


# ---- OME ----------------------------------------------------------------------------------------------------------


def _ome_root(file: tifffile.TiffFile) -> ElementTree.Element | None:
    if not file.is_ome or not file.ome_metadata:
        return None
    return ElementTree.fromstring(file.ome_metadata)


def _ome_pixels(
    ome: ElementTree.Element | None, series: tifffile.TiffPageSeries, number: int
) -> ElementTree.Element | None:
    """Returns the Pixels element of a series, when it certainly is that one's."""
    if ome is None or series.kind != "ome":
        return None
    every = ome.findall("{*}Image/{*}Pixels")
    if number >= len(every):
        return None
    pixels = every[number]
    sizes = dict(zip(series.axes, series.shape, strict=True))
    agrees = all(pixels.get(f"Size{letter}") == str(sizes[letter]) for letter in "XY")
    return pixels if agrees else None


def _is_partner(ome: ElementTree.Element, path: Path) -> bool:
    """Whether this file is a later part of a set that is read through another file which lies beside it.

    Raises:
        InputRefusedError: It is one, and the file with the metadata is missing.
    """
    only = ome.find("{*}BinaryOnly")
    if only is not None:
        master = Path(only.get("MetadataFile", "")).name
        if master and (path.parent / master).is_file():
            return True
        raise InputRefusedError(
            "the file is a part of an OME-TIFF set whose first file, with the metadata, is missing",
            remedy="copy the whole set into one folder",
        )
    names = _set_names(ome)
    return len(names) > 1 and path.name in names[1:] and (path.parent / names[0]).is_file()


def _set_names(ome: ElementTree.Element) -> list[str]:
    """Returns the names of the files of an OME-TIFF set, in the order of their planes."""
    names = [Path(uuid.get("FileName", "")).name for uuid in ome.iterfind("{*}Image/{*}Pixels/{*}TiffData/{*}UUID")]
    return list(dict.fromkeys(name for name in names if name))


def _files(path: Path, series: tifffile.TiffPageSeries) -> tuple[Path, ...]:
    """Returns the file itself first, then the others of its set."""
    if not series.is_multifile:
        return (path,)
    names = dict.fromkeys(str(page.parent.filename) for page in series.pages if page is not None)
    return (path, *(path.parent / name for name in names if name != path.name))


# ---- what is refused ----------------------------------------------------------------------------------------------


def _named(ref: SourceRef, name: str, used: dict[str, Any]) -> SourceRef:
    return SourceRef(**(ref.__dict__ | {"id": name, "read_as": used}))


def _is_reduced(series: tifffile.TiffPageSeries) -> bool:
    """Whether a series is only a smaller copy or a mask of another."""
    return series.kind != "ome" and bool(series.keyframe.subfiletype & _REDUCED_OR_MASK)


def _check_complete(file: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> None:
    """Compares what the headers promise with the size of the file; no pixel is read.

    Raises:
        InputRefusedError: Data or planes are missing, or the headers claim an absurd size.
    """
    pages: Sequence[Any] = series.pages
    if series.kind == "ome" and any(pages[number] is None for number in range(len(pages))):
        raise InputRefusedError("planes of the TIFF series are missing", remedy="copy the whole set into one folder")
    promised = int((file.imagej_metadata or {}).get("images", 1)) if file.is_imagej else 1
    if series.kind not in ("imagej", "ome") and promised > len(file.pages):
        raise InputRefusedError(
            f"the TIFF stack is truncated: {len(file.pages)} of {promised} planes are there", remedy=COPY_FILE_AGAIN
        )
    if series.is_multifile:
        return
    size = file.filehandle.size
    expected = math.prod(int(n) for n in series.shape) * series.dtype.itemsize
    if series.dataoffset is not None and series.dataoffset + expected > size:
        raise _truncated(size, series.dataoffset + expected)
    if expected > _ABSURD_BYTES and expected > _ABSURD_RATIO * size:
        raise InputRefusedError(f"the TIFF file claims {expected} bytes but has {size}", remedy=COPY_FILE_AGAIN)
    step = max(1, len(pages) // _PAGES_CHECKED)
    for number in {*range(0, len(pages), step), len(pages) - 1}:
        _check_segments(pages[number], series.keyframe, size)


def _check_segments(page: Any, keyframe: Any, size: int) -> None:
    """Checks that every strip or tile of a page lies inside the file."""
    offsets, counts = page.dataoffsets, page.databytecounts
    if len(offsets) < math.prod(keyframe.chunked) and not keyframe.is_contiguous:
        raise InputRefusedError("strips or tiles of the TIFF file are missing", remedy=COPY_FILE_AGAIN)
    ends = [offset + count for offset, count in zip(offsets, counts, strict=False)]
    if not ends or max(ends) > size:
        raise _truncated(size, max(ends, default=size + 1))


def _truncated(present: int, expected: int) -> InputRefusedError:
    return InputRefusedError(
        f"the TIFF file is truncated: {present} of at least {expected} bytes are there", remedy=COPY_FILE_AGAIN
    )


def _check_encoding(series: tifffile.TiffPageSeries) -> list[str]:
    """Returns notes on how values are stored; refuses what cannot be read as numbers or colours."""
    page = series.keyframe
    if series.dtype is None or series.dtype.kind not in "buif" or series.dtype.itemsize > 8:
        raise InputRefusedError("the TIFF file holds values that are not real numbers", remedy="save real numbers")
    try:
        tifffile.TIFF.DECOMPRESSORS[page.compression]
    except (KeyError, ValueError) as error:
        raise InputRefusedError(
            f"the TIFF compression {int(page.compression)} cannot be read", remedy="save it uncompressed or with LZW"
        ) from error
    readable_colour = page.photometric in (0, 1, 2, 3) or (
        page.photometric == 6 and page.compression in _JPEG_COMPRESSIONS
    )
    if not readable_colour:
        raise InputRefusedError(
            f"the TIFF file stores colours of a kind that is not supported ({page.photometric.name})",
            remedy="save it as grey or RGB",
        )
    if page.photometric == 0:
        return ["stored with white as 0 (MINISWHITE); values are kept as stored"]
    if page.photometric == 3:
        return ["its palette is not applied; values are kept as stored"]
    return []
