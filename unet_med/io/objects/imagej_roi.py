"""ImageJ's outlines in: one ``.roi`` or a ZIP of them, as its ROI manager saves them.

Polygons, freehand and traced outlines, rectangles, ellipses and composites have an area; lines, angles, points and
texts have none and are left out. Rounded corners are read as right angles, and a spline by its corners.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path, PurePosixPath

import numpy as np
import roifile

from unet_med.errors import InputRefusedError
from unet_med.io.objects.drawn import Collected, DrawnObject, DrawnObjects
from unet_med.io.objects.json_files import confidence_in, whole_number
from unet_med.io.polygons import FloatArray
from unet_med.io.reading import COPY_FILE_AGAIN, refusing

_DAMAGED = "the file of ImageJ outlines is damaged or truncated"
_MOST_OUTLINES = 2_000_000
_MOST_BYTES = 2**26
"""Of one outline: a polygon of eight million corners."""

_CORNERS = 360
"""Of an ellipse: it is less than a ten-thousandth smaller in radius than it should be."""

_PIECES_OF_CURVE = 16
_POLYGONS = (roifile.ROI_TYPE.POLYGON, roifile.ROI_TYPE.FREEHAND, roifile.ROI_TYPE.TRACED)
_POINTS_OF_COMMAND = {0: 1, 1: 1, 2: 2, 3: 3, 4: 0}
"""Commands of a composite: move, line, quadratic and cubic curve, close."""


def is_roi_zip(path: Path) -> bool:
    """Whether a file is a ZIP in which ImageJ outlines lie."""
    if not zipfile.is_zipfile(path):
        return False
    with refusing(_DAMAGED, "", COPY_FILE_AGAIN, zipfile.BadZipFile), zipfile.ZipFile(path) as file:
        return any(_is_outline(name) for name in file.namelist())


def read_imagej_rois(path: Path, size: tuple[int, int]) -> DrawnObjects:
    """Reads the outlines of one picture or stack, those of a ZIP in its order.

    Args:
        path: ``.roi`` or ``.zip``.
        size: Columns and rows of the picture.

    Raises:
        InputRefusedError: The file is damaged.
    """
    found = Collected(size)
    with refusing(_DAMAGED, "", COPY_FILE_AGAIN, zipfile.BadZipFile, struct.error, zipfile.LargeZipFile):
        for data in _outlines(path):
            _add(roifile.ImagejRoi.frombytes(data), found)
    return found.done()


def each_imagej_roi(path: Path, size: tuple[int, int]) -> Iterator[DrawnObject]:
    """Yields the outlines one by one, as :func:`read_imagej_rois` reads them; the file is one of this package."""
    for data in _outlines(path):
        found = Collected(size)
        _add(roifile.ImagejRoi.frombytes(data), found)
        yield from found.objects


def _is_outline(name: str) -> bool:
    return name.lower().endswith(".roi") and not PurePosixPath(name).name.startswith("._")


def _outlines(path: Path) -> Iterator[bytes]:
    if not zipfile.is_zipfile(path):
        yield path.read_bytes()
        return
    with zipfile.ZipFile(path) as file:
        entries = [entry for entry in file.infolist() if _is_outline(entry.filename)]
        if len(entries) > _MOST_OUTLINES or any(entry.file_size > _MOST_BYTES for entry in entries):
            raise InputRefusedError(
                "the ZIP of outlines is absurdly large", remedy="save the outlines of each picture into their own file"
            )
        yield from (file.read(entry) for entry in entries)


def _add(roi: roifile.ImagejRoi, found: Collected) -> None:
    rings = _rings(roi)
    if not rings:
        found.notes["lines, points and texts are left out"] += 1
        return
    if roi.roitype == roifile.ROI_TYPE.RECT and not roi.composite and roi.rounded_rect_arc_size:
        found.notes["rounded rectangles are read with right angles"] += 1
    if roi.options & roifile.ROI_OPTIONS.SPLINE_FIT:
        found.notes["splines are read by their corners"] += 1
    own = roi.properties
    kind = own.get("class", f"group {roi.group}" if roi.group > 0 else "")
    found.add(
        [rings],
        kind=str(kind),
        name=roi.name,
        number=whole_number(own.get("label")),
        z=_from_zero(roi.z_position),
        t=_from_zero(roi.t_position),
        position=_from_zero(roi.position),
        confidence=confidence_in(own.get("confidence")),
    )


def _from_zero(position: int) -> int | None:
    return position - 1 if position > 0 else None


def _rings(roi: roifile.ImagejRoi) -> list[FloatArray]:
    """Returns the closed lines of an outline, x and y; none for what has no area."""
    left, top, right, bottom = (float(n) for n in (roi.left, roi.top, roi.right, roi.bottom))
    if roi.subpixelrect:
        left, top, right, bottom = roi.xd, roi.yd, roi.xd + roi.widthd, roi.yd + roi.heightd
    if roi.subtype in (roifile.ROI_SUBTYPE.TEXT, roifile.ROI_SUBTYPE.ARROW, roifile.ROI_SUBTYPE.IMAGE):
        return []
    if roi.composite:
        return _path(np.asarray(roi.multi_coordinates, dtype=np.float64))
    if roi.roitype == roifile.ROI_TYPE.RECT:
        return [np.array([[left, top], [right, top], [right, bottom], [left, bottom]])]
    if roi.roitype == roifile.ROI_TYPE.OVAL:
        middle, half = np.array([left + right, top + bottom]) / 2, np.array([right - left, bottom - top]) / 2
        return [_ellipse(middle, np.diag(half))]
    if roi.roitype not in _POLYGONS:
        return []
    if roi.subtype == roifile.ROI_SUBTYPE.ELLIPSE:
        return [_drawn_ellipse(roi)]
    return [np.asarray(roi.coordinates(), dtype=np.float64)]


def _drawn_ellipse(roi: roifile.ImagejRoi) -> FloatArray:
    """Returns an ellipse that is stored as the ends of its long axis and the ratio of its axes."""
    layout = roi.byteorder + "BBh"
    parts = (roi.arrow_style_or_aspect_ratio, roi.arrow_head_size, roi.rounded_rect_arc_size)
    (ratio,) = struct.unpack(roi.byteorder + "f", struct.pack(layout, *parts))
    ends = np.array([[roi.x1, roi.y1], [roi.x2, roi.y2]])
    long = (ends[1] - ends[0]) / 2
    return _ellipse(ends.mean(axis=0), np.stack([long, ratio * np.array([-long[1], long[0]])]))


def _ellipse(middle: FloatArray, half_axes: FloatArray) -> FloatArray:
    angles = np.linspace(0.0, 2.0 * np.pi, _CORNERS, endpoint=False)
    return np.asarray(middle + np.stack([np.cos(angles), np.sin(angles)], axis=1) @ half_axes, dtype=np.float64)


def _path(numbers: FloatArray) -> list[FloatArray]:
    """Returns the closed lines of a composite outline; curves become short lines."""
    rings: list[list[FloatArray]] = []
    place = 0
    while place < len(numbers):
        command = int(numbers[place])
        count = _POINTS_OF_COMMAND[command]
        points = numbers[place + 1 : place + 1 + 2 * count].reshape(count, 2)
        if command == 0:
            rings.append([points])
        elif command != 4:
            rings[-1].append(_curve(np.concatenate([rings[-1][-1][-1:], points])))
        place += 1 + 2 * count
    return [np.concatenate(ring) for ring in rings]


def _curve(points: FloatArray) -> FloatArray:
    """Returns a line, quadratic or cubic Bezier curve without its first point, by de Casteljau's construction."""
    steps = np.linspace(0.0, 1.0, 1 if len(points) == 2 else _PIECES_OF_CURVE, endpoint=False)[:, np.newaxis]
    steps = 1.0 - steps[::-1]
    level = [np.broadcast_to(point, (len(steps), 2)) for point in points]
    while len(level) > 1:
        level = [a + steps * (b - a) for a, b in pairwise(level)]
    return np.asarray(level[0])
