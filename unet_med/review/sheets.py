"""Sheets of small pictures with outlines: what a network sees in training, and the cases that it is worst at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.labels import LabelMap
from unet_med.overlays import Picture
from unet_med.overlays.canvas import MOST_ENTRIES, Colour, in_a_row, one_below_the_other, with_legend
from unet_med.overlays.outlines import drawn_outlines
from unet_med.overlays.planes import grey_window, planes_of

_COLUMNS = {2: 4, 3: 2}
"""Pictures and volumes beside each other; a volume is three planes wide."""


@dataclass(frozen=True, eq=False)
class Shown:
    """One image of a sheet.

    Attributes:
        image: (C, I, J[, K]).
        labels: (I, J[, K]) outlined in the colours of the labels.
        truth: The same, in dashed white; ``None``: no truth.
        spacing_mm: Voxel size; ``None`` shows voxels as squares.
        caption: Stands in the corner; short, and no name of a person or a file.
    """

    image: npt.NDArray[Any]
    labels: npt.NDArray[np.integer[Any]]
    truth: npt.NDArray[np.integer[Any]] | None = None
    spacing_mm: tuple[float, ...] | None = None
    caption: str = ""


def sheet_of(images: Sequence[Shown], label_map: LabelMap) -> Picture:
    """Returns images (one at least) in rows on one sheet, with one legend below; what the map ignores is not drawn."""
    tiles = [_tile(image, label_map) for image in images]
    columns = _COLUMNS[images[0].labels.ndim]
    rows = [in_a_row(tiles[first : first + columns]) for first in range(0, len(tiles), columns)]
    legend: list[tuple[Colour | None, str]] = [(label.colour, label.name) for label in label_map.labels[:MOST_ENTRIES]]
    if any(image.truth is not None for image in images):
        legend.append(((255, 255, 255), "reference (dashed)"))
    return with_legend(one_below_the_other(rows), legend)


def _tile(shown: Shown, label_map: LabelMap) -> Picture:
    labels = _labelled(shown.labels, label_map)
    truth = None if shown.truth is None else _labelled(shown.truth, label_map)
    planes = planes_of(shown.image, labels, truth, shown.spacing_mm, "", ("labels", "reference"))
    window = grey_window(planes)
    planes[0] = replace(planes[0], title=shown.caption)
    return in_a_row([drawn_outlines(plane, label_map, window) for plane in planes])


def _labelled(mask: npt.NDArray[np.integer[Any]], label_map: LabelMap) -> npt.NDArray[np.integer[Any]]:
    return mask if label_map.ignored is None else np.where(mask == label_map.ignored, 0, mask)
