"""Intensities as the network sees them: measured chunk by chunk, applied to any part of the image.

Nothing here copies an image as a whole: an array of any dtype, byte order and memory order is visited in the order
it lies in memory, a few million voxels at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from torch import Tensor

from unet_med.config import ChannelNormalisation
from unet_med.errors import ConfigError, InputRefusedError
from unet_med.volume import Region

_CHUNK_VOXELS = 2**18
_PERCENTILES = (0.5, 99.5)

Chunk = tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_] | None]
"""Values of some voxels of one channel, and which of them count (``None``: all)."""

Inside = Literal["all", "nonzero", "filled"]
"""Which voxels count: all; those of which any channel is not 0; these and the holes that they enclose."""


@dataclass(frozen=True)
class Intensity:
    """How a channel's values become about zero mean and unit deviation: ``(clip(value) - mean) / sd``.

    Attributes:
        limits: Values are clipped to this range first.
        mean, sd: In units of the image.
        inside: Voxels that are normalised; all others become 0.
    """

    limits: tuple[float, float] | None = None
    mean: float = 0.0
    sd: float = 1.0
    inside: Inside = "all"

    def apply_(self, values: Tensor, outside: Tensor | None) -> None:
        """Changes ``values`` (*s) float32 in place; ``outside`` (*s) says which voxels are not inside."""
        if self == Intensity():
            return
        if self.limits is not None:
            values.clamp_(*self.limits)
        values.sub_(self.mean).div_(self.sd)
        if self.inside != "all" and outside is not None:
            values.masked_fill_(outside, 0.0)


def nonzero_box(image: npt.NDArray[Any]) -> Region:
    """Returns the smallest box of ``image`` (C, *s) that holds every voxel of which any channel is not 0.

    The box is the whole image if all of it is 0.
    """
    lines = [np.zeros(size, dtype=np.bool_) for size in image.shape[1:]]
    order = _slowest_first(image)
    start = 0
    for chunk in _chunks(image):
        found = (chunk != 0).any(axis=0)
        for place, axis in enumerate(order):
            part = found.any(axis=tuple(other for other in range(found.ndim) if other != place))
            lines[axis - 1][slice(start, start + len(found)) if place == 0 else slice(None)] |= part
        start += len(found)
    box = []
    for line in lines:
        places = np.flatnonzero(line)
        box.append(slice(int(places[0]), int(places[-1]) + 1) if places.size else slice(0, len(line)))
    return tuple(box)


def filled(image: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Returns where any channel of ``image`` (C, *s) is not 0, and the holes that these voxels enclose.

    A picture has no holes: nnU-Net takes it for a volume of one slice, which encloses nothing.
    """
    found = np.asarray((np.asarray(image) != 0).any(axis=0))
    return np.asarray(ndimage.binary_fill_holes(found)) if found.ndim == 3 else found


def measure(
    image: npt.NDArray[Any],
    settings: Sequence[ChannelNormalisation],
    nonzero_only: bool,
    mask: npt.NDArray[np.bool_] | None = None,
) -> tuple[Intensity, ...]:
    """Returns how each channel of ``image`` (C, *s) is to be normalised.

    Args:
        image: Any real dtype and memory order.
        settings: One for each channel.
        nonzero_only: For channels that leave ``inside`` open: whether only voxels count of which any channel is not 0.
        mask: What :func:`filled` returns; needed where a channel is to be measured inside of it.

    Raises:
        InputRefusedError: for a constant channel, or one with values that are not finite.
        ConfigError: if ``ct`` lacks its numbers.
    """
    usual: Inside = "nonzero" if nonzero_only else "all"
    return tuple(_measure_channel(image, one, number, one.inside or usual, mask) for number, one in enumerate(settings))


def _measure_channel(
    image: npt.NDArray[Any],
    settings: ChannelNormalisation,
    number: int,
    inside: Inside,
    mask: npt.NDArray[np.bool_] | None,
) -> Intensity:
    if settings.scheme == "none":
        return Intensity()
    channel = _Channel(image, number, inside != "all", mask if inside == "filled" else None)
    lowest, highest = _extremes(channel)
    if np.isnan(lowest) or (settings.scheme != "ct" and not np.isfinite([lowest, highest]).all()):
        raise InputRefusedError(
            f"channel {number} holds values that are not finite",
            remedy="replace NaN and infinite values in the image by a background value",
        )
    if lowest == highest:
        raise InputRefusedError(
            f"channel {number} holds the same value everywhere", remedy="give an image that shows something"
        )
    if settings.scheme == "ct":
        if settings.window is None or settings.mean is None or settings.sd is None:
            raise ConfigError("ct normalisation needs window, mean and sd", "preprocess.normalisation", "leave it auto")
        return Intensity(settings.window, settings.mean, settings.sd)
    if settings.scheme == "rescale":
        return Intensity(None, lowest, highest - lowest)
    limits = None
    if settings.scheme == "percentile":
        low, high = quantiles(channel, [percent / 100 for percent in _PERCENTILES])
        limits = (low, high) if high > low else None
    mean, sd = _moments(channel, limits)
    return Intensity(limits, mean, max(sd, 1e-8), inside)


@dataclass(frozen=True, eq=False)
class _Channel:
    """One channel of an image (C, *s), chunk by chunk, as often as wanted."""

    image: npt.NDArray[Any]
    number: int
    nonzero_only: bool
    mask: npt.NDArray[np.bool_] | None = None

    def __iter__(self) -> Iterator[Chunk]:
        if self.mask is not None:
            for chunk, part in zip(_chunks(self.image), _chunks(self.mask[None], self.image), strict=True):
                yield np.asarray(chunk[self.number], dtype=np.float32), part[0]
            return
        for chunk in _chunks(self.image):
            values = np.asarray(chunk[self.number], dtype=np.float32)
            yield values, (chunk != 0).any(axis=0) if self.nonzero_only else None


def _chunks(image: npt.NDArray[Any], guide: npt.NDArray[Any] | None = None) -> Iterator[npt.NDArray[Any]]:
    """Yields parts (C, *part) of an image (C, *s), the spatial axes in the order of memory, of ``guide``'s if given."""
    image = image.transpose(0, *_slowest_first(image if guide is None else guide))
    step = max(1, _CHUNK_VOXELS // prod(image.shape[2:]))
    for start in range(0, image.shape[1], step):
        yield np.asarray(image[:, start : start + step])


def _slowest_first(image: npt.NDArray[Any]) -> list[int]:
    """Returns the spatial axes of an image (C, *s), the one with the largest steps in memory first."""
    return sorted(range(1, image.ndim), key=lambda axis: -abs(image.strides[axis]) if image.shape[axis] > 1 else 0)


def _extremes(channel: _Channel) -> tuple[float, float]:
    """Returns the lowest and the highest value; NaN if there is one."""
    pairs = np.array([(values.min(), values.max()) for values, _ in channel])
    return float(pairs[:, 0].min()), float(pairs[:, 1].max())


def _moments(channel: _Channel, limits: tuple[float, float] | None) -> tuple[float, float]:
    """Returns mean and standard deviation, combined from those of the chunks (Chan, Golub, LeVeque 1979)."""
    count, mean, squares = 0, 0.0, 0.0
    for values, inside in channel:
        sample = np.asarray(values if inside is None else values[inside], dtype=np.float64).ravel(order="K")
        if not sample.size:
            continue
        if limits is not None:
            sample = sample.clip(*limits)
        own = float(sample.mean())
        sample = sample - own
        away, total = own - mean, count + sample.size
        squares += float(sample @ sample) + away * away * count * sample.size / total
        mean += away * sample.size / total
        count = total
    return mean, float(np.sqrt(squares / count)) if count else 0.0


def quantiles(channel: _Channel, shares: Sequence[float]) -> list[float]:
    """Returns what ``np.quantile`` says of all values of a finite channel, exactly.

    The bits of a float32 number, sign taken into account, are in the order of the numbers. A first pass counts their
    upper halves; a second one counts the lower halves of those upper ones in which a wanted rank lies.
    """
    counts = np.zeros(2**16, dtype=np.int64)
    for values, _ in channel:
        counts += np.bincount(_ordered_bits(values) >> np.uint32(16), minlength=2**16)
    places = [share * (int(counts.sum()) - 1) for share in shares]
    ranks = sorted({rank for place in places for rank in (int(np.floor(place)), int(np.ceil(place)))})
    before = np.cumsum(counts) - counts
    upper = {rank: int(np.searchsorted(before, rank, side="right")) - 1 for rank in ranks}
    lower = {half: np.zeros(2**16, dtype=np.int64) for half in upper.values()}
    for values, _ in channel:
        bits = _ordered_bits(values)
        halves = bits >> np.uint32(16)
        for half, seen in lower.items():
            seen += np.bincount(bits[halves == half] & np.uint32(0xFFFF), minlength=2**16)
    at = {
        rank: _value_of_bits(half, int(np.searchsorted(np.cumsum(lower[half]), rank - before[half], side="right")))
        for rank, half in upper.items()
    }
    return [
        float(np.quantile([at[int(np.floor(place))], at[int(np.ceil(place))]], place - np.floor(place)))
        for place in places
    ]


def _ordered_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """Returns unsigned numbers (n,) in the same order as the values."""
    bits = np.ascontiguousarray(values).ravel().view(np.uint32)
    return np.asarray(bits ^ ((bits.view(np.int32) >> 31).view(np.uint32) | np.uint32(0x80000000)))


def _value_of_bits(upper: int, lower: int) -> float:
    bits = upper << 16 | lower
    bits ^= 0x80000000 if bits & 0x80000000 else 0xFFFFFFFF
    return float(np.uint32(bits).view(np.float32))
