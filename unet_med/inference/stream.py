"""Sliding-window prediction slab by slab, in memory that does not grow with the image.

Windows are visited in the order of one axis. As soon as no window to come touches a slab, its blended output is final;
it is read once and forgotten. What is held is as thick as a window, however long the image is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, compress, product
from math import prod
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from unet_med.inference.tiling import WindowAxis
from unet_med.transforms.prior import Prior

Run = Callable[[torch.Tensor], torch.Tensor]
"""Maps a batch (N, C, *(window + 2 * context)) to (N, channels, *window), both float32; slices are channels, too."""

Skip = Callable[[Sequence[torch.Tensor]], Sequence[bool]]
"""For each window of an image, (C, *voxels inside of the image): whether it can hold nothing."""

Compare = Callable[[torch.Tensor, torch.Tensor], None]
"""Is shown what a batch gives without and with mirroring, both (N, channels, *window)."""

_SURE = 1.0 - 1e-6
ROWS_READ = 16
"""Rows of the image that are normalised at a time."""


class Rows(Protocol):
    """A normalised image that is read slab by slab."""

    def slab(self, axis: int, start: int, stop: int, device: torch.device | None = None) -> torch.Tensor:
        """Returns (C, *s) float32 on ``device``, spatial ``axis`` cut to the voxels from ``start`` to ``stop``."""
        ...


class ArrayRows:
    """An array (C, *s) float32, in memory or mapped from a file, as :class:`Rows`; perhaps with a prior."""

    def __init__(self, array: npt.NDArray[np.float32], prior: Prior | None = None) -> None:
        self._array = array
        self._prior = prior

    def slab(self, axis: int, start: int, stop: int, device: torch.device | None = None) -> torch.Tensor:
        """Returns a copy of the rows from ``start`` to ``stop``."""
        rows = torch.from_numpy(np.array(self._array[(slice(None),) * (axis + 1) + (slice(start, stop),)]))
        rows = rows if device is None else rows.to(device)
        return rows if self._prior is None else self._prior.joined(rows, axis, start, stop)


class WindowStream:
    """The blended output of a network over an image, from one end of an axis to the other.

    Args:
        image: Is read once, in order.
        axes: The windows along each axis of the image (:func:`unet_med.inference.tiling.window_axes`).
        along: The axis along which it goes.
        run: The network.
        channels: Channels that ``run`` puts out.
        dims: Axes of the network; one less than the image's for a 2-D network on a volume.
        batch: Windows in one call of ``run``.
        device: Where ``run`` computes; the image is read there.
        blending: Where windows are blended; by default there, too.
        skip: Windows for which it is true are not computed and count with no weight.

    Attributes:
        ready: Rows along the axis that are final.
        windows: Windows that were visited.
        skipped: How many of them were skipped.
    """

    def __init__(
        self,
        image: Rows,
        axes: Sequence[WindowAxis],
        along: int,
        run: Run,
        channels: int,
        dims: int,
        batch: int = 1,
        device: torch.device | str = "cpu",
        blending: torch.device | None = None,
        skip: Skip | None = None,
    ) -> None:
        self.ready = 0
        self.windows = 0
        self.skipped = 0
        self._axes = tuple(axes)
        self._along = along
        self._run = run
        self._channels = channels
        self._flat = dims < len(self._axes)
        self._batch = max(1, batch)
        self._device = torch.device(device) if blending is None else blending
        self._shares = [[share.to(self._device) for share in axis.shares] for axis in self._axes]
        self._skip = skip
        self._groups = _groups(self._axes, along, self._batch)
        self._image = _Reader(image, along, _most(self._axis.support, self._groups), torch.device(device))
        self._done = 0
        self._first = 0  # the row of the image that is the first one held
        self._held = torch.zeros(0)

    @property
    def is_finished(self) -> bool:
        """Whether all windows were visited."""
        return self._done == len(self._groups)

    def begin_at(self, row: int) -> None:
        """Leaves out the windows that end before ``row``; no row before it may be asked for."""
        while not self.is_finished and self._axis.inside(self._groups[self._done][-1])[1] <= row:
            self._done += 1
        self._first = self.ready = self._axis.size if self.is_finished else self._next_start

    def advance(self, keep_from: int) -> None:
        """Visits the next windows along the axis; rows before ``keep_from`` are forgotten first.

        Args:
            keep_from: The first row that is still needed, at least :attr:`ready` - 1.
        """
        group = self._groups[self._done]
        self._make_room(max(min(keep_from, self.ready), self._first))
        slab, offset = self._image.covering([self._axis.support(number) for number in group])
        ranges = (range(len(a.starts)) if n != self._along else group for n, a in enumerate(self._axes))
        with torch.inference_mode():
            needed = self._needed(list(product(*ranges)), slab, offset)
            for jobs in (needed[first : first + self._batch] for first in range(0, len(needed), self._batch)):
                outputs = self._run(torch.stack([self._input(slab, offset, place) for place in jobs]))
                for place, output in zip(jobs, outputs.to(self._device, torch.float32), strict=True):
                    self._add(output[..., None] if self._flat else output, place)
        self._done += 1
        self.ready = self._axis.size if self.is_finished else self._next_start

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Returns what is final of the rows from ``start`` to ``stop``.

        Returns:
            (channels, *s), with :attr:`holds_gaps` (channels + 1, *s): the last one says where no window counted; the
            others are 0 there.
        """
        held = self._held.narrow(0, start - self._first, stop - start)
        if self.holds_gaps:
            held = _without_gaps(held)
        return held.movedim(0, self._along + 1)

    @property
    def holds_gaps(self) -> bool:
        """Whether there may be voxels that no window covered."""
        return self._skip is not None

    @property
    def _axis(self) -> WindowAxis:
        return self._axes[self._along]

    @property
    def _next_start(self) -> int:
        """The first row that the windows to come cover."""
        return self._axis.inside(self._groups[self._done][0])[0]

    def _make_room(self, keep_from: int) -> None:
        """Forgets the rows before ``keep_from``; those that follow begin at 0. Rows lie outermost, channels next."""
        if not len(self._held):
            others = [axis.size for n, axis in enumerate(self._axes) if n != self._along]
            channels = self._channels + int(self.holds_gaps)
            self._held = torch.zeros((_capacity(self._axis, self._groups), channels, *others), device=self._device)
        gone = min(keep_from - self._first, len(self._held))
        _move_up(self._held, gone, len(self._held))
        if gone:
            self._held[len(self._held) - gone :] = 0
        self._first = keep_from

    def _needed(self, places: list[tuple[int, ...]], slab: torch.Tensor, offset: int) -> list[tuple[int, ...]]:
        """Leaves out the windows that are skipped, and notes the weight that is missing there."""
        self.windows += len(places)
        if self._skip is None:
            return places
        flags = self._skip([self._inside(slab, offset, place) for place in places])
        for place in compress(places, flags):
            self.skipped += 1
            target, weight = self._target(place)
            target[-1] += weight
        return [place for place, skipped in zip(places, flags, strict=True) if not skipped]

    def _inside(self, slab: torch.Tensor, offset: int, place: tuple[int, ...]) -> torch.Tensor:
        for n, (axis, number) in enumerate(zip(self._axes, place, strict=True)):
            first, stop = axis.inside(number)
            slab = slab.narrow(n + 1, first - (offset if n == self._along else 0), stop - first)
        return slab

    def _input(self, slab: torch.Tensor, offset: int, place: tuple[int, ...]) -> torch.Tensor:
        for n, (axis, number) in enumerate(zip(self._axes, place, strict=True)):
            slab = axis.read(slab, n + 1, number, offset if n == self._along else 0)
        return slab.movedim(-1, 1).flatten(0, 1) if self._flat else slab

    def _target(self, place: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """The part of what is held that a window covers, (channels, *s), and its weight there, (*s)."""
        target = self._held.movedim(0, self._along + 1)
        weight = torch.ones((), device=self._device)
        for n, (axis, number) in enumerate(zip(self._axes, place, strict=True)):
            first, stop = axis.inside(number)
            target = target.narrow(n + 1, first - (self._first if n == self._along else 0), stop - first)
            weight = weight[..., None] * self._shares[n][number]
        return target, weight

    def _add(self, output: torch.Tensor, place: tuple[int, ...]) -> None:
        target, weight = self._target(place)
        for n, (axis, number) in enumerate(zip(self._axes, place, strict=True)):
            output = axis.trimmed(output, n + 1, number)
        target[: self._channels].addcmul_(output, weight)


class _Reader:
    """Reads an image in order; what windows of two groups share is read once.

    The rows lie outermost in one buffer that is made once: those that are still needed move to its beginning.
    """

    def __init__(self, image: Rows, along: int, capacity: int, device: torch.device) -> None:
        self._image = image
        self._device = device
        self._along = along
        self._capacity = capacity
        self._held = torch.zeros(0)
        self._range = (0, 0)

    def covering(self, ranges: Sequence[tuple[int, int]]) -> tuple[torch.Tensor, int]:
        """Returns the rows that hold all ``ranges``, (C, *s), until the next call; and the first one's number."""
        start, stop = min(first for first, _ in ranges), max(last for _, last in ranges)
        first, last = self._range
        if first <= start < last:
            stop = max(stop, last)
        else:
            first = last = start
        _move_up(self._held, start - first, last - first)
        while last < stop:
            last = self._append(last, min(last + ROWS_READ, stop), start)
        self._range = (start, stop)
        return self._held.narrow(0, 0, stop - start).movedim(0, self._along + 1), start

    def _append(self, first: int, stop: int, start: int) -> int:
        rows = self._image.slab(self._along, first, stop, self._device).movedim(self._along + 1, 0)
        if not len(self._held):
            self._held = rows.new_empty((self._capacity, *rows.shape[1:]))
        self._held[first - start : stop - start] = rows
        return stop


def _move_up(rows: torch.Tensor, gone: int, stop: int) -> None:
    """Moves ``rows`` from ``gone`` to ``stop`` to the beginning, in place."""
    for row in range(gone, stop if gone else 0):  # in this order a row is read before it is written
        rows[row - gone] = rows[row]


def finished_rows(stream: WindowStream) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Runs a stream to its end; yields start, stop and :meth:`WindowStream.rows` of what has just become final."""
    while not stream.is_finished:
        done = stream.ready
        stream.advance(done)
        yield done, stream.ready, stream.rows(done, stream.ready)


def mirrored(run: Run, axes: Sequence[int], compare: Compare | None = None) -> Run:
    """Returns ``run`` averaged over all flips along ``axes`` of the window; ``compare`` sees what that changes."""
    flips = [[axis + 2 for axis in some] for count in range(len(axes) + 1) for some in combinations(axes, count)]
    if len(flips) == 1:
        return run

    def average(batch: torch.Tensor) -> torch.Tensor:
        total = plain = run(batch)
        for turn in flips[1:]:
            total = total + run(batch.flip(turn)).flip(turn)
        mean = total / len(flips)
        if compare is not None:
            compare(plain, mean)
        return mean

    return average


def rolling_values(axes: Sequence[WindowAxis], along: int, channels: int, batch: int = 1) -> int:
    """Returns how many numbers a :class:`WindowStream` that goes ``along`` an axis holds."""
    rows = _capacity(axes[along], _groups(axes, along, batch))
    return channels * rows * prod(axis.size for n, axis in enumerate(axes) if n != along)


def _capacity(axis: WindowAxis, groups: Sequence[range]) -> int:
    """Rows that the windows of one group cover at most, and the one before, which interpolation still needs."""
    return 1 + _most(axis.inside, groups)


def _most(covered: Callable[[int], tuple[int, int]], groups: Sequence[range]) -> int:
    """Rows from the first to the last that one group covers, at most."""
    spans = ([covered(number) for number in group] for group in groups)
    return max(max(stop for _, stop in span) - min(first for first, _ in span) for span in spans)


def _groups(axes: Sequence[WindowAxis], along: int, batch: int) -> list[range]:
    """Windows along the axis that are visited together: one at a time, or single slices that fill a batch."""
    count = len(axes[along].starts)
    others = prod(len(axis.starts) for n, axis in enumerate(axes) if n != along)
    size = -(-batch // others) if axes[along].window == 1 else 1
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


def _without_gaps(held: torch.Tensor) -> torch.Tensor:
    """Makes up for the weight of skipped windows, (rows, channels + 1, *s), and marks where nothing is left."""
    missing = held[:, -1:]
    if not bool(missing.any()):
        return held
    gaps = missing > _SURE
    values = held[:, :-1] / torch.where(gaps, 1.0, 1.0 - missing)
    return torch.cat([values.masked_fill_(gaps, 0.0), gaps.float()], dim=1)
