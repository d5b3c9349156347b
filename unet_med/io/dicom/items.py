"""What the readers of DICOM annotations share: a data set of any state, its items, and names that may be printed."""

from __future__ import annotations

import math
import re
import struct
import unicodedata
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError

from unet_med.errors import InputRefusedError
from unet_med.identity import keyed_hash, safe_name
from unet_med.io.reading import refusing

EXPORT_AGAIN = "export the annotation again from the program that made it"
COPY_AGAIN = "copy the file again from its origin"

_FAULTS: tuple[type[Exception], ...] = (
    *(AttributeError, AssertionError, LookupError, BytesLengthException, InvalidDicomError, struct.error, zlib.error),
)
UNNAMED = "unnamed_"
"""Begins what stands for the name of a segment that has none."""

_PERSONAL = ("PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "OtherPatientIDs")
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


def printable_name(name: str, number: int, dataset: Dataset) -> str:
    """Returns the name of a segment in letters, digits, ``.``, ``_`` and ``-``, the same for the same name.

    A name in other letters keeps what can be printed and gets a keyed hash; one that holds a part of the patient's
    name or numbers is nothing but a keyed hash. Without a name it is ``unnamed_`` and its number.
    """
    given = unicodedata.normalize("NFC", name).strip()
    if not given:
        return f"{UNNAMED}{number}"
    cleaned = safe_name(given)[:_LONGEST_NAME].strip("._")
    hidden = f"name-{keyed_hash(given.casefold())}"
    told = cleaned.lower()
    secrets = [text(dataset, keyword) for keyword in _PERSONAL]
    parts = [part.lower() for secret in secrets for part in re.split(r"[^A-Za-z0-9]+", secret)]
    if any(len(part) >= _SHORTEST_SECRET and part in told for part in parts):
        return hidden
    if all(one.isascii() or not one.isalnum() for one in given):
        return cleaned if cleaned and cleaned != "unnamed" else hidden
    return f"{cleaned}-{keyed_hash(given.casefold())}" if cleaned and cleaned != "unnamed" else hidden


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


def no_value(what: str, number: int, name: str, where: str) -> InputRefusedError:
    """Returns the refusal of a segment or region of which nobody said which label it is."""
    return InputRefusedError(
        f"{what} {number} ({name}) is no label that is known",
        where,
        "name it with --label-names VALUE=NAME, or leave it out with 0=NAME, and make the manifest again",
    )
