"""Tracks of objects as files of the Cell Tracking Challenge: a label image for each frame and a table of tracks.

Results are ``maskTTT.tif`` and ``res_track.txt``, references ``man_trackTTT.tif`` and ``man_track.txt``, in a folder
``TRA`` mostly. A line of the table is ``L B E P``: label of the track, first and last frame counted from 0, label of
the parent track or 0. A track is in every frame from its first to its last; one that was lost and found again goes on
as a track of its own, whose parent it is. Source: celltrackingchallenge.net, "Annotation format".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from unet_med.errors import InputRefusedError
from unet_med.io.atomic import whole_file
from unet_med.io.reading import COPY_FILE_AGAIN, refusing

Labels = npt.NDArray[np.integer[Any]]

RESULT_TABLE, REFERENCE_TABLE = "res_track.txt", "man_track.txt"
_MASKS = {RESULT_TABLE: "mask", REFERENCE_TABLE: "man_track"}
_HIGHEST_LABEL = 2**16 - 1


@dataclass(frozen=True, order=True)
class Track:
    """One object through time.

    Attributes:
        label: Its number in the label images, from 1.
        begin: First frame.
        end: Last frame.
        parent: Label of the track that it came from, 0 for none. One child goes on after a gap, two are daughters.
    """

    label: int
    begin: int
    end: int
    parent: int = 0


@dataclass(frozen=True)
class TrackedMasks:
    """A folder of the Cell Tracking Challenge.

    Attributes:
        files: The label image of each frame.
        tracks: All tracks, by label.
    """

    files: tuple[Path, ...]
    tracks: tuple[Track, ...]

    def read(self, frame: int) -> Labels:
        """Returns the labels (I, J[, K]) of a frame.

        Raises:
            InputRefusedError: The file is damaged or no label image.
        """
        with refusing("a label image of a frame is damaged", f"frame {frame}", COPY_FILE_AGAIN, tifffile.TiffFileError):
            pages = np.asarray(tifffile.imread(self.files[frame]))
        if pages.ndim not in (2, 3) or pages.dtype.kind not in "iu":
            raise InputRefusedError(
                f"an image of shape {pages.shape} and type {pages.dtype} is no label image",
                f"frame {frame}",
                "give one picture or stack of whole numbers for each frame",
            )
        return pages.T


def open_tracked(folder: Path) -> TrackedMasks:
    """Opens results, or references in ``folder`` or in ``folder/TRA``.

    Raises:
        InputRefusedError: Table or masks are missing, are not of one kind, or the table contradicts itself.
    """
    for place in (folder, folder / "TRA"):
        for table, stem in _MASKS.items():
            if (place / table).is_file():
                tracks = read_tracks(place / table)
                return TrackedMasks(_mask_files(place, stem), tracks)
    raise InputRefusedError(
        "there is no table of tracks", folder.name, f"give a folder with {RESULT_TABLE} or {REFERENCE_TABLE}"
    )


def _mask_files(folder: Path, stem: str) -> tuple[Path, ...]:
    numbered = {
        int(found[1]): path
        for path in folder.glob(f"{stem}*.tif")
        if (found := re.fullmatch(rf"{stem}(\d+)\.tif", path.name))
    }
    if sorted(numbered) != list(range(len(numbered))) or not numbered:
        raise InputRefusedError(
            "the label images are not numbered from 0 without a gap",
            folder.name,
            f"give {stem}000.tif, {stem}001.tif, ..., one for each frame",
        )
    return tuple(numbered[number] for number in sorted(numbered))


def read_tracks(path: Path) -> tuple[Track, ...]:
    """Reads a table of tracks; see the module.

    Raises:
        InputRefusedError: A line is no ``L B E P``, or the table contradicts itself.
    """
    with refusing("the table of tracks cannot be read", path.name, COPY_FILE_AGAIN):
        lines = [line for line in path.read_text(encoding="ascii").splitlines() if line.strip()]
    with refusing("a line of the table is not four whole numbers", path.name, "give L B E P in each line"):
        tracks = [_track(line) for line in lines]
    return checked(tracks, path.name)


def _track(line: str) -> Track:
    label, begin, end, parent = (int(value) for value in line.split())
    return Track(label, begin, end, parent)


def checked(tracks: Iterable[Track], where: str) -> tuple[Track, ...]:
    """Returns the tracks by label.

    Raises:
        InputRefusedError: A label is used twice or below 1, a track ends before it begins, or a parent is missing or
            still there when its child begins.
    """
    ordered = tuple(sorted(tracks))
    by_label = {track.label: track for track in ordered}
    fault = ""
    if len(by_label) < len(ordered):
        fault = "a label stands for two tracks"
    for track in ordered:
        parent = by_label.get(track.parent)
        if track.label < 1 or not 0 <= track.begin <= track.end:
            fault = f"track {track.label} has no valid label or frames"
        elif track.parent and (parent is None or parent.end >= track.begin):
            fault = f"the parent of track {track.label} is missing, or ends after its child begins"
    if fault:
        raise InputRefusedError(fault, where, "correct the table of tracks")
    return ordered


def write_tracks(path: Path, tracks: Iterable[Track]) -> None:
    """Writes a table of tracks, whole or not at all.

    Raises:
        InputRefusedError: The table contradicts itself.
        MachineError: The disk is full.
    """
    lines = [f"{track.label} {track.begin} {track.end} {track.parent}\n" for track in checked(tracks, path.name)]
    with whole_file(path, path.name) as part:
        part.write_text("".join(lines), encoding="ascii", newline="\n")


def write_tracked(
    folder: Path, frames: Iterable[Labels], tracks: Sequence[Track], count: int, table: str = RESULT_TABLE
) -> list[Path]:
    """Writes label images and table of tracks, the table last; the names follow from the table's.

    Args:
        folder: Made if missing.
        frames: (I, J[, K]) labels of each frame; they are taken one by one.
        tracks: What the labels mean.
        count: Number of frames: names have three digits, or as many as the last one needs.
        table: ``res_track.txt`` or ``man_track.txt``.

    Returns:
        The table, then the label images: uint16, or uint32 where there are more than 65,535 tracks, which the
        challenge's own programs do not read.

    Raises:
        InputRefusedError: The table contradicts itself.
        MachineError: The disk is full.
    """
    tracks = checked(tracks, table)
    dtype = np.uint16 if max((track.label for track in tracks), default=0) <= _HIGHEST_LABEL else np.uint32
    digits = max(3, len(str(count - 1)))
    files = [folder / table]
    for number, labels in enumerate(frames):
        path = folder / f"{_MASKS[table]}{number:0{digits}d}.tif"
        with whole_file(path, path.name) as part:
            pages = np.ascontiguousarray(labels.T.astype(dtype))
            tifffile.imwrite(part, pages, compression="zlib", photometric="minisblack", metadata=None)
        files.append(path)
    write_tracks(files[0], tracks)
    return files
