"""What all readers of files share: ids and refusals, units, the pixel size given by hand, regions and frames."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.errors import InputRefusedError, MachineError
from unet_med.geometry import Geometry
from unet_med.identity import safe_name, stem_of
from unet_med.io.source import IntakeOptions, SourceRef
from unet_med.volume import Region

COPY_FILE_AGAIN = "copy the file again from its origin"

_MM_PER_UNIT = {
    "m": 1e3,
    "meter": 1e3,
    "metre": 1e3,
    "cm": 10.0,
    "mm": 1.0,
    "millimeter": 1.0,
    "um": 1e-3,
    "\u00b5m": 1e-3,  # micro sign
    "\u03bcm": 1e-3,  # Greek mu
    "\\u00b5m": 1e-3,  # as ImageJ escapes it
    "micron": 1e-3,
    "microns": 1e-3,
    "micrometer": 1e-3,
    "nm": 1e-6,
    "nanometer": 1e-6,
    "pm": 1e-9,
    "\u00e5": 1e-7,  # Angstrom
    "\u212b": 1e-7,
    "inch": 25.4,
    "in": 25.4,
}


def mm_per_unit(unit: str) -> float | None:
    """Returns the millimetres in one ``unit`` ("um", "micron", "nm", ...); ``None`` for pixels and unknown words."""
    return _MM_PER_UNIT.get(unit.strip().strip('"').lower())


def provisional_id(path: Path) -> str:
    """Returns the id of the source in this file; discovery makes it unique."""
    return safe_name(stem_of(path))


def refused_ref(
    path: Path, kind: str, error: InputRefusedError, *, axes: str = "", shape: Sequence[int] = ()
) -> SourceRef:
    """Returns the unusable source that stands for a file which is refused."""
    reason = f"{error.what}: {error.remedy}" if error.remedy else error.what
    return SourceRef(
        provisional_id(path), kind, (path,), axes, tuple(int(n) for n in shape), None, usable=False, reason=reason
    )


@contextmanager
def refusing(what: str, where: str, remedy: str, *more: type[Exception]) -> Iterator[None]:
    """Turns what a decoder raises on a damaged file into :class:`InputRefusedError`.

    The decoder's own text is left out: it may hold the file's path.
    """
    faults: tuple[type[Exception], ...] = (
        *(OSError, EOFError, ValueError, KeyError, IndexError, TypeError, ArithmeticError, RuntimeError),
        *more,
    )
    try:
        yield
    except InputRefusedError:
        raise
    except MemoryError as error:
        raise MachineError(
            "the image does not fit into memory", where, "close other programs or use a machine with more memory"
        ) from error
    except faults as error:
        raise InputRefusedError(what, where, remedy) from error


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
    shape: tuple[int, ...], own: tuple[float, ...] | None, options: IntakeOptions
) -> tuple[Geometry, dict[str, Any], list[str]]:
    """Returns the grid of an image without a place in space, the switches used and notes.

    Args:
        shape: Voxels along X, Y (and Z).
        own: The spacing in mm that the file declares, if any.
        options: ``pixel_size_mm`` is used only where the file declares nothing.
    """
    given = option_spacing(options, len(shape))
    if own is not None:
        notes = []
        if given is not None and not np.allclose(given, own, rtol=1e-3):
            notes.append("the file declares its own pixel size; --pixel-size is not used")
        return Geometry.from_spacing(shape, own), {}, notes
    if given is not None:
        return Geometry.from_spacing(shape, given), {"pixel_size_mm": list(given)}, ["pixel size given by hand"]
    notes = []
    if options.pixel_size_mm is not None:
        notes.append("--pixel-size has no value for the third axis: not used")
    return Geometry(shape), {}, notes


def chosen_channels(names: Sequence[str], options: IntakeOptions) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Returns the channels that ``--channel`` names (by name or number from 0), and the switch that was used.

    An image of one channel is left alone: labels lie in the same folders as images of several channels.

    Raises:
        InputRefusedError: A channel does not exist.
    """
    if not options.channels or len(names) == 1:
        return tuple(range(len(names))), {}
    picked = []
    for wanted in options.channels:
        if wanted in names:
            picked.append(names.index(wanted))
        elif wanted.isdecimal() and int(wanted) < len(names):
            picked.append(int(wanted))
        else:
            raise InputRefusedError(
                f"there is no channel {wanted}",
                remedy=f"give --channel out of {', '.join(map(str, range(len(names))))}",
            )
    return tuple(picked), {"channels": [str(index) for index in picked]}


def read_channels(read_as: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Returns the channels that a stored record selects; ``None`` for all."""
    stored = read_as.get("channels")
    return None if stored is None else tuple(int(index) for index in stored)


def native(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns real values in this machine's byte order; booleans become uint8 and half precision float32."""
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype == np.float16:
        return array.astype(np.float32)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def native_dtype(dtype: np.dtype[Any]) -> str:
    """Returns the numpy name of what :func:`native` makes of this dtype."""
    return str(native(np.empty(0, dtype=dtype)).dtype)


def check_frame(frame: int, frames: int, where: str) -> None:
    """Raises InputRefusedError when there is no such frame."""
    if not 0 <= frame < frames:
        raise InputRefusedError(f"frame {frame} of {frames}", where, f"ask for frame 0 to {frames - 1}")


def whole(region: Region | None, geometry: Geometry) -> Region:
    """Returns ``region``, or the slices of the whole grid, with bounds filled in."""
    if region is None:
        return tuple(slice(0, n) for n in geometry.shape)
    return tuple(slice(*part.indices(n)[:2]) for part, n in zip(region, geometry.shape, strict=True))


@dataclass(frozen=True)
class FileSource:
    """What the sources of all file formats have in common: they are made of a :class:`SourceRef`."""

    ref: SourceRef

    def __post_init__(self) -> None:
        if not self.ref.usable or self.ref.geometry is None:
            raise InputRefusedError(self.ref.reason or "the image cannot be used", self.ref.id)

    @property
    def id(self) -> str:
        """Safe name of the source."""
        return self.ref.id

    @property
    def geometry(self) -> Geometry:
        """Grid of one frame."""
        if self.ref.geometry is None:
            raise InputRefusedError(self.ref.reason or "the image cannot be used", self.ref.id)
        return self.ref.geometry

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.ref.channels

    @property
    def frames(self) -> int:
        """Number of frames."""
        return self.ref.frames
