"""``scan``, the intake report: what is in a folder, what of it is used and why, what is refused and what to do."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from unet_med.errors import InputRefusedError, UsageError
from unet_med.io.channels import RGB
from unet_med.io.dicom.annotations import belongs_to
from unet_med.io.dicom.slices import Annotation, SliceLayout
from unet_med.io.discover import discover
from unet_med.io.source import DICOM_KINDS, Discovery, IntakeOptions, SourceRef
from unet_med.io.stack import grid_of
from unet_med.workflows.outcome import DONE, NOTHING_USABLE, SOME_REFUSED, Outcome
from unet_med.workflows.progress import track

COLUMNS = 120
"""Widest line of the text."""

FINDINGS: Mapping[str, str] = {
    "gaps": r"slices? (is|are) missing|missing slice|slices? (was|were) missing|gap",
    "uneven steps": r"not evenly spaced|uneven",
    "tilt": r"tilt",
    "duplicates": r"duplicate file|claim to be the same image",
    "scouts left out": r"localizer image|of another orientation or size left out",
    "split": r"positions repeat: split",
    "repeats": r"no tag tells the repeats apart",
    "no position": r"slice has no (position|orientation|pixel spacing)",
    "damaged": r"truncated|damaged|cannot be read|cannot be decoded",
    "no decoder": r"no decoder is installed",
    "colour": r"colour image",
    "screen capture": r"secondary capture",
    "burnt-in text": r"burnt into the pixels",
    "padding": r"padding",
    "inverted": r"MONOCHROME1: turned",
    "no pixel size": r"^no pixel size",
    "odd pixel size": r"^the pixel size (makes|puts)",
}
"""What a reason or a note is about, in a word or two, and by which words it is known."""

_PATTERNS = {word: re.compile(pattern) for word, pattern in FINDINGS.items()}


def scan(
    folder: Path,
    intake: IntakeOptions = IntakeOptions(),  # noqa: B008
    html: Path | None = None,
) -> Outcome:
    """Lists each series and image below a folder; only headers are read.

    Args:
        folder: A folder or one file.
        intake: The intake options.
        html: Where to write the report as a page, with a picture of each usable source.

    Returns:
        The JSON of ``scan --json`` and a table; exit code 0 when everything found is usable, 3 when some sources are
        refused, 4 when none is usable (a SEG is, on its own grid). Skipped files are no failure.

    Raises:
        UsageError: There is no such folder, or ``html`` lies in it.
        NothingUsableError: The folder is empty.
        MachineError: The page cannot be written.
    """
    if html is not None:
        check_place(folder, html, "--html")
    found = discover(folder, intake, track)
    refused = len(found.usable) < len(found.sources) or not all(ref.usable for ref in found.annotations)
    usable = found.usable or [ref for ref in found.annotations if ref.usable and ref.kind == "dicom-seg"]
    result = _result(found)
    lines = _lines(found, result)
    if html is not None:
        from unet_med.workflows.scan_page import write_page

        write_page(html, result, found)
        lines.append(f"page: {html.name}")
    return Outcome(
        result=result,
        lines=lines,
        exit_code=NOTHING_USABLE if not usable else SOME_REFUSED if refused else DONE,
        private=partial(file_table, found),
    )


def check_place(folder: Path, file: Path, option: str) -> None:
    """Refuses to write into a folder that is only to be read.

    Raises:
        UsageError: ``file`` is the input, lies in it, or is a folder.
    """
    place = file.resolve()
    root = folder.resolve()
    if place == root or (root.is_dir() and place.is_relative_to(root)):
        raise UsageError(
            "the report would lie in the folder that is scanned", option, "nothing is written there: give another place"
        )
    if file.is_dir():
        raise UsageError("the report would replace a folder", option, "give the name of a file")


# ---- for machines ---------------------------------------------------------------------------------------------------


def _result(found: Discovery) -> dict[str, Any]:
    return {
        "sources": [_entry(ref) for ref in found.sources],
        "annotations": [_annotation(ref, _images_of(ref, found.sources)) for ref in _truth(found)],
        "skipped": [{"what": one.what, "count": one.count, "reason": one.reason} for one in found.skipped],
        "summary": _summary(found),
    }


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
        "findings": findings(ref),
        "facts": facts(ref) if ref.usable else [],
        "modality": ref.modality,
        "channels": ref.channels,
        "channel_names": list(ref.channel_names),
        "frames": ref.frames,
        "seconds_per_frame": ref.seconds_per_frame,
        "levels": [list(shape) for shape in ref.levels],
        "dtype": ref.dtype,
        "files": len(ref.files),
    }


def _images_of(ref: SourceRef, sources: Sequence[SourceRef]) -> Sequence[SourceRef]:
    """Returns the sources that an annotation, or a file of outlines, is about."""
    if ref.kind in DICOM_KINDS:
        return [source for source in sources if belongs_to(ref, source)]
    from unet_med.manifest.outlines import pictures_of  # with libraries that few folders need

    return pictures_of(ref, sources)


def _annotation(ref: SourceRef, images: Sequence[SourceRef]) -> dict[str, Any]:
    layout = ref.layout if isinstance(ref.layout, Annotation) else Annotation(())
    return {
        "id": ref.id,
        "kind": ref.kind,
        "usable": ref.usable,
        "reason": ref.reason,
        "notes": list(ref.notes),
        "segments": [{"number": one.number, "name": one.name, "code": one.code} for one in layout.segments],
        "refers_to": [source.id for source in images],
    }


def findings(ref: SourceRef) -> list[str]:
    """Returns in a word or two each what was found about a source, for example ``gaps`` or ``tilt``."""
    told = (ref.reason, *ref.notes)
    return [word for word, pattern in _PATTERNS.items() if any(pattern.search(text) for text in told)]


def _summary(found: Discovery) -> dict[str, Any]:
    """Returns what is in the folder, counted."""
    reasons: dict[str, list[str]] = {}
    for ref in _every(found):
        if not ref.usable:
            reasons.setdefault(ref.reason, []).append(ref.id)
    return {
        "sources": len(found.sources),
        "usable": len(found.usable),
        "refused": len(found.sources) - len(found.usable),
        "annotations": len(_truth(found)),
        "skipped": sum(one.count for one in found.skipped),
        "kinds": dict(sorted(Counter(ref.kind for ref in _every(found)).items())),
        "modalities": dict(sorted(Counter(ref.modality for ref in found.sources if ref.modality).items())),
        "findings": dict(Counter(word for ref in found.sources for word in findings(ref)).most_common()),
        "reasons": [{"reason": reason, "ids": ids} for reason, ids in reasons.items()],
    }


# ---- for this user alone --------------------------------------------------------------------------------------------


def file_table(found: Discovery) -> dict[str, list[dict[str, Any]]]:
    """Returns the files of each source, and for DICOM where each slice lies, as refusals name it.

    Returns:
        Id to a list of ``{"file": path, "slice": text}``; ``slice`` only where it is known.
    """
    return {ref.id: list(_files(ref)) for ref in _every(found)}


def _files(ref: SourceRef) -> Iterable[dict[str, Any]]:
    if isinstance(ref.layout, SliceLayout):
        for one in ref.layout.slices:
            entry = {"file": str(ref.files[one.file].absolute()), "slice": _height(ref.layout.normal, one.position)}
            yield entry | ({"frame": one.frame} if len(ref.layout.slices) > len(ref.files) else {})
        return
    for path in ref.files:
        place = _place(path) if ref.kind == "dicom" else ""
        yield {"file": str(path.absolute())} | ({"slice": place} if place else {})


def _place(path: Path) -> str:
    """Returns where the slice of a refused file lies; empty when its header does not tell."""
    from unet_med.io.dicom.headers import Header, read_header
    from unet_med.io.dicom.stacks import slice_normal

    header = read_header(path)
    if not isinstance(header, Header):
        return "cannot be read"
    if header.position is not None and header.orientation is not None:
        with suppress(InputRefusedError):
            return _height(slice_normal(header), header.position)
    return "" if header.instance is None else f"instance {header.instance}"


def _height(normal: Iterable[float], position: Iterable[float]) -> str:
    """Returns a position as refusals name it."""
    return f"{sum(float(a) * b for a, b in zip(normal, position, strict=True)):.2f} mm along the slice normal"


# ---- for people -----------------------------------------------------------------------------------------------------

MICROSCOPIC_MM = 0.05
"""Below this, sizes are told in micrometres."""

_NAMED = 3
_TAIL = 12
_GAP = "  "
_HEAD = ("id", "kind", "size", "spacing (mm)", "orientation", "state")
_HEAD_OF_TRUTH = ("id", "kind", "holds", "belongs to", "state")
_PLAIN_AXES = ("", "IJ", "IJK", "YX")


def _lines(found: Discovery, result: Mapping[str, Any]) -> list[str]:
    lines = _table([_HEAD, *map(_row, found.sources)]) if found.sources else []
    if _truth(found):
        lines += ["", *_table([_HEAD_OF_TRUTH, *map(_truth_row, result["annotations"])])]
    if lines:
        lines.append("")
    summary = result["summary"]
    for one in summary["reasons"]:
        lines += _wrapped(f"refused {_some(one['ids'])}: {one['reason']}")
    lines += _grouped("note on", [(ref.id, note) for ref in _every(found) for note in ref.notes])
    lines += _grouped("about", [(ref.id, fact) for ref in found.usable for fact in facts(ref)])
    for one in result["skipped"]:
        lines += _wrapped(f"skipped {one['count']} x {one['what']}: {one['reason']}")
    if summary["findings"]:
        lines += _wrapped("found: " + ", ".join(f"{word} ({count})" for word, count in summary["findings"].items()))
    truth = f"{summary['annotations']} annotations, " if _truth(found) else ""
    lines.append(f"{summary['usable']} usable, {summary['refused']} refused, {truth}{summary['skipped']} skipped")
    return lines


def facts(ref: SourceRef) -> list[str]:
    """Returns what a file says of its channels, time points and smaller copies, each in a phrase."""
    told = [f"channels {', '.join(ref.channel_names)}"] if ref.channel_names and ref.channel_names != RGB else []
    told += [f"{ref.seconds_per_frame:.4g} s from frame to frame"] if ref.seconds_per_frame else []
    sizes = [" x ".join(map(str, grid_of(ref.axes, shape)[:2])) for shape in ref.levels]
    return told + ([f"smaller copies of {', '.join(sizes)} pixels"] if sizes else [])


def _every(found: Discovery) -> tuple[SourceRef, ...]:
    return (*found.sources, *_truth(found))


def _truth(found: Discovery) -> tuple[SourceRef, ...]:
    return (*found.annotations, *found.outlines)


def _grouped(what: str, texts: Sequence[tuple[str, str]]) -> list[str]:
    """Returns each text once, with the sources it is about."""
    about: dict[str, list[str]] = {}
    for name, text in texts:
        about.setdefault(text, []).append(name)
    return [line for text, names in about.items() for line in _wrapped(f"{what} {_some(names)}: {text}")]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= _NAMED else f"{len(names)} sources ({names[0]}, ...)"


def _row(ref: SourceRef) -> tuple[str, ...]:
    geometry = ref.geometry
    spacing = geometry.spacing_mm if geometry is not None else None
    return (
        ref.id,
        f"{ref.kind} {ref.modality}" if ref.modality else ref.kind,
        " x ".join(map(str, ref.shape)) + (f" {ref.axes}" if ref.axes not in _PLAIN_AXES else ""),
        _lengths(spacing) if spacing else "unknown" if ref.usable else "-",
        (geometry.orientation if geometry is not None else "") or "-",
        "usable" if ref.usable else "refused",
    )


def _lengths(spacing: Sequence[float]) -> str:
    if max(spacing) < MICROSCOPIC_MM:
        return " x ".join(f"{value * 1000:.4g}" for value in spacing) + " um"
    return " x ".join(f"{value:.4g}" for value in spacing)


def _truth_row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    names = [str(one["name"]) for one in entry["segments"]]
    return (
        entry["id"],
        entry["kind"],
        _some_names(names) or ("" if entry["kind"] in DICOM_KINDS else "outlines of objects"),
        _some(entry["refers_to"]) or "-",
        "usable" if entry["usable"] else "refused",
    )


def _some_names(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """Returns the rows in columns; the widest are cut until a line fits."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    while sum(widths) + len(_GAP) * (len(widths) - 1) > COLUMNS:
        widths[widths.index(max(widths))] -= 1
    return [
        _GAP.join(_cut(cell, width).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _cut(text: str, width: int) -> str:
    """Returns text of at most ``width`` letters; the end of a name tells it apart and stays."""
    tail = min(_TAIL, width // 3)
    return text if len(text) <= width else f"{text[: width - 2 - tail]}..{text[len(text) - tail :]}"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, COLUMNS, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
