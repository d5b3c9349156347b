"""The explanation of a case as one page: each heat map beside the evidence that it depends on the model."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from PIL import Image

from unet_med.overlays import Picture
from unet_med.review.sheet import top_of
from unet_med.version import __version__

PAGE = "explain.html"

_TITLES = {
    "gradcam": "Seg-Grad-CAM",
    "occlusion": "Occlusion",
    "uncertainty": "Uncertainty of the model",
    "disagreement_ensemble": "Disagreement of the models",
    "disagreement_tta": "Disagreement over mirrored copies",
    "disagreement_dropout": "Disagreement with dropout left on",
}
_WIDE, _HIGH, _LEFT, _FOOT_ROOM = 360, 190, 34, 26


@dataclass(frozen=True, eq=False)
class Shown:
    """A map as it is drawn.

    Attributes:
        label: Name of its label; empty for maps of all labels.
        kind: A key of its title.
        picture: ``None`` where the image may carry a name in its pixels.
    """

    label: str
    kind: str
    picture: Picture | None


def verdict(entry: Mapping[str, Any]) -> str:
    """Says in a sentence what the two checks found of a map, as ``explain.json`` tells it."""
    deletion, random = entry["deletion"], entry["randomised"]
    matters = "what it marks matters" if deletion["shown"] else "what it marks matters no more than chance"
    rank = [abs(one) for one in random["correlations"] if one is not None]
    like = f"rank correlation with maps of untrained networks at most {max(rank):.2f}" if rank else "untrained: flat"
    learnt = "it depends on what was learnt" if random["shown"] else "an untrained network gives a map like it"
    areas = f"area {deletion['area']:.2f} against {min(deletion['random_areas']):.2f} and more at random"
    more = "more" if deletion["area"] < deletion["near_area"] else "no more"
    place = f"{more} than the label's own place does, {deletion['near_area']:.2f}"
    said = f"{matters} ({areas}; {place}), and {learnt} ({like})"
    return said if entry["shown"] else f"do not read it as a reason: {said}"


def page(result: Mapping[str, Any], shown: Sequence[Shown]) -> str:
    """Returns the page.

    Args:
        result: What ``explain.json`` tells.
        shown: The pictures, in their order.
    """
    body = [f"<header><h1>Why these labels</h1><p>{escape(_sentence(result))}</p></header><main>"]
    pictures = {(one.label, one.kind): one.picture for one in shown}
    for entry in result["labels"]:
        body.append(f'<section><h2>{escape(entry["name"])}</h2><p class="dim">{escape(_about(entry, result))}</p>')
        for kind, one in entry["maps"].items():
            body.append(_map(kind, one, pictures.get((entry["name"], kind))))
        body.append("</section>")
    body += [f"<p>{escape(name)} was not found: there is nothing to explain.</p>" for name in result["not_found"]]
    body += [_field(result["receptive_field"]), _unsure(result["uncertainty"], shown)]
    return f"{top_of('Why these labels', [_STYLE])}{''.join(body)}</main>{_END}</body></html>\n"


def _sentence(result: Mapping[str, Any]) -> str:
    count = result["models"]
    whose = "One model" if count == 1 else f"{count} models: heat maps are those of the first one"
    frame = "" if result["frame"] is None else f", frame {result['frame'] + 1}"
    return f"{result['id']}{frame}. {whose}."


def _about(entry: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    edges = " \u00d7 ".join(f"{edge:.3g}" for edge in entry["block"])
    return (
        f"{entry['voxels']:,} voxels in the window that is explained, {entry['confidence']:.0%} sure on average. "
        f"Blocks of {edges} {result['unit']} were hidden."
    )


def _map(kind: str, entry: Mapping[str, Any], picture: Picture | None) -> str:
    state = ("good", "depends on the model") if entry["shown"] else ("bad", "not shown to depend on the model")
    told = verdict(entry)
    return (
        f'<article class="card heat"><h3>{_TITLES[kind]} <span class="mark {state[0]}">{state[1]}</span></h3>'
        f'{_image(picture, _TITLES[kind])}<div class="evidence"><figure>{_curves(entry["deletion"])}'
        "<figcaption>How likely the label still is while blocks are hidden: the hottest first (orange), the nearest "
        "to the label first (dashed), in random orders (grey).</figcaption></figure>"
        f"<div><p>{escape(told[:1].upper() + told[1:])}.</p>{_ranks(entry['randomised'])}</div></div></article>"
    )


def _image(picture: Picture | None, what: str) -> str:
    if picture is None:
        return '<p class="dim">Not shown: text in the pixels may tell a name. The map is in its file.</p>'
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    rows, columns = picture.shape[:2]
    return f'<img width="{columns}" height="{rows}" alt="{escape(what)}" src="data:image/png;base64,{data}">'


def _curves(deletion: Mapping[str, Any]) -> str:
    """Draws a deletion: its axes run from nothing to all hidden, and from 0 to 1."""
    parts = [
        f'<svg viewBox="0 0 {_WIDE} {_HIGH}" role="img" aria-label="deletion curves">',
        *(_tick(share) for share in (0.0, 0.5, 1.0)),
        *(_line(deletion["shares"], one, "random") for one in deletion["random"]),
        _line(deletion["shares"], deletion["near"], "near"),
        _line(deletion["shares"], deletion["map"], "own"),
        f'<text x="{(_WIDE + _LEFT) / 2}" y="{_HIGH - 4}" text-anchor="middle">share of the blocks hidden</text></svg>',
    ]
    return "".join(parts)


def _place(share: float, value: float) -> tuple[float, float]:
    return _LEFT + share * (_WIDE - _LEFT - 8), 8 + (1 - value) * (_HIGH - _FOOT_ROOM - 16)


def _tick(value: float) -> str:
    (left, y), (right, _) = _place(0, value), _place(1, value)
    return (
        f'<path class="grid" d="M{left:.1f} {y:.1f}H{right:.1f}"/>'
        f'<text x="{left - 5:.1f}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
    )


def _line(shares: Sequence[float], values: Sequence[float], kind: str) -> str:
    points = [_place(share, value) for share, value in zip(shares, values, strict=True)]
    way = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path class="{kind}" d="M{way}"/>'


def _ranks(random: Mapping[str, Any]) -> str:
    numbers = ", ".join("flat" if one is None else f"{one:+.2f}" for one in random["correlations"])
    return (
        f'<p class="dim">Rank correlation with maps of {len(random["correlations"])} untrained networks: {numbers}; '
        f"beyond \u00b1{random['alike_above']:g} they are alike.</p>"
    )


def _field(field: Mapping[str, Any]) -> str:
    rows = []
    for key, told in (("theoretical", "can see"), ("effective", "uses"), ("untrained", "would use untrained")):
        voxels = " \u00d7 ".join(f"{n:g}" for n in field[f"{key}_voxels"])
        length = field.get(f"{key}_mm")
        mm = "" if length is None else " \u00d7 ".join(f"{n:.3g}" for n in length) + " mm"
        rows.append(f"<tr><td>{told}</td><td>{voxels} voxels</td><td>{mm}</td></tr>")
    return (
        "<section><h2>Receptive field</h2><p>What a voxel of the output depends on: all that it can see, and the "
        'extent that holds 95 % of the energy of its gradient.</p><div class="scroll"><table><tbody>'
        f"{''.join(rows)}</tbody></table></div></section>"
    )


def _unsure(uncertainty: Mapping[str, Any], shown: Sequence[Shown]) -> str:
    parts = [
        "<section><h2>Uncertainty</h2><p>From 0 (sure) to 1 (every label as likely as any other); disagreement is the "
        "part of it that more training cases can take away. Pictures are stretched to their largest value.</p>"
    ]
    for one in shown:
        if one.label:
            continue
        entry = uncertainty[one.kind.partition("_")[2] or "model"]
        key = "disagreement_" if one.kind.startswith("disagreement") else ""
        inside = entry[f"{key}mean_inside"]
        mean = "" if inside is None else f"mean {inside:.3f} within what was found, "
        told = f"{entry['samples']} samples: " if entry["samples"] > 1 else ""
        parts.append(
            f'<article class="card heat"><h3>{_TITLES[one.kind]}</h3>{_image(one.picture, _TITLES[one.kind])}'
            f"<p>{told}{mean}largest {entry[f'{key}max']:.3f}.</p></article>"
        )
    missing = [
        f"<li>{escape(kind)}: {escape(one['missing'])}</li>" for kind, one in uncertainty.items() if "missing" in one
    ]
    parts.append(f"<p>Not measured:</p><ul>{''.join(missing)}</ul>" if missing else "")
    return "".join([*parts, "</section>"])


_STYLE = """
.heat{padding:14px 16px;margin-bottom:14px}
.heat h3{margin-bottom:10px}
.heat img{display:block;max-width:100%;height:auto;border-radius:6px}
.mark{font-size:13px;font-weight:600;margin-left:6px}
.mark.good{color:var(--good)}.mark.bad{color:var(--bad)}
.evidence{display:flex;flex-wrap:wrap;gap:8px 24px;margin-top:12px}
.evidence>*{flex:1 1 300px;margin:0}
.evidence figcaption{font-size:13px;color:var(--dim)}
svg{display:block;width:100%;max-width:420px;height:auto}
svg text{font-size:11px;fill:var(--dim)}
svg path{fill:none;stroke-width:1}
svg .grid{stroke:var(--line)}
svg .random{stroke:var(--dim);opacity:.45}
svg .near{stroke:var(--ink);stroke-dasharray:4 3;stroke-width:1.5}
svg .own{stroke:#e07b00;stroke-width:2.5}
"""

_END = (
    "<footer><p>Research use only. A heat map shows what a model is sensitive to in one window, not why a finding is "
    "true. Two checks stand beside each: hiding what it marks must lose the label sooner than hiding blocks at random, "
    "and networks that learnt nothing must give other maps. The pictures are images of patients: keep the page where "
    f"the images are. unet-med {__version__}.</p></footer>"
)
