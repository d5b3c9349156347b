"""A heat map over its image, with the outline of the label that it explains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from unet_med.overlays.canvas import Colour, Picture, in_a_row, outline, screen_pixels, with_legend, with_letters
from unet_med.overlays.planes import Plane, grey_window, planes_of

FOR: Colour = (255, 140, 0)
AGAINST: Colour = (40, 150, 255)
_LEVELS = 255
_STRONGEST = 0.8
"""How much of the image the highest heat hides."""


def heat_preview(
    image: npt.NDArray[Any],
    heat: npt.NDArray[np.floating[Any]],
    mask: npt.NDArray[np.bool_],
    spacing_mm: Sequence[float] | None,
    name: str,
    orientation: str = "",
    meaning: tuple[str, str] = ("speaks for it", "speaks against it"),
) -> Picture:
    """Draws a heat map, its strongest value in full colour: orange above 0, blue below.

    Args:
        image: (I, J[, K]), any real dtype; or (C, I, J[, K]), of which three channels of a picture are shown as
            colour and otherwise the first one.
        heat: (I, J[, K]).
        mask: (I, J[, K]) where the label is; its outline is white, and a volume is cut through its middle.
        spacing_mm: Voxel size along the axes; ``None`` shows voxels as squares.
        name: What the outline is, for the legend.
        orientation: ``Geometry.orientation`` of the axes; empty when unknown.
        meaning: What values above and below 0 say, for the legend.

    Returns:
        (rows, columns, 3) uint8.

    Raises:
        InputRefusedError: when the shapes do not fit.
    """
    largest = float(np.abs(heat).max()) or 1.0
    levels = np.rint(np.asarray(heat) * (_LEVELS / largest)).astype(np.int16)
    planes = planes_of(image, mask.astype(np.uint8), levels, spacing_mm, orientation, ("mask", "heat"))
    window = grey_window(planes)
    body = in_a_row([_drawn(plane, window) for plane in planes])
    entries: list[tuple[Colour | None, str]] = [((255, 255, 255), name)]
    entries += [(FOR, meaning[0])] if bool((levels > 0).any()) else [(None, "the map is empty")]
    entries += [(AGAINST, meaning[1])] if bool((levels < 0).any()) else []
    entries += [(None, "R: the patient's right")] if planes[0].letters else []
    return with_legend(body, entries)


def _drawn(plane: Plane, window: tuple[float, float]) -> Picture:
    picture = screen_pixels(plane, window).astype(np.float64)
    if plane.truth is not None:
        heat = _smooth(plane.truth, plane.size) / _LEVELS
        opacity = (np.abs(heat) * _STRONGEST)[..., None]
        colour = np.where((heat > 0)[..., None], np.array(FOR, float), np.array(AGAINST, float))
        picture = picture * (1 - opacity) + colour * opacity
    drawn = np.rint(picture).clip(0, 255).astype(np.uint8)
    zoomed = _smooth(plane.labels, plane.size) > 0.5
    drawn[outline(zoomed, 1)] = (255, 255, 255)
    return with_letters(drawn, plane)


def _smooth(values: npt.NDArray[np.integer[Any]], size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Interpolates a plane to the size of the screen, voxel faces aligned."""
    places = [((np.arange(wanted) + 0.5) * own / wanted - 0.5) for own, wanted in zip(values.shape, size, strict=True)]
    grid = np.meshgrid(*places, indexing="ij")
    return np.asarray(ndimage.map_coordinates(values.astype(np.float64), grid, order=1, mode="nearest"))
