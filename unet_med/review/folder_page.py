"""The page of an output folder: all cases, what needs somebody's eyes first, and a desk to accept or reject them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from urllib.parse import quote

from unet_med.review.need import FIRST, GROUPS, WITHOUT, Need
from unet_med.review.pictures import Small
from unet_med.review.sheet import part, script, top_of
from unet_med.version import __version__


@dataclass(frozen=True)
class Entry:
    """A case in the list.

    Attributes:
        need: How much it needs to be looked at.
        href: Where its page lies, seen from that of the folder.
        small: A small picture; ``None`` where there is none.
        told: What else is said of it, short.
    """

    need: Need
    href: str
    small: Small | None
    told: str = ""


@dataclass(frozen=True)
class FolderFacts:
    """What the page of a folder says of itself.

    Attributes:
        key: Under which a browser keeps what was decided; the same for the same cases and masks.
        model: Checksum of the model, for the table of decisions.
        line: What it is, in a sentence.
    """

    key: str
    model: str
    line: str


def folder_page(entries: Sequence[Entry], facts: FolderFacts) -> str:
    """Returns the page of a folder; cases that need to be looked at come first.

    Args:
        entries: The cases in any order.
        facts: Of the folder.
    """
    ordered = sorted(entries, key=lambda entry: entry.need)
    code = part("folder.js")
    about = json.dumps({"key": facts.key, "model": facts.model}).replace("<", "\\u003c")
    body = [
        f'<header class="folder"><h1>Review</h1><p>{escape(_sentence(ordered))} {escape(facts.line)}</p></header>',
        _bar(),
        '<p id="unstored" hidden>This browser keeps nothing for pages on a disk: save the table before you leave.</p>',
        f"<main>{''.join(_groups(ordered))}</main>",
        _DESK,
        _HELP,
        _FOOT,
        f'<script type="application/json" id="folder">{about}</script>',
        script(code),
    ]
    return f"{top_of('Review', [part('folder.css')], [code], frames=True)}{''.join(body)}</body></html>\n"


def _sentence(entries: Sequence[Entry]) -> str:
    groups = [entry.need.group for entry in entries]
    first, without = groups.count(FIRST), groups.count(WITHOUT)
    told = [f"{len(entries):,} {'case' if len(entries) == 1 else 'cases'}"]
    told += [f"{first:,} to look at first"] if first else []
    told += [f"{without:,} without a mask"] if without else []
    return ", ".join(told) + "."


def _bar() -> str:
    filters = {"all": "All", "open": "To review", "accept": "Accepted", "reject": "Rejected", "comment": "Comments"}
    buttons = "".join(
        f'<button type="button" data-filter="{name}" aria-pressed="false">{text} <b></b></button>'
        for name, text in filters.items()
    )
    return (
        f'<div class="bar" role="toolbar" aria-label="Cases">{buttons}'
        '<input type="search" id="search" placeholder="Find a case" aria-label="Find a case">'
        '<progress id="progress" value="0" max="1" aria-hidden="true"></progress><span id="done"></span>'
        '<span class="far"></span><span id="loaded" role="status"></span>'
        '<label class="button"><input type="file" id="load" accept=".csv,text/csv"><span>Load table</span></label>'
        '<button type="button" id="save">Save table <kbd>s</kbd></button>'
        '<button type="button" id="keys">Keys <kbd>?</kbd></button></div>'
    )


def _groups(entries: Sequence[Entry]) -> list[str]:
    parts = []
    for number, members in groupby(entries, key=lambda entry: entry.need.group):
        rows = [_row(entry) for entry in members]
        parts.append(
            f'<section class="group"><h2>{GROUPS[number]} <span>{len(rows):,}</span></h2>'
            f'<ul class="rows">{"".join(rows)}</ul></section>'
        )
    return parts


def _row(entry: Entry) -> str:
    need, small = entry.need, entry.small
    picture = "no picture"
    if small is not None:
        picture = f'<img width="{small.size[0]}" height="{small.size[1]}" alt="" src="{small.source}">'
    why = "; ".join(need.reasons)
    told = " \N{MIDDLE DOT} ".join(filter(None, [need.told, entry.told]))
    reasons = f'<small class="why">{escape(why)}</small>' if why else ""
    href = escape(quote(entry.href))
    return (
        f'<li class="row" data-id="{escape(need.id)}" data-href="{href}" data-why="{escape(why)}">'
        f'<a href="{href}"><span class="thumb">{picture}</span><span><b>{escape(need.id)}</b>{reasons}'
        f'<small>{escape(told)}</small><small class="said"></small></span><span class="mark"></span></a></li>'
    )


_DESK = (
    '<section class="desk" aria-label="Case"><div class="bar">'
    '<button type="button" id="close" aria-label="Back to the list">\N{MULTIPLICATION SIGN}</button>'
    '<span id="title"></span><span id="position"></span>'
    '<button type="button" id="previous" aria-label="Previous case">\u2039 <kbd>k</kbd></button>'
    '<button type="button" id="next" aria-label="Next case">\u203a <kbd>j</kbd></button>'
    '<a class="button" id="alone" target="_blank" rel="noopener" aria-label="In a page of its own">\u2197</a></div>'
    '<iframe id="frame" title="The case" src="about:blank"></iframe>'
    '<div class="bar verdicts">'
    '<button type="button" class="accept" data-verdict="accept" aria-pressed="false">Accept <kbd>a</kbd></button>'
    '<button type="button" class="reject" data-verdict="reject" aria-pressed="false">Reject <kbd>r</kbd></button>'
    '<input type="text" id="comment" placeholder="Comment (c)" aria-label="Comment" autocomplete="off"></div></section>'
)

_KEYS = {
    "j k": "next and previous case",
    "a r u": "accept, reject, undecided again",
    "c": "comment; Enter keeps it, Escape does not",
    "Enter": "the case in a page of its own",
    "s": "save the table of decisions as CSV",
    "/": "find a case",
    "\N{UPWARDS ARROW} \N{DOWNWARDS ARROW}": "slices; Page Up and Page Down: ten of them",
    "p x": "next plane, cross on or off",
    "o f + -": "outline, fill, opacity",
    "1 ... 9": "a label on or off",
    "z Z 0": "nearer, further, as at first",
    "m": "next channel",
}

_HELP = (
    '<dialog id="help" aria-labelledby="keyshead"><h2 id="keyshead">Keys</h2><dl>'
    + "".join(
        f"<dt>{''.join(f'<kbd>{escape(key)}</kbd>' for key in keys.split(' ') if key != '...')}</dt><dd>{text}</dd>"
        for keys, text in _KEYS.items()
    )
    + '</dl><button type="button" id="shut">Close</button></dialog>'
)

_FOOT = (
    "<footer><p>Research use only. Decisions stay in this browser until the table is saved. The pictures are images of "
    f"patients or of specimens: keep the pages where the images are. unet-med {__version__}.</p></footer>"
)
