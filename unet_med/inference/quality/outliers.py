"""Whether an image is unlike those that a model learnt from: its voxels, its extent, its intensities.

An image is measured by a few traits. How far a trait lies beyond all cases of training, in standard deviations, is its
excess; the largest one decides. Which excess is still nothing unusual is learnt by leaving out each case of training
in turn, range and deviation being those of the others (conformal prediction, Vovk et al. 2005): of images like those
of training at most one in twenty is reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from unet_med.geometry import Geometry

SCHEMA = 1
META_KEY = "typical"
"""Where a bundle's ``meta`` keeps what images of training are like."""
FALSE_ALARMS = 0.05
MINIMUM_CASES = 5
"""Fewer say nothing about what is usual."""

Row = Callable[[int], npt.NDArray[np.float32]]
"""Returns a row of an image on the network's grid, normalised: (C, *rest) from its number on the first axis."""

_ROWS = {2: 128, 3: 16}
"""Rows of a picture and planes of a volume that are looked at."""
_SHARES = {"dark": 0.05, "middle": 0.5, "bright": 0.95}
_TOLERANCE = {
    **{"spacing": 0.05, "extent": 0.1, "voxels": 0.1, "roughness": 0.1},  # of the logarithm
    **dict.fromkeys(_SHARES, 0.1),  # of the normalised intensity
}
"""Differences that are nothing, however equal the cases of training are."""
_LOGARITHMIC = ("spacing", "extent", "voxels", "roughness")
_SMALLEST = 1e-6
_FEW_CASES_FACTOR = 3.0
"""With fewer than 19 cases an image must exceed them by that many times what any of them exceeds the others by."""
_DIRECTIONS = ("from left to right", "from back to front", "from foot to head")


def traits(geometry: Geometry, shape: Sequence[int], row: Row) -> dict[str, float]:
    """Measures an image.

    Args:
        geometry: The grid it came on.
        shape: Its size on the network's grid.
        row: Reads it there.

    Returns:
        By name, a kind and the number of an axis (towards R, A, S) or of a channel: logarithms of ``spacing`` and
        ``extent`` in mm, or of the number of ``voxels`` when uncalibrated; quantiles ``dark``, ``middle`` and
        ``bright`` of the normalised intensity; logarithm of its ``roughness``, the mean difference of neighbours.
    """
    found: dict[str, float] = {}
    turned = geometry.reoriented(*geometry.canonical_axes())
    for axis, size in enumerate(turned.shape):
        if turned.spacing_mm is None:
            found[f"voxels/{axis}"] = math.log(size)
        else:
            found[f"spacing/{axis}"] = math.log(turned.spacing_mm[axis])
            found[f"extent/{axis}"] = math.log(size * turned.spacing_mm[axis])
    count = min(shape[0], _ROWS[len(shape)])
    rows = [np.asarray(row(int((number + 0.5) * shape[0] / count))) for number in range(count)]
    for channel in range(rows[0].shape[0]):
        own = [part[channel].astype(np.float64) for part in rows]
        levels = np.quantile(np.concatenate([part.ravel() for part in own]), list(_SHARES.values()))
        found |= {f"{kind}/{channel}": float(level) for kind, level in zip(_SHARES, levels, strict=True)}
        found[f"roughness/{channel}"] = math.log(max(_roughness(own), _SMALLEST))
    return found


def _roughness(rows: Iterable[npt.NDArray[np.float64]]) -> float:
    steps = [np.abs(np.diff(row, axis=axis)).ravel() for row in rows for axis in range(row.ndim)]
    together = np.concatenate(steps)
    return float(together.mean()) if together.size else 0.0


@dataclass(frozen=True)
class Usual:
    """What a trait is like in training: its range, and the unit of distances beyond it."""

    low: float
    high: float
    unit: float


@dataclass(frozen=True)
class Typical:
    """What images of training are like.

    Attributes:
        cases: How many there are.
        traits: Those that all of them have.
        limit: The excess that is still nothing unusual; ``None``: there are too few cases to say.
    """

    cases: int
    traits: dict[str, Usual]
    limit: float | None

    @classmethod
    def of(cls, cases: Sequence[Mapping[str, float]]) -> Self:
        """Learns from the :func:`traits` of cases."""
        names = [name for name in (cases[0] if cases else ()) if all(name in case for case in cases)]
        values = np.array([[case[name] for name in names] for case in cases], dtype=np.float64)
        if len(cases) < MINIMUM_CASES or not names:
            return cls(len(cases), {}, None)
        tolerance = np.array([_TOLERANCE[_kind(name)] for name in names])
        unit = np.maximum(values.std(axis=0), tolerance)
        usual = {
            name: Usual(*map(float, numbers))
            for name, *numbers in zip(names, values.min(axis=0), values.max(axis=0), unit, strict=True)
        }
        return cls(len(cases), usual, _limit(_left_out_excesses(values, tolerance)))

    def joined(self, other: Self) -> Self:
        """Returns what is typical of the cases of both; they may share some, as the folds of a cross-validation do.

        Ranges become wider and the limit is the larger one, so that no more is unusual than for either.
        """
        if self.limit is None or other.limit is None:
            return self if other.limit is None else other
        names = [name for name in self.traits if name in other.traits]
        both = {name: (self.traits[name], other.traits[name]) for name in names}
        usual = {
            name: Usual(min(a.low, b.low), max(a.high, b.high), max(a.unit, b.unit)) for name, (a, b) in both.items()
        }
        return replace(self, cases=max(self.cases, other.cases), traits=usual, limit=max(self.limit, other.limit))

    def unusual(self, image: Mapping[str, float]) -> list[str]:
        """Returns what is unusual about an image with these :func:`traits`, in sentences; mostly nothing."""
        if self.limit is None:
            return []
        found = self._missing(image)
        channels = sum(name.startswith("middle/") for name in self.traits)
        axes = sum(name.startswith("spacing/") for name in self.traits)
        for name, usual in self.traits.items():
            if name in image:
                excess = float(_excess(image[name], usual.low, usual.high, _TOLERANCE[_kind(name)])) / usual.unit
                if excess > self.limit:
                    found.append(_sentence(name, image[name], usual, axes, channels))
        return found

    def to_json(self) -> dict[str, Any]:
        """Returns it as JSON values."""
        return {
            "schema": SCHEMA,
            "cases": self.cases,
            "limit": self.limit,
            "traits": {name: [usual.low, usual.high, usual.unit] for name, usual in self.traits.items()},
        }

    @classmethod
    def from_json(cls, data: object) -> Self | None:
        """Returns what :meth:`to_json` wrote; ``None`` for anything else, so that nothing is reported."""
        if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
            return None
        try:
            usual = {str(name): Usual(*map(float, numbers)) for name, numbers in data["traits"].items()}
            limit = None if data["limit"] is None else float(data["limit"])
            known = all(_kind(name) in _TOLERANCE and one.unit > 0 for name, one in usual.items())
            return cls(int(data["cases"]), usual, limit) if known else None
        except (AttributeError, KeyError, TypeError, ValueError):
            return None

    def _missing(self, image: Mapping[str, float]) -> list[str]:
        lacking = {_kind(name) for name in self.traits if name not in image}
        if "spacing" not in lacking:
            return []
        if any(name.startswith("spacing/") for name in image):
            return ["another number of axes than in training"]
        return ["no pixel size; all images of training had one"]


def typical_meta(cases: Iterable[tuple[Geometry, npt.NDArray[np.float32]]]) -> dict[str, Any]:
    """Returns what a bundle's ``meta`` keeps under :data:`META_KEY`.

    Args:
        cases: Of training: the grid that a case came on, and its image (C, *s) as the network sees it.
    """
    measured = [traits(geometry, image.shape[1:], _reader(image)) for geometry, image in cases]
    return Typical.of(measured).to_json()


def joined_typical_meta(metas: Sequence[Mapping[str, Any]], cases: int) -> dict[str, Any] | None:
    """Returns for an ensemble what :func:`typical_meta` returned for its members; ``None`` where one has nothing.

    Args:
        metas: ``meta`` of the members.
        cases: How many cases they learnt from together.
    """
    read = [Typical.from_json(meta.get(META_KEY)) for meta in metas]
    known = [typical for typical in read if typical is not None]
    if not known or len(known) < len(read):
        return None
    return replace(reduce(Typical.joined, known), cases=cases).to_json()


def _reader(image: npt.NDArray[np.float32]) -> Row:
    return lambda row: image[:, row]


def _kind(name: str) -> str:
    return name.partition("/")[0]


def _excess(values: Any, low: Any, high: Any, tolerance: Any) -> npt.NDArray[np.float64]:
    """How far values lie beyond a range that is a little widened; 0 within."""
    return np.asarray(np.maximum(np.maximum(low - tolerance - values, values - high - tolerance), 0.0))


def _left_out_excesses(values: npt.NDArray[np.float64], tolerance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Returns for each case (n) its largest excess over the others; ``values`` (n, traits)."""
    ordered = np.sort(values, axis=0)
    low = np.where(values == ordered[0], ordered[1], ordered[0])
    high = np.where(values == ordered[-1], ordered[-2], ordered[-1])
    others = len(values) - 1
    centred = values - values.mean(axis=0)
    variance = ((centred**2).sum(axis=0) - centred**2) / others - (centred / others) ** 2
    unit = np.maximum(np.sqrt(np.maximum(variance, 0.0)), tolerance)
    return np.asarray((_excess(values, low, high, tolerance) / unit).max(axis=1))


def _limit(excesses: npt.NDArray[np.float64]) -> float:
    rank = math.ceil((len(excesses) + 1) * (1.0 - FALSE_ALARMS))
    if rank > len(excesses):
        return max(_FEW_CASES_FACTOR * float(excesses.max()), 1.0)
    return float(np.sort(excesses)[rank - 1])


def _sentence(name: str, value: float, usual: Usual, axes: int, channels: int) -> str:
    kind, number = _kind(name), int(name.partition("/")[2])
    shown = [math.exp(v) if kind in _LOGARITHMIC else v for v in (value, usual.low, usual.high)]
    if kind == "spacing":
        return spacing_sentence(shown[0], shown[1], shown[2], number, axes)
    own, usually, where = f"{shown[0]:.3g}", _usually(*shown[1:]), _along(number, axes)
    channel = f" of channel {number}" if channels > 1 else ""
    if kind == "extent":
        return f"{own} mm {where}, {usually}"
    if kind == "voxels":
        return f"{own} voxels {where}, {usually}"
    if kind == "roughness":
        rough = "noisier or sharper" if value > usual.high else "smoother or more blurred"
        return f"image{channel} {rough} than in training (neighbours differ by {own}, {usually})"
    words = {"dark": "darkest 5 %", "middle": "median", "bright": "brightest 5 %"}[kind]
    return f"{words} of the intensities{channel} at {own} after normalisation, {usually}"


def spacing_sentence(value: float, low: float, high: float, axis: int, axes: int) -> str:
    """Says that voxels are of another size than in training.

    Args:
        value: Size of a voxel along the axis, in mm.
        low: The smallest one in training.
        high: The largest one.
        axis: Number of the axis, towards R, A, S.
        axes: How many there are.
    """
    return f"voxels of {value:.3g} mm {_along(axis, axes)}, {_usually(low, high)}"


def _usually(low: float, high: float) -> str:
    least, most = f"{low:.3g}", f"{high:.3g}"
    return f"{least if least == most else f'{least} to {most}'} in training"


def _along(number: int, axes: int) -> str:
    return _DIRECTIONS[number] if axes == len(_DIRECTIONS) and number < axes else f"along axis {'IJK'[number % 3]}"
