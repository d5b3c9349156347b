from __future__ import annotations

import json

import numpy as np
import pytest

from unet_med.errors import InputRefusedError
from unet_med.io.tracks import Track
from unet_med.metrics import FrameMatch, match_frame, overlap_table, summarise, summarise_tracks, track_scores

LINE = np.repeat(np.arange(1, 4), 6).astype(np.uint16)
"""Three objects of six voxels side by side."""


def frames(*pairs: tuple[np.ndarray, np.ndarray]) -> list[FrameMatch]:
    return [match_frame(overlap_table(*pair)) for pair in pairs]


def only(*labels: int) -> np.ndarray:
    return np.where(np.isin(LINE, labels), LINE, 0)


ALL = tuple(Track(label, 0, 2) for label in (1, 2, 3))


def test_the_truth_is_perfect() -> None:
    tracks = (Track(1, 0, 0), Track(2, 1, 1, 1), Track(3, 1, 1, 1))
    pairs = [(only(1), only(1)), (only(2, 3), only(2, 3))]
    scores = track_scores(frames(*pairs), tracks, tracks)
    assert [scores[kind] for kind in ("seg", "det", "tra", "lnk", "op_csb", "op_ctb")] == [1.0] * 6
    assert sum(scores["corrections"].values()) == 0
    assert scores["divisions"] == {"n_mask": 1, "n_label": 1, "found": 1, "bc": 1.0}
    assert (scores["n_frames"], scores["n_label"], scores["n_edges"]) == (2, 3, 2)


def test_prices_by_hand() -> None:
    full = (LINE, LINE)
    missing = track_scores(frames(full, (only(1, 2), LINE), full), ALL, ALL)
    # One of nine objects is missing, and with it two of six edges.
    assert missing["corrections"] == {"ns": 0, "fn": 1, "fp": 0, "ed": 0, "ea": 2, "ec": 0}
    assert missing["det"] == pytest.approx(1 - 10 / 90)
    assert missing["tra"] == pytest.approx(1 - (10 + 2 * 1.5) / (90 + 6 * 1.5))
    assert missing["lnk"] == pytest.approx(1 - 2 / 6)
    assert missing["seg"] == pytest.approx(8 / 9)


def test_an_object_for_two_is_split_once() -> None:
    merged = np.where(LINE == 2, 1, LINE)
    found = frames((merged, LINE))[0]
    assert sorted(found.finders.tolist()) == [1, 1, 3]
    scores = track_scores([found], [Track(1, 0, 0), Track(3, 0, 0)], [Track(n, 0, 0) for n in (1, 2, 3)])
    assert scores["corrections"]["ns"] == 1
    assert scores["det"] == pytest.approx(1 - 5 / 30)
    assert scores["seg"] == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert scores["lnk"] is None


def test_exactly_half_is_not_found() -> None:
    half = only(1) * (np.arange(LINE.size) < 3)
    found = frames((half, only(1)))[0]
    assert (len(found.found), len(found.label_ids)) == (0, 1)


def test_worse_than_nothing_is_nothing() -> None:
    many = np.arange(1, 19, dtype=np.uint16)
    scores = track_scores(frames((many, only(1))), [Track(int(n), 0, 0) for n in many], [Track(1, 0, 0)])
    assert scores["det"] == 0.0


def test_what_does_not_exist_is_none() -> None:
    empty = track_scores(frames((only(), only()), (only(), only())), [], [])
    assert [empty[kind] for kind in ("seg", "det", "tra", "lnk", "op_csb", "op_ctb")] == [None] * 6
    assert empty["divisions"]["bc"] is None
    json.dumps(summarise([{"id": "x", "tracking": empty}]), allow_nan=False)


def test_a_link_to_where_nothing_is_is_refused() -> None:
    pairs = frames((only(1), only(1)), (only(2), only(2)))
    good = (Track(1, 0, 0), Track(2, 1, 1, 1))
    for bad in ((Track(1, 0, 1), Track(2, 1, 1, 1)), (Track(2, 1, 1, 7),), (Track(1, 0, 0), Track(2, 2, 2, 1))):
        with pytest.raises(InputRefusedError, match="has no mask in frame") as caught:
            track_scores(pairs, bad, good)
        assert caught.value.remedy


def test_divisions_may_be_one_frame_off() -> None:
    def family(at: int) -> tuple[list[np.ndarray], list[Track]]:
        parts = [only(1) * (number <= at) for number in range(5)]
        daughters = np.where(LINE == 1, np.where(np.arange(LINE.size) < 3, 2, 3), 0)
        images = [part if part.any() else daughters for part in parts]
        return images, [Track(1, 0, at), Track(2, at + 1, 4, 1), Track(3, at + 1, 4, 1)]

    true, true_tracks = family(1)
    for at, found in ((1, 1), (2, 1), (3, 0)):
        images, tracks = family(at)
        scores = track_scores(frames(*zip(images, true, strict=True)), tracks, true_tracks)
        assert scores["divisions"]["found"] == found


def test_sequences_together() -> None:
    tracks = [Track(number, 0, 1) for number in (1, 2, 3)]
    perfect = track_scores(frames((LINE, LINE), (LINE, LINE)), tracks, tracks)
    nothing = track_scores(frames((only(), LINE)), [], [Track(n, 0, 0) for n in (1, 2, 3)])
    both = summarise_tracks([perfect, nothing])
    assert both["tra"] == pytest.approx(0.5)
    assert both["lnk"] == 1.0  # one of them has no edge
    assert (both["n_sequences"], both["n_label"], both["corrections"]["fn"]) == (2, 9, 3)
