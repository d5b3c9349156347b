"""How well objects were followed through time: the measures of the Cell Tracking Challenge.

A computed object stands for a true one where it covers more than half of it.

* *SEG*: the mean over all true objects of the IoU with the computed object that stands for them, 0 for none.
* *DET*, *TRA*, *LNK* (Matula et al. 2015; Ulman et al. 2017; Maska et al. 2023) compare two graphs, whose vertices are
  objects in frames and whose edges lead to the same object in the next frame or from a parent to its children. They
  count what a person would do to turn the computed graph into the true one, each correction at its price: an object
  split (5), added (10), deleted (1); an edge deleted (1), added (1.5), given another meaning (1). A score is 1 minus
  that cost over the cost of making the true graph from nothing: of the vertices (DET), the edges (LNK), both (TRA).
* *BC(1)*: the F1 of divisions (tracks with two children or more), found where parent and children correspond and their
  last and first frames are at most one frame off.

What does not exist (no true object, no true edge, no division) is ``None``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_med.errors import InputRefusedError
from unet_med.metrics.objects import average
from unet_med.metrics.overlap import FloatArray, Index, Overlap

if TYPE_CHECKING:
    from unet_med.io.tracks import Track

Vertex = tuple[int, int]
"""Frame and number of an object."""

Edges = dict[tuple[Vertex, Vertex], bool]
"""From an object to one in a later frame, and whether it leads from a parent to its child."""

PRICES = {"ns": 5.0, "fn": 10.0, "fp": 1.0, "ed": 1.0, "ea": 1.5, "ec": 1.0}
"""Of corrections: split, add, delete an object; delete, add an edge, change its meaning."""

_OF_VERTICES, _OF_EDGES = ("ns", "fn", "fp"), ("ed", "ea", "ec")
_FRAMES_OFF = 1
_MEANS = ("seg", "det", "tra", "lnk", "op_csb", "op_ctb")


@dataclass(frozen=True, eq=False)
class FrameMatch:
    """Which objects of a frame were found, and by which.

    Attributes:
        mask_ids: (n,) numbers of the computed objects.
        label_ids: (m,) numbers of the true objects.
        finders: (k,) numbers of computed objects, which may repeat.
        found: (k,) numbers of the true objects that they stand for, each once at most.
        iou: (k,) of these pairs.
    """

    mask_ids: Index
    label_ids: Index
    finders: Index
    found: Index
    iou: FloatArray


def match_frame(table: Overlap) -> FrameMatch:
    """Returns which computed objects cover more than half of a true one."""
    covered = 2 * table.shared > table.label_voxels[table.columns]
    return FrameMatch(
        table.mask_ids,
        table.label_ids,
        table.mask_ids[table.rows[covered]],
        table.label_ids[table.columns[covered]],
        table.iou[covered],
    )


def track_scores(
    frames: Sequence[FrameMatch],
    tracks: Sequence[Track],
    true_tracks: Sequence[Track],
    segmented: Sequence[FrameMatch] | None = None,
) -> dict[str, Any]:
    """Scores one sequence.

    Args:
        frames: Every frame, numbers of objects being those of tracks.
        tracks: What was computed.
        true_tracks: The truth.
        segmented: Frames whose true objects are drawn whole, for SEG; ``None``: ``frames`` are.

    Returns:
        ``seg``, ``det``, ``tra``, ``lnk``, ``op_csb`` (mean of SEG and DET), ``op_ctb`` (of SEG and TRA),
        ``corrections`` (how many of each kind: ns, fn, fp, ed, ea, ec), ``divisions`` (``n_mask``, ``n_label``,
        ``found``, ``bc``), ``n_frames``, ``n_mask``, ``n_label`` (objects) and ``n_edges`` (of the truth).

    Raises:
        InputRefusedError: if a parent or child has no mask in the frame where the table says that it ends or begins.
    """
    edges = _edges([frame.mask_ids for frame in frames], tracks)
    true_edges = _edges([frame.label_ids for frame in frames], true_tracks)
    meant, corrections = _vertices(frames)
    corrections |= _edge_corrections(edges, true_edges, meant)
    objects, links = sum(len(frame.label_ids) for frame in frames), len(true_edges)
    seg = _seg(frames if segmented is None else segmented)
    from_nothing = PRICES["fn"] * objects, PRICES["ea"] * links
    det = _score(corrections, _OF_VERTICES, from_nothing[0])
    tra = _score(corrections, _OF_VERTICES + _OF_EDGES, sum(from_nothing))
    return {
        "seg": seg,
        "det": det,
        "tra": tra,
        "lnk": _score(corrections, _OF_EDGES, from_nothing[1]),
        "op_csb": None if seg is None or det is None else (seg + det) / 2,
        "op_ctb": None if seg is None or tra is None else (seg + tra) / 2,
        "corrections": corrections,
        "divisions": _divisions(tracks, true_tracks, meant),
        "n_frames": len(frames),
        "n_mask": sum(len(frame.mask_ids) for frame in frames),
        "n_label": objects,
        "n_edges": links,
    }


def _seg(frames: Sequence[FrameMatch]) -> float | None:
    objects = sum(len(frame.label_ids) for frame in frames)
    return float(sum(frame.iou.sum() for frame in frames)) / objects if objects else None


def _score(corrections: Mapping[str, int], kinds: Sequence[str], from_nothing: float) -> float | None:
    if not from_nothing:
        return None
    cost = sum(PRICES[kind] * corrections[kind] for kind in kinds)
    return 1.0 - min(cost, from_nothing) / from_nothing


def _vertices(frames: Sequence[FrameMatch]) -> tuple[dict[Vertex, Vertex], dict[str, int]]:
    """Returns the true object of each computed one that stands for exactly one, and the corrections of objects."""
    meant: dict[Vertex, Vertex] = {}
    counts = dict.fromkeys(_OF_VERTICES, 0)
    for number, frame in enumerate(frames):
        finders, position, hits = np.unique(frame.finders, return_inverse=True, return_counts=True)
        counts["ns"] += len(frame.finders) - len(finders)
        counts["fn"] += len(frame.label_ids) - len(frame.found)
        counts["fp"] += len(frame.mask_ids) - len(finders)
        alone = hits[position.ravel()] == 1
        pairs = zip(frame.finders[alone].tolist(), frame.found[alone].tolist(), strict=True)
        meant |= {(number, ours): (number, theirs) for ours, theirs in pairs}
    return meant, counts


def _edges(ids: Sequence[Index], tracks: Sequence[Track]) -> Edges:
    """Returns all edges of a graph.

    Raises:
        InputRefusedError: see :func:`track_scores`.
    """
    edges: Edges = {}
    for number, (before, after) in enumerate(pairwise(ids)):
        for label in np.intersect1d(before, after).tolist():
            edges[(number, label), (number + 1, label)] = False
    present = [set(frame.tolist()) for frame in ids]
    ends = {track.label: track.end for track in tracks}
    for track in tracks:
        if track.parent:
            both = (ends.get(track.parent, len(ids)), track.parent), (track.begin, track.label)
            for frame, label in both:
                if frame >= len(present) or label not in present[frame]:
                    raise InputRefusedError(
                        f"track {label} has no mask in frame {frame}, where the table says that it begins or ends",
                        remedy="correct the table of tracks, or the masks",
                    )
            edges[both] = True
    return edges


def _edge_corrections(edges: Edges, true_edges: Edges, meant: Mapping[Vertex, Vertex]) -> dict[str, int]:
    """Counts corrections of edges; those at objects that are split or deleted go with them."""
    kept = {(meant[a], meant[b]): kind for (a, b), kind in edges.items() if a in meant and b in meant}
    return {
        "ed": len(kept.keys() - true_edges.keys()),
        "ea": len(true_edges.keys() - kept.keys()),
        "ec": sum(kind != true_edges[edge] for edge, kind in kept.items() if edge in true_edges),
    }


# ---- divisions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Division:
    """The last vertex of a parent, and the first ones of its children."""

    parent: Vertex
    children: tuple[Vertex, ...]


def _divisions(
    tracks: Sequence[Track], true_tracks: Sequence[Track], meant: Mapping[Vertex, Vertex]
) -> dict[str, float | int | None]:
    computed, true = _divisions_of(tracks), _divisions_of(true_tracks)
    found = sum(any(_same_division(one, other, meant) for one in computed) for other in true)
    return {
        "n_mask": len(computed),
        "n_label": len(true),
        "found": found,
        "bc": 2 * found / (len(computed) + len(true)) if true else None,
    }


def _divisions_of(tracks: Sequence[Track]) -> list[_Division]:
    children: dict[int, list[Vertex]] = defaultdict(list)
    for track in tracks:
        children[track.parent].append((track.begin, track.label))
    return [
        _Division((track.end, track.label), tuple(children[track.label]))
        for track in tracks
        if len(children[track.label]) > 1
    ]


def _same_division(one: _Division, true: _Division, meant: Mapping[Vertex, Vertex]) -> bool:
    """Whether parents correspond in the last frame that both have, and each child with one in the first."""
    if len(one.children) != len(true.children) or not _same_object(one.parent, true.parent, meant, min):
        return False
    found = {ours for theirs in true.children for ours in one.children if _same_object(ours, theirs, meant, max)}
    return len(found) == len(true.children)


def _same_object(ours: Vertex, true: Vertex, meant: Mapping[Vertex, Vertex], common: Callable[..., int]) -> bool:
    frame = common(ours[0], true[0])
    return abs(ours[0] - true[0]) <= _FRAMES_OFF and meant.get((frame, ours[1])) == (frame, true[1])


# ---- all sequences --------------------------------------------------------------------------------------------------


def summarise_tracks(sequences: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the scores of all sequences together.

    Args:
        sequences: What :func:`track_scores` returned of each.

    Returns:
        The same keys: scores are means over the sequences, as in the challenge; counts are sums, and ``bc`` is of all
        divisions together. ``n_sequences`` besides.
    """
    divisions = {key: sum(one["divisions"][key] for one in sequences) for key in ("n_mask", "n_label", "found")}
    both = divisions["n_mask"] + divisions["n_label"]
    return {
        **{kind: average(one[kind] for one in sequences) for kind in _MEANS},
        "corrections": {kind: sum(one["corrections"][kind] for one in sequences) for kind in PRICES},
        "divisions": divisions | {"bc": 2 * divisions["found"] / both if divisions["n_label"] else None},
        **{key: sum(one[key] for one in sequences) for key in ("n_frames", "n_mask", "n_label", "n_edges")},
        "n_sequences": len(sequences),
    }
