"""Tables of objects, one row for each: CSV for people, Parquet for programs."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.io.atomic import whole_file

Column = npt.NDArray[Any]

_DIGITS = 7
"""Significant digits in CSV."""

_WITHOUT_MEASURE = ("frame", "label", "class")


@dataclass(frozen=True, eq=False)
class ObjectTable:
    """One row for each object.

    Attributes:
        columns: Name to values (n,): ``label`` (its number in the label image), ``class`` (text), ``confidence``, then
            what was measured; a movie has ``frame``, too. A value that does not exist is NaN.
    """

    columns: Mapping[str, Column]

    def __len__(self) -> int:
        return len(self.columns["label"])

    def of_frame(self, frame: int) -> ObjectTable:
        """Returns the rows of one frame; all of them where the table knows of no frames."""
        if "frame" not in self.columns:
            return self
        chosen = self.columns["frame"] == frame
        return ObjectTable({name: column[chosen] for name, column in self.columns.items()})

    def row(self, place: int) -> dict[str, Any]:
        """Returns one row as plain values: ``None`` for what does not exist."""
        return {name: _plain(column[place : place + 1].tolist()[0]) for name, column in self.columns.items()}

    def rows(self) -> dict[int, dict[str, Any]]:
        """Returns the rows by number."""
        return {number: self.row(place) for place, number in enumerate(self.columns["label"].tolist())}

    def measures(self) -> tuple[str, ...]:
        """Names of the columns that hold measures."""
        return tuple(name for name in self.columns if name not in _WITHOUT_MEASURE)


def joined(tables: Sequence[ObjectTable], **first: Sequence[Any]) -> ObjectTable:
    """Returns one table of several, with columns before the others that tell which rows are whose.

    Args:
        tables: Where one lacks a column of another, its values are NaN (text: empty).
        first: Name of a column to its value for each of the tables.
    """
    names = dict.fromkeys(name for table in tables for name in table.columns)
    columns = {name: np.repeat(np.asarray(values), [len(table) for table in tables]) for name, values in first.items()}
    for name in names:
        known = next(table.columns[name].dtype for table in tables if name in table.columns)
        missing: Any = "" if known.kind in "UO" else math.nan
        parts = [table.columns.get(name, np.full(len(table), missing)) for table in tables]
        columns[name] = np.concatenate(parts)
    return ObjectTable(columns)


def write_table(table: ObjectTable, path: Path) -> Path:
    """Writes a table, whole or not at all: ``.parquet``, anything else as CSV.

    Raises:
        MachineError: The disk is full or the folder cannot be written.
    """
    with whole_file(path, path.stem) as part:
        if path.suffix == ".parquet":
            _write_parquet(table, part)
        else:
            with part.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(table.columns)
                writer.writerows(_texts(table))
    return path


def _texts(table: ObjectTable) -> Iterator[tuple[str, ...]]:
    return zip(*(map(_text, column.tolist()) for column in table.columns.values()), strict=True)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.{_DIGITS}g}"
    return str(value)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_parquet(table: ObjectTable, path: Path) -> None:
    import pyarrow  # a third of a second, and only here
    from pyarrow import parquet

    columns = {
        name: pyarrow.array(column.tolist() if column.dtype.kind in "UO" else column, from_pandas=True)
        for name, column in table.columns.items()
    }
    parquet.write_table(pyarrow.table(columns), path, compression="zstd")
