"""PDF: objects lie where the table says, text is found in it, lines keep within their width."""

from __future__ import annotations

import io
import re
import zlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unet_med.labels import LabelMap
from unet_med.review.case_page import CaseFacts
from unet_med.review.case_pdf import case_pdf
from unet_med.review.facts import Section
from unet_med.review.need import Need
from unet_med.review.pdf import A4, Document, text_width, wrapped


def objects(pdf: bytes) -> dict[int, bytes]:
    """Reads a file as a viewer does: from its end to the table, from the table to the objects."""
    start = int(re.search(rb"startxref\n(\d+)\n%%EOF\n$", pdf)[1])
    head = re.match(rb"xref\n0 (\d+)\n0000000000 65535 f \n", pdf[start:])
    count = int(head[1])
    found = {}
    for number in range(1, count):
        line = pdf[start + len(head[0]) + 20 * (number - 1) :][:20]
        assert re.fullmatch(rb"\d{10} 00000 n \n", line)
        place = int(line[:10])
        assert pdf[place:].startswith(b"%d 0 obj\n" % number)
        found[number] = pdf[place : pdf.index(b"\nendobj", place)]
    assert b"/Size %d /Root 1 0 R" % count in pdf[start:]
    return found


def pages(pdf: bytes) -> list[str]:
    """Returns what is drawn on each page."""
    found = objects(pdf)
    kids = re.search(rb"/Kids \[(.*?)\] /Count (\d+)", found[2])
    numbers = [int(number) for number in re.findall(rb"(\d+) 0 R", kids[1])]
    assert len(numbers) == int(kids[2])
    drawn = []
    for number in numbers:
        content = found[int(re.search(rb"/Contents (\d+) 0 R", found[number])[1])]
        length = int(re.search(rb"/Length (\d+)", content)[1])
        body = content[content.index(b"stream\n") + 7 :][:length]
        drawn.append(zlib.decompress(body).decode("cp1252"))
        for image, target in re.findall(rb"/I(\d+) (\d+) 0 R", found[number]):
            assert b"/Subtype /Image" in found[int(target)], image
    return drawn


def test_text_and_pictures_are_where_they_were_put() -> None:
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(file, "JPEG")
    document = Document("Caf\u00e9 \u732b")
    number = document.add_image(file.getvalue(), (6, 4))
    document.add_page().text(10, 20, r"a (b) \ c 5 \u00b5m".replace(r"\u00b5", "\u00b5") + " \u732b", 12)
    document.add_page().image(number, 10, 10, 60, 40)
    first, second = pages(document.to_bytes())
    assert "(a \\(b\\) \\\\ c 5 \u00b5m ?) Tj" in first
    assert f"10.00 {A4[1] - 20:.2f} Td" in first
    assert f"60.00 0 0 40.00 10.00 {A4[1] - 50:.2f} cm /I0 Do" in second
    title = re.search(rb"/Title <([0-9a-f]+)>", objects(document.to_bytes())[5])[1]
    assert bytes.fromhex(title.decode()).decode("utf-16") == "Caf\u00e9 \u732b"


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(min_codepoint=32, max_codepoint=400), max_size=80), st.floats(20, 300))
def test_lines_hold_all_words_within_their_width(text: str, width: float) -> None:
    lines = wrapped(text, width, 9)
    assert all(text_width(line, 9) <= width or len(line) == 1 for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


def test_a_case_with_much_to_say_takes_several_pages() -> None:
    file = io.BytesIO()
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(file, "PNG")
    rows = tuple((f"label {number}", f"{number} ml") for number in range(120))
    table = Section("Volumes", ("Label", "Size"), rows, "how to read it")
    pairs = Section("Provenance", (), (("model sha256", "f" * 64), ("made by", "unet-med")), folded=True)
    need = Need(0, 0.4, "case (1)", ("predicted Dice 0.40",), "predicted Dice 0.40")
    drawn = pages(case_pdf(CaseFacts(need, [table, pairs], LabelMap(()), picture=file.getvalue())))
    assert len(drawn) > 1
    text = "\n".join(drawn)
    for expected in (
        "case \\(1\\)",
        "label 119",
        "Look at it:",
        "Provenance",
        f"page 1 of {len(drawn)}",
        "how to read it",
    ):
        assert expected in text
    assert all("Research use only" in page for page in drawn)
    places = [float(y) for page in drawn for y in re.findall(r"[\d.]+ ([\d.]+) Td", page)]
    assert min(places) > 20
    assert max(places) < A4[1]
