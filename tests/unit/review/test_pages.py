"""Pages of cases and folders: whole, escaped, from the disk alone, and only their own scripts run."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from unet_med.geometry import Geometry
from unet_med.labels import LabelMap
from unet_med.review.case_page import CaseFacts, case_page
from unet_med.review.facts import OBJECTS, VOLUMES, Section
from unet_med.review.folder_page import Entry, FolderFacts, folder_page
from unet_med.review.need import FIRST, OTHERS, WITHOUT, Need
from unet_med.review.pictures import Small
from unet_med.review.view import view_of

EVIL = "<script>alert('x')</script>\"&</h1>"
VOID = {"meta", "img", "br", "hr", "input", "progress", "path", "rect"}
LABELS = LabelMap.from_names({"background": 0, "liver": 1, EVIL: 2})


class Page(HTMLParser):
    """Collects elements; says whether they close as they should."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = {name: value or "" for name, value in attrs}
        self.tags.append((tag, own))
        if tag == "script":
            self.scripts.append((own.get("type", ""), ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self.open[-1:] != ["style"]:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def data(self) -> dict[str, object]:
        return json.loads(next(text for kind, text in self.scripts if kind == "application/json"))


def check_is_its_own(page: Page, text: str) -> None:
    """Nothing is loaded from elsewhere; the policy allows the page's own script and no other."""
    policy = next(one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    code = [content for kind, content in page.scripts if not kind]
    digests = {"sha256-" + base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in code}
    assert len(code) == 1
    assert set(re.findall(r"'(sha256-[^']+)'", policy)) == digests
    assert "unsafe-inline" not in policy.partition("script-src")[2].partition(";")[0]
    assert not re.search(r"https?://", text)
    assert all(one["src"].startswith("data:image/") for one in page.all("img"))
    assert page.all("link") == []
    assert not [own for _, own in page.tags for name in own if name.startswith("on")]


@pytest.fixture(scope="module")
def facts() -> CaseFacts:
    rng = np.random.default_rng(0)
    labels = np.zeros((12, 10, 6), np.uint8)
    labels[2:6, 2:6, 1:4], labels[8:10, 3:6, 2:5] = 1, 2
    image = rng.normal(size=(2, 12, 10, 6))
    view = view_of(image, labels, Geometry.from_spacing((12, 10, 6), (1.0, 1.0, 2.0)), labels, names=["T1", EVIL])
    need = Need(FIRST, 0.4, "case-1", (f"predicted Dice {EVIL}",), "predicted Dice 0.40 (liver)")
    volumes = Section(VOLUMES, ("Label", "Size"), (("liver", "1 ml"), (EVIL, "2 ml")), EVIL)
    folded = Section("Provenance", (), ((EVIL, EVIL),), folded=True)
    return CaseFacts(need, [volumes, folded], LABELS, view, missing="", compared=EVIL)


def test_the_page_of_a_case_is_whole_and_its_own(facts: CaseFacts) -> None:
    text = case_page(facts)
    page = Page(text)
    check_is_its_own(page, text)
    assert EVIL not in text
    assert page.text.count(EVIL) >= 6
    assert len(page.all("canvas")) == 3
    assert len(page.all("option")) == 2
    data = page.data()
    assert data["shape"] == [12, 10, 6]
    assert [group["name"] for group in data["groups"]] == ["liver", EVIL]
    assert len(data["images"]) == 2
    assert data["reference"].startswith("data:image/png")
    assert data["objects"] is False
    centres = [button["data-centre"] for button in page.all("button") if "data-centre" in button]
    for centre, value in zip(centres, (1, 2), strict=True):
        assert facts.view.labels[tuple(map(int, centre.split(",")))] == value


def test_objects_are_told_one_by_one_and_as_histograms() -> None:
    labels = np.zeros((30, 20), np.uint16)
    labels[2:8, 2:8], labels[8:14, 2:8], labels[20:24, 10:14] = 1, 2, 300
    table = {
        "label": np.array([1.0, 2.0, 300.0]),
        "class": np.array(["cell", "cell", "virus"], dtype=object),
        "confidence": np.array([0.9, 0.8, np.nan]),
        "area_px": np.array([36.0, 36.0, 16.0]),
        "area_um2": np.array([9.0, 9.0, 4.0]),
        "dapi_mean": np.array([5.0, 6.0, 7.0]),
    }
    classes = LabelMap.from_names({"background": 0, "cell": 1, "virus": 2}, objects=True)
    view = view_of(np.zeros((1, 30, 20)), labels, Geometry((30, 20)))
    section = Section(OBJECTS, ("Class", "Count"), (("cell", "2"), ("virus", "1")))
    text = case_page(CaseFacts(Need(OTHERS, 0.85, "a"), [section], classes, view, table=table))
    page = Page(text)
    check_is_its_own(page, text)
    assert len(page.all("canvas")) == 1
    assert [one["aria-label"].split(":")[0] for one in page.all("svg")] == [
        "Histogram of Area in µm²",
        "Histogram of Confidence",
        "Histogram of Mean intensity, dapi",
    ]
    data = page.data()
    assert data["wide"] is True
    assert data["rows"] == [[1, 9.0, 0.9], [2, 9.0, 0.8], [300, 4.0, None]]
    assert data["unit"] == "µm²"
    assert len(data["colourOf"]) == len(data["classOf"]) == 300
    assert (data["classOf"][0], data["classOf"][299]) == ("1", "2")
    assert data["colourOf"][0] != data["colourOf"][1]  # they touch


def test_a_case_without_voxels_shows_its_preview_or_says_why() -> None:
    need = Need(WITHOUT, 0.0, "broken", ("refused: cut off",))
    page = Page(case_page(CaseFacts(need, [], LABELS, missing="There is no mask.")))
    assert page.all("canvas") == page.all("img") == []
    assert "There is no mask." in page.text
    assert "refused: cut off" in page.text


def entry(name: str, group: int, certainty: float, reasons: tuple[str, ...] = ()) -> Entry:
    small = Small("data:image/webp;base64,AAAA", (20, 10)) if group != WITHOUT else None
    return Entry(Need(group, certainty, name, reasons), f"cases/{name}.html", small, "3 cells")


def test_the_page_of_a_folder_lists_what_needs_eyes_first() -> None:
    entries = [
        entry("z", OTHERS, 0.9),
        entry("b", OTHERS, 0.2),
        entry("x", WITHOUT, 0.0),
        entry("y", FIRST, 0.8, (EVIL,)),
    ]
    text = folder_page(entries, FolderFacts("key <", "f" * 64, EVIL))
    page = Page(text)
    check_is_its_own(page, text)
    assert EVIL not in text
    rows = [own for tag, own in page.tags if tag == "li"]
    assert [row["data-id"] for row in rows] == ["y", "x", "b", "z"]
    assert rows[0]["data-why"] == EVIL
    assert [one.get("href") for one in page.all("a")][:4] == [f"cases/{name}.html" for name in "yxbz"]
    assert "4 cases, 1 to look at first, 1 without a mask." in page.text
    assert page.data() == {"key": "key <", "model": "f" * 64}
    assert len(page.all("img")) == 3


def test_odd_names_stay_addresses() -> None:
    name = "a #1?.x"
    page = Page(folder_page([entry(name, OTHERS, 0.5)], FolderFacts("k", "f", "")))
    assert page.all("a")[0]["href"] == "cases/a%20%231%3F.x.html"


def test_five_hundred_cases_are_light() -> None:
    small = Small("data:image/webp;base64," + "A" * 3000, (72, 60))
    entries = [Entry(Need(OTHERS, n / 500, f"case-{n:03d}"), f"cases/{n}.html", small, "1 ml") for n in range(500)]
    assert len(folder_page(entries, FolderFacts("k", "f", ""))) < 2_500_000
