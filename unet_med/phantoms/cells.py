"""Movies of cells that move, touch, grow, divide, enter and leave, with every object and every track known.

Cells are ellipses in micrometres that live on a plane larger than the picture. Each wanders, pushes its neighbours
away, grows, stretches before it divides, and leaves two daughters of half its area. What of a cell is visible is
evaluated at the centre of every pixel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile

from unet_med.io.tracks import REFERENCE_TABLE, Track, write_tracked
from unet_med.phantoms.places import PhantomSet, places

FloatArray = npt.NDArray[np.float64]

CELLS: Mapping[str, int] = {"background": 0, "cell": 1}
"""Labels of the movies, whose files hold object numbers: the same number is the same cell."""

SEEN_PIXELS = 20
"""A cell of which less is in the picture is not in the truth: nobody would draw it."""

PIXEL_UM = 0.65
FRAME_SECONDS = 300.0
_MARGIN_UM = 18.0
_BIRTH_UM2 = 75.0
_STEPS_UM = 1.3
_PERSISTENCE = 0.7
_STRETCH_FRAMES = 3
_DENSITY_UM2 = 330.0


@dataclass(frozen=True, eq=False)
class Movie:
    """A movie and its truth.

    Attributes:
        pictures: (T, Y, X) uint16.
        labels: (T, Y, X) uint16, the label of the track at every pixel.
        tracks: All tracks by label; a cell that leaves the picture and comes back begins a new one without parent.
    """

    pictures: npt.NDArray[np.uint16]
    labels: npt.NDArray[np.uint16]
    tracks: tuple[Track, ...]


@dataclass(frozen=True, eq=False)
class _Cell:
    """A cell at one moment.

    Attributes:
        number: From 1, never used again.
        mother: Number of its mother, 0 for those of the beginning.
        centre_um: (y, x).
        step_um: (y, x) movement in the last frame.
        angle: Direction of its longer axis, radians from x towards y.
        area_um2: Its area.
        growth: Factor of its area from frame to frame.
        ripe_um2: Area at which it divides.
        stain: Brightness.
    """

    number: int
    mother: int
    centre_um: FloatArray
    step_um: FloatArray
    angle: float
    area_um2: float
    growth: float
    ripe_um2: float
    stain: float

    @property
    def stretch(self) -> float:
        """Longer over shorter axis: grows in the last frames before the division."""
        left = np.log(self.ripe_um2 / self.area_um2) / np.log(self.growth)
        return 1.25 + 0.4 * float(np.clip(1.0 - left / _STRETCH_FRAMES, 0.0, 1.0))

    @property
    def axes_um(self) -> tuple[float, float]:
        """Half axes, the longer one first."""
        shorter = float(np.sqrt(self.area_um2 / (np.pi * self.stretch)))
        return shorter * self.stretch, shorter


def make_cells(seed: int, number: int, frames: int = 24, side: int = 160) -> Movie:
    """Returns the movie of this number; the same arguments give the same movie.

    Args:
        seed: Of all movies.
        number: Of this one.
        frames: Length, a time point every 5 minutes.
        side: Rows and columns, of 0.65 um each.
    """
    random = np.random.default_rng([seed, number, 13])
    seen = np.zeros((frames, side, side), dtype=np.uint16)
    pictures = np.zeros((frames, side, side), dtype=np.uint16)
    mothers: dict[int, int] = {}
    for frame, cells in enumerate(_lives(random, frames, side * PIXEL_UM)):
        mothers |= {cell.number: cell.mother for cell in cells}
        seen[frame], depth = _visible(cells, side)
        pictures[frame] = _pictured(seen[frame], depth, {cell.number: cell.stain for cell in cells}, random)
        areas = np.bincount(seen[frame].ravel())
        seen[frame][areas[seen[frame]] < SEEN_PIXELS] = 0
    labels, tracks = _tracks(seen, mothers)
    return Movie(pictures, labels, tracks)


def write_phantoms_cells(
    folder: Path, cases: int = 3, seed: int = 0, unlabelled: int = 1, truth: Path | None = None, frames: int = 24
) -> PhantomSet:
    """Writes movies of dividing, moving, touching cells with exact truth.

    ``folder/images/<case>.ome.tif`` (uint16, TYX, pixel size and time step declared) and ``folder/labels/<case>.tif``
    (uint16 object numbers, TYX) are for training, ``folder/unlabelled/<case>.ome.tif`` for prediction; the labels of
    the latter lie in ``truth``, and beside it in ``<truth>_tracks/<case>`` as references of the Cell Tracking
    Challenge (``TRA/man_track.txt``, ``TRA/man_trackTTT.tif``, ``SEG/man_segTTT.tif``).

    Args:
        folder: Where to write; made if missing.
        cases: Number of labelled movies.
        seed: The same seed gives the same files.
        unlabelled: Number of further movies.
        truth: Folder for the labels of the unlabelled; default ``folder/truth``.
        frames: Length of the movies.
    """
    names = [f"movie{number + 1:02d}" for number in range(cases + unlabelled)]
    found = places(folder, truth, names, cases, (".ome.tif", ".tif"))
    apart = truth or folder / "truth"
    tracks = tuple(apart.with_name(f"{apart.name}_tracks") / name for name in names[cases:])
    for number, (image, label) in enumerate(found.pairs()):
        movie = make_cells(seed, number, frames)
        _write_movie(image, movie.pictures, number)
        _write_labels(label, movie.labels)
        if number >= cases:
            _write_reference(tracks[number - cases], movie)
    return replace(found, label_names=CELLS, tracks=tracks)


# ---- how cells live --------------------------------------------------------------------------------------------------


def _lives(random: np.random.Generator, frames: int, side_um: float) -> Iterator[list[_Cell]]:
    """Yields the cells of each frame, those beyond the picture's border included."""
    low, high = -_MARGIN_UM, side_um + _MARGIN_UM
    count = round((high - low) ** 2 / _DENSITY_UM2)
    cells = [_new(random, number + 1, random.uniform(low, high, 2)) for number in range(count)]
    for _ in range(12):
        cells = _apart(cells)
    born = count
    for _ in range(frames):
        yield cells
        grown: list[_Cell] = []
        for cell in (_moved(random, cell) for cell in cells):
            if cell.area_um2 < cell.ripe_um2:
                grown.append(cell)
            else:
                grown += _daughters(random, cell, born)
                born += 2
        for _ in range(3):
            grown = _apart(grown)
        cells = [cell for cell in grown if low < min(cell.centre_um) and max(cell.centre_um) < high]


def _new(random: np.random.Generator, number: int, centre_um: FloatArray) -> _Cell:
    """Returns a cell of any age that has no mother."""
    ripe = 2.0 * _BIRTH_UM2 * random.uniform(0.9, 1.15)
    return _Cell(
        number,
        0,
        centre_um,
        random.normal(0.0, _STEPS_UM, 2),
        random.uniform(0.0, np.pi),
        random.uniform(_BIRTH_UM2, 0.95 * ripe),
        random.uniform(1.018, 1.04),
        ripe,
        random.uniform(0.45, 0.9),
    )


def _moved(random: np.random.Generator, cell: _Cell) -> _Cell:
    step = _PERSISTENCE * cell.step_um + random.normal(0.0, _STEPS_UM * np.sqrt(1.0 - _PERSISTENCE**2), 2)
    return replace(
        cell,
        centre_um=cell.centre_um + step,
        step_um=step,
        angle=cell.angle + random.normal(0.0, 0.12),
        area_um2=cell.area_um2 * cell.growth,
    )


def _daughters(random: np.random.Generator, mother: _Cell, born: int) -> list[_Cell]:
    """Returns the two cells that a mother leaves, side by side along her longer axis."""
    along = np.array([np.sin(mother.angle), np.cos(mother.angle)])
    share = random.uniform(0.46, 0.54)
    return [
        replace(
            _new(random, born + 1 + which, mother.centre_um + sign * along * 0.55 * mother.axes_um[0]),
            mother=mother.number,
            step_um=mother.step_um + sign * 0.8 * along,
            angle=mother.angle + np.pi / 2.0 + random.normal(0.0, 0.3),
            area_um2=mother.area_um2 * (share if sign > 0 else 1.0 - share),
            stain=mother.stain * random.uniform(0.95, 1.05),
        )
        for which, sign in enumerate((-1.0, 1.0))
    ]


def _apart(cells: list[_Cell]) -> list[_Cell]:
    """Returns the cells a little further from those that they overlap; they go on touching."""
    centres = np.array([cell.centre_um for cell in cells])
    radii = np.sqrt(np.array([cell.area_um2 for cell in cells]) / np.pi)
    away = centres[:, None] - centres[None]
    distance = np.linalg.norm(away, axis=2) + np.eye(len(cells))
    too_close = np.clip(0.98 * (radii[:, None] + radii[None]) - distance, 0.0, None) * (1.0 - np.eye(len(cells)))
    push = (away / distance[..., None] * (0.5 * too_close)[..., None]).sum(axis=1)
    return [replace(cell, centre_um=centre) for cell, centre in zip(cells, centres + push, strict=True)]


# ---- what of them is seen --------------------------------------------------------------------------------------------


def _visible(cells: list[_Cell], side: int) -> tuple[npt.NDArray[np.uint16], FloatArray]:
    """Returns the number of the cell at every pixel, and the distance from its centre, 1 at its border."""
    y, x = (np.arange(side) + 0.5) * PIXEL_UM, (np.arange(side) + 0.5) * PIXEL_UM
    best = np.ones((side, side))
    numbers = np.zeros((side, side), dtype=np.uint16)
    for cell in cells:
        longer, shorter = cell.axes_um
        away_y, away_x = y[:, None] - cell.centre_um[0], x[None] - cell.centre_um[1]
        along = away_x * np.cos(cell.angle) + away_y * np.sin(cell.angle)
        across = away_y * np.cos(cell.angle) - away_x * np.sin(cell.angle)
        radius = np.hypot(along / longer, across / shorter)
        closer = radius < best
        numbers[closer], best[closer] = cell.number, radius[closer]
    return numbers, best


def _pictured(
    numbers: npt.NDArray[np.uint16], depth: FloatArray, stains: Mapping[int, float], random: np.random.Generator
) -> npt.NDArray[np.uint16]:
    """Returns the picture: rounded cells on an uneven background, with the noise of photons and of the camera."""
    brightness = np.zeros(max(stains) + 1)
    brightness[list(stains)] = list(stains.values())
    side = len(numbers)
    y, x = np.indices((side, side)) / side - 0.5
    lamp = 0.12 + 0.1 * np.exp(-((x - 0.1) ** 2 + (y + 0.15) ** 2) / 0.2)
    clean = lamp + brightness[numbers] * (1.0 - 0.45 * np.where(numbers > 0, depth, 0.0) ** 2)
    noisy = random.poisson(clean * 400.0) / 400.0 + random.normal(0.0, 0.02, clean.shape)
    return np.asarray(np.clip(np.rint(noisy * 12000.0), 0, 65535), dtype=np.uint16)


def _tracks(
    seen: npt.NDArray[np.uint16], mothers: Mapping[int, int]
) -> tuple[npt.NDArray[np.uint16], tuple[Track, ...]]:
    """Numbers the tracks by their first frames; a cell has one for each time that it is in the picture without a break.

    A daughter's parent is the track of her mother when one was seen right before the other.
    """
    runs: list[tuple[int, int, int]] = []
    frames_of: dict[int, list[int]] = {}
    for frame, numbers in enumerate(seen):
        for cell in np.unique(numbers[numbers > 0]).tolist():
            frames_of.setdefault(cell, []).append(frame)
    for cell, present in frames_of.items():
        for _, part in groupby(enumerate(present), key=lambda entry: entry[1] - entry[0]):
            run = [frame for _, frame in part]
            runs.append((run[0], run[-1], cell))
    runs.sort(key=lambda run: (run[0], run[2]))
    ending = {(cell, end): label for label, (_, end, cell) in enumerate(runs, start=1)}
    labels = np.zeros_like(seen)
    tracks: list[Track] = []
    for label, (begin, end, cell) in enumerate(runs, start=1):
        labels[begin : end + 1][seen[begin : end + 1] == cell] = label
        tracks.append(Track(label, begin, end, ending.get((mothers[cell], begin - 1), 0)))
    return labels, tuple(tracks)


# ---- files -----------------------------------------------------------------------------------------------------------


def _write_movie(path: Path, pictures: npt.NDArray[np.uint16], number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {
        "axes": "TYX",
        "UUID": f"urn:uuid:00000000-0000-4000-8001-{number:012d}",
        "PhysicalSizeX": PIXEL_UM,
        "PhysicalSizeXUnit": "\u00b5m",
        "PhysicalSizeY": PIXEL_UM,
        "PhysicalSizeYUnit": "\u00b5m",
        "TimeIncrement": FRAME_SECONDS,
        "TimeIncrementUnit": "s",
    }
    tifffile.imwrite(path, pictures, ome=True, photometric="minisblack", metadata=metadata, compression="zlib")


def _write_labels(path: Path, labels: npt.NDArray[np.uint16]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    size = (1.0 / PIXEL_UM, 1.0 / PIXEL_UM)
    metadata = {"axes": "TYX", "unit": "um", "finterval": FRAME_SECONDS}
    tifffile.imwrite(path, labels, imagej=True, resolution=size, metadata=metadata)


def _write_reference(folder: Path, movie: Movie) -> None:
    write_tracked(
        folder / "TRA", (labels.T for labels in movie.labels), movie.tracks, len(movie.labels), REFERENCE_TABLE
    )
    (folder / "SEG").mkdir(parents=True, exist_ok=True)
    for frame, labels in enumerate(movie.labels):
        tifffile.imwrite(
            folder / "SEG" / f"man_seg{frame:03d}.tif",
            labels,
            compression="zlib",
            photometric="minisblack",
            metadata=None,
        )
