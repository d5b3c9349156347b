"""Pixels of a TIFF series: of each page only the strips or tiles that a region needs are read and decoded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import tifffile

from unet_med.errors import InputRefusedError
from unet_med.io.reading import COPY_FILE_AGAIN
from unet_med.io.tiff.checks import check_chain, truncated
from unet_med.io.tiff.ome import COMPANION, CompanionedTiff

_JPEG = (6, 7, 33007, 34892)

Index = tuple[int | slice, ...]


def open_tiff(path: Path) -> tifffile.TiffFile:
    """Returns a TIFF file, or the first one of the set that a companion describes, its headers read."""
    if path.name.lower().endswith(COMPANION):
        return CompanionedTiff(path)
    check_chain(path)
    return tifffile.TiffFile(path)


def series_of(path: Path, number: int, level: int = 0) -> tifffile.TiffPageSeries:
    """Returns a series, or a smaller copy of it, that can be read from for as long as its file does not change."""
    with open_tiff(path) as file:
        series = file.series[number].levels[level]
        series.keyframe.init_decode()
        return series


def select(series: tifffile.TiffPageSeries, index: Index) -> npt.NDArray[Any]:
    """Returns ``series.asarray()[index]`` and reads no more of the files than it needs.

    Raises:
        InputRefusedError: A file is truncated, or a plane or a part of it is missing.
    """
    page = series.keyframe
    path = Path(page.parent.filehandle.path)
    if series.dataoffset is not None and not series.is_multifile:
        dtype = series.dtype.newbyteorder(page.parent.byteorder)
        return np.array(np.memmap(path, dtype, "r", series.dataoffset, series.shape)[index])
    lead = len(series.shape) - len(page.shape)
    by_pages = lead >= 0 and series.shape[lead:] == page.shape and len(series.pages) == math.prod(series.shape[:lead])
    if not by_pages or series.transform is not None or not _by_segments(page):
        return _reopened(series)[index]
    wanted = [
        [part] if isinstance(part, int) else range(n)[part] for part, n in zip(index, series.shape[:lead], strict=False)
    ]
    numbers = [int(np.ravel_multi_index(place, series.shape[:lead])) if lead else 0 for place in product(*wanted)]
    pages = np.stack([_part(series.pages[number], index[lead:]) for number in numbers])
    kept = [len(places) for places, part in zip(wanted, index, strict=False) if not isinstance(part, int)]
    return pages.reshape(*kept, *pages.shape[1:])


def _by_segments(page: Any) -> bool:
    """Whether pages can be read in parts: all but a few odd encodings."""
    whole_only = page.is_contiguous and not page.is_final
    return not whole_only and set(page.axes) <= set("SZYX")


def _reopened(series: tifffile.TiffPageSeries) -> npt.NDArray[Any]:
    """Returns all of a series that can only be read as a whole."""
    handle = series.parent.filehandle
    handle.open()
    try:
        return np.asarray(series.asarray())
    finally:
        handle.close()


def _part(page: Any, index: Index) -> npt.NDArray[Any]:
    """Returns ``page.asarray()[index]``."""
    if page is None:
        raise InputRefusedError("a plane of the series is missing", remedy=COPY_FILE_AGAIN)
    key = page.keyframe
    path = Path(page.parent.filehandle.path)
    if key.is_final:
        dtype = key.dtype.newbyteorder(page.parent.byteorder)
        return np.array(np.memmap(path, dtype, "r", page.dataoffsets[0], key.shape)[index])
    bounds = {letter: _span(part, n) for letter, part, n in zip(key.axes, index, key.shape, strict=True)}
    with path.open("rb") as file:
        array = _decoded(file, page, bounds["Y"], bounds["X"])
    shape = [len(bounds[letter]) if letter in "YX" else n for letter, n in zip(key.axes, key.shape, strict=True)]
    left = tuple(
        (0 if isinstance(part, int) else slice(None)) if letter in "YX" else part
        for letter, part in zip(key.axes, index, strict=True)
    )
    return array.reshape(shape)[left]


def _span(part: int | slice, n: int) -> range:
    return range(part, part + 1) if isinstance(part, int) else range(n)[part]


def _decoded(file: BinaryIO, page: Any, rows: range, columns: range) -> npt.NDArray[Any]:
    """Returns (planes of samples, depth, rows, columns, samples of a pixel) of a part of a page."""
    key = page.keyframe
    planes, depth, _, _, samples = key.shaped
    result = np.zeros((planes, depth, len(rows), len(columns), samples), dtype=key.dtype)
    more = {"jpegtables": page.jpegtables, "jpegheader": key.jpegheader} if key.compression in _JPEG else {}
    for number in _segments(key, rows, columns):
        data = _bytes(file, page, number)
        segment, (plane, deep, top, left, _), shape = key.decode(data, number, **more)
        here = result[plane, deep : deep + shape[0]]
        high, wide = (shape if segment is None else segment.shape)[1:3]
        y, x = _overlap(top, high, rows), _overlap(left, wide, columns)
        target = here[:, y[0], x[0]]
        target[:] = key.nodata if segment is None else segment[: len(here), y[1], x[1]]
    return result


def _segments(key: Any, rows: range, columns: range) -> Iterator[int]:
    """Yields the numbers of the strips or tiles of a page that hold something of a region."""
    planes, depth, length, width, _ = key.shaped
    deep, high, wide = (key.tiledepth, key.tilelength, key.tilewidth) if key.is_tiled else (1, key.rowsperstrip, width)
    layers, down, across = math.ceil(depth / deep), math.ceil(length / high), math.ceil(width / wide)
    if not len(rows) or not len(columns):
        return
    for plane, layer in product(range(planes), range(layers)):
        for row in range(rows[0] // high, rows[-1] // high + 1):
            start = ((plane * layers + layer) * down + row) * across
            yield from range(start + columns[0] // wide, start + columns[-1] // wide + 1)


def _bytes(file: BinaryIO, page: Any, number: int) -> bytes | None:
    """Returns the stored bytes of a strip or tile; ``None`` for one that is left out because it is empty."""
    if number >= min(len(page.dataoffsets), len(page.databytecounts)):
        raise InputRefusedError("strips or tiles of the TIFF file are missing", remedy=COPY_FILE_AGAIN)
    offset, count = page.dataoffsets[number], page.databytecounts[number]
    if not offset or not count:
        return None
    file.seek(offset)
    data = file.read(count)
    if len(data) < count:
        raise truncated(offset + len(data), offset + count)
    return data


def _overlap(start: int, length: int, wanted: range) -> tuple[slice, slice]:
    """Returns where a run of pixels lies in the wanted ones, and which of its own they are."""
    low, high = max(start, wanted.start), min(start + length, wanted.stop)
    return slice(low - wanted.start, max(low, high) - wanted.start), slice(low - start, max(low, high) - start)
