"""The JSON and the lines of `scan`, its exit codes, and that no private word is in them."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import dicom_writer as w
import numpy as np
import pytest
import tifffile
from object_sets import BOXES, squares, write_coco, write_geojson, write_image, write_rois

from unet_med import cli
from unet_med.errors import NothingUsableError
from unet_med.workflows.scan import scan


def test_json_is_what_the_contract_says(tmp_path: Path) -> None:
    series = w.Series(turn=np.eye(3))
    w.write(tmp_path / "s", series.slices())
    tifffile.imwrite(tmp_path / "cells.tif", np.zeros((4, 5, 3), dtype=np.uint8), photometric="rgb")
    outcome = scan(tmp_path)
    result = json.loads(json.dumps(outcome.result, allow_nan=False))
    assert outcome.exit_code == 0
    assert set(result) == {"sources", "annotations", "skipped", "summary"}
    first, second = result["sources"]
    assert first["id"].startswith("s013-")
    assert (first["kind"], first["axes"], first["shape"], first["modality"]) == ("dicom", "IJK", [9, 7, 6], "CT")
    assert first["spacing_mm"] == [0.8, 1.25, 2.5]
    assert first["affine"] == [[-0.8, 0, 0, 5], [0, -1.25, 0, 3], [0, 0, 2.5, 2], [0, 0, 0, 1]]
    assert (first["usable"], first["reason"], first["notes"], first["orientation"]) == (True, "", [], "LPS")
    assert (first["channels"], first["frames"], first["dtype"]) == (1, 1, "float32")
    assert (second["id"], second["axes"], second["shape"]) == ("cells", "YXS", [4, 5, 3])
    assert second["spacing_mm"] is second["affine"] is second["orientation"] is None
    assert second["channels"] == 3
    assert any("usable" in line and "0.8 x 1.25 x 2.5" in line for line in outcome.lines)


def test_lines_fit_and_reasons_are_grouped(tmp_path: Path) -> None:
    for number in range(5):
        name = f"a_very_long_name_of_a_file_that_nobody_would_choose_but_a_scanner_{number}.tif"
        tifffile.imwrite(tmp_path / name, np.zeros((3, 9, 11), dtype=np.uint8), photometric="minisblack")
    w.write(tmp_path / "s", w.Series().slices())
    outcome = scan(tmp_path)
    assert max(map(len, outcome.lines)) <= 120
    refusals = [line for line in outcome.lines if line.startswith("refused")]
    assert len(refusals) == 1
    assert "refused 5 sources (a_very_long" in refusals[0]
    rows = [line for line in outcome.lines if "3 x 9 x 11" in line]
    assert len(set(rows[:5])) == 5  # names that are cut can be told apart
    (group,) = outcome.result["summary"]["reasons"]
    assert len(group["ids"]) == 5
    assert outcome.result["summary"]["modalities"] == {"CT": 1}
    assert outcome.result["summary"]["kinds"] == {"dicom": 1, "tiff": 5}
    assert outcome.lines[-1] == "1 usable, 5 refused, 0 skipped"


def test_the_table_of_files_lies_beside_the_json_for_this_user_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    w.write(tmp_path / "in", w.Series().slices())
    target = tmp_path / "out" / "scan.json"
    assert cli.main(["scan", str(tmp_path / "in"), "--json", str(target)]) == 0
    table = target.with_name("scan.json.sources.json")
    assert sorted(target.parent.iterdir()) == [target, table]
    (files,) = json.loads(table.read_text(encoding="utf-8")).values()
    assert sorted(one["file"] for one in files) == sorted(map(str, (tmp_path / "in").iterdir()))
    if os.name != "nt":
        assert stat.S_IMODE(table.stat().st_mode) == 0o600
    assert str(tmp_path) not in target.read_text(encoding="utf-8") + capsys.readouterr().out


def test_exit_codes(tmp_path: Path) -> None:
    slices = w.Series().slices()
    w.write(tmp_path / "good", slices)
    report = w.new_dataset("1.2.840.10008.5.1.4.1.1.88.11")
    w.write(tmp_path / "report", [report])
    assert scan(tmp_path).exit_code == 0
    w.write(tmp_path / "bad", w.Series(number=99).slices()[::2] + w.Series(number=99).slices()[:1])
    broken = w.Series(number=7).slices()
    w.write(tmp_path / "broken", [broken[0], broken[1], broken[3], broken[4]])
    outcome = scan(tmp_path)
    assert outcome.exit_code == 3
    assert any(line.startswith("refused s007-") and "missing" in line for line in outcome.lines)
    assert scan(tmp_path / "broken").exit_code == 4
    assert scan(tmp_path / "report").exit_code == 4
    assert scan(tmp_path / "report").result["skipped"][0]["count"] == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(NothingUsableError):
        scan(tmp_path / "empty")


def test_notes_shared_by_many_are_told_once(tmp_path: Path) -> None:
    for number in range(5):
        tifffile.imwrite(tmp_path / f"c{number}.tif", np.zeros((4, 5), dtype=np.uint8))
    notes = [line for line in scan(tmp_path).lines if line.startswith("note")]
    assert notes
    assert all("5 sources" in line for line in notes)


def test_no_private_word_is_in_any_output(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "SECRET^JANE"
    good = w.Series(number=1)
    w.write(root / "SECRET^JANE 1", good.slices(), [f"SECRET^JANE.{n}" for n in range(6)])
    gap = w.Series(number=2).slices()
    for data in gap:
        data.SeriesDescription = data.StudyDescription = data.ReferringPhysicianName = "SECRET^JANE"
        data.PatientBirthDate, data.StudyDate = "19700102", "20200304"
    del gap[2]
    w.write(root / "2", gap)
    (root / "SECRET^JANE.SECRET").write_text("SECRET^JANE")
    (root / "SECRET^JANE.dcm").write_bytes(b"SECRET^JANE" * 30)
    outcome = scan(root)
    text = json.dumps(outcome.result) + "\n".join(outcome.lines) + "".join(capfd.readouterr())
    assert outcome.exit_code == 3
    for word in ("SECRET", "JANE", good.uid, good.study, "19700102", "20200304", str(tmp_path)):
        assert word not in text


def test_axes_units_channels_and_doubts_are_shown_back(tmp_path: Path) -> None:
    films = np.zeros((3, 2, 40, 50), dtype=np.uint8)
    metadata = {
        "axes": "TCYX",
        "PhysicalSizeX": 0.65,
        "PhysicalSizeY": 0.65,
        "TimeIncrement": 5,
        "TimeIncrementUnit": "min",
    }
    for name in ("a", "b"):
        told = metadata | {"Channel": {"Name": ["DAPI", "GFP"]}}
        tifffile.imwrite(tmp_path / f"{name}.ome.tif", films, metadata=told, photometric="minisblack")
    wide = {"axes": "YX", "PhysicalSizeX": 1000, "PhysicalSizeY": 1000}
    tifffile.imwrite(tmp_path / "wide.ome.tif", np.zeros((9, 2048), np.uint8), metadata=wide)
    tifffile.imwrite(tmp_path / "plain.tif", np.zeros((9, 11), np.uint8))
    outcome = scan(tmp_path)
    text = "\n".join(outcome.lines)
    assert "3 x 2 x 40 x 50 TCYX" in text
    assert "0.65 x 0.65 um" in text
    assert "about a, b: channels DAPI, GFP" in text
    assert "about a, b: 300 s from frame to frame" in text
    assert "note on wide: the pixel size makes the picture 2.05 m wide" in text
    assert next(line for line in outcome.lines if line.startswith("plain")).split()[-3] == "unknown"
    first, _, _, last = outcome.result["sources"]
    assert (first["channel_names"], first["seconds_per_frame"], first["levels"]) == (["DAPI", "GFP"], 300, [])
    assert last["findings"] == ["odd pixel size"]
    assert outcome.result["summary"]["findings"]["no pixel size"] == 1
    page = tmp_path.parent / "page.html"
    scan(tmp_path, html=page)
    assert "channels DAPI, GFP" in page.read_text(encoding="utf-8")


def test_outlines_of_objects_are_told_with_their_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name in ("a", "b", "c"):
        write_image(folder, name, squares())
    write_rois(folder / "a_rois.zip", BOXES)
    write_geojson(folder / "b.geojson", BOXES)
    write_coco(folder / "all.json", {"b.png": BOXES, "c.png": BOXES})
    (folder / "report.json").write_text('{"tool": "unet-med"}', encoding="utf-8")
    (folder / "damaged.geojson").write_text('{"type": "FeatureColl', encoding="utf-8")
    outcome = scan(folder, html=tmp_path / "page.html")
    assert outcome.exit_code == 0
    told = {one["kind"]: one["refers_to"] for one in outcome.result["annotations"]}
    assert told == {"imagej-roi": ["a"], "geojson": ["b"], "coco": ["b", "c"]}
    assert {one["what"]: one["count"] for one in outcome.result["skipped"]} == {".json files": 1, "other files": 1}
    assert any(line.startswith("a_rois") and "outlines of objects" in line for line in outcome.lines)
    assert outcome.lines[-2] == "3 usable, 0 refused, 3 annotations, 2 skipped"
    assert "COCO objects" in (tmp_path / "page.html").read_text(encoding="utf-8")
