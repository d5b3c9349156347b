"""PDF as far as a report needs it: text in the fonts that every viewer has, lines, and JPEG pictures.

ISO 32000-1: objects, a table of where each begins, streams deflated. Text is in Windows' Latin letters (the encoding
that all standard fonts have); a letter beyond them becomes a question mark.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

A4 = (595.0, 842.0)
"""Points of a page, 72 to the inch."""

_ENCODING = "cp1252"
_BOLD_WIDER = 1.07
# Widths of Helvetica's letters from space to tilde, in thousandths of the size (Adobe's metrics of the standard fonts).
_WIDTHS = (
    *(278, 278, 355, 556, 556, 889, 667, 191, 333, 333, 389, 584, 278, 333, 278, 278),
    *(556,) * 10,
    *(278, 278, 584, 584, 584, 556, 1015),
    *(667, 667, 722, 722, 667, 611, 778, 722, 278, 500, 667, 556, 833),
    *(722, 778, 667, 778, 722, 667, 611, 722, 667, 944, 667, 667, 611),
    *(278, 278, 278, 469, 556, 333),
    *(556, 556, 500, 556, 556, 278, 556, 556, 222, 222, 500, 222, 833),
    *(556, 556, 556, 556, 333, 500, 278, 556, 500, 722, 500, 500, 500),
    *(334, 260, 334, 584),
)
_OTHER_WIDTH = 600


def text_width(text: str, size: float, bold: bool = False) -> float:
    """Returns how long a line of text is, in points; exact for plain English."""
    codes = (ord(letter) - 32 for letter in text)
    units = sum(_WIDTHS[code] if 0 <= code < len(_WIDTHS) else _OTHER_WIDTH for code in codes)
    return units * size / 1000.0 * (_BOLD_WIDER if bold else 1.0)


def wrapped(text: str, width: float, size: float, bold: bool = False) -> list[str]:
    """Returns text in lines that are not longer than ``width`` points; words that are too long are cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if text_width(longer, size, bold) <= width:
            lines[-1] = longer
            continue
        parts = list(_cut(word, width, size, bold))
        lines = [*lines, *parts] if lines[-1] else parts
    return lines


def _cut(word: str, width: float, size: float, bold: bool) -> Iterator[str]:
    while word and text_width(word, size, bold) > width:
        count = max(1, next(n for n in range(len(word), 0, -1) if n == 1 or text_width(word[:n], size, bold) <= width))
        yield word[:count]
        word = word[count:]
    if word:
        yield word


@dataclass
class Page:
    """One page; places are in points from its upper left corner."""

    _commands: list[str] = field(default_factory=list)
    _images: list[int] = field(default_factory=list)

    def text(self, x: float, y: float, text: str, size: float, bold: bool = False, grey: float = 0.0) -> None:
        """Writes a line of text whose base line is at ``y``; ``grey`` from 0 (black) to 1."""
        plain = text.encode(_ENCODING, "replace").decode(_ENCODING)
        quoted = plain.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
        font = "F2" if bold else "F1"
        place = f"{x:.2f} {A4[1] - y:.2f} Td"
        self._commands.append(f"BT {grey:.2f} g /{font} {size:.1f} Tf {place} ({quoted}) Tj ET")

    def line(self, x0: float, y0: float, x1: float, y1: float, grey: float = 0.7) -> None:
        """Draws a thin line."""
        ends = f"{x0:.2f} {A4[1] - y0:.2f} m {x1:.2f} {A4[1] - y1:.2f} l"
        self._commands.append(f"{grey:.2f} G 0.5 w {ends} S")

    def image(self, number: int, x: float, y: float, width: float, height: float) -> None:
        """Shows an image of :meth:`Document.add_image` with its upper left corner at (x, y)."""
        self._images.append(number)
        self._commands.append(f"q {width:.2f} 0 0 {height:.2f} {x:.2f} {A4[1] - y - height:.2f} cm /I{number} Do Q")

    @property
    def images(self) -> tuple[int, ...]:
        """Numbers of the images it shows."""
        return tuple(dict.fromkeys(self._images))

    def content(self) -> bytes:
        """Returns what is drawn, in the operators of PDF."""
        return "\n".join(self._commands).encode(_ENCODING)


class Document:
    """A PDF that is written page by page.

    Args:
        title: Is shown by viewers.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._images: list[tuple[bytes, tuple[int, int]]] = []
        self.pages: list[Page] = []

    def add_image(self, jpeg: bytes, size: tuple[int, int]) -> int:
        """Takes a JPEG in RGB; returns its number."""
        self._images.append((jpeg, size))
        return len(self._images) - 1

    def add_page(self) -> Page:
        """Returns a new page, A4 upright."""
        self.pages.append(Page())
        return self.pages[-1]

    def to_bytes(self) -> bytes:
        """Returns the file."""
        first_page = 6 + len(self._images)
        kids = " ".join(f"{first_page + 2 * place} 0 R" for place in range(len(self.pages)))
        font = "<< /Type /Font /Subtype /Type1 /BaseFont /{} /Encoding /WinAnsiEncoding >>"
        objects = [
            b"<< /Type /Catalog /Pages 2 0 R /Lang (en) /ViewerPreferences << /DisplayDocTitle true >> >>",
            f"<< /Type /Pages /Kids [{kids}] /Count {len(self.pages)} >>".encode(),
            font.format("Helvetica").encode(),
            font.format("Helvetica-Bold").encode(),
            f"<< /Title <feff{self._title.encode('utf-16-be').hex()}> /Producer (unet-med) >>".encode(),
        ]
        objects += [_image(*image) for image in self._images]
        for place, page in enumerate(self.pages):
            objects += [
                _page(page, first_page + 2 * place + 1),
                _stream(b"", zlib.compress(page.content(), 9), "Flate"),
            ]
        return _file(objects)


def _page(page: Page, content: int) -> bytes:
    images = " ".join(f"/I{number} {6 + number} 0 R" for number in page.images)
    resources = f"<< /Font << /F1 3 0 R /F2 4 0 R >> /XObject << {images} >> >>"
    box = f"[0 0 {A4[0]:g} {A4[1]:g}]"
    return f"<< /Type /Page /Parent 2 0 R /MediaBox {box} /Resources {resources} /Contents {content} 0 R >>".encode()


def _image(jpeg: bytes, size: tuple[int, int]) -> bytes:
    head = (
        f"/Type /XObject /Subtype /Image /Width {size[0]} /Height {size[1]} /ColorSpace /DeviceRGB /BitsPerComponent 8 "
    )
    return _stream(head.encode(), jpeg, "DCT")


def _stream(head: bytes, content: bytes, kind: str) -> bytes:
    told = f"/Length {len(content)} /Filter /{kind}Decode".encode()
    return b"<< " + head + told + b" >>\nstream\n" + content + b"\nendstream"


def _file(objects: list[bytes]) -> bytes:
    """Returns numbered objects with the table of where each begins; the first is the catalogue, the fifth says what."""
    parts = [b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n"]
    places = []
    for number, content in enumerate(objects, start=1):
        places.append(sum(map(len, parts)))
        parts.append(b"%d 0 obj\n%b\nendobj\n" % (number, content))
    start = sum(map(len, parts))
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    count = len(objects) + 1
    parts.append(b"xref\n0 %d\n0000000000 65535 f \n%b" % (count, table))
    parts.append(b"trailer\n<< /Size %d /Root 1 0 R /Info 5 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (count, start))
    return b"".join(parts)
