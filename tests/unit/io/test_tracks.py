"""Files of the Cell Tracking Challenge: written as others read them, and refused where they contradict themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from ctc_metrics.utils.filesystem import parse_masks, read_tracking_file
from hypothesis import given
from hypothesis import strategies as st

from unet_med.errors import InputRefusedError
from unet_med.io.tracks import (
    REFERENCE_TABLE,
    Track,
    checked,
    open_tracked,
    read_tracks,
    write_tracked,
    write_tracks,
)

FAMILY = (Track(1, 0, 2), Track(2, 3, 4, 1), Track(3, 3, 4, 1), Track(7, 1, 4))


def _frames(shape: tuple[int, ...], count: int = 5) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 8, shape).astype(np.uint8) for _ in range(count)]


@pytest.mark.parametrize("shape", [(9, 5), (7, 5, 3), (6, 5, 4)])
@pytest.mark.parametrize("table", ["res_track.txt", REFERENCE_TABLE])
def test_what_is_written_is_read_again(shape: tuple[int, ...], table: str, tmp_path: Path) -> None:
    folder = tmp_path / "TRA" if table == REFERENCE_TABLE else tmp_path
    frames = _frames(shape)
    files = write_tracked(folder, iter(frames), FAMILY, len(frames), table)
    assert [file.name for file in files][:2] == [
        table,
        "mask000.tif" if table == "res_track.txt" else "man_track000.tif",
    ]
    found = open_tracked(tmp_path)
    assert found.tracks == FAMILY
    for number, labels in enumerate(frames):
        np.testing.assert_array_equal(found.read(number), labels)


def test_the_challenges_own_readers_agree(tmp_path: Path) -> None:
    frames = _frames((9, 5), 12)
    write_tracked(tmp_path, frames, FAMILY, len(frames))
    rows = read_tracking_file(str(tmp_path / "res_track.txt"))
    assert [tuple(row) for row in rows] == [(t.label, t.begin, t.end, t.parent) for t in FAMILY]
    masks = parse_masks(str(tmp_path))
    assert len(masks) == 12
    stored = tifffile.imread(masks[3])
    assert stored.dtype == np.uint16
    np.testing.assert_array_equal(stored, frames[3].T)  # rows are Y


def test_names_have_as_many_digits_as_the_last_frame_needs(tmp_path: Path) -> None:
    files = write_tracked(tmp_path, _frames((2, 2), 2), (), 1001)
    assert files[1].name == "mask0000.tif"


def test_more_tracks_than_sixteen_bits_hold_are_kept(tmp_path: Path) -> None:
    write_tracked(tmp_path, [np.full((2, 2), 70_000)], [Track(70_000, 0, 0)], 1)
    assert open_tracked(tmp_path).read(0).max() == 70_000


@pytest.mark.parametrize(
    ("tracks", "words"),
    [
        ([Track(1, 0, 2), Track(1, 3, 4)], "two tracks"),
        ([Track(0, 0, 2)], "no valid label"),
        ([Track(1, 3, 2)], "no valid label or frames"),
        ([Track(1, 0, 2, 5)], "missing"),
        ([Track(1, 0, 3), Track(2, 3, 4, 1)], "ends after its child"),
        ([Track(1, 0, 3, 1)], "ends after its child"),
    ],
)
def test_tables_that_contradict_themselves_are_refused(tracks: list[Track], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputRefusedError, match=words):
        checked(tracks, "here")
    with pytest.raises(InputRefusedError, match=words):
        write_tracks(tmp_path / "res_track.txt", tracks)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["1 0 2\n", "1 0 2 0 9\n", "1 0 x 0\n", "1 0 2.5 0\n", "\u00b5 0 2 0\n"])
def test_lines_that_are_no_track_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "res_track.txt").write_text(text, encoding="utf-8")
    with pytest.raises(InputRefusedError, match="table"):
        read_tracks(tmp_path / "res_track.txt")


def test_folders_that_lack_something_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefusedError, match="no table"):
        open_tracked(tmp_path)
    write_tracked(tmp_path, _frames((4, 4), 3), FAMILY, 3)
    (tmp_path / "mask001.tif").unlink()
    with pytest.raises(InputRefusedError, match="without a gap"):
        open_tracked(tmp_path)


def test_frames_that_are_no_label_images_are_refused(tmp_path: Path) -> None:
    write_tracked(tmp_path, _frames((4, 4), 3), FAMILY, 3)
    found = open_tracked(tmp_path)
    tifffile.imwrite(found.files[1], np.zeros((4, 4), np.float32))
    found.files[2].write_bytes(b"no TIFF at all")
    with pytest.raises(InputRefusedError, match="no label image"):
        found.read(1)
    with pytest.raises(InputRefusedError, match="damaged"):
        found.read(2)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=8))
def test_any_sound_table_survives(spans: list[tuple[int, int]]) -> None:
    tracks = [Track(number + 1, begin, begin + length) for number, (begin, length) in enumerate(spans)]
    tracks += [Track(100 + t.label, t.end + 1, t.end + 3, t.label) for t in tracks]
    assert checked(reversed(tracks), "here") == tuple(tracks)
