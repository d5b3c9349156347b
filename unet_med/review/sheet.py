"""What all pages share: they open from disk, need no network, and hold nothing that is not their own.

A page's policy forbids whatever is not part of it; a script runs only if it is the very one that was written with it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import lru_cache
from html import escape
from importlib import resources

from unet_med.version import __version__


@lru_cache
def part(name: str) -> str:
    """Returns a style or a script that lies beside this module."""
    return resources.files("unet_med.review").joinpath(name).read_text(encoding="utf-8")


def top_of(title: str, styles: Sequence[str] = (), scripts: Sequence[str] = (), frames: bool = False) -> str:
    """Returns how a page begins.

    Args:
        title: Its title, not escaped yet.
        styles: What it adds to the style of all pages.
        scripts: Texts of the scripts that :func:`script` puts into the page; no other one may run.
        frames: Whether the page shows others that lie beside it.
    """
    allowed = f"script-src {' '.join(map(_source, scripts))}; " if scripts else ""
    shown = "frame-src 'self' file:; " if frames else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        f"style-src 'unsafe-inline'; {allowed}{shown}base-uri 'none'; form-action 'none'\">"
        '<meta name="referrer" content="no-referrer"><meta name="robots" content="noindex">'
        f'<meta name="generator" content="unet-med {__version__}">'
        f"<title>{escape(title)}</title><style>{part('sheet.css')}{''.join(styles)}</style></head><body>"
    )


def script(text: str) -> str:
    """Returns the element that runs a script; :func:`top_of` must know it, too."""
    return f"<script>{text}</script>"


def _source(text: str) -> str:
    """Returns how a policy names a script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
