"""Outlines of labels, each in its colour, and of the reference in dashed white."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.labels import LabelMap
from unet_med.overlays.canvas import (
    MOST_ENTRIES,
    Colour,
    Picture,
    enlarged,
    in_a_row,
    outline,
    screen_pixels,
    with_legend,
    with_letters,
)
from unet_med.overlays.planes import Plane, grey_window, planes_of

_DASH = 5


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
    if truth is not None and label_map.ignored is not None:
        truth = np.where(truth == label_map.ignored, 0, truth)
    planes = planes_of(image, labels, truth, spacing_mm, orientation, ("labels", "reference labels"))
    body = in_a_row([drawn_outlines(plane, label_map, grey_window(planes)) for plane in planes])
    shown = np.unique(np.concatenate([np.unique(plane.labels) for plane in planes]))
    return with_legend(body, _legend(label_map, shown.tolist(), truth is not None, bool(planes[0].letters)))


def drawn_outlines(plane: Plane, label_map: LabelMap, window: tuple[float, float]) -> Picture:
    """Returns a plane with the outlines of its labels and, in dashed white, those of its reference.

    Args:
        plane: What is drawn.
        label_map: Names and colours.
        window: Grey values that are shown black and white.

    Returns:
        (rows, columns, 3), ``plane.size`` large.
    """
    picture = screen_pixels(plane, window)
    labels = enlarged(plane.labels, plane.size)
    width = 2 if min(plane.size) >= 200 else 1
    for label in label_map.labels:
        picture[outline(labels == label.index, width)] = label.colour
    if plane.truth is not None:
        truth = enlarged(plane.truth, plane.size)
        row, column = np.indices(plane.size)
        dashes = ((row + column) // _DASH) % 2 == 0
        for value in np.unique(truth[truth > 0]):
            picture[outline(truth == value, 1) & dashes] = (255, 255, 255)
    return with_letters(picture, plane)


def _legend(label_map: LabelMap, shown: list[int], with_truth: bool, oriented: bool) -> list[tuple[Colour | None, str]]:
    """Returns the names of the labels in a picture, and what else it shows."""
    entries: list[tuple[Colour | None, str]] = [
        (label.colour, label.name) for label in label_map.labels if label.index in shown
    ]
    if len(entries) > MOST_ENTRIES:
        entries = [*entries[:MOST_ENTRIES], (None, f"and {len(entries) - MOST_ENTRIES} more")]
    if not entries:
        entries = [(None, "no label in this picture")]
    if with_truth:
        entries.append(((255, 255, 255), "reference (dashed)"))
    if oriented:
        entries.append((None, "R: the patient's right"))
    return entries
