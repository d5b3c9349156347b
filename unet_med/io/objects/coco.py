"""COCO in: one JSON file with the objects of many pictures, as polygons or run lengths.

What a detector needs and a mask does not, boxes and key points, is left out. A crowd (``iscrowd``) is a region in which
nobody drew the objects apart: it is read, and marked as such. Masks of this package say of which ``object`` they are:
in several slices of a volume one object has several annotations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from unet_med.errors import InputRefusedError
from unet_med.io.objects.drawn import Collected, DrawnObjects
from unet_med.io.objects.json_files import confidence_in, read_json, whole_number
from unet_med.io.objects.runs import mask_of_runs, unpacked
from unet_med.io.reading import refusing

_EXPORT_AGAIN = "export the file again as COCO instance segmentation"


@dataclass(frozen=True)
class CocoPicture:
    """One picture of a COCO file.

    Attributes:
        id: Its number there.
        file: Name of the image file, without folders.
        size: Columns and rows.
    """

    id: int
    file: str
    size: tuple[int, int]


@dataclass(frozen=True, eq=False)
class CocoFile:
    """A COCO file.

    Attributes:
        pictures: In the order of the file.
        kinds: Name of each class by its number.
    """

    pictures: tuple[CocoPicture, ...]
    kinds: Mapping[int, str]
    _annotations: Mapping[int, list[Mapping[str, Any]]] = field(repr=False)

    def picture(self, file: str) -> CocoPicture:
        """Returns the picture of an image file: by its name, else by its name without ending.

        Raises:
            InputRefusedError: There is none, or there are several.
        """
        stem = PurePosixPath(file).stem
        same = [one for one in self.pictures if one.file == file]
        same = same or [one for one in self.pictures if PurePosixPath(one.file).stem == stem]
        if len(same) != 1:
            what = "lists no image of this name" if not same else "lists several images of this name"
            raise InputRefusedError(f"the COCO file {what}", remedy="name the images as the file's `images` says")
        return same[0]

    def objects(self, picture: CocoPicture) -> DrawnObjects:
        """Returns the objects of one picture.

        Raises:
            InputRefusedError: An outline is damaged.
        """
        found = Collected(picture.size)
        with refusing("an outline in the COCO file is damaged", "", _EXPORT_AGAIN):
            for one in self._annotations.get(picture.id, ()):
                self._add(one, found)
        return found.done()

    def _add(self, one: Mapping[str, Any], found: Collected) -> None:
        drawn = one.get("segmentation")
        what = {
            "kind": self.kinds.get(one.get("category_id", -1), ""),
            "number": whole_number(one.get("object", one.get("id"))),
            "confidence": confidence_in(one.get("score")),
            "crowd": bool(one.get("iscrowd")),
        }
        if isinstance(drawn, Mapping):
            lengths = drawn["counts"]
            lengths = unpacked(lengths) if isinstance(lengths, str) else lengths
            if tuple(drawn["size"]) != found.size[::-1]:
                raise InputRefusedError("run lengths belong to a picture of another size", remedy=_EXPORT_AGAIN)
            found.place(mask_of_runs(lengths, found.size), **what)
        elif drawn:
            found.add([[np.asarray(ring, dtype=np.float64).reshape(-1, 2)] for ring in drawn], **what)
        else:
            found.notes["objects without an outline are left out"] += 1


def is_coco(content: Any) -> bool:
    """Whether the content of a JSON file is what :func:`read_coco` takes."""
    lists = ("images", "annotations", "categories")
    return isinstance(content, Mapping) and all(isinstance(content.get(name), list) for name in lists)


def read_coco(path: Path) -> CocoFile:
    """Reads a COCO file.

    Raises:
        InputRefusedError: It is damaged or no such file.
    """
    content = read_json(path)
    if not is_coco(content):
        raise InputRefusedError("the file is no COCO file: no images, annotations or categories", remedy=_EXPORT_AGAIN)
    with refusing("the COCO file is damaged", "", _EXPORT_AGAIN):
        pictures = tuple(
            CocoPicture(int(one["id"]), PurePosixPath(one["file_name"]).name, (int(one["width"]), int(one["height"])))
            for one in content["images"]
        )
        kinds = {int(one["id"]): str(one["name"]) for one in content["categories"]}
        annotations: dict[int, list[Mapping[str, Any]]] = {one.id: [] for one in pictures}
        for one in content["annotations"]:
            annotations.setdefault(int(one["image_id"]), []).append(one)
    return CocoFile(pictures, kinds, annotations)
