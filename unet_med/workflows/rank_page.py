"""Which images to label next, as one page of thumbnails in their order."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from unet_med.io.source import SourceRef
from unet_med.review.sheet import top_of
from unet_med.version import __version__
from unet_med.workflows.progress import track
from unet_med.workflows.scan_page import figure_of, picture_of, picture_side
from unet_med.workflows.thumbnail import Thumbnail

PAGE = "ranking.html"


def page(result: Mapping[str, Any], sources: Mapping[str, SourceRef]) -> str:
    """Returns the page.

    Args:
        result: What ``ranking.json`` tells.
        sources: For each image what its thumbnail is made of.
    """
    rows = result["ranking"]
    side = picture_side(len(rows))
    cards = [_card(row, picture_of(sources[row["id"]], side)) for row in track(rows, "drawing pictures")]
    known = f" and {result['labelled']:,} that are labelled already" if result["labelled"] else ""
    head = (
        "<header><h1>Which images to label next</h1>"
        f"<p>{len(rows):,} images, the first ones are the next to label: the model is unsure of them, and they are "
        f"unlike those before them{known}.</p></header><main>"
    )
    refused = "".join(
        f'<li><code>{escape(one["id"])}</code> <span class="dim">{escape(one["reason"])}</span></li>'
        for one in result["refused"]
    )
    left_out = f"<section><h2>Left out</h2><ul>{refused}</ul></section>" if refused else ""
    body = f'{head}<div class="grid">{"".join(cards)}</div>{left_out}</main>{_END}'
    return f"{top_of('Which images to label next', [_STYLE])}{body}</body></html>\n"


def _card(row: Mapping[str, Any], picture: Thumbnail | str) -> str:
    bars = "".join(
        f'<div class="bar"><span>{told}</span><b style="width:{100 * row[key]:.0f}%"></b><em>{row[key]:.2f}</em></div>'
        for key, told in (("uncertainty", "unsure"), ("diversity", "unlike"))
    )
    return (
        f'<article class="card">{figure_of(picture)}<div class="text"><code>{row["rank"]}. {escape(row["id"])}</code>'
        f"{bars}<div>{escape(row['why'])}</div></div></article>"
    )


_STYLE = """
.bar{display:grid;grid-template-columns:52px 1fr 34px;align-items:center;gap:6px}
.bar b{height:8px;border-radius:4px;background:var(--link);min-width:1px}
.bar em{font-style:normal;text-align:right;font-variant-numeric:tabular-nums}
"""

_END = (
    "<footer><p>Research use only. The first image is the one the model is least sure of; each further one has the "
    "largest product of uncertainty and of the distance to the nearest image before it, in what the deepest level of "
    "the network sees. The pictures show middle slices and are images of patients: keep the page where the images are. "
    f"unet-med {__version__}.</p></footer>"
)
"""What is told below the cards."""
