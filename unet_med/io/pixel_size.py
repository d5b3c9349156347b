"""The size of a pixel: units, what a file without a place in space declares, what was given by hand, and doubts."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from unet_med.errors import InputRefusedError
from unet_med.geometry import Geometry
from unet_med.io.source import IntakeOptions

_MM_PER_UNIT = {
    "m": 1e3,
    "meter": 1e3,
    "metre": 1e3,
    "cm": 10.0,
    "centimeter": 10.0,
    "mm": 1.0,
    "millimeter": 1.0,
    "um": 1e-3,
    "\u00b5m": 1e-3,  # micro sign
    "\u03bcm": 1e-3,  # Greek mu
    "\\u00b5m": 1e-3,  # as ImageJ escapes it
    "micron": 1e-3,
    "microns": 1e-3,
    "micrometer": 1e-3,
    "micrometre": 1e-3,
    "nm": 1e-6,
    "nanometer": 1e-6,
    "nanometre": 1e-6,
    "pm": 1e-9,
    "picometer": 1e-9,
    "\u00e5": 1e-7,  # Angstrom
    "\u212b": 1e-7,
    "angstrom": 1e-7,
    "inch": 25.4,
    "in": 25.4,
}
_SECONDS_PER_UNIT = {
    "s": 1.0,
    "sec": 1.0,
    "second": 1.0,
    "seconds": 1.0,
    "ms": 1e-3,
    "msec": 1e-3,
    "millisecond": 1e-3,
    "\u00b5s": 1e-6,
    "us": 1e-6,
    "microsecond": 1e-6,
    "min": 60.0,
    "minute": 60.0,
    "minutes": 60.0,
    "h": 3600.0,
    "hour": 3600.0,
    "hours": 3600.0,
    "d": 86400.0,
    "day": 86400.0,
}

_LENGTH = re.compile(r"((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([^\d.\s]*)")
_WIDEST_MM = 300.0
_FINEST_MM = 1e-8
_OBLONG = 5.0
_DEEP = 1000.0
_PRINTERS_DPI = (72, 75, 96, 100, 120, 144, 150, 180, 200, 240, 300, 360, 400, 600, 1200, 2400)


def mm_per_unit(unit: str) -> float | None:
    """Returns the millimetres in one ``unit`` ("um", "micron", "nm", ...); ``None`` for pixels and unknown words."""
    return _MM_PER_UNIT.get(unit.strip().strip('"').lower())


def seconds_per_unit(unit: str) -> float | None:
    """Returns the seconds in one ``unit`` ("s", "min", "ms", ...); ``None`` for unknown words."""
    return _SECONDS_PER_UNIT.get(unit.strip().strip('"').lower())


def sensible(size: float, scale: float | None) -> float | None:
    """Returns ``size * scale`` where both are known and the size is positive and finite."""
    if scale is None or not math.isfinite(size) or size <= 0:
        return None
    return size * scale


def is_printers(dots_per_inch: float) -> bool:
    """Whether a resolution is one that programs store for printers and screens: it measures nothing."""
    return any(abs(dots_per_inch - usual) < 0.01 * usual for usual in _PRINTERS_DPI)


def known_sizes(sizes: list[float | None]) -> tuple[tuple[float, ...] | None, list[str]]:
    """Returns the spacing along X, Y (and Z), or ``None`` and why, of sizes that may each be unknown."""
    known = tuple(size for size in sizes if size is not None)
    if len(known) == len(sizes):
        return known, []
    if len(sizes) == 3 and sizes[2] is None and len(known) == 2:
        return None, ["pixel size known in plane only: used with none; give all three with --pixel-size"]
    return None, ["no pixel size"]


def parsed_sizes(text: str) -> tuple[float, ...]:
    """Returns lengths in mm out of ``0.5``, ``0.5,0.5,2`` or ``0.65,0.65,2um``; none where one is no positive length.

    A unit at the end of the text holds for all the numbers that have none; without one they are millimetres.
    """
    parts = [match for part in text.split(",") if (match := _LENGTH.fullmatch(part.strip()))]
    last = parts[-1][2] if parts else ""
    sizes = [sensible(float(part[1]), mm_per_unit(part[2] or last or "mm")) for part in parts]
    known = tuple(size for size in sizes if size is not None)
    return known if len(known) == text.count(",") + 1 else ()


def option_spacing(options: IntakeOptions, ndim: int) -> tuple[float, ...] | None:
    """Returns the spacing along the ``ndim`` axes that ``--pixel-size`` gives in mm; ``None`` when it does not say.

    One value stands for all axes; a third one is left out for pictures.
    """
    given = options.pixel_size_mm
    if given is None:
        return None
    if len(given) == 1:
        given = given * ndim
    if len(given) < ndim:
        return None
    if not all(math.isfinite(value) and value > 0 for value in given):
        raise InputRefusedError(
            "the pixel size is not positive", remedy="give --pixel-size in mm, for example 0.65,0.65"
        )
    return tuple(float(value) for value in given[:ndim])


def calibrated(
    shape: tuple[int, ...], own: tuple[float, ...] | None, options: IntakeOptions, *, microscope: bool = False
) -> tuple[Geometry, dict[str, Any], list[str]]:
    """Returns the grid of an image without a place in space, the switches used and notes.

    Args:
        shape: Voxels along X, Y (and Z).
        own: The spacing in mm that the file declares, if any.
        options: ``pixel_size_mm`` is used only where the file declares nothing, or a size that is doubtful.
        microscope: Whether a size is doubted that is hardly one of a microscope's picture.
    """
    given = option_spacing(options, len(shape))
    doubts = doubtful(shape, own) if microscope and own is not None else ""
    if own is not None and (given is None or not doubts):
        notes = [f"{doubts}: if its pixel size is wrong, give the right one with --pixel-size"] if doubts else []
        if given is not None and not np.allclose(given, own, rtol=1e-3):
            notes.append("the file declares its own pixel size; --pixel-size is not used")
        return Geometry.from_spacing(shape, own), {}, notes
    if given is not None:
        notes = ["pixel size given by hand" + (", instead of the file's own, which is hardly true" if doubts else "")]
        wrong = doubtful(shape, given) if microscope else ""
        notes += [f"{wrong}: --pixel-size is in mm"] if wrong else []
        return Geometry.from_spacing(shape, given), {"pixel_size_mm": list(given)}, notes
    notes = []
    if options.pixel_size_mm is not None:
        notes.append("--pixel-size has no value for the third axis: not used")
    return Geometry(shape), {}, notes


def doubtful(shape: tuple[int, ...], spacing: tuple[float, ...]) -> str:
    """Returns why a pixel size is hardly one of a microscope; empty where it may be.

    Args:
        shape: Voxels along X, Y (and Z).
        spacing: Their distances in mm.
    """
    widest = max(shape[0] * spacing[0], shape[1] * spacing[1])
    if widest > _WIDEST_MM:
        return f"the pixel size makes the picture {widest / 1000:.3g} m wide"
    if min(spacing[:2]) < _FINEST_MM:
        return f"the pixel size makes a pixel {min(spacing[:2]) * 1e6:.3g} nm wide, less than an atom"
    oblong = max(spacing[:2]) / min(spacing[:2])
    if oblong > _OBLONG:
        return f"the pixel size makes pixels {oblong:.3g} times as long as wide"
    depth = spacing[2] / spacing[0] if len(spacing) > 2 else 1.0
    if not 1 / _DEEP < depth < _DEEP:
        return f"the pixel size puts planes {depth:.3g} pixels apart"
    return ""
