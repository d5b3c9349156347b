"""Pixels on the screen: grey values, outlines, letters, panels in a row, and the legend below them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from unet_med.overlays.planes import Plane

Picture = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

_GAP = 6
_TEXT = 15
MOST_ENTRIES = 24
_PAPER = (16, 16, 16)
_INK = (235, 235, 235)
_NOTE = "Research use only"


def screen_pixels(plane: Plane, window: tuple[float, float]) -> Picture:
    """Returns the image of a plane as it is shown, (rows, columns, 3); ``window`` is shown from black to white."""
    low, high = window
    values = np.nan_to_num((plane.grey.astype(np.float64) - low) / (high - low), nan=0.0)
    pixels = (values.clip(0.0, 1.0) * 255.0).astype(np.uint8)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=-1)
    elif pixels.shape[-1] == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    rows, columns = plane.size
    reducing = rows < pixels.shape[0]
    kind = Image.Resampling.BOX if reducing else Image.Resampling.BILINEAR
    return np.array(Image.fromarray(np.ascontiguousarray(pixels)).resize((columns, rows), kind))


def enlarged(labels: npt.NDArray[np.integer[Any]], size: tuple[int, int]) -> npt.NDArray[np.integer[Any]]:
    """Nearest neighbour, voxel faces aligned."""
    index = [
        ((np.arange(target) + 0.5) * own / target).astype(int).clip(0, own - 1)
        for own, target in zip(labels.shape, size, strict=True)
    ]
    return labels[np.ix_(index[0], index[1])]


def outline(mask: npt.NDArray[np.bool_], width: int) -> npt.NDArray[np.bool_]:
    """The ``width`` outermost pixels inside of a mask; the picture's edge counts as outside."""
    if not mask.any():
        return mask
    return np.asarray(mask & ~ndimage.binary_erosion(mask, iterations=width))


def with_letters(picture: Picture, plane: Plane, title: str | None = None) -> Picture:
    """Writes letters at the sides of a plane, and its title (or another one)."""
    title = plane.title if title is None else title
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    rows, columns = plane.size
    places = ((4, rows / 2, "lm"), (columns - 4, rows / 2, "rm"), (columns / 2, 3, "ma"), (columns / 2, rows - 3, "md"))
    for letter, (x, y, anchor) in zip(plane.letters, places, strict=False):
        _write(draw, (x, y), letter, anchor)
    if title and columns >= 110:
        _write(draw, (4, 3), title, "la", 12)
    return np.asarray(canvas)


def _write(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, anchor: str, size: int = _TEXT) -> None:
    draw.text(place, text, fill=_INK, font=_font(size), anchor=anchor, stroke_width=1, stroke_fill=(0, 0, 0))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def in_a_row(pictures: Sequence[Picture]) -> Picture:
    """Puts pictures beside each other, in the middle of their common height."""
    height = max(picture.shape[0] for picture in pictures)
    width = sum(picture.shape[1] for picture in pictures) + _GAP * (len(pictures) - 1)
    body = np.full((height, width, 3), _PAPER, dtype=np.uint8)
    left = 0
    for picture in pictures:
        top = (height - picture.shape[0]) // 2
        body[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        left += picture.shape[1] + _GAP
    return body


def one_below_the_other(pictures: Sequence[Picture]) -> Picture:
    """Puts pictures below each other, in the middle of their common width."""
    return in_a_row([picture.swapaxes(0, 1) for picture in pictures]).swapaxes(0, 1)


def with_legend(body: Picture, entries: Sequence[tuple[Colour | None, str]]) -> Picture:
    """Adds a legend below a picture: texts, with a swatch where they have a colour."""
    entries = [*entries, (None, _NOTE)]
    font = _font(_TEXT)
    swatch, line = 14, _TEXT + 9
    places: list[tuple[int, int]] = []
    x = y = _GAP
    for colour, text in entries:
        width = round(font.getlength(text)) + (swatch + 6 if colour else 0)
        if x > _GAP and x + width > body.shape[1]:
            x, y = _GAP, y + line
        places.append((x, y))
        x += width + 18
    columns = max(body.shape[1], 160)
    canvas = Image.new("RGB", (columns, body.shape[0] + y + line), _PAPER)
    canvas.paste(Image.fromarray(body), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for (left, top), (colour, text) in zip(places, entries, strict=True):
        top += body.shape[0]
        if colour:
            draw.rectangle((left, top + 2, left + swatch, top + 2 + swatch), outline=colour, width=3)
            left += swatch + 6
        draw.text((left, top), text, fill=_INK, font=font)
    return np.asarray(canvas)
