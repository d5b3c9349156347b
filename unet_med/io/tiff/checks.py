"""What of a TIFF file is refused from its headers alone, and notes on how values are stored."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import tifffile

from unet_med.errors import InputRefusedError
from unet_med.io.reading import COPY_FILE_AGAIN

_BIG_TIFF = 43
_HAMAMATSU = ".ndpi"
"""Ending of slides that are TIFF but for links of 64 bits."""
_MOST_PAGES = 2**21
_MOST_TAGS = 2**16
_OF_NAMED_PLANES = ("ome", "mmstack", "ndtiff")
_PAGES_CHECKED = 256
_ABSURD_RATIO = 50_000
_ABSURD_BYTES = 2**30
_SMALL_BYTES = 2**20
_BEST_RATIO = {1: 1, 5: 3000, 6: 1000, 7: 1000, 8: 1100, 32773: 70, 32946: 1100}
"""How many bytes one can stand for at the most: uncompressed, LZW, JPEG, deflate, packed bits."""

_JPEG_COMPRESSIONS = (6, 7, 33007, 34892)
_REDUCED_OR_MASK = 5  # bits 0 and 2 of NewSubfileType
_BESIDES = ("label", "macro", "map", "overview", "preview", "thumbnail")


def is_besides(series: tifffile.TiffPageSeries) -> bool:
    """Whether a series is only a smaller copy or a mask of another, or a picture of the slide and its label."""
    if series.kind == "ome":
        return False
    return bool(series.keyframe.subfiletype & _REDUCED_OR_MASK) or shows_the_slide(series)


def shows_the_slide(series: tifffile.TiffPageSeries) -> bool:
    """Whether a whole-slide scanner took the picture of the slide as a whole, on whose label a name may be read."""
    return bool(series.kind != "ome" and series.name.lower().startswith(_BESIDES))


def check_chain(path: Path) -> None:
    """Goes through a TIFF file from page to page without looking at them.

    Raises:
        InputRefusedError: The pages run in a circle, in which a reader goes on for ever, or there are absurdly many.
    """
    with path.open("rb") as file:
        start = file.read(16)
        order = {b"II": "<", b"MM": ">"}.get(start[:2])
        if order is None or len(start) < 16:
            return
        big = struct.unpack(f"{order}H", start[2:4])[0] == _BIG_TIFF
        link, number, tag = ("Q", "Q", 20) if big else ("I", "H", 12)
        if order == "<" and not big and path.suffix.lower() == _HAMAMATSU:
            link = "Q"
        place, seen = struct.unpack_from(order + link, start, 8 if big else 4)[0], set[int]()
        while 0 < place < 2**63:
            if place in seen or len(seen) >= _MOST_PAGES:
                raise InputRefusedError("the pages of the TIFF file never end", remedy=COPY_FILE_AGAIN)
            seen.add(place)
            file.seek(place)
            tags = _number(file, order + number)
            file.seek(place + struct.calcsize(number) + tag * min(tags, _MOST_TAGS))
            place = _number(file, order + link)


def _number(file: BinaryIO, kind: str) -> int:
    """Returns the number at this place in a file; 0 behind its end."""
    data = file.read(struct.calcsize(kind))
    return int(struct.unpack(kind, data)[0]) if len(data) == struct.calcsize(kind) else 0


def check_complete(file: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> None:
    """Compares what the headers promise with the size of the file; no pixel is read.

    Raises:
        InputRefusedError: Data or planes are missing, or the headers claim an absurd size.
    """
    pages: Sequence[Any] = series.pages
    if series.kind in _OF_NAMED_PLANES and any(pages[number] is None for number in range(len(pages))):
        raise InputRefusedError("planes of the TIFF series are missing", remedy="copy the whole set into one folder")
    promised = int((file.imagej_metadata or {}).get("images", 1)) if file.is_imagej else 1
    if series.kind not in ("imagej", *_OF_NAMED_PLANES) and promised > len(file.pages):
        raise InputRefusedError(
            f"the TIFF stack is truncated: {len(file.pages)} of {promised} planes are there", remedy=COPY_FILE_AGAIN
        )
    expected = math.prod(int(n) for n in series.shape) * series.dtype.itemsize
    handles = {page.parent.filehandle.path: page.parent.filehandle for page in _some(pages)}
    size = max(handle.size for handle in handles.values()) if series.is_multifile else file.filehandle.size
    if expected > _ABSURD_BYTES and expected > _ABSURD_RATIO * size * len(handles):
        raise InputRefusedError(f"the TIFF file claims {expected} bytes but has {size}", remedy=COPY_FILE_AGAIN)
    if not series.is_multifile and series.dataoffset is not None and series.dataoffset + expected > size:
        raise truncated(size, series.dataoffset + expected)
    for page in _some(pages):
        _check_segments(page, page.keyframe, page.parent.filehandle.size)
        _check_claim(page, page.keyframe)


def _some(pages: Sequence[Any]) -> list[Any]:
    """Returns pages evenly from all over the series, the last one too."""
    step = max(1, len(pages) // _PAGES_CHECKED)
    return [pages[number] for number in sorted({*range(0, len(pages), step), len(pages) - 1})]


def _check_segments(page: Any, keyframe: Any, size: int) -> None:
    """Checks that every strip or tile of a page lies inside the file."""
    offsets, counts = page.dataoffsets, page.databytecounts
    if len(offsets) < math.prod(keyframe.chunked) and not keyframe.is_contiguous:
        raise InputRefusedError("strips or tiles of the TIFF file are missing", remedy=COPY_FILE_AGAIN)
    ends = [offset + count for offset, count in zip(offsets, counts, strict=False)]
    if not ends or max(ends) > size:
        raise truncated(size, max(ends, default=size + 1))


def _check_claim(page: Any, keyframe: Any) -> None:
    """Checks that the strips or tiles of a page that are not left out can hold as many bytes as they claim."""
    counts = [int(count) for count in page.databytecounts]
    if keyframe.is_contiguous or not counts:
        return
    bits = keyframe.bitspersample if isinstance(keyframe.bitspersample, int) else 8 * keyframe.dtype.itemsize
    share = sum(count > 0 for count in counts) / len(counts)
    claimed = int(math.prod(keyframe.shaped) * bits / 8 * share)
    ratio = _BEST_RATIO.get(int(keyframe.compression), _ABSURD_RATIO)
    segment = keyframe.chunks if keyframe.is_tiled else (min(keyframe.rowsperstrip, keyframe.imagelength), 1)
    one = math.prod(segment) * keyframe.dtype.itemsize
    if claimed > ratio * sum(counts) + _SMALL_BYTES or one > ratio * max(counts) + _SMALL_BYTES:
        raise InputRefusedError(
            f"a page of the TIFF file claims {claimed} bytes and holds {sum(counts)}", remedy=COPY_FILE_AGAIN
        )


def truncated(present: int, expected: int) -> InputRefusedError:
    """Returns the refusal of a file that is shorter than its headers say."""
    return InputRefusedError(
        f"the TIFF file is truncated: {present} of at least {expected} bytes are there", remedy=COPY_FILE_AGAIN
    )


def check_encoding(series: tifffile.TiffPageSeries) -> list[str]:
    """Returns notes on how values are stored; refuses what cannot be read as numbers or colours.

    Raises:
        InputRefusedError: No real numbers, or a compression or colour space that is not read.
    """
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
