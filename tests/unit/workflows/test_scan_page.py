"""The intake page: one file, no network, no script, everything escaped, and every source on it."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import dicom_writer as w
import numpy as np
import pytest
import tifffile
from PIL import Image

from unet_med.errors import MachineError, UsageError
from unet_med.workflows import scan_page
from unet_med.workflows.scan import FINDINGS, scan
from unet_med.workflows.thumbnail import Thumbnail

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects tags, attributes and text; says whether the tags close as they should."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A usable series, one with a gap, pictures that cannot be shown, a foreign file."""
    root = tmp_path / "in"
    w.write(root / "good", w.Series(number=1, columns=60, rows=40).slices())
    gap = w.Series(number=2).slices()
    del gap[2]
    w.write(root / "gap", gap)
    w.write(root / "burnt", _without_place(w.Series(number=3, modality="DX").slices()[:1]))
    tifffile.imwrite(root / "cells.tif", np.arange(600, dtype=np.uint8).reshape(20, 30))
    (root / "notes.txt").write_text("x")
    return root


def _without_place(slices: list) -> list:
    for data in slices:
        data.BurnedInAnnotation = "YES"
        del data.ImagePositionPatient
    return slices


def test_the_page_holds_every_source_and_needs_nothing_else(tree: Path, tmp_path: Path) -> None:
    file = tmp_path / "new" / "report.html"
    outcome = scan(tree, html=file)
    assert outcome.lines[-1] == "page: report.html"
    text = file.read_text(encoding="utf-8")
    page = Page(text)
    shown = " ".join(page.text)
    for entry in outcome.result["sources"]:
        assert any(attributes.get("id") == entry["id"] for _, attributes in page.tags), entry["id"]
        assert entry["id"] in shown
    assert "1 slice is missing" in shown
    assert "What to do:" in shown
    assert "Add the missing files" in shown
    assert ".txt files" in shown
    assert "not shown: text in the pixels may tell a name" in shown
    # no script, no network: nothing is loaded but the pictures in it, and the page's policy says so
    assert page.all("script") == page.all("link") == page.all("iframe") == []
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    sources = [attributes["src"] for attributes in page.all("img")]
    assert len(sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"url\(|@import|https?:", text)
    assert all(attributes["href"].startswith("#") for attributes in page.all("a"))
    policy = next(one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    anchors = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {attributes["href"][1:] for attributes in page.all("a")} <= anchors
    picture = Image.open(io.BytesIO(base64.b64decode(sources[0].partition(",")[2])))
    assert picture.size[0] / picture.size[1] == pytest.approx(60 * 0.8 / (40 * 1.25), rel=0.05)


def test_texts_are_escaped() -> None:
    evil = "<script>alert('x')</script>\"&"
    entry = {
        "id": evil,
        "kind": "dicom",
        "axes": "IJK",
        "shape": [1, 2, 3],
        "spacing_mm": [1.0, 1.0, 1.0],
        "affine": np.eye(4).tolist(),
        "orientation": "RAS",
        "usable": True,
        "reason": "",
        "notes": [evil],
        "modality": evil,
        "files": 2,
    }
    refused = entry | {"id": evil + "2", "usable": False, "reason": f"{evil}: {evil}"}
    label = {
        "id": evil + "3",
        "kind": "dicom-seg",
        "usable": True,
        "reason": "",
        "notes": [evil],
        "segments": [{"number": 1, "name": evil, "code": ""}],
        "refers_to": [evil],
    }
    result = {
        "sources": [entry, refused],
        "annotations": [label],
        "skipped": [{"what": evil, "count": 1, "reason": evil}],
        "summary": {
            "sources": 2,
            "usable": 1,
            "refused": 1,
            "annotations": 1,
            "skipped": 1,
            "modalities": {evil: 1},
            "findings": {evil: 1},
            "reasons": [{"reason": refused["reason"], "ids": [refused["id"]]}],
        },
    }
    text = scan_page.page(result, {evil: Thumbnail(b"png", (3, 4), "RLAP", evil)})
    page = Page(text)
    assert page.all("script") == []
    assert " ".join(page.text).count("alert('x')") >= 12
    assert "<script" not in text


def test_a_picture_that_fails_does_not_fail_the_scan(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unet_med.io.dicom import pixels as dicom_pixels

    def broken(*_: object) -> None:
        raise ValueError("/secret/path")

    monkeypatch.setattr(dicom_pixels, "read_slice", broken)
    outcome = scan(tree, html=tmp_path / "report.html")
    assert outcome.exit_code == 3
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "no picture: the pixels cannot be read" in text
    assert "/secret" not in text


def test_nothing_is_written_into_the_input_or_in_place_of_a_folder(tree: Path, tmp_path: Path) -> None:
    before = sorted(tree.rglob("*"))
    for place in (tree / "report.html", tree / "good" / "new" / "report.html", tree, tmp_path):
        with pytest.raises(UsageError):
            scan(tree, html=place)
    assert sorted(tree.rglob("*")) == before
    single = tree / "cells.tif"
    with pytest.raises(UsageError):
        scan(single, html=single)
    assert scan(single, html=tmp_path / "single.html").exit_code == 0


def test_a_page_that_cannot_be_written_leaves_nothing(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(MachineError, match="disk full"):
        scan(tree, html=tmp_path / "out" / "report.html")
    assert list((tmp_path / "out").iterdir()) == []


def test_hundreds_of_sources_make_a_page_of_a_few_megabytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 65535, (300, 300), dtype=np.uint16)
    root = tmp_path / "in"
    root.mkdir()
    tifffile.imwrite(root / "first.tif", picture)
    for number in range(260):
        (root / f"c{number}.tif").hardlink_to(root / "first.tif")
    scan(root, html=tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert len(page.all("img")) == 261
    assert (tmp_path / "report.html").stat().st_size < 6e6  # pure noise; real images take half of it


def test_the_table_of_files_names_slices_as_refusals_do(tree: Path) -> None:
    truncated = w.write(tree / "cut", w.Series(number=5).slices())
    truncated[4].write_bytes(truncated[4].read_bytes()[:-40])
    unreadable = w.write(tree / "stump", w.Series(number=6).slices())
    unreadable[1].write_bytes(b"")
    outcome = scan(tree)
    table = outcome.private()
    json.dumps(table)
    (stump,) = [name for name in table if name.startswith("s006")]
    assert [one["file"] for one in table[stump] if one["slice"] == "cannot be read"] == [str(unreadable[1])]
    (entry,) = [one for one in outcome.result["sources"] if one["id"].startswith("s005")]
    place = re.search(r"\(slice at (.*?)\)", entry["reason"]).group(1)
    assert [one["file"] for one in table[entry["id"]] if one["slice"] == place] == [str(truncated[4])]
    (good,) = [one for one in outcome.result["sources"] if one["id"].startswith("s001")]
    assert [Path(one["file"]).parent.name for one in table[good["id"]]] == ["good"] * 6
    heights = [float(one["slice"].split()[0]) for one in table[good["id"]]]
    assert np.allclose(np.diff(heights), 2.5, atol=0.011)
    assert table["cells"] == [{"file": str(tree / "cells.tif")}]
    assert set(table) == {one["id"] for one in outcome.result["sources"]}


def _tilted() -> list:
    slices = w.Series(turn=np.eye(3)).slices()
    for number, data in enumerate(slices):
        x, y, z = data.ImagePositionPatient
        data.ImagePositionPatient = [x, float(y) + 0.5 * number, z]
    return slices


def _uneven() -> list:
    slices = w.Series(turn=np.eye(3)).slices()
    x, y, z = slices[2].ImagePositionPatient
    slices[2].ImagePositionPatient = [x, y, float(z) + 0.9]
    return slices


def _gap() -> list:
    slices = w.Series().slices()
    del slices[2]
    return slices


def _twice() -> list:
    slices = w.Series().slices()
    return [*slices, slices[0]]


def _scout() -> list:
    slices = w.Series(count=8).slices()
    slices[0].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    return slices


def _echoes() -> list:
    series = w.Series(modality="MR", sop_class="1.2.840.10008.5.1.4.1.1.4")
    first, second = series.slices(), series.slices()
    for number, data in enumerate([*first, *second]):
        data.EchoTime = 10 if number < 6 else 80
    return [*first, *second]


def _repeats() -> list:
    series = w.Series()
    slices = [*series.slices(), *series.slices()]
    for number, data in enumerate(slices):
        data.InstanceNumber = 1 + number % 6
    return slices


def _burnt() -> list:
    slices = w.Series().slices()
    slices[0].BurnedInAnnotation = "YES"
    return slices


def _nowhere() -> list:
    slices = w.Series().slices()
    del slices[1].ImagePositionPatient
    return slices


def _colour() -> list:
    slices = w.Series(modality="OT").slices()
    for data in slices:
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
        data.BitsAllocated = data.BitsStored = 8
        data.HighBit, data.PixelRepresentation = 7, 0
        data.PixelData = bytes(3 * 9 * 7 + 1)
    return slices


@pytest.mark.parametrize(
    ("slices", "found"),
    [
        (_tilted, "tilt"),
        (_uneven, "uneven steps"),
        (_gap, "gaps"),
        (_twice, "duplicates"),
        (_scout, "scouts left out"),
        (_echoes, "split"),
        (_repeats, "repeats"),
        (_burnt, "burnt-in text"),
        (_nowhere, "no position"),
        (_colour, "colour"),
    ],
)
def test_what_was_found_is_told_in_a_word(slices, found: str, tmp_path: Path) -> None:
    w.write(tmp_path, slices())
    result = scan(tmp_path).result
    assert all(entry["findings"] == [found] for entry in result["sources"]), [
        (entry["reason"], entry["notes"], entry["findings"]) for entry in result["sources"]
    ]
    assert result["summary"]["findings"] == {found: len(result["sources"])}
    assert found in FINDINGS


def test_an_untroubled_series_has_no_finding(tmp_path: Path) -> None:
    w.write(tmp_path, w.Series().slices())
    (entry,) = scan(tmp_path).result["sources"]
    assert entry["findings"] == []
