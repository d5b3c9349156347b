"""Masks of a movie as a poor segmentation makes them: some missing, some two in one; and the challenge's own scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ctc_metrics.scripts.evaluate import calculate_metrics, load_data
from scipy import ndimage

from unet_med.instances.linking import Linking
from unet_med.io.tracks import REFERENCE_TABLE, Track, write_tracked
from unet_med.phantoms import Movie

Frames = npt.NDArray[np.integer[Any]]


def shuffled(labels: Frames, seed: int = 0) -> Frames:
    """Returns frames (T, ...) whose objects are numbered anew in every frame, as a segmentation does."""
    random = np.random.default_rng(seed)
    named = np.zeros_like(labels)
    for frame, own in zip(named, labels, strict=True):
        numbers = np.unique(own[own > 0])
        names = np.zeros(labels.max() + 1, dtype=labels.dtype)
        names[numbers] = random.permutation(len(numbers)) + 1
        frame[...] = names[own]
    return named


def damaged(labels: Frames, seed: int = 0, dropped: float = 0.05, merged: float = 0.03) -> Frames:
    """Returns frames (T, ...) in which objects are missing, and objects that touch another one have its number."""
    random = np.random.default_rng(seed)
    hurt = labels.copy()
    for frame in hurt:
        for number in np.unique(frame[frame > 0]):
            fate = random.random()
            if fate < dropped:
                frame[frame == number] = 0
            elif fate < dropped + merged:
                around = frame[ndimage.binary_dilation(frame == number)]
                others = np.unique(around[(around > 0) & (around != number)])
                if len(others):
                    frame[frame == number] = random.choice(others)
    return hurt


def challenge_scores(folder: Path, movie: Movie, frames: Frames, linking: Linking) -> dict[str, float]:
    """Returns SEG, DET, TRA and LNK of linked frames as py-ctcmetrics computes them from files."""
    result = [linking.relabel(number, labels.T) for number, labels in enumerate(frames)]
    return scores_of_files(folder, movie, result, linking.tracks)


def scores_of_files(folder: Path, movie: Movie, result: list[Any], tracks: tuple[Track, ...]) -> dict[str, float]:
    """Returns the same for label images (I, J) and their tracks."""
    count = len(movie.labels)
    reference = [labels.T for labels in movie.labels]
    write_tracked(folder / "RES", result, tracks, count)
    write_tracked(folder / "GT" / "TRA", reference, movie.tracks, count, REFERENCE_TABLE)
    segmented = folder / "GT" / "SEG"
    segmented.mkdir(parents=True, exist_ok=True)
    for file in (folder / "GT" / "TRA").glob("man_track*.tif"):
        (segmented / file.name.replace("track", "seg")).write_bytes(file.read_bytes())
    found, truth, paths, segments, _, valid = load_data(str(folder / "RES"), str(folder / "GT"), True, True, threads=1)
    assert valid
    scores = calculate_metrics(found, truth, paths, segments, ["SEG", "DET", "TRA", "LNK"], valid)
    return {name: float(scores[name]) for name in ("SEG", "DET", "TRA", "LNK")}


def found_divisions(movie: Movie, frames: Frames, linking: Linking) -> tuple[int, int, int]:
    """Returns how many true divisions were found in the right frame, how many there are, and how many are claimed."""
    true = {(t.parent, t.begin) for t in movie.tracks if t.parent}
    twice = [p for p in {t.parent for t in movie.tracks if t.parent} if sum(t.parent == p for t in movie.tracks) == 2]
    true = {(parent, begin) for parent, begin in true if parent in twice}
    claimed = set()
    for label, count in linking.children.items():
        if count == 2:
            end = next(track.end for track in linking.tracks if track.label == label)
            begin = min(track.begin for track in linking.tracks if track.parent == label)
            tracked = linking.relabel(end, frames[end].T).T
            numbers = np.bincount(movie.labels[end][tracked == label])
            claimed.add((int(numbers[1:].argmax()) + 1 if len(numbers) > 1 else 0, begin))
    return len(true & claimed), len(true), len(claimed)
