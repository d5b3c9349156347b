"""The page of one case: its slices to scroll through, and all that is known of its mask."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.labels import LabelMap, label_colour
from unet_med.overlays import object_colours
from unet_med.review.facts import AREAS, OBJECTS, TIMES, VOLUMES, Section, number
from unet_med.review.histogram import histogram, svg
from unet_med.review.need import Need
from unet_med.review.pictures import Colour, data_uri, jpeg, sheets
from unet_med.review.sheet import part, script, top_of
from unet_med.review.view import View
from unet_med.version import __version__

Centres = Mapping[int, tuple[int, int, int]]

MOST_TOLD = 4000
"""Objects whose measures a page tells under the pointer."""

_MEASURES = {
    **{"area_um2": "Area in µm²", "volume_um3": "Volume in µm³", "area_px": "Area in pixels"},
    **{"voxels": "Volume in voxels", "solidity": "Solidity", "confidence": "Confidence"},
}
_SIZES = {"area_um2": "µm²", "volume_um3": "µm³", "area_px": "px", "voxels": "voxels"}
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_MARKED = {VOLUMES: "Label", AREAS: "Label", OBJECTS: "Class"}
"""Columns whose texts are names of labels."""
_MOST_CHANNEL_MEASURES = 2


@dataclass(frozen=True, eq=False)
class CaseFacts:
    """What a page shows of a case.

    Attributes:
        need: How much it needs to be looked at.
        sections: What is said of it.
        labels: Names and colours of its labels or classes.
        view: Its voxels; ``None`` where there is no mask.
        picture: The preview that prediction drew (any format); empty where it may not be shown.
        missing: Why the image is not shown; empty where it is.
        table: Measures of its objects by column; ``None`` where labels are no objects.
        compared: What ``view.reference`` is; empty where there is none.
    """

    need: Need
    sections: Sequence[Section]
    labels: LabelMap
    view: View | None = None
    picture: bytes = b""
    missing: str = ""
    table: Mapping[str, npt.NDArray[Any]] | None = None
    compared: str = ""
    _colours: dict[int, Colour] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Id of the case."""
        return self.need.id

    def colour(self, value: int) -> Colour:
        """Returns the colour of a label, or of an object."""
        if self.table is None:
            return next((label.colour for label in self.labels.labels if label.index == value), (160, 160, 160))
        if not self._colours and self.view is not None:
            self._colours.update(_object_colours(self.view))
        return self._colours.get(value, (160, 160, 160))


def case_page(facts: CaseFacts) -> str:
    """Returns the page of a case.

    Args:
        facts: Of the case; every text is escaped here.
    """
    code = part("viewer.js")
    centres = {} if facts.view is None or facts.table is not None else facts.view.centres()
    body = [
        _head(facts),
        "<main>",
        _viewer(facts),
        '<div class="facts">',
        *(_section(section, facts, centres) for section in facts.sections),
        "</div></main>",
        _FOOT,
        script(code),
    ]
    return f"{top_of(facts.id, [part('case.css')], [code])}{''.join(body)}</body></html>\n"


# ---- its parts ------------------------------------------------------------------------------------------------------


def _head(facts: CaseFacts) -> str:
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in facts.need.reasons)
    look = f'<ul class="reasons" aria-label="Why somebody should look at it">{reasons}</ul>' if reasons else ""
    told = f'<p class="told">{escape(facts.need.told)}</p>' if facts.need.told else ""
    return (
        '<header class="case"><nav><a href="../index.html">All cases</a></nav>'
        f"<h1>{escape(facts.id)}</h1>{told}{look}</header>"
    )


def _viewer(facts: CaseFacts) -> str:
    view = facts.view
    missing = "".join(f'<p class="missing">{escape(text)}</p>' for text in (facts.missing, facts.compared) if text)
    preview = _preview(facts.picture) if facts.picture and (view is None or not view.images) else ""
    if view is None:
        return missing + preview
    panes = range(3 if view.is_volume else 1)
    kind = "volume" if view.is_volume else "flat"
    stage = "".join(
        f'<figure class="pane{" main" if number == 0 else ""}"><canvas></canvas><figcaption></figcaption></figure>'
        for number in panes
    )
    width, height = (view.labels.shape[axis] * view.sizes[axis] for axis in (0, 1))
    shape = "" if view.is_volume else f' style="--shape:{width / height:.4f}"'
    return (
        f'{missing}{preview}<section class="viewer" id="viewer" aria-label="Slices"><div class="stage {kind}"{shape}>'
        f"{stage}</div>{_tools(facts, view)}<noscript><p>The slices are shown by a script of this page.</p></noscript>"
        f'</section><script type="application/json" id="view">{_json(_data(facts, view))}</script>'
    )


def _preview(picture: bytes) -> str:
    content, (width, height) = jpeg(picture)
    source = data_uri(content, "jpeg")
    return f'<img class="preview" width="{width}" height="{height}" alt="Preview with outlines" src="{source}">'


def _tools(facts: CaseFacts, view: View) -> str:
    slider = ""
    if view.through:
        last = view.labels.shape[2] - 1
        slider = (
            f'<label class="slider"><span id="place"></span><input type="range" id="slice" min="0" max="{last}" '
            f'value="0" aria-label="{view.through}"></label>'
        )
    legend = "".join(
        f'<label class="swatch" style="--c:rgb{label.colour}"><input type="checkbox" data-group="{place}" checked>'
        f"{escape(label.name)}</label>"
        for place, label in enumerate(facts.labels.labels)
        if facts.table is None or "frame" not in facts.table
    )
    channels = ""
    if len(view.images) > 1:
        options = "".join(f'<option value="{place}">{escape(name)}</option>' for place, name in enumerate(view.names))
        channels = f'<label>Channel <select id="channel">{options}</select></label>'
    return (
        f'<p id="under" role="status"></p>{slider}<div class="tools">'
        '<label><input type="checkbox" id="outline" checked>Outline <kbd>o</kbd></label>'
        '<label><input type="checkbox" id="fill" checked>Fill <kbd>f</kbd></label>'
        '<label>Opacity <input type="range" id="opacity" min="0" max="100" value="35"></label>'
        '<label>Brightness <input type="range" id="brightness" min="-100" max="100" value="0"></label>'
        '<label>Contrast <input type="range" id="contrast" min="-100" max="100" value="0"></label>'
        f'{channels}</div><div class="legend">{legend}</div><p class="hint">{_hint(view)}</p>'
    )


def _hint(view: View) -> str:
    windows = [f"{number(low)} to {number(high)}" for low, high in view.windows]
    shown = f"Grey values {windows[0]} are shown." if view.names else ""
    coarser = [abs(axis.step) for axis in view.axes]
    fewer = f" Every {TIMES.join(map(str, coarser))} voxels are shown as one." if max(coarser) > 1 else ""
    keys = "<kbd>↑</kbd> <kbd>↓</kbd> or the wheel: slices. " if view.through else ""
    planes = "<kbd>p</kbd>: next plane. <kbd>x</kbd>: cross. " if view.is_volume else ""
    told = f"{keys}{planes}<kbd>z</kbd> <kbd>Z</kbd> <kbd>0</kbd>: zoom."
    return f'<span class="keys">{told}</span> {escape(shown + fewer)}'


def _section(section: Section, facts: CaseFacts, centres: Centres) -> str:
    rows = "".join(_row(section, cells, facts.labels, centres) for cells in section.rows)
    head = "".join(f"<th>{escape(column)}</th>" for column in section.columns)
    table = f"<table>{f'<thead><tr>{head}</tr></thead>' if head else ''}<tbody>{rows}</tbody></table>"
    note = f"<p>{escape(section.note)}</p>" if section.note else ""
    inside = f'<div class="scroll{"" if head else " pairs"}">{table}</div>{note}'
    if section.title == OBJECTS:
        inside += _histograms(facts)
    if section.folded:
        return f"<details><summary><h2>{escape(section.title)}</h2></summary>{inside}</details>"
    return f"<section><h2>{escape(section.title)}</h2>{inside}</section>"


def _row(section: Section, cells: Sequence[str], labels: LabelMap, centres: Centres) -> str:
    if not section.columns:
        return f"<tr><th>{escape(cells[0])}</th><td>{escape(cells[1])}</td></tr>"
    marked = _MARKED.get(section.title)
    texts = [
        _marked(cell, labels, centres) if column == marked else escape(cell)
        for column, cell in zip(section.columns, cells, strict=True)
    ]
    return f"<tr>{''.join(f'<td>{text}</td>' for text in texts)}</tr>"


def _marked(name: str, labels: LabelMap, centres: Centres) -> str:
    """Returns the name of a label with its colour, and a way to where most of it is."""
    label = next((label for label in labels.labels if label.name == name), None)
    if label is None:
        return escape(name)
    swatch = f'<i class="dot" style="--c:rgb{label.colour}"></i>{escape(name)}'
    if label.index not in centres:
        return swatch
    centre = ",".join(map(str, centres[label.index]))
    return f'<button type="button" data-centre="{centre}" title="Show it">{swatch}</button>'


def _histograms(facts: CaseFacts) -> str:
    table = facts.table
    if not table or not len(table["label"]):
        return ""
    names = [label.name for label in facts.labels.labels]
    sizes = [name for name in _SIZES if name in table][:1]
    means = [name for name in table if name.endswith("_mean")][:_MOST_CHANNEL_MEASURES]
    wanted = {name: _MEASURES[name] for name in (*sizes, "solidity", "confidence") if name in table}
    wanted |= {name: f"Mean intensity, {name.removesuffix('_mean').replace('_', ' ')}" for name in means}
    colours = {label.name: label.colour for label in facts.labels.labels}
    kinds = np.asarray(table["class"]).astype(str)
    drawn = []
    for name, title in wanted.items():
        values = np.asarray(table[name], dtype=np.float64)
        own = {kind: values[kinds == kind] for kind in names} if len(names) > 1 else {names[0]: values}
        found = histogram(title, own)
        drawn += [] if found is None else [svg(found, colours)]
    return f'<div class="histograms">{"".join(drawn)}</div>'


# ---- what the viewer needs ------------------------------------------------------------------------------------------


def _data(facts: CaseFacts, view: View) -> dict[str, Any]:
    laid = sheets(view)
    highest = int(view.labels.max()) if view.labels.size else 0
    data: dict[str, Any] = {
        "shape": list(view.labels.shape),
        "columns": laid.columns,
        "sizes": [float(f"{size:.6g}") for size in view.sizes],
        "axes": [[axis.first, axis.step, axis.stored] for axis in view.axes],
        "calibrated": view.is_calibrated,
        "letters": view.letters,
        "through": view.through,
        "start": list(view.centre()),
        "colour": bool(view.images) and view.images[0].ndim == 4,
        "images": list(laid.images),
        "labels": laid.labels,
        "reference": laid.reference,
        "wide": laid.wide,
        "objects": facts.table is not None,
        "groups": [
            {"number": label.index, "name": label.name, "colour": list(label.colour)} for label in facts.labels.labels
        ],
    }
    return data if facts.table is None else data | _object_data(facts, facts.table, highest)


def _object_data(facts: CaseFacts, table: Mapping[str, npt.NDArray[Any]], highest: int) -> dict[str, Any]:
    """Returns colours and classes of objects, a digit for each, and the measures of not too many."""
    numbers = np.asarray(table["label"], dtype=np.int64)
    places = {label.name: place for place, label in enumerate(facts.labels.labels, start=1)}
    kinds = np.ones(highest + 1, dtype=np.int64)
    inside = numbers <= highest
    kinds[numbers[inside]] = [places.get(str(kind), 1) for kind in np.asarray(table["class"])[inside]]
    palette = list(dict.fromkeys(facts.colour(value) for value in range(1, highest + 1)))[: len(_DIGITS)]
    index = {colour: place for place, colour in enumerate(palette)}
    data: dict[str, Any] = {
        "palette": [list(colour) for colour in palette],
        "colourOf": "".join(_DIGITS[index.get(facts.colour(value), 0)] for value in range(1, highest + 1)),
        "unit": "",
        "rows": [],
    }
    if "frame" in table:  # numbers begin anew in each frame
        return data
    if len(places) > 1:
        data["classOf"] = "".join(_DIGITS[min(int(kind), len(_DIGITS) - 1)] for kind in kinds[1:])
    size = next((name for name in _SIZES if name in table), None)
    if size is not None and len(numbers) <= MOST_TOLD:
        data["unit"] = _SIZES[size]
        confidence = table.get("confidence", np.full(len(numbers), np.nan))
        rows = zip(numbers.tolist(), table[size].tolist(), confidence.tolist(), strict=True)
        data["rows"] = [[name, *map(_finite, measures)] for name, *measures in rows]
    return data


def _finite(value: Any) -> float | None:
    return float(f"{value:.3g}") if np.isfinite(value) else None


def _object_colours(view: View) -> dict[int, Colour]:
    if view.through:
        return {int(value): label_colour(1 + int(value) % 12) for value in np.unique(view.labels) if value}
    return object_colours([view.labels[:, :, 0].T])


def _json(data: Mapping[str, Any]) -> str:
    """Returns JSON that cannot end the element it stands in."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c").replace(">", "\\u003e")


_FOOT = (
    "<footer><p>Research use only. The pictures are images of patients or of specimens: keep the page where the images "
    f"are. It holds all it shows and asks the network for nothing. unet-med {__version__}.</p></footer>"
)
