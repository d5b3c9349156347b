"""The comparison of two runs as one page: opens from disk, needs no network and runs no script."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from unet_med.review.comparison import LOWER_IS_BETTER, TITLES, p_text
from unet_med.review.sheet import top_of
from unet_med.version import __version__

_PLOT = 340
_MARGIN = 58
_BAR = 150


@dataclass(frozen=True)
class Figure:
    """The pictures of a case that changed.

    Attributes:
        pictures: PNG files as base64 with what they are, for example ``("A", ...)``; empty: there is none.
        reason: Why there is none.
    """

    pictures: tuple[tuple[str, str], ...] = ()
    reason: str = ""


def page(result: Mapping[str, Any], figures: Mapping[str, Figure], name_of: Callable[[str], str] = str) -> str:
    """Returns the page.

    Args:
        result: What :func:`unet_med.workflows.compare.compare` returns.
        figures: Pictures of cases by their ids; a case that has none is only listed.
        name_of: How a case is named; where case ids may not be told, their tags.
    """
    verdict = result["verdict"]
    parts = [
        f"<header><h1>{escape(verdict['headline'])}</h1><p>{escape(verdict['evidence'])}</p>",
        f"<p>A: <code>{escape(result['a'])}</code><br>B: <code>{escape(result['b'])}</code><br>{result['cases']} cases "
        f"in both.{escape(_left_out(result))}</p></header><main>",
        _warning(result, name_of),
        _table(result["differences"]),
        _scatter(result["changes"], verdict["title"], name_of),
        _cases(result, figures, name_of),
        _settings(result["settings"]),
    ]
    return f"{top_of('Comparison of two runs', [_STYLE])}{''.join(parts)}</main>{_FOOT}</body></html>\n"


def _left_out(result: Mapping[str, Any]) -> str:
    told = [f"{result[f'only_{side}']} only in {side.upper()}" for side in ("a", "b") if result[f"only_{side}"]]
    return f" Left out: {', '.join(told)}." if told else ""


def _warning(result: Mapping[str, Any], name_of: Callable[[str], str]) -> str:
    others = result["other_truth"]
    if not others:
        return ""
    first = ", ".join(escape(name_of(case)) for case in others[:5])
    return (
        f'<article class="refusal"><h3>{len(others)} cases were scored against other true labels</h3>'
        f'<p class="remedy"><b>What to do:</b> evaluate both runs on one manifest. {first}</p></article>'
    )


# ---- all scores -----------------------------------------------------------------------------------------------------


def _table(differences: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    head = "".join(f"<th{' class=n' if n else ''}>{text}</th>" for n, text in enumerate(_COLUMNS))
    rows = []
    for kind, labels in differences.items():
        ends = [abs(row[end]) for row in labels.values() for end in ("low", "high", "mean") if row[end] is not None]
        better = "lower is better" if kind in LOWER_IS_BETTER else "higher is better"
        rows.append(
            f'<tr class="kind"><th colspan="{len(_COLUMNS)}">{escape(TITLES[kind])} <span>{better}</span></th></tr>'
        )
        rows += [_row(kind, label, row, max(ends) or 1.0) for label, row in labels.items()]
    return (
        '<section><h2>All scores</h2><div class="scroll"><table class="scores"><thead><tr>'
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div><p class=dim>Differences of the same cases. "
        "Interval: bootstrap over cases (BCa, 95 %). p: Wilcoxon's signed-rank test, two-sided, exact. Effect: "
        "rank-biserial correlation, from -1 to 1. The answer above rests on one score that was fixed beforehand; of "
        "many further scores some differ by chance, and none is corrected for their number.</p></section>"
    )


_COLUMNS = ("", "A", "B", "B - A", "95 % interval", "", "p", "effect", "B higher / lower", "")


def _row(kind: str, label: str, row: Mapping[str, Any], scale: float) -> str:
    interval = "too few cases" if row["low"] is None else f"{row['low']:+.4f} to {row['high']:+.4f}"
    answer = '<span class="dim">no difference shown</span>'
    if row["shown"]:
        wins = (row["mean"] > 0) != (kind in LOWER_IS_BETTER)
        answer = f'<b class="{"won" if wins else "lost"}">{"B" if wins else "A"} is better</b>'
    cells = [
        f"{row['first']:.4f}",
        f"{row['second']:.4f}",
        f"{row['mean']:+.4f}",
        interval,
        _bar(row, scale),
        p_text(row["p"]),
        f"{row['effect']:+.2f}",
        f"{row['higher']} / {row['lower']} of {row['cases']}",
    ]
    told = "".join(f'<td class="n">{cell if cell.startswith("<svg") else escape(cell)}</td>' for cell in cells)
    return f"<tr><td>{escape(label)}</td>{told}<td>{answer}</td></tr>"


def _bar(row: Mapping[str, Any], scale: float) -> str:
    """Draws the interval around zero, the mean as a dot."""
    middle = _BAR / 2

    def x(value: float) -> float:
        return float(middle + 0.92 * middle * value / scale)

    line = ""
    if row["low"] is not None:
        line = f'<line class="data" x1="{x(row["low"]):.1f}" x2="{x(row["high"]):.1f}" y1="9" y2="9"/>'
    zero = f'<line class="axis" x1="{middle}" x2="{middle}" y1="1" y2="17"/>'
    dot = f'<circle class="dot" cx="{x(row["mean"]):.1f}" cy="9" r="3.5"/>'
    return f'<svg width="{_BAR}" height="18" viewBox="0 0 {_BAR} 18" aria-hidden="true">{zero}{line}{dot}</svg>'


# ---- the cases ------------------------------------------------------------------------------------------------------


def _scatter(changes: Sequence[Mapping[str, Any]], title: str, name_of: Callable[[str], str]) -> str:
    """Draws a dot for each case, A across and B upwards; on the line nothing has changed."""
    values = [change[side] for change in changes for side in ("a", "b")]
    if not values:
        return ""
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.05
    low, high = low - room, high + room

    def along(value: float) -> float:
        return float((value - low) / (high - low) * _PLOT)

    dots = "".join(
        f'<circle class="dot" cx="{_MARGIN + along(one["a"]):.1f}" cy="{_PLOT - along(one["b"]):.1f}" r="4">'
        f"<title>{escape(name_of(one['id']))}: A {one['a']:.4f}, B {one['b']:.4f}</title></circle>"
        for one in changes
    )
    ticks = "".join(
        f'<text class="tick" x="{_MARGIN + along(value):.1f}" y="{_PLOT + 16}" text-anchor="middle">{value:.3g}</text>'
        f'<text class="tick" x="{_MARGIN - 6}" y="{_PLOT - along(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>'
        for value in (low + (high - low) * share for share in (0.1, 0.5, 0.9))
    )
    side = _PLOT + _MARGIN
    return (
        f'<section><h2>Every case</h2><svg class="plot" width="{side + 10}" height="{side}" '
        f'viewBox="0 0 {side + 10} {side}" role="img" aria-label="{escape(title)} of each case, A against B">'
        f'<rect class="frame" x="{_MARGIN}" y="0" width="{_PLOT}" height="{_PLOT}"/>'
        f'<line class="axis" x1="{_MARGIN}" y1="{_PLOT}" x2="{_MARGIN + _PLOT}" y2="0"/>{dots}{ticks}'
        f'<text class="tick" x="{_MARGIN + _PLOT / 2}" y="{_PLOT + 36}" text-anchor="middle">A</text>'
        f'<text class="tick" x="10" y="{_PLOT / 2}" text-anchor="middle">B</text></svg>'
        f'<p class="dim">{escape(title)}; a dot above the line is a case on which B scores higher.</p></section>'
    )


def _cases(result: Mapping[str, Any], figures: Mapping[str, Figure], name_of: Callable[[str], str]) -> str:
    """Returns the cases that changed most, the largest loss first, then the largest gains."""
    changes = result["changes"]
    losses = [one for one in changes if one["gain"] < 0]
    gains = [one for one in reversed(changes) if one["gain"] > 0]
    parts = []
    for title, chosen in (("Largest losses of B", losses), ("Largest gains of B", gains)):
        shown = [one for one in chosen if one["id"] in figures] if figures else chosen[:_LISTED]
        if shown:
            parts.append(f"<section><h2>{title}</h2>")
            parts += [_case(one, figures.get(one["id"]), name_of) for one in shown]
            parts.append("</section>")
    return "".join(parts) or "<section><p>No case changed.</p></section>"


_LISTED = 5


def _case(change: Mapping[str, Any], figure: Figure | None, name_of: Callable[[str], str]) -> str:
    name = escape(name_of(change["id"]))
    told = f"A {change['a']:.4f}, B {change['b']:.4f} ({change['b'] - change['a']:+.4f})"
    body = ""
    if figure is not None and not figure.pictures:
        body = f'<p class="dim">{escape(figure.reason)}</p>'
    elif figure is not None:
        shown = "".join(
            f'<figure><figcaption>{escape(side)}</figcaption><img alt="{name} by {escape(side)}" '
            f'src="data:image/png;base64,{data}"></figure>'
            for side, data in figure.pictures
        )
        body = f'<div class="pair">{shown}</div>'
    return f'<article class="case"><h3><code>{name}</code> <span class="dim">{told}</span></h3>{body}</article>'


def _settings(settings: Sequence[Mapping[str, str]]) -> str:
    if not settings:
        return ""
    rows = "".join(
        f"<tr><td><code>{escape(one['key'])}</code></td><td>{escape(one['a'])}</td><td>{escape(one['b'])}</td></tr>"
        for one in settings
    )
    return (
        '<section><h2>What differs in the plans</h2><div class="scroll"><table><thead><tr><th>Setting</th><th>A</th>'
        f"<th>B</th></tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


_STYLE = """
.scores{white-space:nowrap}.scores td,.scores th{padding:5px 10px}
.scores .kind th{background:var(--chip);font-size:13px}.scores .kind span{font-weight:normal;color:var(--dim)}
.won{color:var(--good)}.lost{color:var(--bad)}
svg{display:block}svg .axis{stroke:var(--dim);stroke-width:1}svg .data{stroke:var(--link);stroke-width:2}
svg .dot{fill:var(--link);fill-opacity:.75}svg .frame{fill:none;stroke:var(--line)}
svg .tick{font:12px system-ui,sans-serif;fill:var(--dim)}
.plot{max-width:100%;height:auto}
.case{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 16px;margin-bottom:12px;
break-inside:avoid}
.case h3 span{font-weight:normal}
.pair{display:flex;flex-wrap:wrap;gap:10px;margin-top:8px}
.pair figure{margin:0;min-width:0}.pair figcaption{font-weight:600}
.pair img{display:block;max-width:100%;height:auto;border-radius:6px}
"""

_FOOT = (
    "<footer><p>Research use only. Volumes are cut through the largest place where the two masks differ. The pictures "
    f"are images of patients: keep the page where the images are. unet-med {__version__}.</p></footer>"
)
