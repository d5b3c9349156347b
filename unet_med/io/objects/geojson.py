"""GeoJSON in: outlines as QuPath exports them, in pixels of the full resolution, with a class for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unet_med.errors import InputRefusedError
from unet_med.io.objects.drawn import Collected, DrawnObject, DrawnObjects
from unet_med.io.objects.json_files import confidence_in, read_json, whole_number
from unet_med.io.reading import refusing

_SPREADS = {"Polygon": 1, "MultiPolygon": 2}
"""Kinds of geometry that have an area, and how deeply their rings lie."""

_EXPORT_AGAIN = "export the objects of one picture from QuPath as GeoJSON (FeatureCollection)"


def is_geojson(content: Any) -> bool:
    """Whether the content of a JSON file is what :func:`read_geojson` takes."""
    if isinstance(content, list):
        return bool(content) and all(isinstance(one, Mapping) and one.get("type") == "Feature" for one in content)
    kinds = ("FeatureCollection", "Feature", "GeometryCollection", *_SPREADS)
    return isinstance(content, Mapping) and content.get("type") in kinds


def read_geojson(path: Path, size: tuple[int, int]) -> DrawnObjects:
    """Reads the objects of one picture.

    Of a cell that has an outline and a nucleus the outline is taken. Points and lines have no area and are left out.

    Args:
        path: A FeatureCollection, a list of features, one feature or a bare geometry.
        size: Columns and rows of the picture.

    Raises:
        InputRefusedError: The file is damaged or is no such file.
    """
    content = read_json(path)
    if not is_geojson(content):
        raise InputRefusedError("the file is no GeoJSON", remedy=_EXPORT_AGAIN)
    found = Collected(size)
    with refusing("an outline in the file is damaged", "", _EXPORT_AGAIN):
        for feature in _features(content):
            _add(feature, found)
    return found.done()


def object_of(feature: Mapping[str, Any], size: tuple[int, int]) -> DrawnObject | None:
    """Returns the object of one feature; ``None`` when it has no pixel in the picture."""
    found = Collected(size)
    _add(feature, found)
    return found.objects[0] if found.objects else None


def _features(content: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(content, list):
        yield from content
    elif content["type"] == "FeatureCollection":
        features = content.get("features")
        if not isinstance(features, list) or not all(isinstance(one, Mapping) for one in features):
            raise InputRefusedError("the file is no GeoJSON: its features are no list", remedy=_EXPORT_AGAIN)
        yield from features
    elif content["type"] == "Feature":
        yield content
    else:
        yield {"geometry": content}


def _add(feature: Mapping[str, Any], found: Collected) -> None:
    geometry, properties = feature.get("geometry"), feature.get("properties")
    properties = properties if isinstance(properties, Mapping) else {}
    polygons = list(_polygons(geometry, found))
    if not polygons:
        return
    if "nucleusGeometry" in feature:
        found.notes["cells with a nucleus: the outline of the cell is taken"] += 1
    plane = geometry.get("plane") if isinstance(geometry, Mapping) else None
    plane = plane if isinstance(plane, Mapping) else {}
    measurements = properties.get("measurements")
    measurements = measurements if isinstance(measurements, Mapping) else {}
    name = properties.get("name")
    found.add(
        polygons,
        kind=_kind(properties.get("classification")),
        name=name if isinstance(name, str) else "",
        number=whole_number(measurements.get("label")),
        z=whole_number(plane.get("z")),
        t=whole_number(plane.get("t")),
        confidence=confidence_in(measurements.get("confidence")),
    )


def _polygons(geometry: Any, found: Collected) -> Iterator[list[Any]]:
    """Yields the polygons of a geometry, each a list of rings."""
    kind = geometry.get("type") if isinstance(geometry, Mapping) else None
    if kind == "GeometryCollection":
        for part in geometry.get("geometries") or ():
            yield from _polygons(part, found)
    elif kind in _SPREADS:
        coordinates = geometry.get("coordinates")
        for rings in coordinates if kind == "MultiPolygon" else [coordinates]:
            yield [[point[:2] for point in ring] for ring in rings]
    else:
        found.notes["points, lines and features without a place are left out"] += 1


def _kind(classification: Any) -> str:
    """Returns the name of a class; the parts of a derived one are joined as QuPath shows them."""
    if isinstance(classification, str):
        return classification
    if not isinstance(classification, Mapping):
        return ""
    name = classification.get("name")
    names = classification.get("names")
    if isinstance(name, str):
        return name
    return ": ".join(str(part) for part in names) if isinstance(names, list) else ""
