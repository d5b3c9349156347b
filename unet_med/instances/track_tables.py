"""Tables of linked movies: one row for each track, and one for each object in each frame."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import numpy.typing as npt

from unet_med.instances.linking import Linking, Values
from unet_med.io.objects.table import ObjectTable
from unet_med.io.tracks import Track

_AXES = "xyz"


def track_table(linking: Linking, unit: str, seconds_per_frame: float | None = None) -> ObjectTable:
    """Returns one row for each track.

    Args:
        linking: The movie.
        unit: Of the spacing that it was linked with: ``um`` or ``px``.
        seconds_per_frame: From frame to frame, where it is known.

    Returns:
        ``label``; ``cell``, the same for the parts of a track before and after a gap; ``lineage``, the same for a cell
        and all that came from it; ``parent`` (0: none); ``begin`` and ``end`` (frames from 0), ``frames``; ``starts``
        (``first frame``, ``division``, ``gap``, ``entered`` at the border of the image, ``appeared``) and ``stops``
        (``last frame``, ``division``, ``gap``, ``left``, ``lost``); ``path``, the length of its way, ``displacement``
        from its first to its last place, ``mean_step`` from frame to frame (NaN for one frame), ``mean_area`` or
        ``mean_volume``, and ``mean_speed`` where the time step is known.
    """
    cells, lineages = _families(linking)
    ways = _ways(linking)
    lengths = [np.linalg.norm(np.diff(way, axis=0), axis=1) for way in ways]
    tracks = linking.tracks
    last = len(linking.frames) - 1
    steps = np.array([length.mean() if len(length) else np.nan for length in lengths])
    speeds = {} if seconds_per_frame is None else {f"mean_speed_{unit}_per_min": steps * (60.0 / seconds_per_frame)}
    return ObjectTable(
        {
            "label": np.array([track.label for track in tracks], dtype=np.int64),
            "cell": np.array(cells, dtype=np.int64),
            "lineage": np.array(lineages, dtype=np.int64),
            "parent": np.array([track.parent for track in tracks], dtype=np.int64),
            "begin": np.array([track.begin for track in tracks], dtype=np.int64),
            "end": np.array([track.end for track in tracks], dtype=np.int64),
            "frames": np.array([track.end - track.begin + 1 for track in tracks], dtype=np.int64),
            "starts": np.array([_starts(track, linking) for track in tracks], dtype=np.str_),
            "stops": np.array([_stops(track, linking, last) for track in tracks], dtype=np.str_),
            f"path_{unit}": np.array([length.sum() for length in lengths]),
            f"displacement_{unit}": np.array([np.linalg.norm(way[-1] - way[0]) for way in ways]),
            f"mean_step_{unit}": steps,
            f"mean_{_size_name(linking, unit)}": _mean_sizes(linking),
            **speeds,
        }
    )


def place_table(linking: Linking, unit: str) -> ObjectTable:
    """Returns one row for each object in each frame, by frame and track.

    Args:
        linking: The movie.
        unit: Of the spacing that it was linked with: ``um`` or ``px``.

    Returns:
        ``frame``; ``label`` of its track; ``object``, its number in the masks that were linked; ``x``, ``y`` (and
        ``z``) of its centre, 0 at the centre of the first pixel; ``area`` or ``volume``; ``at_border`` of the image.
    """
    order = [np.argsort(named, kind="stable") for named in linking.labels]
    centres = np.concatenate([objects.centres[rows] for objects, rows in zip(linking.frames, order, strict=True)])
    columns: dict[str, npt.NDArray[np.generic]] = {
        "frame": np.repeat(np.arange(len(order)), [len(rows) for rows in order]),
        "label": np.concatenate([named[rows] for named, rows in zip(linking.labels, order, strict=True)]),
        "object": np.concatenate([objects.numbers[rows] for objects, rows in zip(linking.frames, order, strict=True)]),
    }
    columns |= {f"{axis}_{unit}": values for axis, values in zip(_AXES, centres.T, strict=False)}
    columns[_size_name(linking, unit)] = np.concatenate(
        [objects.sizes[rows] for objects, rows in zip(linking.frames, order, strict=True)]
    )
    columns["at_border"] = np.concatenate(
        [objects.at_border[rows] for objects, rows in zip(linking.frames, order, strict=True)]
    )
    return ObjectTable(columns)


def _size_name(linking: Linking, unit: str) -> str:
    return f"area_{unit}2" if linking.frames[0].centres.shape[1] == 2 else f"volume_{unit}3"


def _families(linking: Linking) -> tuple[list[int], list[int]]:
    """Returns the label of the first part of each track, and of the first of its ancestors."""
    cells: dict[int, int] = {}
    lineages: dict[int, int] = {}
    for track in linking.tracks:  # parents come first: they begin earlier
        goes_on = track.parent and linking.children[track.parent] == 1
        cells[track.label] = cells[track.parent] if goes_on else track.label
        lineages[track.label] = lineages[track.parent] if track.parent else track.label
    return list(cells.values()), list(lineages.values())


def _ways(linking: Linking) -> list[Values]:
    """Returns the centres of each track, frame by frame."""
    ways: dict[int, list[Values]] = defaultdict(list)
    for objects, named in zip(linking.frames, linking.labels, strict=True):
        for label, centre in zip(named.tolist(), objects.centres, strict=True):
            ways[label].append(centre)
    return [np.array(ways[track.label]) for track in linking.tracks]


def _mean_sizes(linking: Linking) -> Values:
    labels = np.concatenate(linking.labels) - 1
    sizes = np.concatenate([objects.sizes for objects in linking.frames])
    count = len(linking.tracks)
    return np.asarray(np.bincount(labels, sizes, count) / np.bincount(labels, minlength=count), dtype=np.float64)


def _at_border(track: Track, frame: int, linking: Linking) -> bool:
    return bool(linking.frames[frame].at_border[linking.labels[frame] == track.label].any())


def _starts(track: Track, linking: Linking) -> str:
    if track.parent:
        return "division" if linking.children[track.parent] > 1 else "gap"
    if track.begin == 0:
        return "first frame"
    return "entered" if _at_border(track, track.begin, linking) else "appeared"


def _stops(track: Track, linking: Linking, last: int) -> str:
    if linking.children[track.label]:
        return "division" if linking.children[track.label] > 1 else "gap"
    if track.end == last:
        return "last frame"
    return "left" if _at_border(track, track.end, linking) else "lost"
