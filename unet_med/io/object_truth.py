"""Objects that somebody drew, as the label of an image: outlines of other tools, or one mask file for each object.

Such a label has no grid of its own: it is painted on that of its image, with a number for each object in the order of
the file. Where objects overlap the smaller one is seen. What QuPath calls ``Ignore*``, and crowds of COCO, are regions
that nobody labelled; where there are objects of the class ``Region*``, everything outside of them is, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.errors import InputRefusedError
from unet_med.geometry import Geometry
from unet_med.identity import safe_name, stem_of
from unet_med.io.objects.coco import CocoFile, read_coco
from unet_med.io.objects.drawn import DrawnObject, DrawnObjects, PaintedObjects, cropped, paint
from unet_med.io.objects.geojson import read_geojson
from unet_med.io.objects.imagej_roi import read_imagej_rois
from unet_med.io.picture import PictureSource
from unet_med.io.reading import FileSource, check_frame, whole
from unet_med.io.source import SourceRef
from unet_med.volume import Region, Volume

MASK_FILES = "object-masks"
"""Kind of a label that is a folder with one mask file for each object, as in the Data Science Bowl 2018."""

OBJECT_KINDS = frozenset({"imagej-roi", "geojson", "coco", MASK_FILES})
"""Kinds of labels that hold objects rather than pixels."""

UNCLASSIFIED = "unclassified"
"""Class of an object that has none, beside objects that have one."""

_MASK_ENDINGS = frozenset({".png", ".tif", ".tiff", ".jpg", ".jpeg"})
_IGNORED = frozenset({"ignore*", "ignore"})
_REGION = "region*"


def object_ref(kind: str, path: Path, unlabelled: int | None = None) -> SourceRef:
    """Returns the label that a file of outlines, or a folder of mask files, stands for; nothing is read but names.

    Args:
        kind: One of :data:`OBJECT_KINDS`.
        path: The file, or the folder.
        unlabelled: Value of regions that nobody labelled.
    """
    files = mask_files(path) if kind == MASK_FILES else (path,)
    read: dict[str, Any] = {"objects": kind} | ({} if unlabelled is None else {"unlabelled": unlabelled})
    name = path.name if kind == MASK_FILES else stem_of(path)
    ref = SourceRef(safe_name(name), kind, files, "YX", (), None, dtype="uint16", read_as=read)
    return ref if files else replace(ref, usable=False, reason="the folder of masks is empty")


def restored_object_ref(read: Mapping[str, Any], path: Path, name: str) -> SourceRef:
    """Returns the label of a manifest, whose record ``read`` says ``objects``."""
    unlabelled = read.get("unlabelled")
    ref = object_ref(str(read["objects"]), path, None if unlabelled is None else int(unlabelled))
    return replace(ref, id=name)


def mask_files(folder: Path) -> tuple[Path, ...]:
    """Returns the pictures that lie in a folder, by name."""
    if not folder.is_dir():
        return ()
    pictures = (path for path in folder.iterdir() if path.suffix.lower() in _MASK_ENDINGS)
    return tuple(sorted(path for path in pictures if path.is_file() and not path.name.startswith(".")))


@dataclass(frozen=True, eq=False)
class SeenObjects:
    """What drawn objects are like.

    Attributes:
        painted: Their label image and classes, and how many voxels several of them claim.
        notes: What of the file was left out.
        partly: Whether there are regions that nobody labelled, or one outside of which nobody did.
    """

    painted: PaintedObjects
    notes: tuple[str, ...]
    partly: bool


@dataclass(frozen=True)
class ObjectTruth(FileSource):
    """The objects of one image, painted on its grid.

    Attributes:
        ref: What holds them.
        image: The image on which they were drawn.
    """

    image: SourceRef

    def __post_init__(self) -> None:
        if not self.ref.usable:
            raise InputRefusedError(f"the objects cannot be used: {self.ref.reason}", self.ref.id)

    @property
    def geometry(self) -> Geometry:
        """The grid of the image."""
        if self.image.geometry is None:
            raise InputRefusedError(self.image.reason or "the image cannot be used", self.image.id)
        return self.image.geometry

    @property
    def frames(self) -> int:
        """Frames of the image."""
        return self.image.frames

    def read(self, region: Region | None = None, frame: int = 0) -> Volume:
        """Returns numbers of objects (1, I, J[, K]); all outlines of the frame are read.

        Raises:
            InputRefusedError: The file is damaged, or does not fit the image.
        """
        check_frame(frame, self.frames, self.id)
        drawn = self._drawn()
        labels = self._without_unlabelled(_painted(drawn, self._shape, self._frame(frame)).labels, drawn, frame)
        bounds = whole(region, self.geometry)
        return Volume(labels[bounds][np.newaxis], self.geometry.crop(bounds))

    def look(self, frame: int = 0) -> SeenObjects:
        """Returns what the objects of a frame are like.

        Raises:
            InputRefusedError: The file is damaged, or does not fit the image.
        """
        check_frame(frame, self.frames, self.id)
        drawn = self._drawn()
        partly = any(_is_region(one) or _is_ignored(one) for one in drawn.objects)
        return SeenObjects(_painted(drawn, self._shape, self._frame(frame)), drawn.notes, partly)

    @property
    def _shape(self) -> tuple[int, ...]:
        return self.geometry.shape

    def _frame(self, frame: int) -> int | None:
        return frame if self.frames > 1 else None

    def _drawn(self) -> DrawnObjects:
        path, size = self.ref.files[0], (self._shape[0], self._shape[1])
        try:
            if self.ref.kind == MASK_FILES:
                return _from_masks(self.ref.files, self._shape)
            if self.ref.kind == "imagej-roi":
                return read_imagej_rois(path, size)
            if self.ref.kind == "geojson":
                return read_geojson(path, size)
            return _from_coco(path, size, self.image)
        except InputRefusedError as error:
            raise InputRefusedError(error.what, self.id, error.remedy) from error

    def _without_unlabelled(
        self, labels: npt.NDArray[np.unsignedinteger[Any]], drawn: DrawnObjects, frame: int
    ) -> npt.NDArray[np.unsignedinteger[Any]]:
        value = self.ref.read_as.get("unlabelled")
        if value is None:
            return labels
        if int(labels.max(initial=0)) >= value:
            raise InputRefusedError(
                f"there are {int(labels.max())} objects, and {value} is the value of voxels that nobody labelled",
                self.id,
                "give another one with --ignore-label",
            )
        ignored = [one for one in drawn.objects if _is_ignored(one)]
        regions = [one for one in drawn.objects if _is_region(one)]
        outside = paint(ignored, self._shape, self._frame(frame)).labels > 0
        if regions:
            outside |= paint(regions, self._shape, self._frame(frame)).labels == 0
        return np.where(outside & (labels == 0), np.asarray(value, labels.dtype), labels)


def _painted(drawn: DrawnObjects, shape: tuple[int, ...], frame: int | None) -> PaintedObjects:
    return paint([one for one in drawn.objects if not (_is_ignored(one) or _is_region(one))], shape, frame)


def _is_ignored(one: DrawnObject) -> bool:
    return one.crowd or one.kind.strip().lower() in _IGNORED


def _is_region(one: DrawnObject) -> bool:
    return one.kind.strip().lower() == _REGION


# ---- files ----------------------------------------------------------------------------------------------------------


def _from_masks(files: tuple[Path, ...], shape: tuple[int, ...]) -> DrawnObjects:
    """Returns one object for each file; what is not the file's lowest value is its object."""
    if len(shape) != 2:
        raise InputRefusedError("one mask for each object belongs to a picture", remedy="give a label image of numbers")
    objects = []
    empty = 0
    for number, file in enumerate(files, start=1):
        mask = _mask(file, f"mask {number}")
        if mask.shape != shape:
            raise InputRefusedError(
                f"mask {number} has another shape than its image: {mask.shape} instead of {shape}",
                remedy="give masks of the image's size",
            )
        found = cropped(mask, (0, 0))
        if found is None:
            empty += 1
        else:
            objects.append(DrawnObject(*found))
    return DrawnObjects(tuple(objects), (f"empty masks are left out ({empty})",) if empty else ())


def _mask(file: Path, where: str) -> npt.NDArray[np.bool_]:
    from unet_med.io.discover import open_source, restore_ref

    source = open_source(restore_ref({"id": where}, [file]))
    array = source.read_indices() if isinstance(source, PictureSource) else source.read().array
    found = array.any(axis=0)
    values = np.unique(array)
    if len(values) > 2 or (len(values) == 2 and values[0] != 0):
        raise InputRefusedError(
            f"{where} holds {len(values)} different values, and a mask of one object holds 0 and one other",
            remedy="save masks without smoothing and as PNG or TIFF",
        )
    return np.asarray(found)


def _from_coco(path: Path, size: tuple[int, int], image: SourceRef) -> DrawnObjects:
    file = coco_file(path)
    picture = file.picture(image.files[0].name)
    if picture.size != size:
        raise InputRefusedError(
            f"the outlines were drawn on a picture of {picture.size[0]} x {picture.size[1]} pixels, and this one has "
            f"{size[0]} x {size[1]}",
            remedy="give the picture on which they were drawn",
        )
    return file.objects(picture)


def coco_file(path: Path) -> CocoFile:
    """Reads a COCO file, or returns it as long as it is the same: it holds many pictures.

    Raises:
        InputRefusedError: It is damaged.
    """
    return _read_coco(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _read_coco(path: Path, stamp: int) -> CocoFile:
    """A file that was written anew has another ``stamp``, and is read anew."""
    return read_coco(path)
