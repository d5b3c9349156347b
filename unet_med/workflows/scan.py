"""``scan``: what is in a folder, what of it can be used, and why the rest cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unet_med.io.discover import discover
from unet_med.io.source import Discovery, IntakeOptions, SourceRef
from unet_med.workflows.outcome import DONE, NOTHING_USABLE, SOME_REFUSED, Outcome
from unet_med.workflows.progress import track


def scan(folder: Path, intake: IntakeOptions = IntakeOptions()) -> Outcome:  # noqa: B008
    """Lists each series and image below a folder; only headers are read.

    Args:
        folder: A folder or one file.
        intake: The intake options.

    Returns:
        The JSON of ``scan --json`` and a table; exit code 0 when everything found is usable, 3 when some sources are
        refused, 4 when none is usable. Skipped files are no failure.

    Raises:
        UsageError: There is no such folder.
        NothingUsableError: The folder is empty.
    """
    found = discover(folder, intake, track)
    code = DONE if len(found.usable) == len(found.sources) else SOME_REFUSED
    return Outcome(
        result={
            "sources": [_entry(ref) for ref in found.sources],
            "skipped": [{"what": one.what, "count": one.count, "reason": one.reason} for one in found.skipped],
        },
        lines=_lines(found),
        exit_code=code if found.usable else NOTHING_USABLE,
    )


def _entry(ref: SourceRef) -> dict[str, Any]:
    geometry = ref.geometry
    spacing = geometry.spacing_mm if geometry is not None else None
    affine = geometry.affine_4x4 if geometry is not None else None
    return {
        "id": ref.id,
        "kind": ref.kind,
        "axes": ref.axes,
        "shape": list(ref.shape),
        "spacing_mm": list(spacing) if spacing is not None else None,
        "affine": affine.tolist() if affine is not None else None,
        "orientation": (geometry.orientation if geometry is not None else "") or None,
        "usable": ref.usable,
        "reason": ref.reason,
        "notes": list(ref.notes),
        "modality": ref.modality,
        "channels": ref.channels,
        "frames": ref.frames,
        "dtype": ref.dtype,
        "files": len(ref.files),
    }


# ---- for people -----------------------------------------------------------------------------------------------------


def _lines(found: Discovery) -> list[str]:
    lines = _table([_HEAD, *map(_row, found.sources)]) if found.sources else []
    lines += [f"refused {ref.id}: {ref.reason}" for ref in found.sources if not ref.usable]
    lines += _notes(found)
    lines += [f"skipped {one.count} x {one.what}: {one.reason}" for one in found.skipped]
    refused = len(found.sources) - len(found.usable)
    lines.append(f"{len(found.usable)} usable, {refused} refused, {sum(one.count for one in found.skipped)} skipped")
    return lines


def _notes(found: Discovery) -> list[str]:
    """Returns each note once, with the sources it is about."""
    about: dict[str, list[str]] = {}
    for ref in found.sources:
        for note in ref.notes:
            about.setdefault(note, []).append(ref.id)
    return [
        f"note on {', '.join(names)}: {note}" if len(names) <= _NAMED else f"note on {len(names)} sources: {note}"
        for note, names in about.items()
    ]


_NAMED = 3
_HEAD = ("id", "kind", "size", "spacing (mm)", "orientation", "state")


def _row(ref: SourceRef) -> tuple[str, ...]:
    geometry = ref.geometry
    spacing = geometry.spacing_mm if geometry is not None else None
    return (
        ref.id,
        f"{ref.kind} {ref.modality}" if ref.modality else ref.kind,
        " x ".join(map(str, ref.shape)) + (f" {ref.axes}" if ref.axes else ""),
        " x ".join(f"{value:.4g}" for value in spacing) if spacing else "-",
        (geometry.orientation if geometry is not None else "") or "-",
        "usable" if ref.usable else "refused",
    )


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
