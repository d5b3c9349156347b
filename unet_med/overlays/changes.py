"""Two label images of one image, drawn where they differ: two masks beside each other, or what became of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from unet_med.labels import LabelMap
from unet_med.overlays.canvas import (
    Colour,
    Picture,
    enlarged,
    in_a_row,
    outline,
    screen_pixels,
    with_legend,
    with_letters,
)
from unet_med.overlays.objects import borders
from unet_med.overlays.outlines import drawn_outlines
from unet_med.overlays.planes import Plane, grey_window, planes_of

LabelArray = npt.NDArray[np.integer[Any]]

_ADDED: Colour = (0, 158, 115)
_REMOVED: Colour = (213, 94, 0)
_OTHER: Colour = (240, 228, 66)
_TINT = 0.45
_DIFFERENT = ("label images", "other label images")


def side_by_side(
    image: npt.NDArray[Any],
    first: LabelArray,
    second: LabelArray,
    spacing_mm: Sequence[float] | None,
    label_map: LabelMap,
    truth: LabelArray | None = None,
    orientation: str = "",
) -> tuple[Picture, Picture]:
    """Draws the outlines of two masks in the same planes, through the largest place where the masks differ.

    Args:
        image: (I, J[, K]) or (C, I, J[, K]), any real dtype.
        first: (I, J[, K]) labels of the first mask.
        second: The same of the second.
        spacing_mm: Voxel size along the axes; ``None`` shows voxels as squares.
        label_map: Names and colours.
        truth: True labels, drawn in dashed white; what the map ignores is not drawn.
        orientation: ``Geometry.orientation`` of the axes; empty when unknown.

    Returns:
        One picture for each mask, (rows, columns, 3) uint8, of one size.

    Raises:
        InputRefusedError: when the shapes do not fit.
    """
    if truth is not None and label_map.ignored is not None:
        truth = np.where(truth == label_map.ignored, 0, truth)
    focus = _focus(first, second)
    planes = planes_of(image, focus, truth, spacing_mm, orientation, _DIFFERENT)
    window = grey_window(planes)
    entries: list[tuple[Colour | None, str]] = [(one.colour, one.name) for one in label_map.labels]
    if truth is not None:
        entries.append(((255, 255, 255), "truth (dashed)"))
    pictures = []
    for labels in (first, second):
        cuts = _cuts(image, focus, labels, spacing_mm, orientation)
        drawn = [
            drawn_outlines(replace(plane, labels=cut), label_map, window)
            for plane, cut in zip(planes, cuts, strict=True)
        ]
        pictures.append(with_legend(in_a_row(drawn), [*entries, *_side_note(planes)]))
    return pictures[0], pictures[1]


def change_preview(
    image: npt.NDArray[Any],
    before: LabelArray,
    after: LabelArray,
    spacing_mm: Sequence[float] | None,
    label_map: LabelMap,
    orientation: str = "",
) -> Picture:
    """Draws what became of a mask: the new outlines, and in colour what was added, removed or named otherwise.

    Args:
        image: (I, J[, K]) or (C, I, J[, K]), any real dtype.
        before: (I, J[, K]) labels, or numbers of objects.
        after: The same, corrected; an object that stayed has the number that it had.
        spacing_mm: Voxel size along the axes; ``None`` shows voxels as squares.
        label_map: Names and colours; whether the labels are objects.
        orientation: ``Geometry.orientation`` of the axes; empty when unknown.

    Returns:
        (rows, columns, 3) uint8; volumes are cut through the largest change.

    Raises:
        InputRefusedError: when the shapes do not fit.
    """
    focus = _focus(before, after)
    planes = planes_of(image, focus, after, spacing_mm, orientation, _DIFFERENT)
    olds = _cuts(image, focus, before, spacing_mm, orientation)
    news = _cuts(image, focus, after, spacing_mm, orientation)
    window = grey_window(planes)
    drawn = [_changed(*parts, label_map, window) for parts in zip(planes, olds, news, strict=True)]
    other = "another object" if label_map.objects else "another label"
    entries: list[tuple[Colour | None, str]] = [(_ADDED, "added"), (_REMOVED, "removed"), (_OTHER, other)]
    if not label_map.objects:
        entries += [(one.colour, one.name) for one in label_map.labels]
    return with_legend(in_a_row(drawn), [*entries, *_side_note(planes)])


def _changed(
    plane: Plane, old: LabelArray, new: LabelArray, label_map: LabelMap, window: tuple[float, float]
) -> Picture:
    picture = screen_pixels(plane, window)
    was, now = enlarged(old, plane.size), enlarged(new, plane.size)
    tints = (
        ((was == 0) & (now > 0), _ADDED),
        ((was > 0) & (now == 0), _REMOVED),
        ((was > 0) & (now > 0) & (was != now), _OTHER),
    )
    for where, colour in tints:
        picture[where] = np.rint(picture[where] * (1 - _TINT) + np.array(colour) * _TINT).astype(np.uint8)
    if label_map.objects:
        picture[borders(now)] = label_map.labels[0].colour
    for label in () if label_map.objects else label_map.labels:
        picture[outline(now == label.index, 1)] = label.colour
    return with_letters(picture, plane)


def _focus(first: LabelArray, second: LabelArray) -> npt.NDArray[np.uint8]:
    """Returns 1 in the largest connected place where two masks differ; where they do not, in the second mask."""
    where = np.asarray(first != second)
    if not where.any():
        return (second > 0).astype(np.uint8)
    pieces, _ = ndimage.label(where)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return np.asarray(pieces == sizes.argmax(), dtype=np.uint8)


def _cuts(
    image: npt.NDArray[Any],
    focus: npt.NDArray[np.uint8],
    labels: LabelArray,
    spacing_mm: Sequence[float] | None,
    orientation: str,
) -> list[LabelArray]:
    """Returns the planes of a label image that go through ``focus``."""
    planes = planes_of(image, focus, labels, spacing_mm, orientation, _DIFFERENT)
    return [plane.truth for plane in planes if plane.truth is not None]


def _side_note(planes: Sequence[Plane]) -> list[tuple[Colour | None, str]]:
    return [(None, "R: the patient's right")] if planes[0].letters else []
