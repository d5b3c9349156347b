"""Classes of the objects of label images: from the tables that ``unet-med predict`` writes, or from one for all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from unet_med.errors import InputRefusedError
from unet_med.identity import stem_of
from unet_med.inference.object_files import TABLES
from unet_med.io.source import SourceRef
from unet_med.manifest.object_classes import ClassNames
from unet_med.manifest.tables import read_rows

Kinds = Mapping[int, str]
"""Number of an object -> name of its class."""


def classes_beside(ref: SourceRef, frame: int) -> Kinds | None:
    """Returns the classes that a table beside a label image gives its objects; ``None`` where none does.

    Args:
        ref: The label image, ``OUT/NAME.tif`` or ``OUT/masks/NAME.tif``; its table is ``OUT/objects/NAME.csv``.
        frame: Of a movie.

    Raises:
        InputRefusedError: The table is damaged.
    """
    path = _table_of(ref.files[0])
    if path is None:
        return None
    try:
        rows = [row for row in read_rows(path, TABLES) if int(row.get("frame") or frame) == frame]
        kinds = {int(row["label"]): row["class"] for row in rows}
    except (KeyError, ValueError, TypeError) as error:
        raise InputRefusedError(
            "the table of its objects has no columns label and class, or a number in it is none",
            ref.id,
            f"remove {TABLES}/NAME.csv, or write it anew with `unet-med predict`",
        ) from error
    return kinds if all(kinds.values()) else None


def _table_of(image: Path) -> Path | None:
    name = f"{stem_of(image)}.csv"
    places = (image.parent / TABLES / name, image.parent.parent / TABLES / name)
    return next((path for path in places if path.is_file()), None)


def listed_classes(listed: ClassNames, case: str, name: str) -> Kinds | None:
    """Returns the classes that a table for all images lists of one of them; ``None`` where it lists none.

    Args:
        listed: The table.
        case: What it calls an image.
        name: The same with the frame, which counts where it is listed.
    """
    return listed.get(name) or listed.get(case)
