"""Objects, each in a colour that none of its neighbours has, with outlines; the true ones beside them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, product
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.labels import LabelMap, label_colour
from unet_med.overlays.canvas import (
    Colour,
    Picture,
    enlarged,
    in_a_row,
    one_below_the_other,
    screen_pixels,
    with_legend,
    with_letters,
)
from unet_med.overlays.planes import Plane, grey_window, planes_of

ObjectArray = npt.NDArray[np.integer[Any]]

NEAR_PIXELS = 3
"""Objects no further apart than this on the screen get different colours."""

_FEW_COLOURS = 12
_FILLED = 0.3
_UNLABELLED: Colour = (120, 120, 120)
_WIDE = 1.3


def object_preview(
    image: npt.NDArray[Any],
    objects: ObjectArray,
    spacing_mm: Sequence[float] | None,
    label_map: LabelMap,
    classes: Mapping[int, int] | None = None,
    truth: ObjectArray | None = None,
    truth_classes: Mapping[int, int] | None = None,
    orientation: str = "",
) -> Picture:
    """Draws objects on their image, and the true ones in a panel of their own.

    Where there are several classes the outlines have their colours, else those of the objects. What the map ignores is
    shaded.

    Args:
        image: (I, J[, K]), any real dtype; or (C, I, J[, K]), of which three channels of a picture are shown as
            colour and otherwise the first one.
        objects: (I, J[, K]) numbers of objects, 0 elsewhere.
        spacing_mm: Voxel size along the axes; ``None`` shows voxels as squares.
        label_map: Names and colours of the classes.
        classes: Number of each object -> its class; ``None``: all are of the first.
        truth: True objects of the same shape.
        truth_classes: The same for these.
        orientation: ``Geometry.orientation`` of the axes; empty when unknown.

    Returns:
        (rows, columns, 3) uint8.

    Raises:
        InputRefusedError: when the shapes do not fit.
    """
    planes = planes_of(image, objects, truth, spacing_mm, orientation, ("objects", "true objects"))
    window = grey_window(planes)
    look = _Look(label_map, classes, object_colours(enlarged(plane.labels, plane.size) for plane in planes))
    body = in_a_row([_drawn(plane, plane.labels, look, window, plane.title) for plane in planes])
    if truth is not None:
        true = [(plane, plane.truth) for plane in planes if plane.truth is not None]
        look = _Look(label_map, truth_classes, object_colours(enlarged(one, plane.size) for plane, one in true))
        others = [_drawn(plane, one, look, window, f"{plane.title} truth".lstrip()) for plane, one in true]
        beside = objects.ndim == 2 and body.shape[1] < _WIDE * body.shape[0]
        body = (in_a_row if beside else one_below_the_other)([body, in_a_row(others)])
    look = _Look(label_map, classes, {})
    return with_legend(body, _legend(objects, truth, look, oriented=bool(planes[0].letters)))


@dataclass(frozen=True)
class _Look:
    """How objects are drawn: the classes of the map, the class of each object, and the colour of each."""

    label_map: LabelMap
    classes: Mapping[int, int] | None
    colours: Mapping[int, Colour]

    def lines(self, number: int) -> Colour:
        """Colour of an object's outline: that of its class where there are several."""
        if len(self.label_map.labels) < 2:
            return self.colours.get(number, _UNLABELLED)
        return next((one.colour for one in self.label_map.labels if one.index == self.kind(number)), _UNLABELLED)

    def kind(self, number: int) -> int:
        """Class of an object; 0 where it is not known."""
        return self.label_map.labels[0].index if self.classes is None else self.classes.get(number, 0)


def _drawn(plane: Plane, objects: ObjectArray, look: _Look, window: tuple[float, float], title: str) -> Picture:
    picture = screen_pixels(plane, window)
    shown = enlarged(objects, plane.size)
    ignored = look.label_map.ignored
    if ignored is not None:
        picture[_shaded(shown == ignored)] = _UNLABELLED
        shown = np.where(shown == ignored, 0, shown)
    numbers, inverse = np.unique(shown, return_inverse=True)
    inverse = inverse.reshape(shown.shape)
    own = np.array([look.colours.get(int(number), (0, 0, 0)) for number in numbers], dtype=np.float64)
    fill = (shown > 0)[..., None] * _FILLED
    picture = np.asarray(np.rint(picture * (1 - fill) + own[inverse] * fill), dtype=np.uint8)
    lines = np.array([look.lines(int(number)) for number in numbers], dtype=np.uint8)
    edges = borders(shown)
    if len(look.label_map.labels) > 1:
        edges |= borders(np.where(edges, 0, shown))
    picture[edges] = lines[inverse[edges]]
    return with_letters(picture, plane, title)


def borders(objects: ObjectArray) -> npt.NDArray[np.bool_]:
    """Returns the outermost pixels inside of each object; the picture's edge is no border."""
    edges = np.zeros(objects.shape, dtype=np.bool_)
    for one, other in ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))):
        edges[one] |= objects[one] != objects[other]
        edges[:, one] |= objects[:, one] != objects[:, other]
    return edges & (objects > 0)


def _shaded(area: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    row, column = np.indices(area.shape)
    return np.asarray(area & ((row + column) % 6 < 2))


def object_colours(pictures: Iterable[ObjectArray]) -> dict[int, Colour]:
    """Returns a colour for each object, so that objects close to each other have different ones.

    Args:
        pictures: (rows, columns) numbers of objects, as they are shown; an object may be in several.
    """
    near: dict[int, set[int]] = defaultdict(set)
    numbers: set[int] = set()
    for picture in pictures:
        numbers |= {int(number) for number in np.unique(picture) if number}
        for one, other in _neighbours(picture):
            near[one].add(other)
            near[other].add(one)
    chosen: dict[int, int] = {}
    for number in sorted(numbers, key=lambda one: (-len(near[one]), one)):
        taken = {chosen[other] for other in near[number] if other in chosen}
        chosen[number] = next(index for index in _wished(number) if index not in taken)
    return {number: label_colour(index) for number, index in chosen.items()}


def _wished(number: int) -> Iterator[int]:
    """Yields indices of colours: the few in an order of the object's own, then further ones."""
    yield from (1 + (number + step) % _FEW_COLOURS for step in range(_FEW_COLOURS))
    yield from count(_FEW_COLOURS + 1)


def _neighbours(picture: ObjectArray) -> set[tuple[int, int]]:
    """Returns the pairs of objects that are near each other."""
    found: set[tuple[int, int]] = set()
    reach = range(-NEAR_PIXELS, NEAR_PIXELS + 1)
    for down, across in product(range(NEAR_PIXELS + 1), reach):
        if (down, across) <= (0, 0) or down >= picture.shape[0] or abs(across) >= picture.shape[1]:
            continue
        one = picture[down:, max(across, 0) : picture.shape[1] + min(across, 0)]
        other = picture[: picture.shape[0] - down, max(-across, 0) : picture.shape[1] + min(-across, 0)]
        met = (one != other) & (one > 0) & (other > 0)
        if met.any():
            found |= {(int(a), int(b)) for a, b in np.unique(np.stack([one[met], other[met]], axis=1), axis=0)}
    return found


def _legend(
    objects: ObjectArray, truth: ObjectArray | None, look: _Look, *, oriented: bool
) -> list[tuple[Colour | None, str]]:
    """Returns how many objects there are, of each class where there are several."""
    label_map = look.label_map
    numbers = _numbers(objects, label_map)
    entries: list[tuple[Colour | None, str]] = []
    if len(label_map.labels) > 1:
        kinds = [look.kind(number) for number in numbers]
        entries += [(label.colour, f"{label.name} ({kinds.count(label.index)})") for label in label_map.labels]
    name = label_map.labels[0].name if len(label_map.labels) == 1 else "objects"
    entries.append((None, f"{name}: {len(numbers)}" if numbers else "no object in this image"))
    if truth is not None:
        entries.append((None, f"truth: {len(_numbers(truth, label_map))}"))
    if label_map.ignored is not None and bool((objects == label_map.ignored).any()):
        entries.append((_UNLABELLED, "not labelled"))
    return entries + ([(None, "R: the patient's right")] if oriented else [])


def _numbers(objects: ObjectArray, label_map: LabelMap) -> list[int]:
    return [int(number) for number in np.unique(objects) if number not in (0, label_map.ignored)]
