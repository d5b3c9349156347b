"""What the label doctor found, to be looked at: each suspicious case with the outlines of its label.

As a page that opens from disk, needs no network and runs no script, or as picture files.
"""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from unet_med.doctoring import PairFinding
from unet_med.doctoring.thinning import step_of, thinned
from unet_med.errors import InputRefusedError, UnetMedError, UsageError
from unet_med.identity import case_tag, safe_name
from unet_med.io.atomic import whole_file
from unet_med.io.cases import Case
from unet_med.labels import LabelMap
from unet_med.manifest import Finding, Manifest, ManifestCase
from unet_med.overlays import object_preview, outline_preview
from unet_med.review.sheet import top_of
from unet_med.version import __version__
from unet_med.workflows.progress import track
from unet_med.workflows.thumbnail import may_carry_a_name

logger = logging.getLogger(__name__)

MOST_PICTURES = 60
"""More cases than this are named, not shown."""

_WIDTH = 900
_MOST_COLOURS = 24


@dataclass(frozen=True)
class Drawing:
    """A case with the outlines of its label.

    Attributes:
        png: The file; empty where there is none.
        size: Columns and rows.
        reason: Why there is none.
    """

    png: bytes = b""
    size: tuple[int, int] = (0, 0)
    reason: str = ""


def draw(manifest: Manifest, findings: Sequence[Finding]) -> dict[str, Drawing]:
    """Draws the cases that findings name, each once, up to :data:`MOST_PICTURES`.

    Returns:
        Case id -> drawing.
    """
    known = {case.id: case for case in (*manifest.training, *manifest.test)}
    named = [
        case for case in dict.fromkeys(case for finding in findings for case in cases_of(finding)) if case in known
    ]
    return {case: _drawing(known[case], manifest) for case in track(named[:MOST_PICTURES], "drawing pictures")}


def cases_of(finding: Finding) -> tuple[str, ...]:
    """Returns the ids of the cases that a finding is about."""
    other = finding.other if isinstance(finding, PairFinding) else ""
    return tuple(case for case in (finding.case, other) if case)


def write_pictures(folder: Path, findings: Sequence[Finding], drawings: Mapping[str, Drawing]) -> int:
    """Writes ``KIND-CASE.png`` for each finding that can be shown, the cases of a pair beside each other by name.

    Args:
        folder: See :func:`check_folder`.
        findings: What was found.
        drawings: See :func:`draw`.

    Returns:
        How many files were written.

    Raises:
        MachineError: The disk is full or the folder cannot be written.
    """
    files: dict[str, bytes] = {}
    for finding in findings:
        cases = cases_of(finding)
        for number, case in enumerate(cases):
            drawing = drawings.get(case, Drawing())
            if drawing.png:
                both = "-".join((*cases, str(number + 1))) if len(cases) > 1 else case
                files[safe_name(f"{finding.kind}-{both}") + ".png"] = drawing.png
    for name, png in files.items():
        with whole_file(folder / name, name) as part:
            part.write_bytes(png)
    return len(files)


def check_folder(folder: Path) -> None:
    """Refuses a folder for pictures that holds something.

    Raises:
        UsageError: It is a file, or not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError("the folder for the pictures is not empty", folder.name, "name a new folder")


def write_page(path: Path, manifest: Manifest, findings: Sequence[Finding], drawings: Mapping[str, Drawing]) -> None:
    """Writes the page, whole or not at all.

    Raises:
        MachineError: The disk is full or the folder cannot be written.
    """
    with whole_file(path, path.name) as part:
        part.write_text(page(manifest, findings, drawings), encoding="utf-8")


def page(manifest: Manifest, findings: Sequence[Finding], drawings: Mapping[str, Drawing]) -> str:
    """Returns the page: errors, then warnings, each with its cases."""
    count = len(manifest.training) + len(manifest.test)
    parts = [
        f"<header><h1>Label doctor</h1><p>{escape(manifest.name)}: {_counted(count, 'case')}, "
        f"{_counted(len(findings), 'finding')}.</p></header><main>"
    ]
    for severity, title in (("error", "Errors"), ("warning", "Warnings")):
        chosen = [finding for finding in findings if finding.severity == severity]
        if chosen:
            parts.append(f'<section id="{severity}"><h2>{title}</h2>')
            parts += [_card(finding, drawings) for finding in chosen]
            parts.append("</section>")
    if not findings:
        parts.append("<p>Nothing was found.</p>")
    return f"{top_of('Label doctor')}{''.join(parts)}</main>{_FOOT}</body></html>\n"


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def _card(finding: Finding, drawings: Mapping[str, Drawing]) -> str:
    remedy = f'<p class="remedy"><b>What to do:</b> {escape(finding.remedy)}.</p>' if finding.remedy else ""
    what = finding.what[:1].upper() + finding.what[1:]
    figures = "".join(_figure(case, drawings.get(case)) for case in cases_of(finding))
    return f'<article class="refusal"><h3>{escape(what)}</h3>{remedy}{figures}</article>'


def _figure(case: str, drawing: Drawing | None) -> str:
    name = f"<code>{escape(case)}</code>"
    if drawing is None:
        return f'<p>{name} <span class="dim">not shown: there are more than {MOST_PICTURES}</span></p>'
    if not drawing.png:
        return f'<p>{name} <span class="dim">{escape(drawing.reason)}</span></p>'
    data = base64.b64encode(drawing.png).decode()
    width, height = drawing.size
    return (
        f'<figure style="margin:10px 0"><figcaption>{name}</figcaption><img width="{width}" height="{height}" '
        f'style="max-width:100%;height:auto" alt="{escape(case)} with the outlines of its label" '
        f'src="data:image/png;base64,{data}"></figure>'
    )


# ---- pictures -------------------------------------------------------------------------------------------------------


def _drawing(case: ManifestCase, manifest: Manifest) -> Drawing:
    if any(may_carry_a_name(source) for source in case.case.sources):
        return Drawing(reason="not shown: text in the pixels may tell a name")
    try:
        picture = _picture(case.case, manifest)
    except (UnetMedError, MemoryError) as error:
        logger.info("%s has no picture (%s)", case_tag(case.id), type(error).__name__)
        return Drawing(reason=f"no picture: {error.what if isinstance(error, UnetMedError) else 'out of memory'}")
    image = Image.fromarray(picture)
    if image.width > _WIDTH:
        image = image.resize((_WIDTH, max(1, round(image.height * _WIDTH / image.width))), Image.Resampling.BOX)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return Drawing(file.getvalue(), image.size)


def _picture(case: Case, manifest: Manifest) -> npt.NDArray[np.uint8]:
    """Draws the first frame of a case; without its label where that is refused."""
    frame, step = case.frames[0], step_of(case)
    volume = thinned(case.look(frame), step)
    stored: npt.NDArray[np.integer[Any]] = np.zeros(volume.geometry.shape, np.uint8)
    if case.label is not None:
        with suppress(InputRefusedError):
            stored = thinned(case.look_label(frame), step).array[0]
    spacing, orientation = volume.geometry.spacing_mm, volume.geometry.orientation
    if case.instances:
        label_map = LabelMap.from_names(manifest.labels, ignored=manifest.ignore_label)
        return object_preview(volume.array, stored, spacing, label_map, case.classes, orientation=orientation)
    labels, label_map = _drawable(stored, {value: name for name, value in manifest.labels.items()})
    return outline_preview(volume.array, labels, spacing, label_map, orientation=orientation)


def _drawable(stored: npt.NDArray[Any], names: Mapping[int, str]) -> tuple[npt.NDArray[np.uint8], LabelMap]:
    """Returns labels numbered 1, 2, ... with the names of their values; as one where they are very many."""
    values = [int(value) for value in np.unique(stored) if value]
    if len(values) > _MOST_COLOURS:
        return (stored > 0).astype(np.uint8), LabelMap.from_names({"background": 0, "labelled": 1})
    labels = np.zeros(stored.shape, np.uint8)
    for number, value in enumerate(values, start=1):
        labels[stored == value] = number
    shown = _distinct(names.get(value, f"value {value}") for value in values)
    return labels, LabelMap.from_names({"background": 0, **{name: n for n, name in enumerate(shown, start=1)}})


def _distinct(names: Iterable[str]) -> list[str]:
    """Returns names of which none is that of the background."""
    return [name if name != "background" else "background (not 0)" for name in names]


_FOOT = (
    "<footer><p>Research use only. Outlines are those of the labels as the manifest reads them; volumes are cut "
    "through the middle of their largest label. The pictures are images of patients: keep the page where the images "
    f"are. unet-med {__version__}.</p></footer>"
)
