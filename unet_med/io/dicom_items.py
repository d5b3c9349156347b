"""What the readers of DICOM annotations share: a data set of any state, its items, and names that may be printed."""

from __future__ import annotations

import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from unet_med.errors import InputRefusedError
from unet_med.identity import safe_name
from unet_med.io.reading import refusing

EXPORT_AGAIN = "export the annotation again from the program that made it"
COPY_AGAIN = "copy the file again from its origin"

_FAULTS: tuple[type[Exception], ...] = (
    *(AttributeError, AssertionError, LookupError, InvalidDicomError, struct.error, zlib.error),
)
_LONGEST_NAME = 64
_SHORTEST_SECRET = 3


@contextmanager
def reading(what: str, where: str = "") -> Iterator[None]:
    """Turns whatever a malformed file makes pydicom raise into :class:`InputRefusedError`; its warnings are silent.

    Warnings and error texts of pydicom may quote values of the header.
    """
    with warnings.catch_warnings(), refusing(what, where, COPY_AGAIN, *_FAULTS):
        warnings.simplefilter("ignore")
        yield


def read_dataset(path: Path, *, pixels: bool = False) -> Dataset:
    """Returns the data set of a file; one that claims giant values is read no further than it goes."""
    return dcmread(BytesIO(path.read_bytes()), force=True, stop_before_pixels=not pixels)


def items(dataset: Dataset | None, keyword: str) -> list[Dataset]:
    """Returns the items of a sequence; none where it is absent or empty."""
    value = None if dataset is None else dataset.get(keyword)
    return [] if value is None else list(value)


def first(dataset: Dataset | None, keyword: str) -> Dataset | None:
    """Returns the first item of a sequence, if there is one."""
    found = items(dataset, keyword)
    return found[0] if found else None


def text(dataset: Dataset | None, keyword: str) -> str:
    """Returns a value as text; empty where it is absent."""
    value = None if dataset is None else dataset.get(keyword)
    return "" if value is None else str(value).strip(" \0")


def whole_number(dataset: Dataset | None, keyword: str) -> int | None:
    """Returns a value as a whole number; ``None`` where it is absent."""
    value = None if dataset is None else dataset.get(keyword)
    return None if value is None or value == "" else int(value)


def numbers(dataset: Dataset | None, keyword: str, count: int) -> tuple[float, ...] | None:
    """Returns ``count`` finite numbers; ``None`` where they are absent or others."""
    value: Any = None if dataset is None else dataset.get(keyword)
    if value is None or isinstance(value, (str, bytes)) or len(value) != count:
        return None
    found = tuple(float(one) for one in value)
    return found if all(map(math.isfinite, found)) else None


def unit_vectors(orientation: tuple[float, ...]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the directions of a row and of a column (ImageOrientationPatient) with length 1.

    Raises:
        InputRefusedError: They are no two perpendicular directions.
    """
    row, column = orientation[:3], orientation[3:]
    lengths = math.hypot(*row), math.hypot(*column)
    if (
        min(lengths) < 1e-6
        or abs(sum(a * b for a, b in zip(row, column, strict=True))) > 1e-3 * lengths[0] * lengths[1]
    ):
        raise InputRefusedError("the directions of its rows and columns are not perpendicular", remedy=EXPORT_AGAIN)
    return tuple(v / lengths[0] for v in row), tuple(v / lengths[1] for v in column)


def printable_name(name: str, fallback: str, dataset: Dataset) -> str:
    """Returns the name of a segment in letters, digits, ``.``, ``_`` and ``-``.

    A name that holds a part of the patient's name or number becomes ``fallback``.
    """
    secrets = [
        text(dataset, keyword) for keyword in ("PatientName", "PatientID", "AccessionNumber", "PatientBirthDate")
    ]
    parts = [part.lower() for secret in secrets for part in safe_name(secret).replace("_", " ").split()]
    cleaned = safe_name(name)[:_LONGEST_NAME].strip("._") if name.strip() else ""
    told = cleaned.lower()
    if not cleaned or cleaned == "unnamed":
        return fallback
    known = [part for part in parts if len(part) >= _SHORTEST_SECRET and part != "unnamed"]
    return fallback if any(part in told for part in known) else cleaned


def code_of(item: Dataset | None) -> str:
    """Returns ``scheme:value`` of a coded term, old SNOMED codes in their present form; empty where there is none."""
    scheme = text(item, "CodingSchemeDesignator")
    value = text(item, "CodeValue") or text(item, "LongCodeValue")
    if not scheme or not value:
        return ""
    if scheme in ("SRT", "SNM3"):
        from pydicom.sr._snomed_dict import mapping

        return f"SCT:{mapping['SRT'][value]}" if value in mapping["SRT"] else f"SRT:{value}"
    return f"{scheme}:{value}"
