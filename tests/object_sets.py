"""Small sets of objects as microscopists have them: label images, a mask for each object, outlines of other tools."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import roifile
import tifffile
from PIL import Image

Objects = npt.NDArray[np.integer[Any]]

BOXES = {1: (2, 3, 7, 9), 2: (10, 2, 16, 8), 3: (5, 14, 12, 20)}
"""Objects of the pictures here: number -> first row, first column, rows and columns behind the last."""

SHAPE = (24, 30)


def squares(boxes: Mapping[int, tuple[int, int, int, int]] = BOXES, shape: tuple[int, int] = SHAPE) -> Objects:
    """Rectangular objects (rows, columns)."""
    objects = np.zeros(shape, np.uint16)
    for number, (top, left, bottom, right) in boxes.items():
        objects[top:bottom, left:right] = number
    return objects


def picture_of(objects: Objects, seed: int = 0) -> npt.NDArray[np.uint8]:
    """A picture in which the objects are bright."""
    noise = np.random.default_rng(seed).normal(0, 4, objects.shape)
    return np.clip(40 + 120 * (objects > 0) + noise, 0, 255).astype(np.uint8)


def save(path: Path, values: npt.NDArray[Any]) -> Path:
    """Writes a TIFF, PNG or JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        photometric = "rgb" if values.ndim == 3 and values.shape[-1] == 3 else "minisblack"
        tifffile.imwrite(path, values, photometric=photometric)
    else:
        Image.fromarray(values).save(path)
    return path


def write_image(folder: Path, name: str, objects: Objects, seed: int = 0) -> Path:
    """Writes ``folder/images/NAME.tif``."""
    return save(folder / f"images/{name}.tif", picture_of(objects, seed))


def write_masks(folder: Path, objects: Objects) -> None:
    """Writes one mask (0 and 255) for each object, as PNG."""
    for number in np.unique(objects[objects > 0]).tolist():
        save(folder / f"object{number:03d}.png", np.uint8(255) * (objects == number))


def write_bowl(folder: Path, sets: Mapping[str, Objects]) -> Path:
    """Writes pictures and masks as the Data Science Bowl 2018 does: ``ID/images/ID.png`` and ``ID/masks/*.png``."""
    for number, (name, objects) in enumerate(sets.items()):
        save(folder / name / f"images/{name}.png", picture_of(objects, number))
        write_masks(folder / name / "masks", objects)
    return folder


def ring(box: tuple[int, int, int, int]) -> list[list[float]]:
    """The outline of a box, x and y in pixels from the picture's corner, closed."""
    top, left, bottom, right = map(float, box)
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def write_geojson(path: Path, boxes: Mapping[int, tuple[int, int, int, int]], kinds: Mapping[int, str] = {}) -> Path:
    """Writes outlines as QuPath does."""
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring(box)]},
            "properties": {"objectType": "detection"}
            | ({"classification": {"name": kinds[number]}} if number in kinds else {}),
        }
        for number, box in boxes.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}), encoding="utf-8")
    return path


def write_rois(path: Path, boxes: Mapping[int, tuple[int, int, int, int]]) -> Path:
    """Writes outlines as ImageJ's ROI manager does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rois = [
        roifile.ImagejRoi.frompoints(np.array(ring(box)[:-1]), name=f"cell-{number}") for number, box in boxes.items()
    ]
    roifile.roiwrite(path, rois, mode="w")
    return path


def write_coco(path: Path, files: Mapping[str, Mapping[int, tuple[int, int, int, int]]], crowds: int = 0) -> Path:
    """Writes the objects of several pictures as polygons; the last ``crowds`` of each are crowds."""
    images, annotations = [], []
    for image_id, (name, boxes) in enumerate(files.items(), start=1):
        images.append({"id": image_id, "file_name": name, "width": SHAPE[1], "height": SHAPE[0]})
        for place, (number, box) in enumerate(boxes.items()):
            outline = [coordinate for point in ring(box)[:-1] for coordinate in point]
            annotations.append(
                {
                    "id": 100 * image_id + number,
                    "image_id": image_id,
                    "category_id": 1 + number % 2,
                    "iscrowd": int(place >= len(boxes) - crowds),
                    "segmentation": [outline],
                }
            )
    kinds = [{"id": 1, "name": "even"}, {"id": 2, "name": "odd"}]
    content = {"images": images, "annotations": annotations, "categories": kinds}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
