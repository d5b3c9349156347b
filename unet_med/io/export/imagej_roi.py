"""Objects as a ZIP of outlines that ImageJ's ROI manager opens, one for each object and plane.

Names are the objects' numbers; the class and the confidence are properties, and the class is the group, too, by which
ImageJ colours.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import roifile

from unet_med.io.export.mask import MaskExport
from unet_med.io.export.pieces import Descriptions, Piece, every_piece, picture_size, same_pieces
from unet_med.io.objects.imagej_roi import each_imagej_roi

_MOST_CORNERS = 2**16 - 1
_MOST_GROUPS = 255


def write(export: MaskExport, path: Path) -> None:
    """Writes a ZIP of outlines along the sides of the pixels."""
    known = Descriptions(export)
    groups = {label.name: label.index for label in export.label_map.labels if label.index <= _MOST_GROUPS}
    names: set[str] = set()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for piece in every_piece(export):
            about = known.of(piece.number, piece.t)
            roi = _outline(piece)
            roi.name = _name(piece, names)
            roi.group = groups.get(about.kind, 0)
            own: dict[str, Any] = {"class": about.kind, "confidence": about.confidence, "label": piece.number}
            roi.properties = {name: value for name, value in own.items() if value not in ("", None)}
            roi.z_position, roi.t_position = (0 if n is None else n + 1 for n in (piece.z, piece.t))
            if (roi.z_position > 0) != (roi.t_position > 0):
                roi.position = max(roi.z_position, roi.t_position)
            file.writestr(f"{roi.name}.roi", roi.tobytes())


def check(path: Path, export: MaskExport) -> dict[str, Any]:
    """Reads every outline again and fills it.

    Raises:
        InputRefusedError: They hold other pixels than the mask.
    """
    return same_pieces(export, each_imagej_roi(path, picture_size(export)), "roifile")


def _name(piece: Piece, names: set[str]) -> str:
    """Returns a name that no other outline has: masks that overlap may share a number."""
    plane = "".join(f"-{letter}{n + 1:04d}" for letter, n in (("t", piece.t), ("z", piece.z)) if n is not None)
    name = first = f"{piece.number:05d}{plane}"
    while name in names:
        name = f"{first}-{len(names)}"
    names.add(name)
    return name


def _outline(piece: Piece) -> roifile.ImagejRoi:
    """Returns a traced outline, or a composite one of an object with holes or in several pieces."""
    rings = [ring for rings in piece.polygons for ring in rings]
    if len(rings) == 1 and len(rings[0]) <= _MOST_CORNERS:
        roi = roifile.ImagejRoi.frompoints(rings[0].astype(np.int32), name="")
        roi.roitype = roifile.ROI_TYPE.TRACED
        return roi
    path = [np.column_stack([np.r_[0, np.ones(len(ring) - 1)], ring]).ravel() for ring in rings]
    numbers = np.concatenate([np.r_[part, 4] for part in path]).astype(np.float32)
    columns, rows = piece.mask.shape
    (left, top), composite = piece.start, roifile.ROI_TYPE.RECT
    return roifile.ImagejRoi(
        roitype=composite,
        left=left,
        top=top,
        right=left + columns,
        bottom=top + rows,
        shape_roi_size=len(numbers),
        multi_coordinates=numbers,
    )
