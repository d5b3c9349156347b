"""What is written of the objects of an image beside their label image: tables, and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from unet_med.inference.large import thinned
from unet_med.inference.objects import Truth
from unet_med.instances.decode import Objects
from unet_med.instances.measure import measure_objects
from unet_med.io.objects.table import ObjectTable, joined, write_table
from unet_med.labels import LabelMap
from unet_med.overlays import Picture, object_preview
from unet_med.volume import Volume

TABLES = "objects"
"""Folder of an output folder for tables with a row for each object."""
_ENDINGS = (".csv", ".parquet")


def table_of(objects: Objects, volume: Volume, channels: Sequence[str], labels: LabelMap) -> ObjectTable:
    """Measures objects on the image that they were found in.

    Args:
        objects: On the grid of the image.
        volume: The image, perhaps not in memory.
        channels: Names of its channels.
        labels: The classes of objects.
    """
    return measure_objects(
        objects.labels,
        volume.geometry,
        image=volume.array,
        channels=channels,
        classes=objects.classes,
        names=labels.names,
        confidence=objects.confidence,
    )


def table_of_frames(tables: Sequence[ObjectTable]) -> ObjectTable:
    """Returns one table; that of a movie has a column for the frame, its position in the mask."""
    return tables[0] if len(tables) == 1 else joined(tables, frame=list(range(len(tables))))


def write_tables(table: ObjectTable, folder: Path, name: str) -> list[Path]:
    """Writes a table as CSV and Parquet below an output folder; returns the files.

    Raises:
        MachineError: The disk is full.
    """
    return [write_table(table, folder / TABLES / f"{name}{ending}") for ending in _ENDINGS]


def picture_of(objects: Objects, volume: Volume, labels: LabelMap, truth: Truth | None = None) -> Picture:
    """Draws objects on their image, and the true ones beside them; of a large image every n-th voxel."""
    shape, known = volume.geometry.shape, None if truth is None else truth.objects
    labels = replace(labels, ignored=None)  # an object may have this number
    return object_preview(
        thinned(volume.array, shape),
        thinned(objects.labels, shape),
        volume.geometry.spacing_mm,
        labels,
        dict(enumerate(objects.classes.tolist(), start=1)),
        None if known is None else thinned(known, shape),
        None if truth is None else truth.kinds(),
        volume.geometry.orientation,
    )
