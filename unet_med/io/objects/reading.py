"""Outlines of objects in, whatever tool drew them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from unet_med.errors import InputRefusedError
from unet_med.io.objects import OUTLINE_ENDINGS
from unet_med.io.objects.coco import is_coco, read_coco
from unet_med.io.objects.drawn import DrawnObjects
from unet_med.io.objects.geojson import is_geojson, read_geojson
from unet_med.io.objects.imagej_roi import is_roi_zip, read_imagej_rois
from unet_med.io.objects.json_files import read_json

OutlineKind = Literal["imagej-roi", "geojson", "coco"]


def outline_kind(path: Path) -> OutlineKind | None:
    """Returns what kind of outlines a file holds; ``None`` when it holds none, or is damaged."""
    ending = path.suffix.lower()
    try:
        if ending == ".roi":
            return "imagej-roi"
        if ending == ".zip":
            return "imagej-roi" if is_roi_zip(path) else None
        if ending not in OUTLINE_ENDINGS:
            return None
        content = read_json(path)
    except InputRefusedError:
        return None
    return "geojson" if is_geojson(content) else "coco" if is_coco(content) else None


def read_outlines(path: Path, size: tuple[int, int], image_file: str = "") -> DrawnObjects:
    """Reads the objects of one image.

    Args:
        path: ZIP of ImageJ outlines or one ``.roi``, GeoJSON, or COCO.
        size: Columns and rows of the image.
        image_file: Name of the image's file, by which a COCO file of several images knows it.

    Raises:
        InputRefusedError: The file is damaged, holds no outlines, or belongs to an image of another name or size.
    """
    kind = outline_kind(path)
    if kind == "imagej-roi":
        return read_imagej_rois(path, size)
    if kind == "geojson":
        return read_geojson(path, size)
    if kind is None:
        raise InputRefusedError(
            "the file holds no outlines, or is damaged",
            remedy="give a ZIP of ImageJ outlines, a GeoJSON of QuPath or a COCO JSON",
        )
    file = read_coco(path)
    picture = file.pictures[0] if len(file.pictures) == 1 and not image_file else file.picture(image_file)
    if picture.size != size:
        raise InputRefusedError(
            f"the outlines were drawn on a picture of {picture.size[0]} x {picture.size[1]} pixels, and this one has "
            f"{size[0]} x {size[1]}",
            remedy="give the picture on which they were drawn",
        )
    return file.objects(picture)
