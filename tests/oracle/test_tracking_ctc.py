"""Our scores of tracks against the Cell Tracking Challenge's own program in Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile

from unet_med.io.tracks import REFERENCE_TABLE, Track, write_tracked
from unet_med.workflows.score import score

ctc = pytest.importorskip("ctc_metrics.scripts.evaluate")

FRAMES = 6
SLOTS = 9
SIDE = 12
PATTERNS = ("stay", "divide", "gap", "renamed", "stranger", "enter", "leave", "absent", "halves")
KINDS = ("ns", "fn", "fp", "ed", "ea", "ec")


class Sequenced:
    """Cells in the slots of a grid, each living by a pattern of its own; the first is always there."""

    def __init__(self, random: np.random.Generator, patterns: Sequence[str], shift: int, depth: int) -> None:
        shape = (3 * SIDE, 3 * SIDE, depth) if depth else (3 * SIDE, 3 * SIDE)
        self.frames = [np.zeros(shape, dtype=np.uint16) for _ in range(FRAMES)]
        self.tracks: list[Track] = []
        self.free = list(random.permutation(np.arange(1, 60)))
        self.shift = shift
        for slot, pattern in enumerate(patterns):
            at = int(random.integers(1, FRAMES - 2))
            getattr(self, pattern)(slot, at)

    def live(self, slot: int, begin: int, end: int, part: str = "whole", parent: int = 0) -> int:
        label = int(self.free.pop())
        i, j = (SIDE * place + 2 + self.shift for place in divmod(slot, 3))
        columns = {"whole": slice(j, j + 8), "left": slice(j, j + 4), "right": slice(j + 4, j + 8)}[part]
        for frame in self.frames[begin : end + 1]:
            frame[i : i + 7, columns] = label
        self.tracks.append(Track(label, begin, end, parent))
        return label

    def stay(self, slot: int, _: int) -> None:
        self.live(slot, 0, FRAMES - 1)

    def enter(self, slot: int, at: int) -> None:
        self.live(slot, at, FRAMES - 1)

    def leave(self, slot: int, at: int) -> None:
        self.live(slot, 0, at)

    def absent(self, slot: int, _: int) -> None:
        pass

    def halves(self, slot: int, _: int) -> None:
        for part in ("left", "right"):
            self.live(slot, 0, FRAMES - 1, part)

    def divide(self, slot: int, at: int) -> None:
        parent = self.live(slot, 0, at)
        for part in ("left", "right"):
            self.live(slot, at + 1, FRAMES - 1, part, parent)

    def gap(self, slot: int, at: int) -> None:
        self.live(slot, at + 2, FRAMES - 1, parent=self.live(slot, 0, at))

    def stranger(self, slot: int, at: int) -> None:
        self.live(slot, 0, at)
        self.live(slot, at + 1, FRAMES - 1)

    def renamed(self, slot: int, at: int) -> None:
        self.live(slot, at + 1, FRAMES - 1, parent=self.live(slot, 0, at))


def pair(seed: int, depth: int) -> tuple[Sequenced, Sequenced]:
    """A truth, and a computed sequence in which half of the cells live otherwise."""
    random = np.random.default_rng(seed)
    true = ["stay", *random.choice(PATTERNS[:-1], SLOTS - 1)]
    computed = ["stay", *(random.choice(PATTERNS) if random.random() < 0.5 else pattern for pattern in true[1:])]
    return Sequenced(random, computed, 1, depth), Sequenced(random, true, 0, depth)


def write(root: Path, computed: Sequenced, true: Sequenced) -> tuple[Path, Path]:
    result, reference = root / "01_RES", root / "01_GT"
    write_tracked(result, computed.frames, computed.tracks, FRAMES)
    write_tracked(reference / "TRA", true.frames, true.tracks, FRAMES, REFERENCE_TABLE)
    (reference / "SEG").mkdir()
    for number in range(0, FRAMES, 2):
        path = reference / "SEG" / f"man_seg{number:03d}.tif"
        tifffile.imwrite(path, true.frames[number].T, photometric="minisblack")
    return result, reference


def test_every_score_and_count_is_the_challenges(tmp_path: Path) -> None:
    seen = dict.fromkeys(KINDS, 0)
    divisions = 0
    for seed in range(14):
        depth = 3 if seed % 5 == 0 else 0
        result, reference = write(tmp_path / str(seed), *pair(seed, depth))
        ours = score(result, reference, task="tracking").result["tracking"]
        theirs = ctc.evaluate_sequence(str(result), str(reference), ["SEG", "DET", "TRA", "LNK", "BC"], threads=1)
        for kind in ("seg", "det", "tra", "lnk"):
            assert ours[kind] == pytest.approx(theirs[kind.upper()], abs=1e-12), (seed, kind)
        assert ours["corrections"] == {kind: theirs[f"AOGM_{kind.upper()}"] for kind in KINDS}
        division = ours["divisions"]
        assert division["found"] == theirs["tp_div(1)"]
        assert division["n_mask"] - division["found"] == theirs["fp_div(1)"]
        assert division["n_label"] - division["found"] == theirs["fn_div(1)"]
        assert division["bc"] == (None if theirs["BC(1)"] is None else pytest.approx(theirs["BC(1)"]))
        divisions += division["found"]
        for kind in KINDS:
            seen[kind] += ours["corrections"][kind]
    assert min(seen.values()) > 0, f"every kind of correction must occur: {seen}"
    assert divisions > 0
