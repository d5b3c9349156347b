"""Objects as GeoJSON that QuPath opens: closed rings in pixels of the full resolution, classes, measurements."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unet_med.errors import InputRefusedError
from unet_med.io.export.mask import MaskExport
from unet_med.io.export.pieces import Descriptions, Piece, every_piece, picture_size, same_pieces
from unet_med.io.objects.drawn import DrawnObject
from unet_med.io.objects.geojson import object_of
from unet_med.io.objects.outlines import Ring

_OPENING = '{"type":"FeatureCollection","features":[\n'
_CLOSING = "\n]}\n"


def write(export: MaskExport, path: Path) -> None:
    """Writes one feature in each line: objects as detections, regions of a semantic mask as annotations."""
    known = Descriptions(export)
    with path.open("w", encoding="utf-8") as file:
        file.write(_OPENING)
        for count, piece in enumerate(every_piece(export)):
            file.write((",\n" if count else "") + json.dumps(_feature(piece, known, export), separators=(",", ":")))
        file.write(_CLOSING)


def check(path: Path, export: MaskExport) -> dict[str, Any]:
    """Reads every feature again and fills its outlines.

    Raises:
        InputRefusedError: They hold other pixels than the mask.
    """
    return same_pieces(export, _read(path, export), "json")


def _read(path: Path, export: MaskExport) -> Iterator[DrawnObject]:
    with path.open(encoding="utf-8") as file:
        next(file)
        for line in file:
            if line.startswith("{"):
                found = object_of(json.loads(line.rstrip(",\n")), picture_size(export))
                if found is None:
                    raise InputRefusedError("an outline is empty", export.source.id, "report this")
                yield found


def _feature(piece: Piece, known: Descriptions, export: MaskExport) -> dict[str, Any]:
    about = known.of(piece.number, piece.t)
    polygons = [[_closed(ring) for ring in rings] for rings in piece.polygons]
    geometry: dict[str, Any] = {"type": "Polygon", "coordinates": polygons[0]}
    if len(polygons) > 1:
        geometry = {"type": "MultiPolygon", "coordinates": polygons}
    if piece.z is not None or piece.t is not None:
        geometry["plane"] = {"c": -1, "z": piece.z or 0, "t": piece.t or 0}
    properties: dict[str, Any] = {"objectType": "annotation" if export.objects is None else "detection"}
    if about.kind:
        properties["classification"] = {"name": about.kind, "color": list(about.colour)}
    properties["measurements"] = {"label": piece.number, **about.measures}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def _closed(ring: Ring) -> list[list[int]]:
    corners: list[list[int]] = ring.tolist()
    return [*corners, corners[0]]
