"""What the label doctor shows: pictures of suspicious cases on a page or as files, and nothing beside them."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from healthy_sets import NAMES, load_nifti, manifest_of, save_nifti, write_bodies
from PIL import Image

from unet_med.doctoring import PairFinding
from unet_med.errors import UsageError
from unet_med.manifest import Finding, save_manifest
from unet_med.workflows import check_page
from unet_med.workflows.check import check


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    """A manifest of a set with swapped sides in c3 and an empty label in c5."""
    folder = write_bodies(tmp_path / "set")
    label = load_nifti(folder / "labels/c3.nii.gz")
    save_nifti(folder / "labels/c3.nii.gz", np.array([0, 2, 1], np.uint8)[label])
    save_nifti(folder / "labels/c5.nii.gz", np.zeros_like(label))
    manifest_of(folder, tmp_path / "m.json", label_names=NAMES)
    return tmp_path / "m.json"


def test_the_page_shows_each_suspicious_case(faulty: Path, tmp_path: Path) -> None:
    outcome = check(faulty, html=tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert outcome.lines[-1] == "page: page.html"
    assert outcome.exit_code == 3
    assert len(re.findall(r'src="data:image/png;base64,', text)) == 2
    for word in ("c3", "c5", "swapped", "empty", "kidney_left"):
        assert word in text
    assert "c1" not in re.sub(r"base64,[^\"]*", "", text)
    assert not re.search(r"https?://|<script|src=\"(?!data:)", text)
    assert str(tmp_path) not in text


def test_pictures_as_files(faulty: Path, tmp_path: Path) -> None:
    outcome = check(faulty, pictures=tmp_path / "pictures")
    assert outcome.lines[-1] == "pictures: 2"
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == ["empty-c5.png", "swapped-c3.png"]
    image = np.asarray(Image.open(tmp_path / "pictures/swapped-c3.png"))
    assert {(230, 159, 0), (86, 180, 233)} <= {tuple(pixel) for pixel in image.reshape(-1, 3).tolist()}
    empty = np.asarray(Image.open(tmp_path / "pictures/empty-c5.png"))
    assert (230, 159, 0) not in {tuple(pixel) for pixel in empty.reshape(-1, 3).tolist()}


def test_nothing_is_drawn_unasked_and_nothing_lost(faulty: Path, tmp_path: Path) -> None:
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    result = check(faulty).result
    json.dumps(result)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="not empty"):
        check(faulty, pictures=tmp_path / "full")
    with pytest.raises(UsageError, match="--html"):
        check(faulty, html=faulty)
    assert json.loads(faulty.read_text(encoding="utf-8"))["numTraining"] == 8


def test_a_clean_set_has_an_empty_page(tmp_path: Path) -> None:
    manifest_of(write_bodies(tmp_path / "set", cases=3), tmp_path / "m.json", label_names=NAMES)
    check(tmp_path / "m.json", html=tmp_path / "page.html", pictures=tmp_path / "pictures")
    assert "Nothing was found" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not (tmp_path / "pictures").exists()


def test_pairs_names_and_missing_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_bodies(tmp_path / "set", cases=3)
    manifest = manifest_of(folder, tmp_path / "m.json", label_names=NAMES)
    evil = Finding("", "warning", "<b>&</b>", "<i>", "odd")
    pair = PairFinding("c0", "warning", "like c1", "look", "near_duplicate", "c1")
    drawings = check_page.draw(manifest, [evil, pair])
    assert set(drawings) == {"c0", "c1"}
    assert Image.open(io.BytesIO(drawings["c0"].png)).size == drawings["c0"].size
    text = check_page.page(manifest, [evil, pair], drawings)
    assert "<b>&</b>" not in text
    assert "&lt;b&gt;" in text
    assert check_page.write_pictures(tmp_path / "out", [evil, pair], drawings) == 2
    monkeypatch.setattr(check_page, "MOST_PICTURES", 1)
    assert "not shown" in check_page.page(manifest, [pair], check_page.draw(manifest, [pair]))
    (folder / "images/c0.nii.gz").write_bytes(b"no image any more")
    assert check_page.draw(manifest, [pair])["c0"].reason


def test_many_findings_of_a_kind_are_counted(tmp_path: Path) -> None:
    folder = write_bodies(tmp_path / "set", cases=9)
    for number in range(8):
        path = folder / f"labels/c{number}.nii.gz"
        save_nifti(path, load_nifti(path).astype(np.int16) - 1)
    manifest = manifest_of(folder, tmp_path / "m.json", label_names=NAMES)
    save_manifest(manifest, tmp_path / "m.json")
    lines = check(tmp_path / "m.json").lines
    assert sum("negative" in line for line in lines) == 5
    assert any(line == "error: 3 more of this kind (--json FILE lists all)" for line in lines)
