"""How well objects are followed: movies with exact truth, on clean masks and on damaged ones.

``python tests/benchmarks/bench_tracking.py [--movies N] [--frames T]`` makes movies of dividing, touching cells,
numbers their objects anew in every frame, links them, and prints the scores of the Cell Tracking Challenge: with all
masks, with some dropped, some merged into a neighbour, and both; and how long the linking took.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from machine import markdown, processor

from unet_med.instances.linking import link
from unet_med.metrics import match_frame, overlap_table, summarise_tracks, track_scores
from unet_med.phantoms import Movie, make_cells

sys.path.insert(0, str(Path(__file__).parents[1]))

from tracking_damage import damaged, shuffled

DAMAGE = {
    "clean": (0.0, 0.0),
    "5 % dropped": (0.05, 0.0),
    "3 % merged": (0.0, 0.03),
    "5 % dropped, 3 % merged": (0.05, 0.03),
}


def scored(movie: Movie, dropped: float, merged: float, seed: int) -> tuple[dict[str, Any], float]:
    """Returns the scores of one movie, and the seconds that its linking took."""
    frames = [labels.T for labels in shuffled(damaged(movie.labels, seed, dropped, merged))]
    started = time.perf_counter()
    linking = link(frames)
    seconds = time.perf_counter() - started
    matches = [
        match_frame(overlap_table(linking.relabel(number, frame), truth.T))
        for number, (frame, truth) in enumerate(zip(frames, movie.labels, strict=True))
    ]
    return track_scores(matches, linking.tracks, movie.tracks), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--movies", type=int, default=6)
    parser.add_argument("--frames", type=int, default=24)
    wanted = parser.parse_args()
    movies = [make_cells(0, number, wanted.frames) for number in range(wanted.movies)]
    rows = []
    for name, (dropped, merged) in DAMAGE.items():
        results = [scored(movie, dropped, merged, number) for number, movie in enumerate(movies)]
        total = summarise_tracks([scores for scores, _ in results])
        divisions = total["divisions"]
        seconds = sum(seconds for _, seconds in results) / (wanted.movies * wanted.frames)
        rows.append(
            [
                name,
                *(f"{total[kind]:.4f}" for kind in ("seg", "det", "tra", "lnk")),
                f"{divisions['found']} of {divisions['n_label']}, {divisions['n_mask']} claimed",
                f"{1e3 * seconds:.1f}",
            ]
        )
    print(f"{processor()}; {wanted.movies} movies of {wanted.frames} frames")
    print(markdown(["masks", "SEG", "DET", "TRA", "LNK", "divisions (a frame early or late)", "ms per frame"], rows))


if __name__ == "__main__":
    main()
