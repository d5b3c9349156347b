"""``unet-med track``: masks of a movie to tracks, as files of the Cell Tracking Challenge, with tables and pictures.

``OUT`` holds ``maskTTT.tif`` and ``res_track.txt``; ``tracks.csv`` and ``places.csv`` (one row for each track, and for
each object in each frame; both as Parquet, too); ``tracks.png``, some frames side by side, and ``movie.png``, an
animated PNG. Of several movies each has a folder of its own below ``OUT``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from unet_med import __version__
from unet_med.errors import InputRefusedError, NothingUsableError
from unet_med.geometry import Geometry
from unet_med.identity import safe_name, stem_of, unique_ids
from unet_med.instances.linking import Linker, Linking, LinkSettings
from unet_med.instances.track_pictures import Picture, TrackPainter, grey_window, montage
from unet_med.instances.track_tables import place_table, track_table
from unet_med.io.atomic import write_json
from unet_med.io.cases import Case, OpenCase
from unet_med.io.discover import discover
from unet_med.io.objects.table import write_table
from unet_med.io.sinks import RESEARCH_ONLY
from unet_med.io.source import Discovery, IntakeOptions, SourceRef
from unet_med.io.tracks import RESULT_TABLE, write_tracked
from unet_med.workflows.attempt import attempted, check_places, exit_code
from unet_med.workflows.journal import Claim, Journal, folder_key, input_state, open_job
from unet_med.workflows.outcome import Outcome
from unet_med.workflows.progress import track as shown

REPORT = "report.json"
_PICTURES = ("png", "jpeg")
_LONGEST = 512
_MOST_PICTURES = 120
_IN_MONTAGE = 12
_FRAME_MS = 120
_UM_PER_MM = 1e3


def track(
    masks: Path,
    out: Path,
    images: Path | None = None,
    settings: LinkSettings = LinkSettings(),  # noqa: B008
    intake: IntakeOptions = IntakeOptions(),  # noqa: B008
    overwrite: bool = False,
) -> Outcome:
    """Links the objects of label images over time.

    A movie is a file with several frames, or the files of a folder with one frame each, in the order of the numbers in
    their names.

    Args:
        masks: Folder or file of label images whose values are numbers of objects; only read.
        out: Receives what the module says, and ``report.json``. The same command again does only what is missing.
        images: The movies that the masks belong to, to be drawn below them.
        settings: How far objects move, how long they may be missing, whether they divide.
        intake: How label images are read.
        overwrite: Replace what an earlier job left in ``out``.

    Returns:
        ``report.json``; exit code 0, 3 when a movie was refused or failed, 4 when all were.

    Raises:
        UsageError: ``out`` is the input or lies in it, or belongs to another job.
        NothingUsableError: There is no movie.
        MachineError: The disk is full or memory ran out; what was finished is kept.
    """
    check_places(masks, "MASKS", out)
    discovery = discover(masks, intake, shown)
    movies = _movies(discovery, masks)
    if not movies:
        raise _nothing_usable(discovery)
    below = {} if images is None else {movie.id: movie for movie in _movies(discover(images, intake, shown), images)}
    job = {"command": "track", "input": folder_key(masks), "intake": asdict(intake), "settings": asdict(settings)}
    journal = open_job(out, job, overwrite)
    journal.write_file_table({movie.id: movie.files for movie in movies})
    try:
        for movie in movies:
            image = next(iter(below.values())) if len(below) == len(movies) == 1 else below.get(movie.id)
            _attempt(journal, movie, image, settings, "" if len(movies) == 1 else movie.id)
    finally:
        journal.release_all()
    report = _report(journal, discovery)
    states = [entry["status"] for entry in report["cases"]]
    return Outcome(report, _lines(report, out), exit_code(states))


# ---- movies ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Movie:
    """Label images, or images, in the order of time.

    Attributes:
        id: Safe name.
        sources: One with several frames, or several with one each.
    """

    id: str
    sources: tuple[SourceRef, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """What the result depends on."""
        return tuple(file for source in self.sources for file in source.files)

    @property
    def frames(self) -> int:
        """Number of time points."""
        return sum(source.frames for source in self.sources)

    @property
    def geometry(self) -> Geometry:
        """Grid of one frame."""
        geometry = self.sources[0].geometry
        if geometry is None:
            raise InputRefusedError(self.sources[0].reason or "the images cannot be used", self.id)
        return geometry

    @property
    def seconds_per_frame(self) -> float | None:
        """From frame to frame, where the files say so."""
        return self.sources[0].seconds_per_frame

    def opened(self) -> Iterator[tuple[OpenCase, int]]:
        """Yields for each frame what it is read from, and its number there."""
        for source in self.sources:
            case = Case(self.id, (source,), source).open()
            for frame in range(source.frames):
                yield case, frame

    def labels(self) -> Iterator[npt.NDArray[np.integer[Any]]]:
        """Yields the labels (I, J[, K]) of each frame."""
        for case, frame in self.opened():
            yield case.read_label(frame)


def _movies(discovery: Discovery, root: Path) -> list[_Movie]:
    """Returns the movies: files with frames, and folders of files without. Pictures beside other files are previews."""
    sources = [source for source in discovery.usable if source.kind not in _PICTURES] or list(discovery.usable)
    folders: dict[Path, list[SourceRef]] = defaultdict(list)
    found: list[tuple[str, tuple[SourceRef, ...]]] = []
    for source in sources:
        if source.frames > 1:
            found.append((source.id, (source,)))
        else:
            folders[source.files[0].parent].append(source)
    for folder, members in folders.items():
        if len(members) > 1:
            name = root.name if folder == root else "_".join(folder.relative_to(root).parts)
            found.append((safe_name(name), tuple(sorted(members, key=_by_number))))
    ids = unique_ids([name for name, _ in found])
    return [_Movie(name, members) for name, (_, members) in zip(ids, found, strict=True)]


def _by_number(source: SourceRef) -> list[tuple[int, str]]:
    """Orders names as people do: ``t2`` before ``t10``."""
    parts = re.split(r"(\d+)", stem_of(source.files[0]))
    return [(int(part) if part.isdecimal() else -1, part) for part in parts]


# ---- one movie -------------------------------------------------------------------------------------------------------


def _attempt(journal: Journal, movie: _Movie, image: _Movie | None, settings: LinkSettings, folder: str) -> None:
    """Tracks a movie unless it is done, or another process works on it."""
    files = (*movie.files, *(() if image is None else image.files))
    if journal.is_done(movie.id, files):
        return
    claim = journal.claim(movie.id)
    if claim is None:
        return
    try:
        record = _track_one(movie, image, settings, claim, folder) | {"input": input_state(files)}
        journal.finish(claim, record, [claim.staging / name for name in record["outputs"]])
    finally:
        journal.release(claim)


def _track_one(
    movie: _Movie, image: _Movie | None, settings: LinkSettings, claim: Claim, folder: str
) -> dict[str, Any]:
    """Returns the record of one movie; what is wrong with it alone is in the record."""
    with attempted(movie.id, "tracked") as record:
        files, summary = _tracked(movie, image, settings, claim.staging / folder)
        record |= summary
        record["outputs"] = [file.relative_to(claim.staging).as_posix() for file in files]
    return record


def _tracked(
    movie: _Movie, image: _Movie | None, settings: LinkSettings, folder: Path
) -> tuple[list[Path], dict[str, Any]]:
    """Links a movie and writes everything; returns the files and what goes into the report."""
    spacing_mm = movie.geometry.spacing_mm
    unit = "px" if spacing_mm is None else "um"
    spacing = (1.0,) * movie.geometry.ndim if spacing_mm is None else tuple(_UM_PER_MM * size for size in spacing_mm)
    linker = Linker(settings, spacing)
    for labels in shown(movie.labels(), "linking", movie.frames):
        linker.add(labels)
    linking = linker.finish()
    album = _Album(movie, image, linking, spacing)
    files = write_tracked(folder, album.frames(), linking.tracks, movie.frames, RESULT_TABLE)
    seconds = next((one.seconds_per_frame for one in (movie, image) if one and one.seconds_per_frame), None)
    for name, table in (("tracks", track_table(linking, unit, seconds)), ("places", place_table(linking, unit))):
        files += [write_table(table, folder / f"{name}{suffix}") for suffix in (".csv", ".parquet")]
    files += album.write(folder)
    return files, _summary(linking, album.notes) | {
        "unit": unit,
        "spacing": list(spacing),
        "seconds_per_frame": seconds,
    }


def _summary(linking: Linking, notes: Sequence[str]) -> dict[str, Any]:
    table = track_table(linking, "px").columns
    counts = {
        "frames": len(linking.frames),
        "objects": sum(len(objects.numbers) for objects in linking.frames),
        "tracks": len(linking.tracks),
        "divisions": linking.divisions,
        "gaps": linking.gaps,
    }
    counts |= {name: int((table["starts"] == name).sum()) for name in ("entered", "appeared")}
    counts |= {name: int((table["stops"] == name).sum()) for name in ("left", "lost")}
    alone = max((len(objects.numbers) for objects in linking.frames), default=0) < 2
    asked = ["no frame holds two objects: masks of kinds of things must be cut into objects first"] if alone else []
    return counts | {"notes": [*notes, *asked]}


class _Album:
    """Relabels the frames of a movie, and keeps pictures of some of them on the way."""

    def __init__(self, movie: _Movie, image: _Movie | None, linking: Linking, spacing: Sequence[float]) -> None:
        self._movie = movie
        self._linking = linking
        self._pictures: dict[int, Picture] = {}
        self.notes: list[str] = []
        self._image = image
        if image is not None and (image.frames, image.geometry.shape) != (movie.frames, movie.geometry.shape):
            self.notes.append("the images have another size or length than the masks: they are not drawn")
            self._image = None
        window = (0.0, 1.0) if self._image is None else grey_window(next(_greys(self._image)))
        self._painter = TrackPainter(linking, spacing, movie.geometry.shape, window, _LONGEST)
        self._every = -(-movie.frames // _MOST_PICTURES)

    def frames(self) -> Iterator[npt.NDArray[np.uint32]]:
        """Yields the labels of tracks of each frame."""
        greys: Iterator[npt.NDArray[Any] | None] = iter(()) if self._image is None else _greys(self._image)
        for number, labels in enumerate(shown(self._movie.labels(), "writing", self._movie.frames)):
            named = self._linking.relabel(number, labels)
            grey = next(greys, None)
            if number % self._every == 0:
                self._pictures[number] = self._painter.paint(number, named, grey)
            yield named

    def write(self, folder: Path) -> list[Path]:
        """Writes the montage and the animation."""
        numbers = list(self._pictures)
        some = [numbers[round(place)] for place in np.linspace(0, len(numbers) - 1, min(_IN_MONTAGE, len(numbers)))]
        files = [folder / "tracks.png", folder / "movie.png"]
        together = montage([self._pictures[number] for number in some], [f"frame {number}" for number in some])
        Image.fromarray(together).save(files[0])
        first, *others = (Image.fromarray(picture) for picture in self._pictures.values())
        first.save(files[1], save_all=True, append_images=others, duration=_FRAME_MS * self._every, loop=0)
        return files


def _greys(movie: _Movie) -> Iterator[npt.NDArray[Any]]:
    """Yields the first channel (I, J[, K]) of each frame."""
    for case, frame in movie.opened():
        yield case.read(frame=frame).array[0]


# ---- what is said ----------------------------------------------------------------------------------------------------


def _report(journal: Journal, discovery: Discovery) -> dict[str, Any]:
    """Writes and returns ``report.json``."""
    private = ("input", "deaths", "recorded")
    cases = [
        {key: value for key, value in record.items() if key not in private} for record in journal.records().values()
    ]
    cases += [
        {"id": source.id, "status": "refused", "reason": source.reason, "outputs": [], "seconds": 0.0}
        for source in discovery.sources
        if not source.usable and source.kind not in _PICTURES
    ]
    cases.sort(key=lambda entry: str(entry["id"]))
    states = [entry["status"] for entry in cases]
    counts = ("frames", "objects", "tracks", "divisions", "gaps", "entered", "appeared", "left", "lost")
    report = {
        "tool": "unet-med",
        "version": __version__,
        "use": RESEARCH_ONLY,
        "model_sha256": None,
        "settings": journal.job["settings"],
        "cases": cases,
        "totals": {"cases": len(cases)}
        | {state: states.count(state) for state in ("done", "refused", "failed")}
        | {name: sum(entry.get(name, 0) for entry in cases) for name in counts},
    }
    write_json(journal.out / REPORT, report, REPORT)
    return report


def _lines(report: Mapping[str, Any], out: Path) -> list[str]:
    lines: list[str] = []
    for entry in report["cases"]:
        if entry["status"] != "done":
            lines.append(f"{entry['status']}: {entry['id']}: {entry['reason']}")
            continue
        lines.append(
            "{id}: {objects} objects in {frames} frames are {tracks} tracks: {divisions} divisions, {gaps} gaps; "
            "{entered} entered, {left} left, {appeared} appeared inside, {lost} were lost".format(**entry)
        )
        lines += [f"note: {note}" for note in entry["notes"]]
    return [*lines, f"masks, {RESULT_TABLE}, tables and pictures: {out}"]


def _nothing_usable(discovery: Discovery) -> NothingUsableError:
    refused = [source for source in discovery.sources if not source.usable]
    if refused:
        first = refused[0]
        return NothingUsableError(f"no movie: {first.reason}", first.id, "see `unet-med scan MASKS`")
    return NothingUsableError(
        "no movie was found", "MASKS", "give one stack with --axes TYX, or a folder with one label image for each frame"
    )
