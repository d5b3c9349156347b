"""Speed and memory of measuring objects, and of writing them in the formats of other programs.

A picture full of round objects is measured, as a file that is mapped and with two channels; a corner of it is measured
by scikit-image, too, and written in every format that lists objects. The bar: faster than scikit-image.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import markdown, processor
from skimage.measure import regionprops_table

from unet_med.geometry import Geometry
from unet_med.instances.measure import measure_objects
from unet_med.io.export.formats import FORMATS
from unet_med.io.export.mask import MaskExport
from unet_med.io.mapped import let_go, mapped
from unet_med.labels import LabelMap
from unet_med.volume import ArraySource, Volume

CELL = 25
CORNER = 1000
CELLS = LabelMap.from_names({"cell": 1}, objects=True)
PROPERTIES = ("area", "centroid", "axis_major_length", "axis_minor_length", "orientation", "perimeter", "solidity")
PROPERTIES += ("intensity_mean", "intensity_min", "intensity_max", "intensity_std")


def draw(labels: np.ndarray) -> None:
    """One ellipse in each square of CELL pixels."""
    x, y = np.indices((CELL, CELL)) - (CELL - 1) / 2
    inside = (x / 10) ** 2 + (y / 8) ** 2 < 1
    per_row = labels.shape[1] // CELL
    for row in range(labels.shape[0] // CELL):
        numbers = row * per_row + 1 + np.arange(per_row, dtype=labels.dtype)
        labels[row * CELL : (row + 1) * CELL] = np.repeat(numbers, CELL) * np.tile(inside, (1, per_row))
        let_go(labels)


def seconds(work: object) -> float:
    """Time of the processor that a call takes."""
    began = time.process_time()
    work()  # type: ignore[operator]
    return time.process_time() - began


def megabytes() -> float:
    """The most memory that this process had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    """Prints two tables; 1 when scikit-image is faster."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=10_000, help="pixels")
    side = parser.parse_args().side // CELL * CELL
    with tempfile.TemporaryDirectory() as name:
        labels = mapped(Path(name) / "labels.npy", (side, side), np.uint32)
        image = np.broadcast_to(np.arange(side, dtype=np.uint16), (2, side, side))
        draw(labels)
        objects, before = (side // CELL) ** 2, megabytes()
        whole = seconds(lambda: measure_objects(labels, Geometry(labels.shape), image=image))
        grown = megabytes() - before
        corner, picture = np.array(labels[:CORNER, :CORNER]), np.array(image[:, :CORNER, :CORNER])
        number = int(np.count_nonzero(np.unique(corner)))
        theirs = seconds(lambda: regionprops_table(corner, picture[0], properties=PROPERTIES))
        ours = seconds(lambda: measure_objects(corner, Geometry(corner.shape), image=picture))
        rows = [
            [f"{side} x {side}, {objects} objects", f"{objects / whole:.0f}", f"{grown:.0f}"],
            [f"{CORNER} x {CORNER}, {number} objects", f"{number / ours:.0f}", ""],
            ["the same by scikit-image", f"{number / theirs:.0f}", ""],
        ]
        sys.stdout.write(f"{processor()}\n\n{markdown(['measured', 'objects per second', 'MB more'], rows)}\n\n")
        geometry = Geometry(corner.shape)
        source = ArraySource("corner", Volume(picture, geometry))
        export = MaskExport(source, corner, CELLS, objects=measure_objects(corner, geometry, names=CELLS.names))
        rows = []
        for one in (FORMATS[name] for name in ("geojson", "imagej-roi", "coco")):
            path = Path(name) / f"mask{one.ending}"
            spent = seconds(lambda one=one, path=path: one.write(export, path))
            checked = seconds(lambda one=one, path=path: one.check(path, export))
            rows.append([one.name, *(f"{number / value:.0f}" for value in (spent, checked))])
        sys.stdout.write(markdown(["objects per second", "written", "read back"], rows) + "\n")
    return int(ours > theirs)


if __name__ == "__main__":
    sys.exit(main())
