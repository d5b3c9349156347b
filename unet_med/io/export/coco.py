"""Objects as COCO instance segmentation: masks as run lengths, so that overlapping ones keep all their pixels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from unet_med.errors import InputRefusedError
from unet_med.io.export.mask import MaskExport
from unet_med.io.export.pieces import Descriptions, Piece, image_name, picture_size, pieces, planes, same_pieces
from unet_med.io.export.sidecars import RESEARCH_ONLY
from unet_med.io.objects.drawn import Collected, DrawnObject
from unet_med.io.objects.runs import mask_of_runs, packed, run_lengths, unpacked
from unet_med.version import __version__

_BEGIN = '"annotations":[\n'


def write(export: MaskExport, path: Path) -> None:
    """Writes one image for each plane and one annotation in each line; ``object`` is the number in the label image."""
    known = Descriptions(export)
    kinds = {label.name: label.index for label in export.label_map.labels}
    with path.open("w", encoding="utf-8") as file:
        file.write(_header(export) + _BEGIN)
        count = 0
        for image, plane in enumerate(planes(export), start=1):
            for piece in pieces(export, plane, outlined=False):
                count += 1
                about = known.of(piece.number, piece.t)
                one: dict[str, Any] = {
                    "id": count,
                    "image_id": image,
                    "category_id": kinds.get(about.kind, 0),
                    "iscrowd": 0,
                }
                one |= {} if about.confidence is None else {"score": about.confidence}
                text = json.dumps(one | _drawn(piece, export), separators=(",", ":"))
                file.write((",\n" if count > 1 else "") + text)
        file.write("\n]}\n")


def check(path: Path, export: MaskExport) -> dict[str, Any]:
    """Reads every annotation again.

    Raises:
        InputRefusedError: They hold other pixels than the mask.
    """
    return same_pieces(export, _read(path, export), "json")


def _header(export: MaskExport) -> str:
    """Returns the beginning of the file, up to its annotations."""
    name, (columns, rows) = PurePath(image_name(export)), picture_size(export)
    images = [
        {
            "id": number,
            "file_name": f"{name.stem}{plane.ending}{name.suffix}" if plane.ending else name.name,
            "width": columns,
            "height": rows,
            **({} if plane.t is None else {"frame": plane.t}),
            **({} if plane.z is None else {"slice": plane.z}),
        }
        for number, plane in enumerate(planes(export), start=1)
    ]
    content = {
        "info": {"description": RESEARCH_ONLY, "version": __version__, "contributor": "unet-med"},
        "licenses": [],
        "categories": [{"id": one.index, "name": one.name, "supercategory": ""} for one in export.label_map.labels],
        "images": images,
    }
    return json.dumps(content, separators=(",", ":"))[:-1] + ","


def _drawn(piece: Piece, export: MaskExport) -> dict[str, Any]:
    (columns, rows), (left, top) = picture_size(export), piece.start
    counts = packed(run_lengths(piece.mask, piece.start, (columns, rows)))
    return {
        "object": piece.number,
        "area": int(piece.mask.sum()),
        "bbox": [left, top, *piece.mask.shape],
        "segmentation": {"size": [rows, columns], "counts": counts},
    }


def _read(path: Path, export: MaskExport) -> Iterator[DrawnObject]:
    places = [(plane.t, plane.z) for plane in planes(export)]
    size = picture_size(export)
    with path.open(encoding="utf-8") as file:
        for line in file:
            if not line.startswith('{"id"'):
                continue
            one = json.loads(line.rstrip(",\n"))
            t, z = places[one["image_id"] - 1]
            found = Collected(size)
            found.place(
                mask_of_runs(unpacked(one["segmentation"]["counts"]), found.size), number=one["object"], t=t, z=z
            )
            if not found.objects:
                raise InputRefusedError("a mask is empty", export.source.id, "report this")
            yield found.objects[0]
