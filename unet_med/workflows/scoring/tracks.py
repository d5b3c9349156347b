"""Sequences of the Cell Tracking Challenge beside their references."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from unet_med.errors import InputRefusedError
from unet_med.identity import safe_name
from unet_med.io.tracks import REFERENCE_TABLE, RESULT_TABLE, Track, TrackedMasks, open_tracked
from unet_med.metrics import FrameMatch, match_frame, overlap_table, track_scores
from unet_med.workflows.progress import track

_TRUTH = "TRA"
_SEGMENTED = "SEG"
_ENDINGS = ("_RES", "_GT")


def sequences(root: Path) -> dict[str, Path]:
    """Returns the folders that hold a table of tracks, by their names without ``_RES`` and ``_GT``.

    Args:
        root: One sequence, or a folder of them.
    """
    folders = [root] if _is_sequence(root) or not root.is_dir() else sorted(root.iterdir())
    return {_name(folder): folder for folder in folders if _is_sequence(folder)}


def _is_sequence(folder: Path) -> bool:
    places = (folder / RESULT_TABLE, folder / REFERENCE_TABLE, folder / _TRUTH / REFERENCE_TABLE)
    return any(place.is_file() for place in places)


def _name(folder: Path) -> str:
    whole = folder.resolve()
    name = whole.parent.name if whole.name == _TRUTH else whole.name
    return safe_name(next((name.removesuffix(ending) for ending in _ENDINGS if name.endswith(ending)), name))


def score_sequence(result: Path, reference: Path) -> tuple[dict[str, Any], str]:
    """Scores the tracks of one sequence; frames are read one by one.

    Args:
        result: Folder of masks and table.
        reference: Folder of the truth; objects drawn whole are in ``SEG``, where there is one.

    Returns:
        What :func:`unet_med.metrics.track_scores` returns, and a note, empty for none.

    Raises:
        InputRefusedError: A folder is incomplete, the two do not fit, or a table contradicts its masks.
    """
    ours, true = open_tracked(result), open_tracked(reference)
    if len(ours.files) != len(true.files):
        raise InputRefusedError(
            f"the result has {len(ours.files)} frames and the reference {len(true.files)}",
            remedy="give a label image for each frame",
        )
    frames = [
        match_frame(overlap_table(ours.read(number), true.read(number)))
        for number in track(range(len(true.files)), "comparing frames")
    ]
    _check([set(frame.mask_ids.tolist()) for frame in frames], ours.tracks, "result")
    _check([set(frame.label_ids.tolist()) for frame in frames], true.tracks, "reference")
    segmented = list(_segmented(ours, reference)) or None
    note = "" if segmented else f"there is no {_SEGMENTED} folder: SEG is of the objects of the tracks"
    return track_scores(frames, ours.tracks, true.tracks, segmented), note


def _check(frames: Sequence[set[int]], tracks: Sequence[Track], what: str) -> None:
    """Refuses tables that say something else than the masks."""
    for number, present in enumerate(frames):
        expected = {one.label for one in tracks if one.begin <= number <= one.end}
        if present != expected:
            label = min(present ^ expected)
            raise InputRefusedError(
                f"object {label} of the {what} is in the masks of frame {number} and not in its table"
                if label in present
                else f"track {label} of the {what} has no mask in frame {number}",
                remedy="correct the table or the masks: tracks are in every frame from their first to their last",
            )


def _segmented(ours: TrackedMasks, reference: Path) -> Iterator[FrameMatch]:
    """Yields the frames, or slices of frames, whose true objects are drawn whole."""
    folder = (reference.parent if reference.name == _TRUTH else reference) / _SEGMENTED
    for path in sorted(folder.glob("man_seg*.tif")):
        found = re.fullmatch(r"man_seg_?(\d+)(?:_(\d+))?\.tif", path.name)
        if found is None or int(found[1]) >= len(ours.files):
            raise InputRefusedError(
                f"{path.name} belongs to no frame", _SEGMENTED, "call it man_segTTT.tif or man_seg_TTT_ZZZ.tif"
            )
        mask = ours.read(int(found[1]))
        if found[2] is not None and mask.ndim == 3:
            mask = mask[..., int(found[2])]
        yield match_frame(overlap_table(mask, TrackedMasks((path,), ()).read(0)))
