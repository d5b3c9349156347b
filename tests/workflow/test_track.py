"""Tracking from files: stacks and folders of frames in; masks, table of tracks, tables and pictures out."""

from __future__ import annotations

import csv
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from pyarrow import parquet
from tracking_damage import scores_of_files, shuffled

from unet_med.cli import main
from unet_med.errors import NothingUsableError, UsageError
from unet_med.inference.maps_store import MapStore
from unet_med.instances.linking import LinkSettings, link
from unet_med.instances.track_pictures import TrackPainter, montage, track_colour
from unet_med.instances.track_tables import place_table, track_table
from unet_med.io.tracks import open_tracked
from unet_med.phantoms import Movie, make_cells
from unet_med.workflows.track import track

FRAMES = 7
CHALLENGE = {"res_track.txt", *(f"mask{frame:03d}.tif" for frame in range(FRAMES))}
BESIDE = {"tracks.csv", "tracks.parquet", "places.csv", "places.parquet", "tracks.png", "movie.png"}


@pytest.fixture(scope="module")
def movie() -> Movie:
    return make_cells(1, 0, FRAMES, 112)


def _stack(path: Path, frames: np.ndarray, pixel_um: float | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    size = {} if pixel_um is None else {"resolution": (1 / pixel_um, 1 / pixel_um)}
    unit = {} if pixel_um is None else {"unit": "um", "finterval": 90.0}
    tifffile.imwrite(path, frames, imagej=True, metadata={"axes": "TYX", **unit}, **size)
    return path


def _singles(folder: Path, frames: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, labels in enumerate(frames):
        tifffile.imwrite(folder / f"cells_t{number + 5}.tif", labels)  # t5 ... t11: not in the order of the alphabet
    return folder


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_of_frames_becomes_a_result_of_the_challenge(movie: Movie, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = track(_singles(tmp_path / "masks", shuffled(movie.labels)), out)
    assert outcome.exit_code == 0
    (case,) = outcome.result["cases"]
    assert set(case["outputs"]) == CHALLENGE | BESIDE
    found = open_tracked(out)
    result = [found.read(frame) for frame in range(FRAMES)]
    for labels, truth in zip(result, movie.labels, strict=True):
        np.testing.assert_array_equal(labels > 0, truth.T > 0)
    scores = scores_of_files(tmp_path / "scored", movie, result, found.tracks)
    assert scores["SEG"] == 1.0
    assert scores["TRA"] >= 0.95
    assert case["tracks"] == len(found.tracks) == len(_rows(out / "tracks.csv"))
    assert case["objects"] == len(_rows(out / "places.csv")) == sum(len(np.unique(f)) - 1 for f in movie.labels)
    assert case["unit"] == "px"
    assert json.loads((out / "report.json").read_text(encoding="utf-8"))["totals"]["divisions"] == case["divisions"]


def test_a_stack_is_tracked_in_micrometres_over_its_images(movie: Movie, tmp_path: Path) -> None:
    masks = _stack(tmp_path / "masks" / "cells.tif", shuffled(movie.labels), 0.65)
    images = _stack(tmp_path / "images" / "cells.tif", movie.pictures, 0.65)
    out = tmp_path / "out"
    words = [
        "track",
        str(masks),
        str(out),
        "--images",
        str(images),
        "--max-gap",
        "1",
        "--json",
        str(tmp_path / "o.json"),
    ]
    assert main(words) == 0
    report = json.loads((tmp_path / "o.json").read_text(encoding="utf-8"))
    assert report["settings"] == {"max_move": 1.0, "max_gap": 1, "divisions": True}
    assert report["cases"][0]["unit"] == "um"
    assert report["cases"][0]["notes"] == []
    tracks = parquet.read_table(out / "tracks.parquet").to_pydict()
    assert tracks["mean_speed_um_per_min"][0] == pytest.approx(tracks["mean_step_um"][0] / 1.5)
    places = parquet.read_table(out / "places.parquet").to_pydict()
    first = int(np.flatnonzero(np.array(places["frame"]) == 0)[0])
    labels = open_tracked(out).read(0)
    middle = np.argwhere(labels == places["label"][first]).mean(axis=0) * 0.65
    assert (places["x_um"][first], places["y_um"][first]) == pytest.approx(tuple(middle), rel=1e-5)
    assert places["area_um2"][first] == pytest.approx((labels == places["label"][first]).sum() * 0.65**2, rel=1e-5)
    with Image.open(out / "movie.png") as animation:
        assert animation.n_frames == FRAMES
        assert animation.size == (224, 224)
    with Image.open(out / "tracks.png") as picture:
        assert picture.size[0] > 4 * 224

    before = {path: path.stat().st_mtime_ns for path in out.glob("*.tif")}
    assert main(words) == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.tif")} == before
    assert main([*words, "--no-divisions"]) == 2
    assert main([*words, "--no-divisions", "--overwrite"]) == 0
    assert json.loads((out / "report.json").read_text(encoding="utf-8"))["totals"]["divisions"] == 0


def test_several_movies_have_folders_of_their_own(movie: Movie, tmp_path: Path) -> None:
    _stack(tmp_path / "masks" / "a.tif", movie.labels[:3])
    _singles(tmp_path / "masks" / "b", movie.labels[:2])
    tifffile.imwrite(tmp_path / "masks" / "alone.tif", movie.labels[0])
    Image.fromarray(movie.labels[0].astype(np.uint8)).save(tmp_path / "masks" / "preview.png")
    outcome = track(tmp_path / "masks", tmp_path / "out")
    assert {case["id"]: case["frames"] for case in outcome.result["cases"]} == {"a": 3, "b": 2}
    assert len(open_tracked(tmp_path / "out" / "a").files) == 3
    assert len(open_tracked(tmp_path / "out" / "b").files) == 2


def test_a_movie_whose_frames_differ_in_size_is_refused_and_the_others_are_done(movie: Movie, tmp_path: Path) -> None:
    _stack(tmp_path / "masks" / "a.tif", movie.labels[:3])
    folder = _singles(tmp_path / "masks" / "b", movie.labels[:2])
    tifffile.imwrite(folder / "cells_t7.tif", movie.labels[0, :50])
    outcome = track(tmp_path / "masks", tmp_path / "out")
    assert outcome.exit_code == 3
    states = {case["id"]: (case["status"], case["reason"]) for case in outcome.result["cases"]}
    assert states["a"] == ("done", None)
    assert states["b"][0] == "refused"
    assert "shape" in str(states["b"][1])
    assert not (tmp_path / "out" / "b").exists()


def test_what_predict_keeps_beside_its_masks_is_no_movie(movie: Movie, tmp_path: Path) -> None:
    masks = _stack(tmp_path / "masks" / "cells.tif", movie.labels[:2]).parent
    (masks / "journal.json").write_text("{}", encoding="utf-8")
    maps = MapStore.create(masks / "maps" / "cells_t000.zarr", 4, (112, 112))
    assert maps.path.is_dir()
    outcome = track(masks, tmp_path / "out")
    assert outcome.exit_code == 0
    assert [case["id"] for case in outcome.result["cases"]] == ["cells"]
    (masks / "journal.json").unlink()
    assert track(masks, tmp_path / "others").exit_code == 3  # somebody's own folder of that name is looked into


def test_volumes_are_followed_in_three_dimensions(tmp_path: Path) -> None:
    z, y, x = np.indices((9, 40, 50))
    frames = [
        ((2 * (z - 4)) ** 2 + (y - 12 - 2 * t) ** 2 + (x - 15) ** 2 < 36) * (1 + t)
        + ((2 * (z - 4)) ** 2 + (y - 25) ** 2 + (x - 30 - 2 * t) ** 2 < 36) * (9 - t)
        for t in range(4)
    ]
    metadata = {"axes": "TZYX", "unit": "um", "spacing": 1.0}
    stack = np.stack(frames).astype(np.uint16)
    tifffile.imwrite(tmp_path / "m.tif", stack, imagej=True, resolution=(2, 2), metadata=metadata)
    track(tmp_path / "m.tif", tmp_path / "out")
    tracks = parquet.read_table(tmp_path / "out" / "tracks.parquet").to_pydict()
    assert (tracks["begin"], tracks["end"]) == ([0, 0], [3, 3])
    assert tracks["displacement_um"] == pytest.approx([3.0, 3.0], abs=1e-6)
    assert tracks["mean_volume_um3"] == pytest.approx([0.25 * (stack[0] == 1).sum()] * 2)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out" / "mask000.tif") > 0, stack[0] > 0)


def test_what_is_no_movie_is_said(movie: Movie, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "one.tif", movie.labels[0])
    with pytest.raises(NothingUsableError, match="no movie"):
        track(tmp_path / "one.tif", tmp_path / "out")
    masks = _stack(tmp_path / "masks" / "kinds.tif", np.minimum(movie.labels, 1))
    with pytest.raises(UsageError, match="lies in it"):
        track(masks.parent, masks.parent / "out")
    outcome = track(masks, tmp_path / "out")
    assert "cut into objects" in " ".join(outcome.lines)


# ---- tables and pictures ---------------------------------------------------------------------------------------------


def _family() -> list[np.ndarray]:
    """A cell that divides, one that is missing for a frame, one that enters and one that leaves; at (x, y)."""
    grid = np.indices((64, 64))

    def disc(x: float, y: float, radius: float) -> np.ndarray:
        return np.hypot(grid[0] - x, grid[1] - y) < radius

    frames = []
    for time in range(6):
        labels = np.zeros((64, 64), np.uint16)
        if time < 3:
            labels[disc(20, 20, 7)] = 1
        else:
            labels[disc(15, 20, 5)], labels[disc(25, 20, 5)] = 1, 2
        if time != 2:
            labels[disc(45, 45 - time, 5)] = 3
        if time > 1:
            labels[disc(63, 5 + 2 * time, 4)] = 4
        if time < 4:
            labels[disc(5 - 2 * time, 55, 5)] = 5
        frames.append(labels)
    return frames


def test_tables_say_how_tracks_begin_and_end() -> None:
    linking = link(_family(), spacing=(0.5, 0.5))
    table = track_table(linking, "um")
    rows = list(table.rows().values())
    ways = sorted((row["begin"], row["starts"], row["end"], row["stops"]) for row in rows)
    assert ways == [
        (0, "first frame", 1, "gap"),
        (0, "first frame", 2, "division"),
        (0, "first frame", 3, "left"),
        (2, "entered", 5, "last frame"),
        (3, "division", 5, "last frame"),
        (3, "division", 5, "last frame"),
        (3, "gap", 5, "last frame"),
    ]
    parts = [row for row in rows if "gap" in (row["starts"], row["stops"])]
    assert parts[0]["cell"] == parts[1]["cell"] != parts[1]["label"]
    daughters = [row for row in rows if row["starts"] == "division"]
    mother = next(row for row in rows if row["stops"] == "division")
    assert {row["lineage"] for row in daughters} == {row["parent"] for row in daughters} == {mother["label"]}
    assert all(row["cell"] == row["label"] for row in daughters)
    second = parts[1]
    assert (second["frames"], second["path_um"], second["displacement_um"]) == pytest.approx((3, 1.0, 1.0), abs=0.02)
    assert second["mean_step_um"] == pytest.approx(0.5, abs=0.02)
    assert second["mean_area_um2"] == pytest.approx(0.25 * (_family()[0] == 3).sum())


def test_a_track_of_one_frame_has_no_step() -> None:
    frames = [np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8)]
    frames[0][5:9, 5:9] = 1
    row = track_table(link(frames), "px").rows()[1]
    assert (row["path_px"], row["mean_step_px"], row["stops"]) == (0.0, None, "lost")


def test_places_are_in_the_order_of_frames_and_tracks() -> None:
    frames = _family()
    columns = place_table(link(frames), "px").columns
    keys = list(zip(columns["frame"].tolist(), columns["label"].tolist(), strict=True))
    assert keys == sorted(set(keys))
    for frame, number, x, y, area, border in zip(
        *(columns[name] for name in ("frame", "object", "x_px", "y_px", "area_px2", "at_border")), strict=True
    ):
        own = np.argwhere(frames[frame] == number)
        np.testing.assert_allclose((x, y, area), (*own.mean(axis=0), len(own)))
        assert border == bool((own == 0).any() or (own == 63).any())


def test_pictures_show_tracks_in_their_colours_on_the_image() -> None:
    frames = _family()
    linking = link(frames, LinkSettings(), (0.5, 0.5))
    painter = TrackPainter(linking, (0.5, 0.5), (64, 64), (0.0, 10.0))
    named = [linking.relabel(number, labels) for number, labels in enumerate(frames)]
    picture = painter.paint(0, named[0], np.full((64, 64), 5.0))
    assert picture.shape == (320, 320, 3)
    assert picture[-1, -1].tolist() == [128, 128, 128]
    label = int(named[0][45, 45])
    edge = int(np.flatnonzero(named[0][:, 45] == label)[0])
    assert picture[5 * 45 + 2, 5 * edge].tolist() == list(track_colour(label))  # rows are y
    born = painter.paint(3, named[3])
    assert (born == 255).all(axis=2).sum() > 20  # white lines to both daughters
    assert not (painter.paint(4, named[4]) == 255).all(axis=2).any()


def test_volumes_are_seen_from_above_and_large_pictures_are_made_smaller() -> None:
    labels = np.zeros((600, 30, 4), np.uint8)
    labels[100:120, 10:20, 2] = 1
    linking = link([labels, labels])
    picture = TrackPainter(linking, (1.0, 1.0, 1.0), labels.shape, longest=200).paint(1, linking.relabel(1, labels))
    assert picture.shape == (10, 200, 3)
    assert picture[5, 36].any()
    assert not picture[5, 100].any()


def test_colours_of_neighbouring_labels_differ_and_montages_hold_all_pictures() -> None:
    colours = [track_colour(label) for label in range(1, 40)]
    assert len(set(colours)) == len(colours)
    assert all(np.abs(np.subtract(a, b)).max() > 60 for a, b in pairwise(colours))
    pictures = [np.full((20, 30, 3), 40 * number, np.uint8) for number in range(1, 6)]
    together = montage(pictures, list("abcde"))
    for number in range(1, 6):
        assert (together == 40 * number).all(axis=2).sum() >= 20 * 30
