"""A folder in the order in which it is best labelled."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
from toy_set import Trained

from unet_med.errors import NothingUsableError, UsageError
from unet_med.workflows.rank import rank

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(trained: Trained, tmp_path: Path) -> Path:
    """Four images, one of them twice, and one that is cut short."""
    place = tmp_path / "unlabelled"
    place.mkdir()
    for number in range(4):
        shutil.copy(trained.data / "imagesTr" / f"toy_{number:02d}.nii.gz", place / f"case_{number}.nii.gz")
    shutil.copy(place / "case_1.nii.gz", place / "copy.nii.gz")
    whole = (place / "case_3.nii.gz").read_bytes()
    (place / "broken.nii.gz").write_bytes(whole[: len(whole) // 2])
    return place


def test_a_copy_comes_last_and_a_broken_file_is_told(
    trained: Trained, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "OUT"
    outcome = rank(str(trained.run), folder, out, device="cpu")
    rows = outcome.result["ranking"]
    assert outcome.exit_code == 3
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[-1]["id"] in ("case_1", "copy")
    assert rows[-1]["diversity"] == rows[-1]["score"] == 0
    assert rows[0]["uncertainty"] == max(row["uncertainty"] for row in rows)
    assert rows[0]["diversity"] == 1.0
    assert [one["id"] for one in outcome.result["refused"]] == ["broken"]
    assert all(row["score"] == pytest.approx(row["uncertainty"] * row["diversity"], abs=2e-6) for row in rows)
    assert json.loads((out / "ranking.json").read_text(encoding="utf-8")) == outcome.result
    with (out / "ranking.csv").open(encoding="utf-8", newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == [row["id"] for row in rows]
    text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", (out / "ranking.html").read_text(encoding="utf-8"))
    assert "default-src 'none'" in text
    assert "http" not in text.replace("http-equiv", "")
    assert text.count("<img ") == 5
    assert str(tmp_path) not in text

    monkeypatch.setattr("unet_med.workflows.rank.image_features", None)
    again = rank(str(trained.run), folder, out, device="cpu")
    assert again.result == outcome.result, "images are not looked at twice"


def test_what_is_labelled_is_left_out_and_what_is_like_it_comes_last(
    trained: Trained, folder: Path, tmp_path: Path
) -> None:
    (folder / "broken.nii.gz").unlink()
    out = tmp_path / "OUT"
    outcome = rank(str(trained.run), folder, out, labelled=trained.manifest, device="cpu")
    assert outcome.exit_code == 0
    assert outcome.result["labelled"] == 6
    assert {row["id"] for row in outcome.result["ranking"]} == {"case_0", "case_1", "case_2", "case_3", "copy"}
    assert all(row["diversity"] == 0 for row in outcome.result["ranking"]), "all of them are copies of labelled ones"
    with pytest.raises(NothingUsableError, match="left to be ranked"):
        rank(str(trained.run), trained.data / "imagesTr", tmp_path / "none", labelled=trained.manifest, device="cpu")


def test_an_output_in_the_folder_is_refused(trained: Trained, folder: Path) -> None:
    with pytest.raises(UsageError, match="lies in it"):
        rank(str(trained.run), folder, folder / "OUT")
