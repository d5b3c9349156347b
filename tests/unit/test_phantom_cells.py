"""Invented movies: every object and every track is known, and what the files say is what was made."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from unet_med.io.discover import discover
from unet_med.io.tracks import checked, open_tracked
from unet_med.phantoms import CELLS, Movie, PhantomSet, make_cells, write_phantoms_cells
from unet_med.phantoms.cells import SEEN_PIXELS

FRAMES = 12


@pytest.fixture(scope="module")
def movie() -> Movie:
    return make_cells(3, 1, FRAMES)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> PhantomSet:
    return write_phantoms_cells(tmp_path_factory.mktemp("movies"), cases=1, seed=3, unlabelled=1, frames=FRAMES)


def test_a_track_is_one_piece_in_each_of_its_frames_and_nowhere_else(movie: Movie) -> None:
    tracks = checked(movie.tracks, "the truth")
    assert [track.label for track in tracks] == list(range(1, len(tracks) + 1))
    for frame, labels in enumerate(movie.labels):
        present = {track.label for track in tracks if track.begin <= frame <= track.end}
        assert set(np.unique(labels)) - {0} == present
        assert all(ndimage.label(labels == label)[1] == 1 for label in present)
        assert np.bincount(labels.ravel())[1:].max() < 500
        assert min((labels == label).sum() for label in present) >= SEEN_PIXELS


def test_cells_divide_touch_enter_and_leave(movie: Movie) -> None:
    mothers = [track.parent for track in movie.tracks if track.parent]
    twice = {mother for mother in mothers if mothers.count(mother) == 2}
    assert len(twice) >= 5
    by_label = {track.label: track for track in movie.tracks}
    for track in movie.tracks:
        if track.parent:
            assert by_label[track.parent].end == track.begin - 1
    assert any(not track.parent and track.begin for track in movie.tracks)
    assert any(track.label not in mothers and track.end < FRAMES - 1 for track in movie.tracks)
    labels = movie.labels
    beside = (labels[:, :, 1:] != labels[:, :, :-1]) & (labels[:, :, 1:] > 0) & (labels[:, :, :-1] > 0)
    assert beside.sum() > 200


def test_daughters_have_their_mothers_place_and_size(movie: Movie) -> None:
    checks = 0
    for mother in {track.parent for track in movie.tracks if track.parent}:
        daughters = [track for track in movie.tracks if track.parent == mother]
        before = movie.labels[daughters[0].begin - 1] == mother
        after = np.isin(movie.labels[daughters[0].begin], [track.label for track in daughters])
        if len(daughters) < 2 or _cut(before) or _cut(after):
            continue
        checks += 1
        assert 0.75 < after.sum() / before.sum() < 1.3
        moved = np.subtract(ndimage.center_of_mass(before), ndimage.center_of_mass(after))
        assert np.linalg.norm(moved) < 10
    assert checks >= 3


def _cut(mask: np.ndarray) -> bool:
    return bool(mask[[0, -1]].any() or mask[:, [0, -1]].any())


def test_files_hold_the_movie_its_truth_pixel_size_and_time_step(files: PhantomSet, movie: Movie) -> None:
    assert files.label_names == CELLS
    assert [path.name for path in files.images + files.unlabelled] == ["movie01.ome.tif", "movie02.ome.tif"]
    with tifffile.TiffFile(files.unlabelled[0]) as file:
        assert file.series[0].axes == "TYX"
        for word in ('PhysicalSizeX="0.65"', 'TimeIncrement="300.0"', 'TimeIncrementUnit="s"'):
            assert word in (file.ome_metadata or "")
        np.testing.assert_array_equal(file.asarray(), movie.pictures)
    np.testing.assert_array_equal(tifffile.imread(files.truth[0]), movie.labels)
    reference = open_tracked(files.tracks[0])
    assert reference.tracks == movie.tracks
    for frame in (0, FRAMES - 1):
        np.testing.assert_array_equal(reference.read(frame), movie.labels[frame].T)
        segmented = tifffile.imread(files.tracks[0] / "SEG" / f"man_seg{frame:03d}.tif")
        np.testing.assert_array_equal(segmented, movie.labels[frame])


def test_discovery_finds_the_frames(files: PhantomSet) -> None:
    for path in (*files.images, *files.labels):
        (source,) = discover(path).usable
        assert (source.frames, source.channels) == (FRAMES, 1)
        assert source.geometry is not None
        assert source.geometry.spacing_mm == pytest.approx((0.65e-3, 0.65e-3))


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(files: PhantomSet, tmp_path: Path) -> None:
    again = write_phantoms_cells(tmp_path / "same", cases=1, seed=3, unlabelled=1, frames=FRAMES)
    other = write_phantoms_cells(tmp_path / "other", cases=1, seed=4, unlabelled=1, frames=FRAMES)
    assert _digests(again.folder) == _digests(files.folder)
    assert not set(_digests(other.folder).values()) & set(_digests(files.folder).values())


def _digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.tif*"))
    }
