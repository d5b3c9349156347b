"""The objects of a mask one after the other, plane by plane: what formats that list objects are written from.

In a semantic mask all voxels of a label are one object. What an object shows in one slice of a volume, or in one frame
of a movie, is a piece of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product, zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.errors import InputRefusedError
from unet_med.io.export.mask import MaskExport, source_ref
from unet_med.io.objects.boxes import block_labels, blocks, boxes_of, whole_objects
from unet_med.io.objects.drawn import DrawnObject
from unet_med.io.objects.outlines import Polygons, outlines
from unet_med.io.polygons import Picture
from unet_med.io.source import DICOM_KINDS

_GREY = (128, 128, 128)


@dataclass(frozen=True, eq=False)
class Piece:
    """What one plane shows of an object.

    Attributes:
        number: Of the object.
        z: Slice of a volume, from 0; ``None`` for a picture.
        t: Frame of a movie, from 0; ``None`` for a single one.
        start: First column and row of its box.
        mask: (i, j) which pixels of the box are the object's.
        polygons: Its outlines, where they were asked for.
    """

    number: int
    z: int | None
    t: int | None
    start: tuple[int, int]
    mask: Picture
    polygons: Polygons


@dataclass(frozen=True)
class Description:
    """What is known of an object.

    Attributes:
        kind: Name of its class.
        colour: Of the class, RGB from 0 to 255.
        confidence: From 0 to 1, if known.
        measures: Numbers by their names.
    """

    kind: str
    colour: tuple[int, int, int]
    confidence: float | None
    measures: dict[str, float]


class Descriptions:
    """What is known of the objects of a mask.

    Args:
        export: The mask.
    """

    def __init__(self, export: MaskExport) -> None:
        self._table = export.objects
        self._labels = {label.index: label for label in export.label_map.labels}
        self._colours = {label.name: label.colour for label in export.label_map.labels}
        self._places: dict[int, dict[int, int]] = {}

    def of(self, number: int, frame: int | None) -> Description:
        """Returns what is known of the object with this number, in this frame."""
        if self._table is None:
            label = self._labels.get(number)
            return Description(str(number), _GREY, None, {}) if label is None else _of_label(label.name, label.colour)
        place = self._of_frame(frame or 0).get(number)
        if place is None:
            return Description("", _GREY, None, {})
        row = self._table.row(place)
        numbers = {name: row[name] for name in self._table.measures() if row[name] is not None}
        confidence = numbers.get("confidence")
        kind = str(row["class"])
        return Description(kind, self._colours.get(kind, _GREY), confidence, {k: float(v) for k, v in numbers.items()})

    def _of_frame(self, frame: int) -> dict[int, int]:
        """Returns the row of each object of a frame."""
        if frame not in self._places:
            columns = self._table.columns if self._table is not None else {}
            frames = columns.get("frame", np.full(len(columns["label"]), frame))
            rows = np.flatnonzero(frames == frame)
            self._places[frame] = dict(zip(columns["label"][rows].tolist(), rows.tolist(), strict=True))
        return self._places[frame]


def _of_label(name: str, colour: tuple[int, int, int]) -> Description:
    return Description(name, colour, None, {})


@dataclass(frozen=True, eq=False)
class Plane:
    """One slice of one frame.

    Attributes:
        z: As in :class:`Piece`.
        t: As in :class:`Piece`.
        labels: (I, J).
    """

    z: int | None
    t: int | None
    labels: npt.NDArray[np.unsignedinteger[Any]]

    @property
    def ending(self) -> str:
        """Tells names of several planes apart; empty for a single picture."""
        return ("" if self.t is None else f"_t{self.t:04d}") + ("" if self.z is None else f"_z{self.z:04d}")


def planes(export: MaskExport) -> Iterator[Plane]:
    """Yields all planes of a mask, frame by frame."""
    movie = export.labels[np.newaxis] if export.movie is None else export.movie
    slices = range(movie.shape[3]) if movie.ndim == 4 else (None,)
    for t, z in product(range(len(movie)), slices):
        labels = movie[t] if z is None else movie[t, :, :, z]
        yield Plane(z, None if export.movie is None else t, labels)


def pieces(export: MaskExport, plane: Plane, *, outlined: bool) -> Iterator[Piece]:
    """Yields what a plane shows of each object.

    Args:
        export: The mask.
        plane: One of its planes.
        outlined: Whether outlines are wanted.
    """
    if export.overlapping:
        for one in export.overlapping:
            if (one.z, one.t) in ((plane.z, plane.t), (None, None)):
                polygons = outlines(one.mask.astype(np.uint8), one.start)[1] if outlined else []
                yield Piece(one.number or 0, plane.z, plane.t, one.start, one.mask, polygons)
        return
    boxes = boxes_of(plane.labels)
    for region, values, members in whole_objects(plane.labels, boxes):
        corner = (region[0].start, region[1].start)
        found = outlines(values, corner) if outlined else {}
        for place in members.tolist():
            number = int(boxes.numbers[place])
            i, j = boxes.region(place)
            mask = values[i.start - corner[0] : i.stop - corner[0], j.start - corner[1] : j.stop - corner[1]] == number
            yield Piece(number, plane.z, plane.t, (i.start, j.start), mask, found.get(number, []))


def every_piece(export: MaskExport) -> Iterator[Piece]:
    """Yields the pieces of all planes with their outlines."""
    for plane in planes(export):
        yield from pieces(export, plane, outlined=True)


def picture_size(export: MaskExport) -> tuple[int, int]:
    """Returns the columns and rows of a plane."""
    columns, rows = export.geometry.shape[:2]
    return columns, rows


def image_name(export: MaskExport) -> str:
    """Returns the name by which files of objects call the image: that of its file, unless it may be a patient's."""
    ref = source_ref(export.source)
    return export.source.id if ref is None or ref.kind in DICOM_KINDS else ref.files[0].name


def same_pieces(export: MaskExport, found: Iterable[DrawnObject], reader: str) -> dict[str, Any]:
    """Compares objects that were read back with the mask, pixel by pixel.

    Args:
        export: The mask.
        found: What was read, each with its number, slice and frame.
        reader: The library that read it.

    Raises:
        InputRefusedError: A pixel belongs to another object than it was meant to, or to none.
    """
    record = _same_masks(export, found) if export.overlapping else _same_pixels(export, found)
    return {"reader": reader, **record, "exact": True, "passed": True}


def _same_pixels(export: MaskExport, found: Iterable[DrawnObject]) -> dict[str, Any]:
    """Looks whether every pixel that was read has the number it should, and whether they are as many as should be."""
    count = pixels = 0
    movie = export.labels[np.newaxis] if export.movie is None else export.movie
    for one in found:
        count, pixels = count + 1, pixels + one.area
        place = (one.t or 0, *one.box, *((one.z or 0,) if movie.ndim == 4 else ()))
        if not (movie[place][one.mask] == one.number).all():
            raise _unlike(export, f"object {one.number} has pixels that are not its own")
    if pixels != _labelled(movie):
        raise _unlike(export, f"its objects have {pixels} pixels instead of {_labelled(movie)}")
    return {"pieces": count, "pixels": pixels}


def _same_masks(export: MaskExport, found: Iterable[DrawnObject]) -> dict[str, Any]:
    """Compares masks that may overlap one by one."""
    count = pixels = 0
    meant = (piece for plane in planes(export) for piece in pieces(export, plane, outlined=False))
    for one, piece in zip_longest(found, meant):
        if one is None or piece is None or one.start != piece.start or not np.array_equal(one.mask, piece.mask):
            raise _unlike(export, f"mask {count + 1} has other pixels")
        count, pixels = count + 1, pixels + one.area
    return {"pieces": count, "pixels": pixels}


def _labelled(movie: npt.NDArray[Any]) -> int:
    return sum(int(np.count_nonzero(block_labels(labels, part))) for labels in movie for part in blocks(labels.shape))


def _unlike(export: MaskExport, what: str) -> InputRefusedError:
    return InputRefusedError(
        f"the written file does not read back as it was meant: {what}",
        export.source.id,
        "the file was removed; report this together with `unet-med scan --json`",
    )
