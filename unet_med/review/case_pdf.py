"""What the page of a case says, as a PDF to be sent or printed: its preview, then its sections."""

from __future__ import annotations

from collections.abc import Sequence

from unet_med.review.case_page import CaseFacts
from unet_med.review.facts import Section
from unet_med.review.pdf import A4, Document, Page, text_width, wrapped
from unet_med.review.pictures import jpeg
from unet_med.version import __version__

_MARGIN = 42.0
_WIDTH = A4[0] - 2 * _MARGIN
_BOTTOM = A4[1] - 52.0
_TITLE, _HEAD, _TEXT, _SMALL = 16.0, 11.5, 9.0, 7.5
_LEADING = 1.4
_GAP = 8.0
_WORDS = 110.0
_MOST_HIGH = 330.0


def case_pdf(facts: CaseFacts) -> bytes:
    """Returns the PDF of a case."""
    flow = _Flow(facts.id)
    flow.write(facts.id, _TITLE, bold=True)
    flow.write(facts.need.told, _TEXT, grey=0.35)
    for reason in facts.need.reasons:
        flow.write(f"Look at it: {reason}", _TEXT, bold=True)
    if facts.picture:
        flow.show(facts.picture)
    elif facts.missing:
        flow.write(facts.missing, _TEXT, grey=0.35)
    for section in facts.sections:
        flow.section(section)
    return flow.finish()


class _Flow:
    """Text and pictures from top to bottom, on as many pages as it takes."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._document = Document(f"{title} - unet-med")
        self._page = self._document.add_page()
        self._y = _MARGIN

    def write(self, text: str, size: float, bold: bool = False, grey: float = 0.0) -> None:
        """Writes a paragraph; nothing for an empty text."""
        for line in wrapped(text, _WIDTH, size, bold) if text else ():
            self._room(size * _LEADING)
            self._page.text(_MARGIN, self._y + size, line, size, bold, grey)
            self._y += size * _LEADING

    def show(self, picture: bytes) -> None:
        """Shows a picture as wide as the page, or as high as is left for it."""
        content, (columns, rows) = jpeg(picture)
        scale = min(_WIDTH / columns, _MOST_HIGH / rows)
        self._room(rows * scale + _GAP)
        number = self._document.add_image(content, (columns, rows))
        self._page.image(number, _MARGIN, self._y + _GAP / 2, columns * scale, rows * scale)
        self._y += rows * scale + _GAP

    def section(self, section: Section) -> None:
        """Writes a heading and a table, and what has to be known of it."""
        self._y += _GAP
        self._room(3 * _HEAD * _LEADING)
        self.write(section.title, _HEAD, bold=True)
        widths = _widths(section)
        if section.columns:
            self._row(section.columns, widths, bold=True)
        for cells in section.rows:
            self._row(cells, widths)
        self.write(section.note, _SMALL, grey=0.35)

    def finish(self) -> bytes:
        """Writes what stands below every page; returns the file."""
        for number, page in enumerate(self._document.pages, start=1):
            _foot(page, f"{self._title}, page {number} of {len(self._document.pages)}")
        return self._document.to_bytes()

    def _row(self, cells: Sequence[str], widths: Sequence[float], bold: bool = False) -> None:
        lines = [wrapped(cell, width - 6, _TEXT, bold) for cell, width in zip(cells, widths, strict=True)]
        height = max(map(len, lines)) * _TEXT * _LEADING
        self._room(height)
        self._page.line(_MARGIN, self._y, A4[0] - _MARGIN, self._y, 0.85)
        x = _MARGIN
        for own, width in zip(lines, widths, strict=True):
            for number, line in enumerate(own):
                self._page.text(
                    x, self._y + (number * _LEADING + 1.1) * _TEXT, line, _TEXT, bold, 0.35 if bold else 0.0
                )
            x += width
        self._y += height

    def _room(self, height: float) -> None:
        if self._y + height > _BOTTOM and self._y > _MARGIN:
            self._page = self._document.add_page()
            self._y = _MARGIN


def _widths(section: Section) -> list[float]:
    """Returns how wide the columns are: what they hold, as far as there is room; pairs have a narrow first one."""
    if not section.columns:
        return [_WORDS, _WIDTH - _WORDS]
    rows = [section.columns, *section.rows]
    wanted = [
        max(text_width(row[place], _TEXT, bold=True) for row in rows) + 8 for place in range(len(section.columns))
    ]
    scale = _WIDTH / sum(wanted)
    return [width * scale for width in wanted]


def _foot(page: Page, text: str) -> None:
    y = A4[1] - 30
    page.line(_MARGIN, y - 10, A4[0] - _MARGIN, y - 10)
    page.text(_MARGIN, y, text, _SMALL, grey=0.35)
    note = f"Research use only. unet-med {__version__}"
    page.text(A4[0] - _MARGIN - text_width(note, _SMALL), y, note, _SMALL, grey=0.35)
