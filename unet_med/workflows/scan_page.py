"""The intake report as one page: opens from disk, needs no network and runs no script.

Names on it are those of ``scan``; every text is escaped, and the page's own policy forbids whatever is not part of it.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from unet_med.errors import UnetMedError
from unet_med.identity import case_tag
from unet_med.io.atomic import whole_file
from unet_med.io.source import Discovery, SourceRef
from unet_med.review.sheet import top_of
from unet_med.version import __version__
from unet_med.workflows.progress import track
from unet_med.workflows.thumbnail import Thumbnail, may_carry_a_name, thumbnail

logger = logging.getLogger(__name__)

_SIDES = ((60, 224), (250, 160))
_SMALL_SIDE = 112
"""Pixels of a picture's longest side, by the number of pictures: a page of hundreds stays a few megabytes."""

_KINDS = {
    "dicom": "DICOM",
    "nifti": "NIfTI",
    "nrrd": "NRRD",
    "mha": "MetaImage",
    "tiff": "TIFF",
    "zarr": "OME-Zarr",
    "czi": "CZI",
    "nd2": "ND2",
    "lif": "LIF",
    "png": "PNG",
    "jpeg": "JPEG",
    "dicom-seg": "DICOM SEG",
    "rtstruct": "RTSTRUCT",
    "imagej-roi": "ImageJ outlines",
    "geojson": "GeoJSON outlines",
    "coco": "COCO objects",
}
_ORDER = tuple(_KINDS)
_PLAIN_AXES = ("", "IJ", "IJK", "YX")
_MICROSCOPIC_MM = 0.05
_TIMES = "\u2009\u00d7\u2009"


def write_page(path: Path, result: Mapping[str, Any], found: Discovery) -> None:
    """Writes the page, whole or not at all.

    Args:
        path: The file, ``.html``.
        result: What ``scan --json`` writes.
        found: The sources, for their pictures; one that cannot be drawn is told on its card.

    Raises:
        MachineError: The disk is full or the folder cannot be written.
    """
    side = picture_side(len(found.usable))
    pictures = {ref.id: picture_of(ref, side) for ref in track(found.usable, "drawing pictures")}
    with whole_file(path, path.name) as part:
        part.write_text(page(result, pictures), encoding="utf-8")


def picture_side(count: int) -> int:
    """Returns the longest side, in pixels, of each of many pictures on a page."""
    return next((side for most, side in _SIDES if count <= most), _SMALL_SIDE)


def picture_of(ref: SourceRef, side: int) -> Thumbnail | str:
    """Returns the picture of a source, or why there is none."""
    if may_carry_a_name(ref):
        return "not shown: text in the pixels may tell a name"
    try:
        return thumbnail(ref, side)
    except (UnetMedError, MemoryError) as error:
        logger.info("%s has no picture (%s)", case_tag(ref.id), type(error).__name__)
        return f"no picture: {error.what}" if isinstance(error, UnetMedError) else "no picture: out of memory"


def page(result: Mapping[str, Any], pictures: Mapping[str, Thumbnail | str]) -> str:
    """Returns the page.

    Args:
        result: What ``scan --json`` writes.
        pictures: For each usable source its picture, or the reason why it has none.
    """
    truth: dict[str, list[Mapping[str, Any]]] = {}
    for one in result["annotations"]:
        for name in one["refers_to"]:
            truth.setdefault(name, []).append(one)
    usable = [one for one in result["sources"] if one["usable"]]
    body = [
        _head(result["summary"]),
        "<main>",
        *_refused(result),
        *_usable(usable, pictures, truth),
        *_annotations(result["annotations"]),
        *_skipped(result["skipped"]),
        "</main>",
        _FOOT,
    ]
    return f"{top_of('Intake report')}{''.join(body)}</body></html>\n"


# ---- its parts ------------------------------------------------------------------------------------------------------


def _head(summary: Mapping[str, Any]) -> str:
    tiles = [
        ("usable", summary["usable"], "#usable", "good"),
        ("refused", summary["refused"], "#refused", "bad"),
        ("annotations", summary["annotations"], "#labels", ""),
        ("files skipped", summary["skipped"], "#skipped", ""),
    ]
    shown = "".join(
        f'<a class="tile {kind if count else ""}" href="{target}"><b>{count:,}</b><span>{text}</span></a>'
        if count
        else f'<div class="tile none"><b>0</b><span>{text}</span></div>'
        for text, count, target, kind in tiles
    )
    about = [f"{name} {count:,}" for name, count in summary["modalities"].items()]
    facts = [f"<span>{escape(text)}</span>" for text in about]
    facts += [f'<span class="finding">{escape(word)} {count:,}</span>' for word, count in summary["findings"].items()]
    return (
        f"<header><h1>Intake report</h1><p>{_sentence(summary)}</p>"
        f'<nav class="tiles">{shown}</nav>' + (f'<p class="chips">{"".join(facts)}</p>' if facts else "") + "</header>"
    )


def _sentence(summary: Mapping[str, Any]) -> str:
    total, refused = summary["sources"], summary["refused"]
    if not total:
        return "No image was found."
    every = "One image or series was found" if total == 1 else f"{total:,} images and series were found"
    if not refused:
        return f"{every}. {'It' if total == 1 else 'All of them'} can be used."
    if refused == total:
        return f"{every}. {'It is' if total == 1 else 'All of them are'} refused."
    return f"{every}. {summary['usable']:,} can be used, {refused:,} {'is' if refused == 1 else 'are'} refused."


def _refused(result: Mapping[str, Any]) -> Iterable[str]:
    """Yields one card for each reason."""
    about = {one["id"]: one for one in (*result["sources"], *result["annotations"])}
    reasons = result["summary"]["reasons"]
    if not reasons:
        return
    yield '<section id="refused"><h2>Refused</h2>'
    for entry in reasons:
        what, remedy = _parted(entry["reason"])
        yield f'<article class="refusal"><h3>{escape(what)}</h3>'
        if remedy:
            yield f'<p class="remedy"><b>What to do:</b> {escape(remedy)}.</p>'
        yield "<ul>"
        for name in entry["ids"]:
            one = about[name]
            notes = "".join(f"<small>{escape(note)}</small>" for note in one["notes"])
            yield (
                f'<li id="{escape(name)}"><code>{escape(name)}</code> <span class="dim">'
                f"{escape(', '.join(_facts(one)))}</span>{notes}</li>"
            )
        yield "</ul></article>"
    yield "</section>"


def _parted(reason: str) -> tuple[str, str]:
    """Returns what is wrong, with a capital letter, and what to do about it."""
    what, colon, remedy = reason.rpartition(": ")
    if not colon:
        what, remedy = reason, ""
    return what[:1].upper() + what[1:], (remedy[:1].upper() + remedy[1:]).rstrip(".")


def _facts(one: Mapping[str, Any]) -> list[str]:
    facts = [_kind(one)]
    if one.get("shape"):
        facts.append(_shape(one))
    if one.get("files", 1) > 1:
        facts.append(f"{one['files']:,} files")
    return facts


def _usable(
    sources: Sequence[Mapping[str, Any]],
    pictures: Mapping[str, Thumbnail | str],
    truth: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Iterable[str]:
    if not sources:
        return
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for one in sorted(sources, key=lambda one: (_ORDER.index(one["kind"]), one["modality"] or "")):
        groups.setdefault(_kind(one), []).append(one)
    many = len(pictures) > _SIDES[0][0]
    yield f'<section id="usable"><h2>Usable</h2><div class="{"many" if many else "few"}">'
    for kind, members in groups.items():
        yield f'<h3 class="group">{escape(kind)} <span>{len(members):,}</span></h3><div class="grid">'
        for one in members:
            yield _card(one, pictures.get(one["id"], ""), truth.get(one["id"], ()))
        yield "</div>"
    yield "</div></section>"


def _card(one: Mapping[str, Any], picture: Thumbnail | str, truth: Sequence[Mapping[str, Any]]) -> str:
    facts = [_shape(one)]
    if one["spacing_mm"]:
        facts.append(_lengths(one["spacing_mm"]))
    if one["orientation"] and one["axes"] == "IJK":
        facts.append(f"covers {_extent(one['shape'], one['spacing_mm'])}")
    place = [one["orientation"] or "", picture.caption if isinstance(picture, Thumbnail) else ""]
    facts += [", ".join(filter(None, place))] if any(place) else []
    if one["files"] > 1:
        facts.append(f"{one['files']:,} files")
    facts += one.get("facts", ())
    rows = "".join(f"<div>{escape(fact)}</div>" for fact in facts)
    links = "".join(
        f'<div class="truth"><a href="#{escape(label["id"])}">{escape(_KINDS[label["kind"]])}</a> '
        f"{escape(_some([part['name'] for part in label['segments']], 4))}</div>"
        for label in truth
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in one["notes"])
    return (
        f'<article class="card" id="{escape(one["id"])}">{figure_of(picture)}<div class="text">'
        f"<code>{escape(one['id'])}</code>{rows}{links}{f'<ul>{notes}</ul>' if notes else ''}</div></article>"
    )


def figure_of(picture: Thumbnail | str) -> str:
    """Returns a picture for a page, or in its place why there is none."""
    if isinstance(picture, str):
        return f'<div class="picture empty"><span>{escape(picture)}</span></div>'
    places = zip(picture.letters, ("left", "right", "top", "bottom"), strict=False)
    letters = "".join(f'<i class="{place}">{letter}</i>' for letter, place in places)
    data = base64.b64encode(picture.png).decode()
    what = escape(f"middle slice, {picture.caption}" if picture.caption else "the picture")
    width, height = picture.size
    return (
        f'<figure class="picture{" light" if picture.light else ""}"><img width="{width}" height="{height}" '
        f'alt="{what}" src="data:image/png;base64,{data}">{letters}</figure>'
    )


def _annotations(annotations: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    if not annotations:
        return
    yield '<section id="labels"><h2>Annotations</h2><div class="scroll"><table>'
    yield "<thead><tr><th>Label</th><th>Kind</th><th>Holds</th><th>Belongs to</th><th>State</th></tr></thead><tbody>"
    for one in annotations:
        names = [f"{part['number']} {part['name']}" for part in one["segments"]]
        targets = [f'<a href="#{escape(name)}"><code>{escape(name)}</code></a>' for name in one["refers_to"]]
        state = "usable" if one["usable"] else f'<a class="bad" href="#{escape(one["id"])}">refused</a>'
        notes = "".join(f"<small>{escape(note)}</small>" for note in one["notes"]) if one["usable"] else ""
        anchor = f' id="{escape(one["id"])}"' if one["usable"] else ""
        yield (
            f"<tr{anchor}><td><code>{escape(one['id'])}</code></td><td>{escape(_KINDS[one['kind']])}</td>"
            f"<td>{escape(_some(names, 12)) or '-'}{notes}</td>"
            f"<td>{'<br>'.join(targets) or 'no image that is here'}</td><td>{state}</td></tr>"
        )
    yield "</tbody></table></div></section>"


def _skipped(skipped: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    if not skipped:
        return
    yield '<section id="skipped"><h2>Skipped</h2><div class="scroll"><table><thead><tr><th class="n">Count</th>'
    yield "<th>What</th><th>Why</th></tr></thead><tbody>"
    for one in skipped:
        cells = f"<td>{escape(one['what'])}</td><td>{escape(one['reason'])}</td>"
        yield f'<tr><td class="n">{one["count"]:,}</td>{cells}</tr>'
    yield "</tbody></table></div></section>"


# ---- words ----------------------------------------------------------------------------------------------------------


def _kind(one: Mapping[str, Any]) -> str:
    kind = _KINDS[one["kind"]]
    return f"{kind} {one['modality']}" if one.get("modality") and one["kind"] == "dicom" else kind


def _shape(one: Mapping[str, Any]) -> str:
    text = _TIMES.join(map(str, one["shape"]))
    return f"{text} {one['axes']}" if one["axes"] not in _PLAIN_AXES else text


def _lengths(spacing: Sequence[float]) -> str:
    scale, unit = (1000.0, "\u00b5m") if max(spacing) < _MICROSCOPIC_MM else (1.0, "mm")
    return _TIMES.join(f"{value * scale:.3g}" for value in spacing) + f" {unit}"


def _extent(shape: Sequence[int], spacing: Sequence[float]) -> str:
    return _TIMES.join(f"{n * size:.3g}" for n, size in zip(shape, spacing, strict=True)) + " mm"


def _some(names: Sequence[str], most: int) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


_FOOT = (
    "<footer><p>Research use only. Series are named by their number and a keyed hash, whose key only this user has: "
    "the page tells no name, date or number of a patient. Its pictures are images of patients none the less. Each "
    "shows the middle slice in true proportions; letters say where the patient's right (R), left (L), front (A), back "
    "(P), head (S) and feet (I) are. <code>unet-med scan FOLDER --json FILE</code> writes beside its result a table, "
    f"for this user alone, of the file of each slice. unet-med {__version__}.</p></footer>"
)
