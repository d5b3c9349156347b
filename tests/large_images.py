"""Sources that say what is read of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from unet_med.geometry import Geometry
from unet_med.io.tiff.source import TiffSource
from unet_med.volume import ArraySource, Region, Volume


@dataclass(frozen=True)
class WatchedSource:
    """An array whose reads are counted.

    Attributes:
        array: (C, I, J[, K]).
        reads: Voxels of each read.
    """

    array: npt.NDArray[Any]
    reads: list[int] = field(default_factory=list)
    id: str = "watched"

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.array.shape[1:])

    @property
    def channels(self) -> int:
        return len(self.array)

    @property
    def frames(self) -> int:
        return 1

    def read(self, region: Region | None = None, frame: int = 0) -> Volume:
        found = ArraySource(self.id, Volume(self.array, self.geometry)).read(region, frame)
        self.reads.append(prod(found.geometry.shape))
        return found


def picture(shape: tuple[int, ...], seed: int = 0, channels: int = 1) -> npt.NDArray[np.uint16]:
    """Noise and a slope: normalised by its mean it has places of each label of the tiny model."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(0, 400, shape[-1])
    return (1000 + slope + rng.normal(0, 300, (channels, *shape))).clip(0, 4000).astype(np.uint16)


def watched_reads(monkeypatch: pytest.MonkeyPatch, unit: str = "nbytes") -> list[int]:
    """Returns a list that grows with each read of a TIFF, by its bytes or (``size``) its numbers."""
    read: list[int] = []
    true_read = TiffSource.read

    def watched(self: Any, *places: Any, **named: Any) -> Any:
        found = true_read(self, *places, **named)
        read.append(getattr(found.array, unit))
        return found

    monkeypatch.setattr(TiffSource, "read", watched)
    return read
