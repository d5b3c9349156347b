"""The pictures that pages carry in themselves: all slices of a view side by side, and a small one to be known by."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from unet_med.review.view import Grey, View, Whole

Colour = tuple[int, int, int]

_QUALITY = 80
_SMALL_QUALITY = 70
_ONE_BYTE = 2**8
_FILLED = 0.45


@dataclass(frozen=True)
class Sheets:
    """All slices of a view, one beside the other, as pictures that a page carries.

    Attributes:
        columns: Slices in a row.
        images: One for each channel (WebP).
        labels: Numbers of labels: the red of a pixel; where they are ``wide`` its green and blue, too, red the lowest.
        reference: The same of other labels; empty where there are none.
        wide: Whether a number is more than a byte.
    """

    columns: int
    images: tuple[str, ...]
    labels: str
    reference: str
    wide: bool


def sheets(view: View) -> Sheets:
    """Lays the slices of a view out."""
    width, height, count = view.labels.shape
    columns = max(1, min(count, round(sqrt(count * height / width))))
    images = tuple(_webp(_laid_out(image, columns), _QUALITY) for image in view.images)
    others = [] if view.reference is None else [view.reference]
    wide = max(int(array.max(initial=0)) for array in (view.labels, *others)) >= _ONE_BYTE
    labels, *reference = (_numbers(_laid_out(array, columns), wide) for array in (view.labels, *others))
    return Sheets(columns, images, labels, "".join(reference), wide)


@dataclass(frozen=True)
class Small:
    """A small picture: where it is, and its columns and rows."""

    source: str
    size: tuple[int, int]


def small(view: View, colour: Callable[[int], Colour], side: int) -> Small:
    """Draws the slice with most of the labels, filled with their colours.

    Args:
        view: The case.
        colour: Of a number.
        side: Pixels of the longest side, at most.
    """
    number = view.centre()[2]
    labels = view.labels[:, :, number].T
    grey = view.images[0][:, :, number].swapaxes(0, 1) if view.images else np.zeros(labels.shape, np.uint8)
    picture = np.repeat(grey[..., np.newaxis], 3, axis=-1) if grey.ndim == 2 else grey
    values, places = np.unique(labels, return_inverse=True)
    own = np.array([colour(int(value)) if value else (0, 0, 0) for value in values], dtype=np.float64)
    fill = (labels > 0)[..., np.newaxis] * _FILLED
    drawn = np.rint(picture * (1 - fill) + own[places.reshape(labels.shape)] * fill).astype(np.uint8)
    extent = labels.shape[1] * view.sizes[0], labels.shape[0] * view.sizes[1]
    scale = side / max(extent)
    size = max(1, round(extent[0] * scale)), max(1, round(extent[1] * scale))
    kind = Image.Resampling.BOX if size[0] < labels.shape[1] else Image.Resampling.BILINEAR
    file = Image.fromarray(np.ascontiguousarray(drawn)).resize(size, kind)
    return Small(_encoded(file, "WEBP", quality=_SMALL_QUALITY), size)


def jpeg(picture: bytes, quality: int = 85) -> tuple[bytes, tuple[int, int]]:
    """Returns a picture of any format as JPEG in RGB, and its columns and rows."""
    with Image.open(io.BytesIO(picture)) as opened:
        plain = opened.convert("RGB")
    file = io.BytesIO()
    plain.save(file, "JPEG", quality=quality)
    return file.getvalue(), plain.size


def data_uri(content: bytes, kind: str) -> str:
    """Returns the address of what is in the page itself."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


# ---- inside ---------------------------------------------------------------------------------------------------------


def _laid_out(array: npt.NDArray[Any], columns: int) -> npt.NDArray[Any]:
    """Returns (X, Y, Z[, 3]) as (rows, columns[, 3]) of a picture, slices from left to right and then down."""
    width, height, count = array.shape[:3]
    rows = ceil(count / columns)
    sheet = np.zeros((rows * height, columns * width, *array.shape[3:]), dtype=array.dtype)
    for number in range(count):
        top, left = number // columns * height, number % columns * width
        sheet[top : top + height, left : left + width] = array[:, :, number].swapaxes(0, 1)
    return sheet


def _webp(sheet: Grey, quality: int) -> str:
    return _encoded(Image.fromarray(sheet), "WEBP", quality=quality, method=2)


def _numbers(sheet: Whole, wide: bool) -> str:
    """Returns whole numbers below 2**24 as a picture without loss."""
    if not wide:
        return _encoded(Image.fromarray(sheet.astype(np.uint8)), "PNG", optimize=True)
    whole = sheet.astype(np.uint32)
    parts = np.stack([whole >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)
    return _encoded(Image.fromarray(parts), "PNG", optimize=True)


def _encoded(picture: Image.Image, kind: str, **options: Any) -> str:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return data_uri(file.getvalue(), kind.lower())
