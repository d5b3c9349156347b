"""Objects of a movie linked to tracks: from frame to frame, over gaps, through divisions.

From frame to frame the cheapest assignment is taken; a link costs the more, the further an object moved in units of
its own size and the less it overlaps with where it was. What then begins or ends in the middle of the movie is given
to laptrack, which joins ends with beginnings some frames later (gaps), finds the mothers of daughters (divisions), and
leaves the others as entering and leaving, all in one assignment. Source of the two steps: Jaqaman et al., "Robust
single-particle tracking in live-cell time-lapse sequences", Nature Methods 5:695 (2008).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from scipy.spatial import cKDTree

from unet_med.errors import InputRefusedError
from unet_med.io.tracks import Track

Labels = npt.NDArray[np.integer[Any]]
Indices = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]

Node = tuple[int, int]
"""Frame and index of an object in it."""

_NO_LINK = 1.0
"""What it costs to leave an object alone, in the unit of all costs below."""

_SMALLEST_COST = 1e-6  # the assignment takes an entry of 0 for no entry
_GAP_SWELLING = 3.0  # largest factor between the sizes before and after a gap
_SHRUNK = 0.9  # a daughter has at most this share of her mother's size
_TWIN = 0.3  # the smaller daughter has at least this share of the other's size
_KEPT = 2.0  # both daughters together have half to twice their mother's size
_NEAR = 2.0  # a daughter lies at most that many diameters of her mother from her
_DRIFT = 0.6  # how far the middle of two daughters may lie from their mother, in her diameters
_MERGED = 1.5  # an object that grew by this factor at once is two objects in one mask, no mother


@dataclass(frozen=True)
class LinkSettings:
    """How objects are linked.

    Attributes:
        max_move: Largest distance from frame to frame, in diameters of the object.
        max_gap: Most frames in which an object may be missing.
        divisions: Whether objects divide.
    """

    max_move: float = 1.0
    max_gap: int = 2
    divisions: bool = True

    def __post_init__(self) -> None:
        if not (0.0 < self.max_move < float("inf") and self.max_gap >= 0):
            raise InputRefusedError(
                f"objects cannot move {self.max_move:g} diameters and be missing for {self.max_gap} frames",
                remedy="give a positive distance, and 0 or more frames",
            )


@dataclass(frozen=True, eq=False)
class FrameObjects:
    """The objects of one frame, by number.

    Attributes:
        numbers: (n,) their values in the label image, increasing.
        centres: (n, dims) along I, J[, K], in units of the spacing; the centre of the first voxel is 0.
        sizes: (n,) area or volume in units of the spacing.
        at_border: (n,) whether they touch the border of the image.
    """

    numbers: Indices
    centres: Values
    sizes: Values
    at_border: npt.NDArray[np.bool_]

    @cached_property
    def diameters(self) -> Values:
        """(n,) of the circle or ball of the same size."""
        if self.centres.shape[1] == 2:
            return np.asarray(2.0 * np.sqrt(self.sizes / np.pi))
        return np.asarray(np.cbrt(6.0 * self.sizes / np.pi))


def frame_objects(labels: Labels, spacing: Sequence[float]) -> FrameObjects:
    """Measures the objects of a label image (I, J[, K]) whose voxels have this size."""
    inside = np.flatnonzero(labels)
    numbers, which, voxels = np.unique(labels.ravel()[inside], return_inverse=True, return_counts=True)
    places = np.unravel_index(inside, labels.shape)
    sums = [np.bincount(which, weights=axis, minlength=len(numbers)) for axis in places]
    centres = np.stack(sums, axis=1) / voxels[:, None] * np.asarray(spacing, dtype=np.float64)
    free = [axis for axis, size in enumerate(labels.shape) if size > 1]
    faces = [np.take(labels, side, axis=axis).ravel() for axis in free for side in (0, -1)]
    return FrameObjects(
        numbers.astype(np.int64),
        centres,
        np.asarray(voxels * float(np.prod(spacing)), dtype=np.float64),
        np.isin(numbers, np.concatenate([[0], *faces])),
    )


def _shares(before: FrameObjects, now: FrameObjects, earlier: Labels, later: Labels) -> sparse.csr_array:
    """Returns (objects before, objects now) the intersection over union of each pair, where there is any."""
    both = np.flatnonzero((earlier.ravel() != 0) & (later.ravel() != 0))
    rows = np.searchsorted(before.numbers, earlier.ravel()[both])
    columns = np.searchsorted(now.numbers, later.ravel()[both])
    shape = (len(before.numbers), len(now.numbers))
    common = sparse.coo_array((np.ones(len(both)), (rows, columns)), shape=shape).tocsr().tocoo()
    voxel = before.sizes.sum() / max(1, np.count_nonzero(earlier))
    shared = common.data * voxel
    union = before.sizes[common.row] + now.sizes[common.col] - shared
    return sparse.csr_array((shared / union, (common.row, common.col)), shape=shape)


def _links(before: FrameObjects, now: FrameObjects, shares: sparse.csr_array, max_move: float) -> Indices:
    """Returns (k, 2) which object before is which object now, by the cheapest assignment."""
    count, others = len(before.numbers), len(now.numbers)
    if not count or not others:
        return np.zeros((0, 2), dtype=np.int64)
    reach = max_move * (before.diameters.max() + now.diameters.max()) / 2.0
    near = cKDTree(before.centres).sparse_distance_matrix(cKDTree(now.centres), reach, output_type="ndarray")
    rows, columns = near["i"], near["j"]
    away = near["v"] / (max_move * (before.diameters[rows] + now.diameters[columns]) / 2.0)
    overlap = np.asarray(shares[rows, columns]).ravel() if len(rows) else np.zeros(0)
    costs = 0.5 * away**2 + 0.5 * (1.0 - overlap)
    possible = (away < 1.0) & (costs < _NO_LINK)
    alone = np.arange(count)
    table = sparse.csr_array(
        (
            np.concatenate([np.maximum(costs[possible], _SMALLEST_COST), np.full(count, _NO_LINK)]),
            (np.concatenate([rows[possible], alone]), np.concatenate([columns[possible], others + alone])),
        ),
        shape=(count, others + count),
    )
    first, second = min_weight_full_bipartite_matching(table)
    linked = second < others
    return np.stack([first[linked], second[linked]], axis=1).astype(np.int64)


# ---- over gaps and through divisions ---------------------------------------------------------------------------------


class _Costs:
    """What a gap or a division costs; laptrack knows objects only as (frame, index)."""

    def __init__(self, frames: Sequence[FrameObjects], links: Sequence[Indices], settings: LinkSettings) -> None:
        self._frames = frames
        self._settings = settings
        self.next: dict[Node, Node] = {
            (frame, int(i)): (frame + 1, int(j)) for frame, pairs in enumerate(links) for i, j in pairs
        }
        self._last = {later: earlier for earlier, later in self.next.items()}
        # laptrack asks for all pairs, one by one: most are told apart by lists of plain numbers
        self._first_axis = [objects.centres[:, 0].tolist() for objects in frames]
        self._reach = [(_NEAR * objects.diameters).tolist() for objects in frames]

    def gap(self, end: Values, begin: Values) -> float:
        """Returns the cost of an object that was lost at ``end`` and found at ``begin``."""
        (earlier, i), (later, j) = _node(end), _node(begin)
        missing = later - earlier - 1
        if not 0 < missing <= self._settings.max_gap:
            return np.inf
        before, now = self._frames[earlier], self._frames[later]
        diameter = (before.diameters[i] + now.diameters[j]) / 2.0
        reach = self._settings.max_move * diameter * np.sqrt(later - earlier)
        away = float(np.linalg.norm(before.centres[i] - now.centres[j]) / reach)
        swelling = float(abs(np.log(before.sizes[i] / now.sizes[j])) / np.log(_GAP_SWELLING))
        return 0.5 * away**2 + 0.5 * swelling**2 if max(away, swelling) < 1.0 else np.inf

    def division(self, daughter: Values, mother: Values) -> float:
        """Returns the cost of an object that begins at ``daughter`` beside another one that came from ``mother``."""
        new, old = _node(daughter), _node(mother)
        away = self._first_axis[new[0]][new[1]] - self._first_axis[old[0]][old[1]]
        if abs(away) > self._reach[old[0]][old[1]]:
            return np.inf
        twin = self.next.get(old)
        return np.inf if twin is None or twin[0] != new[0] else self.birth(old, twin, new)

    def birth(self, mother: Node, twin: Node, daughter: Node) -> float:
        """Returns the cost of a mother that is gone where two objects are; infinite if they are not hers."""
        before, now = self._frames[mother[0]], self._frames[twin[0]]
        both = [daughter[1], twin[1]]
        away = np.linalg.norm(now.centres[both] - before.centres[mother[1]], axis=1) / before.diameters[mother[1]]
        sizes = now.sizes[both] / before.sizes[mother[1]]
        if away.max() > _NEAR or sizes.max() > _SHRUNK or sizes.min() < _TWIN * sizes.max() or self._swelled(mother):
            return np.inf
        middle = (now.centres[both] * sizes[:, None]).sum(axis=0) / sizes.sum()
        reach = _DRIFT * before.diameters[mother[1]] * np.sqrt(twin[0] - mother[0])
        drift = float(np.linalg.norm(middle - before.centres[mother[1]]) / reach)
        kept = float(abs(np.log(sizes.sum())) / np.log(_KEPT))
        unlike = 1.0 - float(sizes.min() / sizes.max())
        return 0.4 * drift**2 + 0.3 * kept**2 + 0.3 * unlike**2 if max(drift, kept) < 1.0 else np.inf

    def _swelled(self, node: Node) -> bool:
        """Whether the object is much larger than a few frames ago: two that share a mask for a while.

        What the border of the image cut may have grown by entering, but hardly so much from one frame to the next.
        """
        size = later = self._frames[node[0]].sizes[node[1]]
        for _ in range(self._settings.max_gap + 1):
            earlier = self._last.get(node)
            if earlier is None:
                return False
            node = earlier
            before = self._frames[node[0]]
            if (later if before.at_border[node[1]] else size) > _MERGED * before.sizes[node[1]]:
                return True
            later = before.sizes[node[1]]
        return False


def _node(values: Values) -> Node:
    return int(values[0]), int(values[1])


def _parents(frames: Sequence[FrameObjects], links: Sequence[Indices], settings: LinkSettings) -> dict[Node, Node]:
    """Returns where each object came from: its place in the frame before, before a gap, or its mother."""
    costs = _Costs(frames, links, settings)
    if not costs.next or not (settings.max_gap or settings.divisions):
        return {later: earlier for earlier, later in costs.next.items()}
    from laptrack import LapTrack

    tracker = LapTrack(
        cutoff=0.0,  # the links from frame to frame are all there
        track_start_cost=_NO_LINK,
        track_end_cost=_NO_LINK,
        gap_closing_metric=costs.gap,
        gap_closing_cutoff=_NO_LINK if settings.max_gap else False,
        gap_closing_max_frame_count=settings.max_gap + 1,
        splitting_metric=costs.division,
        splitting_cutoff=_NO_LINK if settings.divisions else False,
        segment_start_cost=_NO_LINK,
        segment_end_cost=_NO_LINK,
        no_splitting_cost=_NO_LINK,
        no_merging_cost=_NO_LINK,
    )
    nodes = [
        np.stack([np.full(len(objects.numbers), frame), np.arange(len(objects.numbers))], axis=1).astype(np.float64)
        for frame, objects in enumerate(frames)
    ]
    tree = tracker.predict(nodes, connected_edges=list(costs.next.items()))
    parents = {_node(later): _node(earlier) for earlier, later in tree.edges()}
    return parents | _late_daughters(costs, frames, parents, settings) if settings.divisions else parents


def _late_daughters(
    costs: _Costs, frames: Sequence[FrameObjects], parents: Mapping[Node, Node], settings: LinkSettings
) -> dict[Node, Node]:
    """Returns the mothers of objects that begin some frames after the division, or whose mother was missing before it.

    The mother is the latest ancestor of an object beside that can be, no further back than a gap reaches. Objects at
    the border are left out: what of them is seen may grow and shrink at any time.
    """
    children = Counter(parents.values())
    offers: list[tuple[float, Node, Node]] = []
    for frame, objects in enumerate(frames[1:], start=1):
        inside = ~objects.at_border
        for index in np.flatnonzero(inside).tolist():
            if (frame, index) in parents:
                continue
            away = np.linalg.norm(objects.centres - objects.centres[index], axis=1)
            near = inside & (away < 2.0 * _NEAR * objects.diameters) & (np.arange(len(away)) != index)
            for twin in np.flatnonzero(near).tolist():
                mother = parents.get((frame, twin))
                while mother and frame - mother[0] <= settings.max_gap + 1 and children[mother] == 1:
                    cost = costs.birth(mother, (frame, twin), (frame, index))
                    if cost < _NO_LINK:
                        offers.append((cost, mother, (frame, index)))
                        break
                    mother = parents.get(mother)
    found: dict[Node, Node] = {}
    for _, mother, daughter in sorted(offers):
        if daughter not in found and mother not in found.values():
            found[daughter] = mother
    return found


# ---- tracks ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Linking:
    """A movie whose objects are linked.

    Attributes:
        tracks: All tracks, numbered by their first frames. One that goes on after a gap has a label of its own there.
        frames: The objects of each frame.
        labels: For each frame (n,) the labels of the tracks of its objects.
    """

    tracks: tuple[Track, ...]
    frames: tuple[FrameObjects, ...]
    labels: tuple[Indices, ...]

    def relabel(self, frame: int, labels: Labels) -> npt.NDArray[np.uint32]:
        """Returns the label image of a frame with the labels of tracks for the numbers of objects."""
        numbers = self.frames[frame].numbers
        named = np.concatenate([[0], self.labels[frame]]).astype(np.uint32)
        return np.asarray(named[np.where(labels == 0, 0, np.searchsorted(numbers, labels) + 1)])

    @cached_property
    def children(self) -> Counter[int]:
        """How many tracks came from each track: two are daughters, one goes on after a gap."""
        return Counter(track.parent for track in self.tracks if track.parent)

    @property
    def divisions(self) -> int:
        """Number of mothers."""
        return sum(count > 1 for count in self.children.values())

    @property
    def gaps(self) -> int:
        """Number of tracks that were lost and found again."""
        return sum(count == 1 for count in self.children.values())


class Linker:
    """Links the frames of a movie, which are given one by one; only two are looked at together.

    Args:
        settings: How far and how long.
        spacing: Voxel size along I, J[, K], in any unit; 1 without a calibration.
    """

    def __init__(self, settings: LinkSettings, spacing: Sequence[float]) -> None:
        self._settings = settings
        self._spacing = tuple(spacing)
        self._frames: list[FrameObjects] = []
        self._found: list[Indices] = []
        self._last: Labels | None = None

    def add(self, labels: Labels) -> None:
        """Takes the next frame: labels (I, J[, K]) from 0, objects numbered in any way.

        Raises:
            InputRefusedError: Its shape is not that of the frame before.
        """
        objects = frame_objects(labels, self._spacing)
        if self._last is not None:
            if labels.shape != self._last.shape:
                raise InputRefusedError(
                    f"a frame has the shape {labels.shape} and the one before it {self._last.shape}",
                    f"frame {len(self._frames)}",
                    "give the frames of one movie",
                )
            shares = _shares(self._frames[-1], objects, self._last, labels)
            self._found.append(_links(self._frames[-1], objects, shares, self._settings.max_move))
        self._frames.append(objects)
        self._last = labels

    def finish(self) -> Linking:
        """Closes gaps, finds divisions and numbers the tracks."""
        parents = _parents(self._frames, self._found, self._settings)
        children = Counter(parents.values())
        labels = [np.zeros(len(objects.numbers), dtype=np.int64) for objects in self._frames]
        begins: list[tuple[int, int]] = []
        ends: list[int] = []
        for frame, named in enumerate(labels):
            for index in range(len(named)):
                parent = parents.get((frame, index))
                came_from = 0 if parent is None else int(labels[parent[0]][parent[1]])
                if parent is None or parent[0] < frame - 1 or children[parent] > 1:
                    begins.append((frame, came_from))
                    ends.append(frame)
                    came_from = len(begins)
                named[index] = came_from
                ends[came_from - 1] = frame
        tracks = tuple(
            Track(label, begin, end, parent)
            for label, ((begin, parent), end) in enumerate(zip(begins, ends, strict=True), start=1)
        )
        return Linking(tracks, tuple(self._frames), tuple(labels))


def link(
    frames: Sequence[Labels], settings: LinkSettings = LinkSettings(), spacing: Sequence[float] | None = None
) -> Linking:
    """Links frames (I, J[, K]) that are in memory; see :class:`Linker`."""
    linker = Linker(settings, spacing or (1.0,) * frames[0].ndim)
    for labels in frames:
        linker.add(labels)
    return linker.finish()
