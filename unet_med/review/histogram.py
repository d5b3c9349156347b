"""How a measure of objects is spread: a histogram as SVG, its bars stacked by class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt

from unet_med.review.facts import number

Floats = npt.NDArray[np.float64]
Colour = tuple[int, int, int]

MOST_BARS = 24
_FEWEST_BARS = 6
_CUT = 99.5
"""Percentile that ends the axis; what is larger is in the last bar."""
_WIDTH, _HEIGHT, _BASE, _TOP = 320, 120, 22, 16


@dataclass(frozen=True)
class Histogram:
    """A measure of objects, counted.

    Attributes:
        title: What is measured, with its unit.
        edges: (bars + 1) ascending; the last bar also holds what is larger.
        counts: (bars) for each class.
        median: Of all.
    """

    title: str
    edges: Floats
    counts: Mapping[str, npt.NDArray[np.int64]]
    median: float


def histogram(title: str, values: Mapping[str, Floats]) -> Histogram | None:
    """Counts a measure; ``None`` where no object has one.

    Args:
        title: What is measured, with its unit.
        values: (objects) for each class; what is not finite is left out.
    """
    own = {name: column[np.isfinite(column)] for name, column in values.items()}
    together = np.concatenate([np.zeros(0), *own.values()])
    if not together.size:
        return None
    low, high = float(together.min()), float(np.percentile(together, _CUT))
    high = high if high > low else low + (abs(low) or 1.0)
    bars = int(np.clip(np.ceil(2.0 * together.size ** (1.0 / 3.0)), _FEWEST_BARS, MOST_BARS))  # Rice's rule
    edges = np.linspace(low, high, bars + 1)
    counts = {name: np.histogram(np.minimum(column, high), edges)[0] for name, column in own.items()}
    return Histogram(title, edges, counts, float(np.median(together)))


def svg(found: Histogram, colours: Mapping[str, Colour]) -> str:
    """Draws a histogram; text is in the colour of the page's."""
    total = np.sum(list(found.counts.values()), axis=0)
    most = max(1, int(total.max()))
    bars = len(total)
    wide, high = _WIDTH / bars, _HEIGHT - _BASE - _TOP
    parts = [
        f'<svg class="histogram" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(_spoken(found))}">',
        f'<text x="0" y="11">{escape(found.title)}</text>'
        f'<text x="{_WIDTH}" y="11" text-anchor="end">median {number(found.median)}</text>',
    ]
    for bar in range(bars):
        top = float(_HEIGHT - _BASE)
        for name, counts in found.counts.items():
            height = high * int(counts[bar]) / most
            top -= height
            if height:
                fill = "rgb({},{},{})".format(*colours.get(name, (120, 120, 120)))
                place = f'x="{bar * wide + 0.5:.1f}" y="{top:.1f}" width="{wide - 1:.1f}" height="{height:.1f}"'
                parts.append(f'<rect {place} fill="{fill}"><title>{_bar(found, bar, name)}</title></rect>')
    base = _HEIGHT - _BASE
    parts.append(f'<path d="M0 {base}H{_WIDTH}" class="axis"/>')
    share = float(np.clip((found.median - found.edges[0]) / (found.edges[-1] - found.edges[0]), 0.0, 1.0))
    parts.append(f'<path d="M{share * _WIDTH:.1f} {base}v5" class="axis"/>')
    for left, edge, anchor in ((0, found.edges[0], "start"), (_WIDTH, found.edges[-1], "end")):
        parts.append(f'<text x="{left}" y="{_HEIGHT - 7}" text-anchor="{anchor}">{number(edge)}</text>')
    return "".join(parts) + "</svg>"


def _bar(found: Histogram, bar: int, name: str) -> str:
    what = escape(f"{name}: " if len(found.counts) > 1 else "")
    return f"{what}{found.counts[name][bar]} from {number(found.edges[bar])} to {number(found.edges[bar + 1])}"


def _spoken(found: Histogram) -> str:
    low, high = found.edges[0], found.edges[-1]
    return f"Histogram of {found.title}: from {number(low)} to {number(high)}, median {number(found.median)}"
