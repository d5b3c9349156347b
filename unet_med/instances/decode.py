"""Objects, cut out of what a network says of them: a landscape, its summits, and the valleys between.

An image is decoded in tiles of a fixed grid, whatever its size; each is read with a margin, and an object belongs to
the tile that holds its summit. The margin grows where it cuts an object, so that an object is the same in every grid
unless something as large as several margins hangs together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from unet_med.config import Instances
from unet_med.instances.basins import basins_of, foreground_of, grouped, landscape
from unet_med.instances.maps import ObjectMaps
from unet_med.volume import Region

Labels = npt.NDArray[np.uint32]

_LARGEST_MARGIN = 8
"""How often the margin of a tile is taken at most."""
_DUPLICATE_SHARE = 0.5
"""Share of an object that other tiles may have taken before it is one of theirs."""


class MapsSource(Protocol):
    """Maps of a whole image, wherever they are."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        ...

    def read(self, region: Region) -> ObjectMaps:
        """Returns the maps of a region."""
        ...


class MapsArray:
    """Maps in memory as a :class:`MapsSource`."""

    def __init__(self, maps: ObjectMaps) -> None:
        self._maps = maps

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        return self._maps.shape

    def read(self, region: Region) -> ObjectMaps:
        """Returns a view of a region."""
        maps = self._maps
        return ObjectMaps(maps.classes[(slice(None), *region)], maps.border[region], maps.distance[region])


@dataclass(frozen=True)
class Tiling:
    """The grid of tiles in which an image is decoded.

    Attributes:
        tile: Voxels of a tile along each axis.
        margin: Voxels that are read beyond a tile, at first.
        shift: Voxels by which the grid is moved towards the beginning; 0 but to find out whether it matters.
    """

    tile: int
    margin: int
    shift: int = 0

    @classmethod
    def of(cls, axes: int) -> Tiling:
        """Returns the grid of pictures (2 axes) or volumes (3): some hundred megabytes at a time."""
        return cls(2048, 128) if axes == 2 else cls(192, 32)

    def tiles(self, shape: Sequence[int]) -> Iterator[Region]:
        """Yields the tiles of an image in order."""
        edges = [[0, *range(self.tile - self.shift, size, self.tile), size] for size in shape]
        sides = [[slice(a, b) for a, b in pairwise(edge)] for edge in edges]
        yield from product(*sides)


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects of an image.

    Attributes:
        labels: (*shape) uint32: 0 for background, else the number of the object, from 1 without gap.
        classes: (objects,) int32, the class of each, from 1.
        confidence: (objects,) float32 in [0, 1]: how probable its voxels are on average, times how high its summit is.
        boxes: The smallest box around each.
    """

    labels: Labels
    classes: npt.NDArray[np.int32]
    confidence: npt.NDArray[np.float32]
    boxes: tuple[Region, ...]

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True, eq=False)
class _Found:
    """The objects of one window: as :class:`Objects`, and the voxel of each one's summit, (objects, axes)."""

    labels: Labels
    classes: npt.NDArray[np.int32]
    confidence: npt.NDArray[np.float32]
    boxes: list[Region]
    summits: npt.NDArray[np.int64]


def objects_of(
    maps: ObjectMaps | MapsSource,
    settings: Instances,
    out: Labels | None = None,
    tiling: Tiling | None = None,
) -> Objects:
    """Cuts out all objects of an image.

    Args:
        maps: What a network says of it.
        settings: Thresholds and the smallest size, in voxels of the maps.
        out: (*shape) uint32 zeros, perhaps on disk, that receive the labels; ``None``: a new array.
        tiling: Another grid than that of :meth:`Tiling.of`.
    """
    source = MapsArray(maps) if isinstance(maps, ObjectMaps) else maps
    labels: Labels = np.zeros(source.shape, dtype=np.uint32) if out is None else out
    grid = tiling or Tiling.of(len(source.shape))
    classes: list[int] = []
    confidence: list[float] = []
    boxes: list[Region] = []
    for tile in grid.tiles(source.shape):
        window, found = _of_tile(source, tile, grid.margin, settings)
        part = labels[window]
        for number, box in enumerate(found.boxes):
            if not _holds(tile, window, found.summits[number]):
                continue
            mask = found.labels[box] == number + 1
            free = mask & (part[box] == 0)
            kept, whole = np.count_nonzero(free), np.count_nonzero(mask)
            if kept < max(settings.minimum_voxels, 1) or kept < (1 - _DUPLICATE_SHARE) * whole:
                continue
            classes.append(int(found.classes[number]))
            confidence.append(float(found.confidence[number]))
            boxes.append(_placed(box, window))
            part[box][free] = len(classes)
        labels[window] = part  # where they lie in a file, reading gave a copy
    return Objects(labels, np.array(classes, np.int32), np.array(confidence, np.float32), tuple(boxes))


def _of_tile(source: MapsSource, tile: Region, margin: int, settings: Instances) -> tuple[Region, _Found]:
    """Decodes a tile with its margin, and once more with a wider one while that cuts an object of the tile."""
    wide = margin
    while True:
        window = tuple(
            slice(max(side.start - wide, 0), min(side.stop + wide, size))
            for side, size in zip(tile, source.shape, strict=True)
        )
        found = _objects(source.read(window), settings)
        own = [box for box, top in zip(found.boxes, found.summits, strict=True) if _holds(tile, window, top)]
        if wide >= margin * _LARGEST_MARGIN or not any(_is_cut(box, window, source.shape) for box in own):
            return window, found
        wide *= 2


def _holds(tile: Region, window: Region, summit: npt.NDArray[np.int64]) -> bool:
    place = (side.start + int(at) for side, at in zip(window, summit, strict=True))
    return all(side.start <= at < side.stop for side, at in zip(tile, place, strict=True))


def _is_cut(box: Region, window: Region, shape: Sequence[int]) -> bool:
    """Whether a box within a window reaches an edge of it that is none of the image."""
    return any(
        (part.start == 0 and side.start > 0) or (part.stop == side.stop - side.start and side.stop < size)
        for part, side, size in zip(box, window, shape, strict=True)
    )


def _placed(box: Region, window: Region) -> Region:
    return tuple(slice(part.start + side.start, part.stop + side.start) for part, side in zip(box, window, strict=True))


def _objects(maps: ObjectMaps, settings: Instances) -> _Found:
    """Cuts out the objects of maps in memory; those that are too small are left out."""
    foreground = foreground_of(maps)
    height = landscape(maps)
    basins = basins_of(height, foreground >= settings.foreground_threshold)
    groups = grouped(basins.relief, settings.seed_threshold, settings.seed_depth)
    owner = groups[basins.members]
    sizes = np.bincount(owner + 1, minlength=len(groups) + 1)[1:]
    tops = np.flatnonzero(sizes >= max(settings.minimum_voxels, 1))
    number = np.zeros(len(groups) + 1, dtype=np.uint32)  # the last is for what belongs to no object
    number[tops] = np.arange(1, len(tops) + 1, dtype=np.uint32)
    labels = np.zeros(maps.shape, dtype=np.uint32)
    numbers = number[owner]
    labels.ravel()[basins.places] = numbers
    sizes = sizes[tops]
    weights = maps.classes[1:].reshape(len(maps.classes) - 1, -1)[:, basins.places]
    sums = np.stack([np.bincount(numbers, row, len(tops) + 1)[1:] for row in weights])
    mean = np.bincount(numbers, foreground.ravel()[basins.places], len(tops) + 1)[1:] / np.maximum(sizes, 1)
    confidence = np.clip(mean * basins.relief.heights[tops], 0, 1).astype(np.float32)
    summits = np.stack(np.unravel_index(basins.summits[tops], maps.shape), axis=1)
    return _Found(
        labels,
        (np.argmax(sums, axis=0) + 1).astype(np.int32),
        confidence,
        [box for box in ndimage.find_objects(labels) if box is not None],
        summits,
    )
