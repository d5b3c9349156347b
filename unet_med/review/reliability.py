"""Whether a network is as often right as it says: calibration of its probabilities, voxel by voxel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

BINS = 10
LEAST = 0.05
"""Voxels of which a structure is less likely are left out: nearly all voxels of nearly all images are."""

_Counts = npt.NDArray[np.float64]


class Reliability:
    """Counts how often what was said with some probability is true (the reliability diagram of DeGroot and Fienberg).

    Args:
        names: The structures that probabilities are of.

    Attributes:
        voxels: (structures, bins) how many there are.
        said: (structures, bins) sum of their probabilities.
        true: (structures, bins) how many of them are the structure.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.voxels, self.said, self.true = (np.zeros((len(self.names), BINS)) for _ in range(3))

    def add(self, chances: npt.NDArray[np.float32], truths: npt.NDArray[np.bool_]) -> None:
        """Counts some voxels.

        Args:
            chances: (structures, n) from 0 to 1.
            truths: (structures, n) whether a voxel is the structure.
        """
        for number, (own, truth) in enumerate(zip(chances, truths, strict=True)):
            shown = own >= LEAST
            likely = own[shown].astype(np.float64)
            place = np.minimum((likely * BINS).astype(np.int64), BINS - 1)
            for sums, weights in ((self.voxels, None), (self.said, likely), (self.true, truth[shown])):
                sums[number] += np.bincount(place, weights, minlength=BINS)

    def errors(self) -> dict[str, float]:
        """Returns the expected calibration error of each structure (Naeini et al. 2015), 0 to 1; lower is better."""
        gaps = np.abs(self.said - self.true).sum(axis=1)
        counts = self.voxels.sum(axis=1)
        return {name: float(gap / count) for name, gap, count in zip(self.names, gaps, counts, strict=True) if count}

    def joined(self, other: Self) -> Self:
        """Returns both together; they are of the same structures."""
        both = type(self)(self.names)
        for name in ("voxels", "said", "true"):
            setattr(both, name, getattr(self, name) + getattr(other, name))
        return both

    def to_json(self) -> dict[str, Any]:
        """Returns it as JSON values: for each structure its error, and by bin what was said and what was true."""
        errors = self.errors()
        return {
            name: {
                "error": errors.get(name),
                "voxels": self.voxels[number].astype(int).tolist(),
                "said": self.said[number].tolist(),
                "true": self.true[number].astype(int).tolist(),
            }
            for number, name in enumerate(self.names)
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Returns what :meth:`to_json` wrote."""
        found = cls(tuple(data))
        for number, entry in enumerate(data.values()):
            found.voxels[number], found.said[number], found.true[number] = (
                entry[key] for key in ("voxels", "said", "true")
            )
        return found
