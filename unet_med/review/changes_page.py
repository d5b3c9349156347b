"""What corrected masks changed, as one page: opens from disk, needs no network and runs no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from unet_med.review.comparison_page import Figure
from unet_med.review.sheet import top_of
from unet_med.version import __version__

_ORDER = ("changed", "new", "unchanged")
_TITLES = {
    "changed": "Changed",
    "new": "New: there was no mask before",
    "unchanged": "Accepted as they were",
}
_FORMATS = {
    "seg-nrrd": "3D Slicer segmentation",
    "nifti": "NIfTI",
    "nrrd": "NRRD",
    "mha": "MetaImage",
    "tiff": "TIFF",
    "zarr": "OME-Zarr",
    "geojson": "GeoJSON (QuPath)",
    "imagej-roi": "ImageJ outlines",
    "coco": "COCO",
}


def page(name: str, result: Mapping[str, Any], figures: Mapping[str, Figure]) -> str:
    """Returns the page: cases that changed first, those that changed most in front.

    Args:
        name: Of the data set.
        result: What :func:`unet_med.workflows.correct.correct` returns.
        figures: Pictures of cases by their ids.
    """
    cases = result["cases"]
    done = [case for case in cases if case["status"] == "done"]
    troubled = [case for case in cases if case["status"] != "done"]
    totals = result["totals"]
    count = f"{len(done)} corrected mask{'' if len(done) == 1 else 's'}"
    told = ", ".join(f"{totals[kind]} {kind}" for kind in _ORDER if totals[kind])
    parts = [
        f"<header><h1>{count}</h1><p>{escape(name)}: {told or 'none'}.</p></header><main>",
        *(_refused(case) for case in troubled),
        _sums(done),
    ]
    for kind in _ORDER:
        chosen = sorted((case for case in done if case["change"] == kind), key=_amount, reverse=True)
        if chosen:
            parts.append(f"<section><h2>{_TITLES[kind]} <small>{len(chosen)}</small></h2>")
            parts += [_case(case, figures.get(case["id"])) for case in chosen]
            parts.append("</section>")
    return f"{top_of('Corrected masks', [_STYLE])}{''.join(parts)}</main>{_FOOT}</body></html>\n"


def _amount(case: Mapping[str, Any]) -> float:
    """How much of a mask was changed: of labels 1 less Dice, of objects the share that is not as it was."""
    if "objects" in case:
        touched = sum(case["objects"][kind] for kind in ("changed", "added", "removed"))
        return float(touched / max(1, touched + case["objects"]["kept"]))
    return max((1.0 - row["dice"] for row in case["labels"] if row["dice"] is not None), default=0.0)


def _refused(case: Mapping[str, Any]) -> str:
    return (
        f'<article class="refusal"><h3><code>{escape(case["id"])}</code> was not taken over</h3>'
        f'<p class="remedy">{escape(str(case["reason"]))}</p></article>'
    )


def _sums(cases: Sequence[Mapping[str, Any]]) -> str:
    """Returns a table of what became of all labels, or of all objects."""
    objects = [case["objects"] for case in cases if "objects" in case]
    if objects:
        sums = {kind: sum(one[kind] for one in objects) for kind in ("kept", "changed", "added", "removed")}
        rows = "".join(f"<tr><td>objects {kind}</td><td class=n>{count:,}</td></tr>" for kind, count in sums.items())
        return f'<section><h2>All objects</h2><div class="scroll"><table><tbody>{rows}</tbody></table></div></section>'
    labels: dict[str, list[Mapping[str, Any]]] = {}
    for case in cases:
        for row in case.get("labels", ()):
            labels.setdefault(row["label"], []).append(row)
    rows = "".join(_row({"label": label} | _added_up(found)) for label, found in labels.items())
    return f"<section><h2>All labels</h2>{_table(rows)}</section>"


def _added_up(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    sums: dict[str, Any] = {kind: sum(row[kind] for row in rows) for kind in ("before", "after", "added", "removed")}
    both = sums["before"] + sums["after"]
    return sums | {"dice": 2 * (sums["after"] - sums["added"]) / both if both else None}


def _table(rows: str) -> str:
    head = "".join(f"<th class=n>{title}</th>" for title in ("Before", "After", "Added", "Removed", "Dice"))
    return (
        f'<div class="scroll"><table><thead><tr><th>Label (voxels)</th>{head}</tr></thead><tbody>{rows}</tbody>'
        "</table></div>"
    )


def _row(row: Mapping[str, Any]) -> str:
    counts = "".join(f"<td class=n>{row[kind]:,}</td>" for kind in ("before", "after", "added", "removed"))
    dice = "-" if row["dice"] is None else f"{row['dice']:.4f}"
    return f"<tr><td>{escape(row['label'])}</td>{counts}<td class=n>{dice}</td></tr>"


def _case(case: Mapping[str, Any], figure: Figure | None) -> str:
    name = escape(case["id"])
    if "objects" in case:
        told = ", ".join(f"{count} {kind}" for kind, count in case["objects"].items())
        body = f"<p>Objects: {told}</p>"
    else:
        body = _table("".join(_row(row) for row in case["labels"]))
    notes = "".join(f"<li>{escape(note)}</li>" for note in case["notes"])
    return (
        f'<article class="case"><h3><code>{name}</code></h3><p class="dim">{escape(_origin(case["provenance"]))}</p>'
        f"{body}{f'<ul>{notes}</ul>' if notes else ''}{_figure(name, figure)}</article>"
    )


def _origin(provenance: Mapping[str, Any]) -> str:
    """Says where a label comes from."""
    before = provenance["before"] or {}
    models = before.get("model_sha256") or ()
    was = "there was none before"
    if "label_sha256" in before:
        was = f"before: the label {before['label_sha256'][:12]}"
    elif before:
        by = f" of the model {', '.join(one[:12] for one in models)}" if models else ""
        was = f"before: a mask{by}"
    kind = _FORMATS.get(provenance["format"], provenance["format"])
    return f"{kind}, sha256 {provenance['file_sha256'][:12]}, taken over {provenance['added'][:10]}; {was}"


def _figure(name: str, figure: Figure | None) -> str:
    if figure is None:
        return ""
    if not figure.pictures:
        return f'<p class="dim">{escape(figure.reason)}</p>'
    return "".join(
        f'<img alt="{name}: {escape(what)}" src="data:image/png;base64,{data}">' for what, data in figure.pictures
    )


_STYLE = """
h2 small{display:inline;font-weight:normal}
.case{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 16px;margin-bottom:14px;
break-inside:avoid}
.case p{margin:2px 0 8px}.case img{max-width:100%;height:auto;border-radius:6px;margin-top:10px}
"""

_FOOT = (
    "<footer><p>Research use only. Volumes are cut through the largest place that was changed. Dice is that of the "
    "mask after and before. The pictures are images of patients: keep the page where the images are. "
    f"unet-med {__version__}.</p></footer>"
)
