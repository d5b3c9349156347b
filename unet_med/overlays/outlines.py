"""Pictures of an image with the outlines of its labels, made to be looked at for a second.

A volume is shown in three planes through the middle of its largest label, in true proportions. When the orientation
is known the planes follow the radiological convention (the patient's right is on the viewer's left, anterior and
superior are up) and letters say so; otherwise the stored axes are shown as they are, without letters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from unet_med.errors import InputRefusedError
from unet_med.geometry import Geometry, reorient
from unet_med.io.export.measure import measure_labels
from unet_med.labels import LabelMap

Picture = npt.NDArray[np.uint8]

PERCENTILES = (0.5, 99.5)
"""The grey values shown as black and white."""

_PANEL = 420  # pixels of a plane's longest side
_PICTURE = (512, 1024)  # smallest and largest long side of a 2-D picture
_GAP = 6
_TEXT = 15
_DASH = 5
_LEGEND_ENTRIES = 24
_PAPER = (16, 16, 16)
_INK = (235, 235, 235)
_NOTE = "Research use only"


@dataclass(frozen=True)
class _Plane:
    """One picture to draw, rows from top to bottom; ``letters`` stand left, right, above and below."""

    grey: npt.NDArray[Any]
    labels: npt.NDArray[np.integer[Any]]
    truth: npt.NDArray[np.integer[Any]] | None
    size: tuple[int, int]
    title: str
    letters: str


def outline_preview(
    image: npt.NDArray[Any],
    labels: npt.NDArray[np.integer[Any]],
    spacing_mm: Sequence[float] | None,
    label_map: LabelMap,
    truth: npt.NDArray[np.integer[Any]] | None = None,
    orientation: str = "",
) -> Picture:
    """Draws the outlines of labels on their image.

    Args:
        image: (I, J[, K]), any real dtype; or (C, I, J[, K]), of which three channels of a picture are shown as
            colour and otherwise the first one.
        labels: (I, J[, K]) integers.
        spacing_mm: Voxel size along the axes; ``None`` shows voxels as squares.
        label_map: Names and colours.
        truth: Reference labels of the same shape, drawn in dashed white; what the map ignores is not drawn.
        orientation: ``Geometry.orientation`` of the axes, for example ``LPS``; empty when unknown.

    Returns:
        (rows, columns, 3) uint8.

    Raises:
        InputRefusedError: when the shapes do not fit.
    """
    channels = image if image.ndim == labels.ndim + 1 else image[None]
    if labels.ndim not in (2, 3) or channels.shape[1:] != labels.shape:
        raise InputRefusedError(
            f"labels of shape {labels.shape} do not fit an image of shape {image.shape}",
            remedy="give the labels on the image's own grid",
        )
    if truth is not None and truth.shape != labels.shape:
        raise InputRefusedError(
            f"reference labels of shape {truth.shape} do not fit labels of shape {labels.shape}",
            remedy="give the reference on the image's own grid",
        )
    if truth is not None and label_map.ignored is not None:
        truth = np.where(truth == label_map.ignored, 0, truth)
    spacing = tuple(float(s) for s in spacing_mm) if spacing_mm else (1.0,) * labels.ndim
    if labels.ndim == 2:
        planes = [_whole_picture(channels, labels, truth, spacing)]
    else:
        planes = _three_planes(channels[0], labels, truth, spacing, orientation)
    body = _in_a_row([_draw(plane, label_map, _window(planes)) for plane in planes])
    shown = np.unique(np.concatenate([np.unique(plane.labels) for plane in planes]))
    return _with_legend(body, label_map, shown.tolist(), truth is not None, bool(planes[0].letters))


def _whole_picture(
    channels: npt.NDArray[Any],
    labels: npt.NDArray[np.integer[Any]],
    truth: npt.NDArray[np.integer[Any]] | None,
    spacing: Sequence[float],
) -> _Plane:
    shown = channels if channels.shape[0] == 3 else channels[:1]
    width, height = (n * s for n, s in zip(labels.shape, spacing, strict=True))
    longest = max(labels.shape)
    scale = min(max(longest, _PICTURE[0]), _PICTURE[1]) / max(width, height)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    return _Plane(shown.transpose(2, 1, 0), labels.T, None if truth is None else truth.T, size, "", "")


def _three_planes(
    grey: npt.NDArray[Any],
    labels: npt.NDArray[np.integer[Any]],
    truth: npt.NDArray[np.integer[Any]] | None,
    spacing: Sequence[float],
    orientation: str,
) -> list[_Plane]:
    """Axial, coronal and sagittal; the arrays are turned so that their axes run to L, P, I (as a screen does)."""
    arrays = [grey, labels] + ([] if truth is None else [truth])
    known = len(orientation) == 3
    flips: tuple[bool, ...] = (False, False, False)
    if known:
        order, flips = to_lpi(orientation)
        arrays = [reorient(array, order, flips) for array in arrays]
        spacing = [spacing[axis] for axis in order]
    centre = _centre(arrays[1:])
    titles = ("axial", "coronal", "sagittal") if known else ("I x J", "I x K", "J x K")
    letters = ("RLAP", "RLSI", "APSI") if known else ("", "", "")
    extent = [n * s for n, s in zip(arrays[0].shape, spacing, strict=True)]
    scale = _PANEL / max(extent)
    planes: list[_Plane] = []
    for title, marks, (across, down, through) in zip(titles, letters, ((0, 1, 2), (0, 2, 1), (1, 2, 0)), strict=True):
        cut = [_plane(array, through, centre[through]).T for array in arrays]
        size = max(1, round(extent[down] * scale)), max(1, round(extent[across] * scale))
        slices = arrays[0].shape[through]
        stored = slices - centre[through] if flips[through] else centre[through] + 1
        caption = f"{title} {stored}/{slices}"
        planes.append(_Plane(cut[0], cut[1], cut[2] if truth is not None else None, size, caption, marks))
    return planes


def _plane(array: npt.NDArray[Any], axis: int, number: int) -> npt.NDArray[Any]:
    """Returns one plane across an axis: a view, where ``numpy.take`` would copy an array that is turned."""
    return np.asarray(np.moveaxis(array, axis, 0)[number])


def to_lpi(orientation: str) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """How to turn axes that run to ``orientation`` so that they run to the patient's left, back and feet."""
    order: list[int] = []
    flips: list[bool] = []
    for wanted, opposite in ("LR", "PA", "IS"):
        axis = orientation.find(wanted)
        flips.append(axis < 0)
        order.append(axis if axis >= 0 else orientation.index(opposite))
    return tuple(order), tuple(flips)


def _centre(labellings: Iterable[npt.NDArray[np.integer[Any]]]) -> tuple[int, int, int]:
    """The voxel of the largest label that is nearest to its centroid; the middle when there is no label."""
    shape: tuple[int, ...] = (1, 1, 1)
    for labels in labellings:
        shape = labels.shape
        measures = measure_labels(labels, Geometry(shape))
        if measures:
            value = max(measures, key=lambda one: (measures[one].voxels, -one))
            i, j, k = _nearest(labels, value, measures[value].index)
            return i, j, k
    return shape[0] // 2, shape[1] // 2, shape[2] // 2


def _nearest(labels: npt.NDArray[np.integer[Any]], value: int, point: npt.NDArray[np.float64]) -> tuple[int, ...]:
    """Returns the voxel of a label that occurs which is nearest to ``point``, the first in index order of several.

    Planes are searched outwards from the point, along the axis that runs slowest in memory, until no further one can
    hold a nearer voxel.
    """
    slowest = max(range(labels.ndim), key=lambda axis: abs(labels.strides[axis]))
    others = np.delete(point, slowest)
    found: list[tuple[float, tuple[int, ...]]] = []
    for plane in sorted(range(labels.shape[slowest]), key=lambda number: abs(number - point[slowest])):
        away = (plane - point[slowest]) ** 2
        if found and away > min(found)[0]:
            break
        points = np.argwhere(_plane(labels, slowest, plane) == value)
        if len(points):
            distances = ((points - others) ** 2).sum(axis=1) + away
            found += [
                (float(distances[number]), tuple(np.insert(points[number], slowest, plane).tolist()))
                for number in np.flatnonzero(distances == distances.min())
            ]
    return min(found)[1]


def _window(planes: Sequence[_Plane]) -> tuple[float, float]:
    values = np.concatenate([plane.grey.ravel() for plane in planes]).astype(np.float64)
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    if planes[0].grey.ndim == 3 and planes[0].grey.shape[-1] == 3 and values.min() >= 0 and 1 < values.max() <= 255:
        return 0.0, 255.0  # a colour photograph keeps its colours
    low, high = (float(v) for v in np.percentile(values, PERCENTILES))
    if high <= low:
        low, high = float(values.min()), float(values.max())
    return low, high if high > low else low + 1.0


def _draw(plane: _Plane, label_map: LabelMap, window: tuple[float, float]) -> Picture:
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
    picture = np.array(Image.fromarray(np.ascontiguousarray(pixels)).resize((columns, rows), kind))
    labels = _enlarge(plane.labels, plane.size)
    width = 2 if min(plane.size) >= 200 else 1
    for label in label_map.labels:
        picture[_outline(labels == label.index, width)] = label.colour
    if plane.truth is not None:
        truth = _enlarge(plane.truth, plane.size)
        row, column = np.indices(plane.size)
        dashes = ((row + column) // _DASH) % 2 == 0
        for value in np.unique(truth[truth > 0]):
            picture[_outline(truth == value, 1) & dashes] = (255, 255, 255)
    return _with_letters(picture, plane)


def _enlarge(labels: npt.NDArray[np.integer[Any]], size: tuple[int, int]) -> npt.NDArray[np.integer[Any]]:
    """Nearest neighbour, voxel faces aligned."""
    index = [
        ((np.arange(target) + 0.5) * own / target).astype(int).clip(0, own - 1)
        for own, target in zip(labels.shape, size, strict=True)
    ]
    return labels[np.ix_(index[0], index[1])]


def _outline(mask: npt.NDArray[np.bool_], width: int) -> npt.NDArray[np.bool_]:
    """The ``width`` outermost pixels inside of a mask; the picture's edge counts as outside."""
    if not mask.any():
        return mask
    return np.asarray(mask & ~ndimage.binary_erosion(mask, iterations=width))


def _with_letters(picture: Picture, plane: _Plane) -> Picture:
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    rows, columns = plane.size
    places = ((4, rows / 2, "lm"), (columns - 4, rows / 2, "rm"), (columns / 2, 3, "ma"), (columns / 2, rows - 3, "md"))
    for letter, (x, y, anchor) in zip(plane.letters, places, strict=False):
        _write(draw, (x, y), letter, anchor)
    if plane.title and columns >= 110:
        _write(draw, (4, 3), plane.title, "la", 12)
    return np.asarray(canvas)


def _write(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, anchor: str, size: int = _TEXT) -> None:
    draw.text(place, text, fill=_INK, font=_font(size), anchor=anchor, stroke_width=1, stroke_fill=(0, 0, 0))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _in_a_row(pictures: Sequence[Picture]) -> Picture:
    height = max(picture.shape[0] for picture in pictures)
    width = sum(picture.shape[1] for picture in pictures) + _GAP * (len(pictures) - 1)
    body = np.full((height, width, 3), _PAPER, dtype=np.uint8)
    left = 0
    for picture in pictures:
        top = (height - picture.shape[0]) // 2
        body[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        left += picture.shape[1] + _GAP
    return body


def _with_legend(body: Picture, label_map: LabelMap, shown: list[int], with_truth: bool, oriented: bool) -> Picture:
    """Adds the names of the labels in the picture below it."""
    entries: list[tuple[tuple[int, int, int] | None, str]] = [
        (label.colour, label.name) for label in label_map.labels if label.index in shown
    ]
    if len(entries) > _LEGEND_ENTRIES:
        entries = [*entries[:_LEGEND_ENTRIES], (None, f"and {len(entries) - _LEGEND_ENTRIES} more")]
    if not entries:
        entries = [(None, "no label in this picture")]
    if with_truth:
        entries.append(((255, 255, 255), "reference (dashed)"))
    if oriented:
        entries.append((None, "R: the patient's right"))
    entries.append((None, _NOTE))
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
