"""Objects that somebody drew or a tool found, each a small mask with its place, and the label image they make.

Coordinates of outlines are those of QuPath and ImageJ: the first pixel reaches from 0 to 1, so that its centre lies at
one half. A pixel belongs to an outline when its centre lies inside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.errors import InputRefusedError
from unet_med.io.polygons import FloatArray, Picture, polygon_parity
from unet_med.volume import Region


@dataclass(frozen=True, eq=False)
class DrawnObject:
    """One object of a picture, or what one plane of a volume or movie shows of it.

    Attributes:
        mask: (i, j) which pixels of its box are the object's; at least one.
        start: First column and row of the box.
        kind: Name of its class; empty when it has none.
        name: What the file calls the object itself.
        number: The number that the file gives it; pieces of one number are one object. ``None``: it has none.
        z: Slice, from 0; ``None``: not said.
        t: Time point, from 0; ``None``: not said.
        position: Place in a stack of slices or time points, from 0, where the file does not say of which.
        confidence: From 0 to 1, where a model found it.
        crowd: Whether it stands for many objects that nobody drew apart: a region to ignore.
    """

    mask: Picture
    start: tuple[int, int]
    kind: str = ""
    name: str = ""
    number: int | None = None
    z: int | None = None
    t: int | None = None
    position: int | None = None
    confidence: float | None = None
    crowd: bool = False

    @property
    def box(self) -> tuple[slice, slice]:
        """Where the mask lies in its picture."""
        (i, j), (columns, rows) = self.start, self.mask.shape
        return slice(i, i + columns), slice(j, j + rows)

    @property
    def area(self) -> int:
        """Pixels."""
        return int(np.count_nonzero(self.mask))


@dataclass(frozen=True, eq=False)
class DrawnObjects:
    """The objects of one file, in its order.

    Attributes:
        objects: Those with an area inside the picture.
        notes: What was left out or cut off, and how often.
    """

    objects: tuple[DrawnObject, ...]
    notes: tuple[str, ...] = ()

    @property
    def kinds(self) -> tuple[str, ...]:
        """The classes that occur, in the order in which they first do; without the empty one."""
        return tuple(dict.fromkeys(one.kind for one in self.objects if one.kind))


@dataclass(frozen=True, eq=False)
class PaintedObjects:
    """A label image made of drawn objects.

    Attributes:
        labels: (I, J[, K]) 0 for background, objects from 1 in the order of the file; uint16, or uint32 for many.
        kinds: Class of each object; empty where it has none.
        overlapping: Voxels that more than one object claims, once for each further object.
        hidden: Objects of which nothing is seen, because others lie on all of it.
    """

    labels: npt.NDArray[np.unsignedinteger[Any]]
    kinds: dict[int, str]
    overlapping: int = 0
    hidden: tuple[int, ...] = ()


@dataclass
class Collected:
    """Objects on their way out of a file: empty and outlying ones become notes."""

    size: tuple[int, int]
    objects: list[DrawnObject] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)

    def add(self, polygons: Sequence[Sequence[FloatArray]], **what: Any) -> None:
        """Adds the union of polygons, each a list of rings (n, 2): outline and holes."""
        self.place(filled(polygons, self.size), **what)

    def place(self, found: tuple[Picture, tuple[int, int]] | None, **what: Any) -> None:
        """Adds a mask at its place; ``None`` stands for one without a pixel in the picture."""
        if found is None:
            self.notes["outlines that hold no pixel of the picture are left out"] += 1
        else:
            self.objects.append(DrawnObject(*found, **what))

    def done(self) -> DrawnObjects:
        """Returns what was found."""
        return DrawnObjects(tuple(self.objects), tuple(f"{note} ({n})" for note, n in sorted(self.notes.items())))


def filled(polygons: Sequence[Sequence[FloatArray]], size: tuple[int, int]) -> tuple[Picture, tuple[int, int]] | None:
    """Returns the pixels whose centre lies in a polygon, and the place of their box; ``None`` when there is none.

    Args:
        polygons: Each a list of rings (n, 2), x and y in pixels from the picture's corner: an odd number of them
            around a point makes it inside.
        size: Columns and rows of the picture; what lies beyond is cut off.

    Raises:
        InputRefusedError: A coordinate is no number.
    """
    rings = [[np.asarray(ring, dtype=np.float64).reshape(-1, 2) - 0.5 for ring in one] for one in polygons]
    points = np.concatenate([np.empty((0, 2)), *(ring for one in rings for ring in one)])
    if not np.isfinite(points).all():
        raise InputRefusedError("an outline has a coordinate that is no number", remedy="export the outlines again")
    if not len(points):
        return None
    low = np.clip(np.floor(points.min(axis=0)), 0, size).astype(np.intp)
    high = np.clip(np.ceil(points.max(axis=0)) + 1, 0, size).astype(np.intp)
    if (high <= low).any():
        return None
    extent = int(high[0] - low[0]), int(high[1] - low[1])
    inside = np.zeros(extent, dtype=np.bool_)
    for one in rings:
        odd = np.zeros(extent, dtype=np.bool_)
        for ring in one:
            odd ^= polygon_parity(ring - low, extent)
        inside |= odd
    return cropped(inside, (int(low[0]), int(low[1])))


def cropped(mask: Picture, start: tuple[int, int]) -> tuple[Picture, tuple[int, int]] | None:
    """Returns the smallest box of a mask that holds all of it, and its place; ``None`` for an empty mask."""
    columns, rows = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(columns):
        return None
    small = mask[columns[0] : columns[-1] + 1, rows[0] : rows[-1] + 1]
    return np.ascontiguousarray(small), (start[0] + int(columns[0]), start[1] + int(rows[0]))


def paint(objects: Sequence[DrawnObject], shape: tuple[int, ...], frame: int | None = None) -> PaintedObjects:
    """Makes a label image; where objects overlap the smaller one is seen, so that none is hidden by a larger one.

    Args:
        objects: Of one picture, volume or movie. Each gets the next number, and pieces of one ``number`` get the same.
        shape: (I, J) or (I, J, K). A piece without a slice is in all slices.
        frame: Time point of a movie; pieces that name another one are left out, pieces that name none are in all.

    Raises:
        InputRefusedError: An object lies outside of the image.
    """
    wanted = [one for one in objects if frame is None or _frame_of(one, len(shape)) in (None, frame)]
    labels = _numbered(wanted)
    image = np.zeros(shape, dtype=np.uint16 if max(labels, default=0) < 2**16 else np.uint32)
    overlapping = 0
    for place in sorted(range(len(wanted)), key=lambda place: -wanted[place].area):
        one, label = wanted[place], labels[place]
        seen = image[_region(one, shape)]
        mask = one.mask if len(shape) == 2 else np.broadcast_to(one.mask[..., np.newaxis], seen.shape)
        before = seen[mask]
        overlapping += int(np.count_nonzero((before != 0) & (before != label)))
        seen[mask] = label
    shown = set(np.unique(image).tolist())
    kinds = {label: one.kind for one, label in zip(wanted, labels, strict=True)}
    return PaintedObjects(image, kinds, overlapping, tuple(label for label in kinds if label not in shown))


def _frame_of(one: DrawnObject, ndim: int) -> int | None:
    return one.position if one.t is None and one.z is None and ndim == 2 else one.t


def _numbered(objects: Sequence[DrawnObject]) -> list[int]:
    """Returns labels from 1 in the order of the objects; pieces of one number share one."""
    known: dict[int | tuple[int], int] = {}
    return [
        known.setdefault(one.number if one.number is not None else (place,), len(known) + 1)
        for place, one in enumerate(objects)
    ]


def _region(one: DrawnObject, shape: tuple[int, ...]) -> Region:
    """Returns where an object lies in an image of this shape."""
    slices: tuple[slice, ...] = ()
    if len(shape) == 3:
        number = one.position if one.z is None else one.z
        slices = (slice(0, shape[2]) if number is None else slice(number, number + 1),)
    region = (*one.box, *slices)
    if any(part.start < 0 or part.stop > n for part, n in zip(region, shape, strict=True)):
        raise InputRefusedError(
            "an outline lies outside of the image", remedy="give the outlines that were drawn on this image"
        )
    return region
