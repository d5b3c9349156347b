"""Linking: right on what is known exactly, optimal where it claims to be, and sound whatever it is given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from skimage.measure import regionprops
from tracking_damage import challenge_scores, damaged, found_divisions, shuffled

from unet_med.errors import InputRefusedError
from unet_med.instances.linking import LinkSettings, _links, _shares, frame_objects, link
from unet_med.io.tracks import Track, checked
from unet_med.phantoms import Movie, make_cells

FRAMES = 14


@pytest.fixture(scope="module")
def movie() -> Movie:
    return make_cells(0, 0, FRAMES)


def _discs(*places: tuple[float, float, float], size: int = 60) -> np.ndarray:
    """Returns discs at (x, y) of a radius, numbered in this order."""
    grid = np.indices((size, size))
    labels = np.zeros((size, size), np.int32)
    for number, (x, y, radius) in enumerate(places, start=1):
        labels[np.hypot(grid[0] - x, grid[1] - y) < radius] = number
    return labels


def _parts(frames: list[np.ndarray], **options: float) -> list[tuple[int, int, int]]:
    return [(t.begin, t.end, t.parent) for t in link(frames, LinkSettings(**options)).tracks]  # type: ignore[arg-type]


# ---- movies with exact truth -----------------------------------------------------------------------------------------


def test_clean_masks_give_the_true_tracks(movie: Movie, tmp_path: Path) -> None:
    frames = shuffled(movie.labels)
    linking = link([frame.T for frame in frames])
    scores = challenge_scores(tmp_path, movie, frames, linking)
    found, true, claimed = found_divisions(movie, frames, linking)
    print(f"clean masks: {scores}, divisions {found} of {true}, {claimed} claimed")
    assert scores["SEG"] == scores["DET"] == 1.0
    assert scores["TRA"] >= 0.99
    assert found >= 0.9 * true
    assert found >= 0.9 * claimed


def test_missing_and_merged_masks_cost_little_more_than_themselves(movie: Movie, tmp_path: Path) -> None:
    frames = shuffled(damaged(movie.labels))
    linking = link([frame.T for frame in frames])
    scores = challenge_scores(tmp_path, movie, frames, linking)
    found, true, claimed = found_divisions(movie, frames, linking)
    print(f"5 % dropped, 3 % merged: {scores}, divisions {found} of {true}, {claimed} claimed")
    assert scores["TRA"] >= scores["DET"] - 0.03
    assert scores["TRA"] >= 0.9
    assert found >= 0.6 * true
    assert found >= 0.7 * claimed


# ---- one thing at a time ---------------------------------------------------------------------------------------------


def test_an_object_is_followed_while_it_moves_less_than_allowed() -> None:
    frames = [_discs((10 + 5 * t, 20, 4), (50 - 5 * t, 45, 4)) for t in range(6)]
    assert _parts(frames) == [(0, 5, 0), (0, 5, 0)]
    assert len(_parts(frames, max_move=0.5, max_gap=0)) == 12


@pytest.mark.parametrize(("missing", "parts"), [(1, [(0, 2, 0), (4, 6, 1)]), (2, [(0, 2, 0), (5, 7, 1)])])
def test_a_gap_is_bridged_and_the_object_goes_on_as_its_own_child(
    missing: int, parts: list[tuple[int, int, int]]
) -> None:
    seen = [_discs((10 + 2 * t, 20, 5)) for t in range(6 + missing)]
    frames = [frame if not 3 <= t < 3 + missing else np.zeros_like(frame) for t, frame in enumerate(seen)]
    assert _parts(frames) == parts
    assert _parts(frames, max_gap=missing - 1) == [(*span[:2], 0) for span in parts]
    assert link(frames).gaps == 1


def test_a_cell_that_divides_has_two_daughters() -> None:
    frames = [_discs((30, 30, 8))] * 3 + [_discs((25 - t, 30, 5.6), (35 + t, 30, 5.6)) for t in range(3)]
    linking = link(frames)
    assert linking.tracks == (Track(1, 0, 2), Track(2, 3, 5, 1), Track(3, 3, 5, 1))
    assert (linking.divisions, linking.gaps) == (1, 0)
    assert _parts(frames, divisions=False) in ([(0, 5, 0), (3, 5, 0)], [(0, 2, 0), (3, 5, 0), (3, 5, 0)])


def test_a_mother_is_found_when_she_or_a_daughter_is_missing() -> None:
    before, daughters = [_discs((30, 30, 8))] * 3, [_discs((25 - t, 30, 5.6), (35 + t, 30, 5.6)) for t in range(4)]
    nothing, one = np.zeros_like(before[0]), np.where(daughters[0] == 1, 1, 0)
    assert _parts([*before, nothing, *daughters]) == [(0, 2, 0), (4, 7, 1), (4, 7, 1)]
    assert _parts([*before, one, *daughters[1:]]) == [(0, 2, 0), (3, 6, 1), (4, 6, 1)]
    assert _parts([*before, one, *daughters[1:]], max_gap=0)[-1] == (4, 6, 0)


def test_a_cell_that_comes_close_is_no_daughter() -> None:
    frames = [
        _discs((30, 30, 6)),
        _discs((30, 30, 6)),
        _discs((30, 30, 6), (42, 30, 6)),
        _discs((30, 30, 6), (42, 30, 6)),
    ]
    assert _parts(frames) == [(0, 3, 0), (2, 3, 0)]


def test_two_cells_in_one_mask_for_a_while_are_no_mother() -> None:
    apart = _discs((25, 30, 6), (37, 30, 6))
    for together in (1, 2):
        frames = [apart, apart] + [np.minimum(apart, 1)] * together + [apart, apart]
        linking = link(frames)
        assert linking.divisions == 0
        assert linking.gaps == 1
        assert len(linking.tracks) == 3


def test_volumes_are_linked_in_true_proportions() -> None:
    grid = np.indices((40, 40, 12))
    frames = [
        (np.hypot(np.hypot(grid[0] - 12 - 3 * t, grid[1] - 20), 4.0 * (grid[2] - 3)) < 7).astype(np.uint8)
        + 2 * (np.hypot(np.hypot(grid[0] - 12 - 3 * t, grid[1] - 20), 4.0 * (grid[2] - 8)) < 7).astype(np.uint8)
        for t in range(4)
    ]
    linking = link(frames, spacing=(0.5, 0.5, 2.0))
    assert [(t.begin, t.end) for t in linking.tracks] == [(0, 3), (0, 3)]
    np.testing.assert_allclose(linking.frames[0].centres[0], [6.0, 10.0, 6.0], atol=0.01)


def test_frames_without_objects_are_no_trouble() -> None:
    empty = np.zeros((20, 20), np.uint8)
    assert link([empty, empty]).tracks == ()
    one = _discs((10, 10, 4), size=20)
    assert _parts([empty, one, one, empty]) == [(1, 2, 0)]
    assert link([one]).tracks == (Track(1, 0, 0),)


def test_frames_of_other_sizes_and_settings_without_sense_are_refused() -> None:
    with pytest.raises(InputRefusedError, match="shape"):
        link([np.zeros((5, 5), int), np.zeros((5, 6), int)])
    for wrong in ({"max_move": 0.0}, {"max_move": float("inf")}, {"max_gap": -1}):
        with pytest.raises(InputRefusedError, match="cannot move"):
            LinkSettings(**wrong)  # type: ignore[arg-type]


# ---- oracles and properties ------------------------------------------------------------------------------------------


def test_objects_are_measured_as_skimage_does(movie: Movie) -> None:
    labels = movie.labels[0].T
    found = frame_objects(labels, (0.5, 2.0))
    for position, region in enumerate(regionprops(labels)):
        assert found.numbers[position] == region.label
        np.testing.assert_allclose(found.centres[position], np.multiply(region.centroid, (0.5, 2.0)))
        assert found.sizes[position] == region.area
        box = region.bbox
        cut = min(box[:2]) == 0 or box[2] == labels.shape[0] or box[3] == labels.shape[1]
        assert found.at_border[position] == cut
        assert found.diameters[position] == pytest.approx(region.equivalent_diameter_area)


def test_a_picture_that_is_stored_as_a_slice_has_four_borders() -> None:
    labels = np.zeros((9, 8, 1), dtype=np.uint16)
    labels[3:5, 3:5], labels[6:9, 2:4] = 4, 7
    assert frame_objects(labels, (1.0, 1.0, 1.0)).at_border.tolist() == [False, True]


def test_links_are_the_cheapest(movie: Movie) -> None:
    earlier, later = (labels.T for labels in movie.labels[[0, 4]])
    before, now = frame_objects(earlier, (1, 1)), frame_objects(later, (1, 1))
    shares = _shares(before, now, earlier, later)
    costs = np.ones((len(before.numbers), len(now.numbers)))
    for i, number in enumerate(before.numbers):
        for j, other in enumerate(now.numbers):
            one, two = earlier == number, later == other
            iou = (one & two).sum() / (one | two).sum()
            assert shares[i, j] == pytest.approx(iou)
            away = cdist(before.centres[[i]], now.centres[[j]]).item() * 2 / (before.diameters[i] + now.diameters[j])
            if away < 1:
                costs[i, j] = min(1.0, 0.5 * away**2 + 0.5 * (1 - iou))
    rows, columns = linear_sum_assignment(costs)
    links = _links(before, now, shares, 1.0)
    ours = costs[links[:, 0], links[:, 1]].sum() + len(before.numbers) - len(links)
    theirs = costs[rows, columns].sum() + len(before.numbers) - len(rows)
    assert ours == pytest.approx(theirs, abs=1e-4)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_any_movie_gives_sound_tracks_whatever_the_numbers_are(seed: int) -> None:
    random = np.random.default_rng(seed)
    frames = []
    for _ in range(5):
        places = [(*random.uniform(0, 40, 2), random.uniform(2, 6)) for _ in range(random.integers(0, 7))]
        frames.append(_discs(*places, size=40))
    linking = link(frames)
    tracks = checked(linking.tracks, "here")
    present = {(frame, int(label)) for frame, named in enumerate(linking.labels) for label in named}
    assert len(present) == sum(len(objects.numbers) for objects in linking.frames)
    assert present == {(frame, t.label) for t in tracks for frame in range(t.begin, t.end + 1)}
    assert all(count <= 2 for count in linking.children.values())
    for frame, labels in enumerate(frames):
        named = linking.relabel(frame, labels)
        assert ((named > 0) == (labels > 0)).all()
        assert len(np.unique(named)) == len(np.unique(labels))
    assert sorted((t.begin, t.end) for t in link([7 * frame for frame in frames]).tracks) == sorted(
        (t.begin, t.end) for t in tracks
    )
