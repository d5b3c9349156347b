"""A learning curve as one page: scores with their intervals over the number of training images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from unet_med.review.sheet import top_of
from unet_med.version import __version__

PAGE = "learning_curve.html"

_WIDE, _HIGH, _LEFT, _RIGHT, _TOP, _BELOW = 640, 320, 52, 20, 14, 44
_ROOM = 0.1
_LEAST_RANGE = 0.02


def page(result: Mapping[str, Any], verdict: str) -> str:
    """Returns the page.

    Args:
        result: What ``learning_curve.json`` tells.
        verdict: A sentence on the last step; may be empty.
    """
    points = [point for point in result["points"] if point["score"] is not None]
    rows = "".join(
        f'<tr><td class="n">{point["images"]}</td><td class="n">{_number(point["score"])}</td>'
        f"<td>{_interval(point)}</td></tr>"
        for point in result["points"]
    )
    table = (
        '<div class="scroll"><table><thead><tr><th class="n">Images</th><th class="n">Dice</th><th>95 % interval</th>'
        f"</tr></thead><tbody>{rows}</tbody></table></div>"
    )
    head = (
        "<header><h1>Learning curve</h1><p>Nested sets of training images, all models scored on the same "
        f"{result['held_out']} held-out cases.</p></header><main>"
    )
    chart = f'<figure class="chart">{_chart(points)}</figure>' if points else ""
    told = f"<p>{escape(verdict)}</p>" if verdict else ""
    return f"{top_of('Learning curve', [_STYLE])}{head}{chart}{told}{table}</main>{_END}</body></html>\n"


def _chart(points: Sequence[Mapping[str, Any]]) -> str:
    ends = [value for point in points for value in (point["score"], point["low"], point["high"]) if value is not None]
    middle, half = (min(ends) + max(ends)) / 2, max(max(ends) - min(ends), _LEAST_RANGE) * (0.5 + _ROOM)
    low, high = middle - half, middle + half
    logs = [math.log2(point["images"]) for point in points]
    first, wide = min(logs), (max(logs) - min(logs)) or 1.0

    def across(value: float) -> float:
        share = (value - first) / wide if len(points) > 1 else 0.5
        return _LEFT + 24 + share * (_WIDE - _LEFT - _RIGHT - 48)

    def down(value: float) -> float:
        return float(_TOP + (high - value) / (high - low) * (_HIGH - _TOP - _BELOW))

    parts = [f'<svg viewBox="0 0 {_WIDE} {_HIGH}" role="img" aria-label="Dice over the number of training images">']
    for step in range(5):
        value = low + (high - low) * step / 4
        y = down(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDE - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3f}</text>')
    way = "L".join(f"{across(x):.1f} {down(point['score']):.1f}" for x, point in zip(logs, points, strict=True))
    parts.append(f'<path class="own" d="M{way}"/>')
    for x, point in zip(logs, points, strict=True):
        place = across(x)
        if point["low"] is not None:
            parts.append(f'<path class="bar" d="M{place:.1f} {down(point["low"]):.1f}V{down(point["high"]):.1f}"/>')
        parts.append(f'<circle cx="{place:.1f}" cy="{down(point["score"]):.1f}" r="4.5"/>')
        parts.append(f'<text x="{place:.1f}" y="{_HIGH - _BELOW + 18}" text-anchor="middle">{point["images"]}</text>')
    parts.append(f'<text x="{_WIDE / 2}" y="{_HIGH - 6}" text-anchor="middle">training images</text></svg>')
    return "".join(parts)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _interval(point: Mapping[str, Any]) -> str:
    return "too few cases" if point["low"] is None else f"{point['low']:.4f} to {point['high']:.4f}"


_STYLE = """
.chart{margin:20px 0;background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px}
svg{display:block;width:100%;max-width:760px;height:auto;margin:0 auto}
svg text{font-size:12px;fill:var(--dim)}
svg path{fill:none}
svg .grid{stroke:var(--line)}
svg .own{stroke:var(--link);stroke-width:2.5}
svg .bar{stroke:var(--link);stroke-width:1.5}
svg circle{fill:var(--link)}
"""

_END = (
    "<footer><p>Research use only. Intervals are over the held-out cases (bootstrap): they do not tell how much "
    f"another choice of training images, or another seed, would change. unet-med {__version__}.</p></footer>"
)
