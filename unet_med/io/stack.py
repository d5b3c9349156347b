"""Arrays whose axes have a meaning: which letter stands for what, and how one frame is taken out of them.

What an axis means is never guessed. Letters: X columns, Y rows, Z depth, C channels, S samples of a pixel (RGB), T time
points, P (also R and M) positions, I independent pictures. T, P, R, M and I become frames, C and S channels, Z makes a
volume. Stored pictures are (rows, columns); arrays in memory are (C, X, Y[, Z]).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.errors import InputRefusedError
from unet_med.io.channels import read_channels
from unet_med.io.reading import FileSource
from unet_med.io.source import IntakeOptions
from unet_med.volume import Region

FRAME_LETTERS = "TPRMI"
CHANNEL_LETTERS = "CS"
KNOWN_LETTERS = f"XYZ{CHANNEL_LETTERS}{FRAME_LETTERS}"


def count(axes: str, shape: Sequence[int], letters: str) -> int:
    """Returns the product of the lengths of the axes with these letters; 1 where there are none."""
    return math.prod(int(shape[axes.index(letter)]) for letter in letters if letter in axes)


def grid_of(axes: str, shape: Sequence[int]) -> tuple[int, ...]:
    """Returns the voxels along X, Y (and Z)."""
    return tuple(count(axes, shape, letter) for letter in ("XYZ" if "Z" in axes else "XY"))


def meaning(declared: str, shape: Sequence[int], options: IntakeOptions) -> tuple[str, dict[str, Any]]:
    """Returns a letter for each stored axis, and the switch that was used.

    Args:
        declared: What the file says; ``Q`` for an axis that it does not name. Any other letter that is not known is
            taken for unnamed, too.
        shape: Length of each axis.
        options: ``axes`` is used only where the file leaves an axis unnamed.

    Raises:
        InputRefusedError: The file does not say and ``--axes`` does not fit, or there is no picture in it.
    """
    if set(declared) <= set(KNOWN_LETTERS):
        return _checked(declared), {}
    sizes = " x ".join(map(str, shape))
    if options.axes is None:
        odd = "".join(sorted(set(declared) - set(KNOWN_LETTERS) - {"Q"}))
        raise InputRefusedError(
            f"the stack ({sizes}) does not say what its axes {odd or 'are'}{' are' if odd else ''}",
            remedy="give --axes, for example ZYX for a volume, TYX for a film, IYX for independent pictures",
        )
    letters = options.axes.upper()
    if declared.endswith("S") and "S" not in letters:
        letters += "S"
    if len(letters) != len(declared) or len(set(letters)) != len(letters):
        raise InputRefusedError(
            f"--axes {options.axes} does not fit a stack of {sizes}", remedy=f"give {len(declared)} different letters"
        )
    return _checked(letters), {"axes": letters}


def _checked(axes: str) -> str:
    if "X" not in axes or "Y" not in axes:
        raise InputRefusedError(f"the axes {axes} hold no picture", remedy="give axes with X and Y")
    strange = sorted(set(axes) - set(KNOWN_LETTERS))
    if strange or len(set(axes)) != len(axes):
        raise InputRefusedError(
            f"the axes {axes} hold {', '.join(strange) or 'a letter twice'}, which is not supported",
            remedy="name the axes by letters out of T, P, Z, C, Y, X",
        )
    return axes


@dataclass(frozen=True)
class StackSource(FileSource):
    """What the sources of files with several axes have in common: ``ref.axes`` and ``ref.shape`` are as stored."""

    def index(self, bounds: Region, frame: int) -> tuple[int | slice, ...]:
        """Returns what to take of each stored axis: of channels a run that holds the chosen ones."""
        axes, shape = self.ref.axes, self.ref.shape
        frame_axes = [letter for letter in axes if letter in FRAME_LETTERS]
        sizes = [shape[axes.index(letter)] for letter in frame_axes]
        places = dict(zip(frame_axes, np.unravel_index(frame, sizes or [1]), strict=False))
        parts = dict(zip("XYZ", bounds, strict=False)) | {"C": self._run()}
        return tuple(int(places[letter]) if letter in places else parts.get(letter, slice(None)) for letter in axes)

    def channels_first(self, array: npt.NDArray[Any], colours: int | None = None) -> npt.NDArray[Any]:
        """Turns what :meth:`index` took, in the stored order of axes, into the chosen channels (C, X, Y[, Z]).

        Args:
            array: The stored values, frames taken out.
            colours: How many samples of a pixel count; the rest is alpha.
        """
        left = [letter for letter in self.ref.axes if letter not in FRAME_LETTERS]
        if "S" in left and colours is not None:
            array = array[(slice(None),) * left.index("S") + (slice(0, colours),)]
        lead = [letter for letter in CHANNEL_LETTERS if letter in left]
        spatial = "XYZ" if "Z" in left else "XY"
        ordered = array.transpose([left.index(letter) for letter in (*lead, *spatial)])
        channels = ordered.reshape(-1, *ordered.shape[len(lead) :])
        picked = read_channels(self.ref.read_as)
        if picked is None:
            return channels
        first = self._run().start or 0
        return channels[[number - first for number in picked]]

    def _run(self) -> slice:
        picked = read_channels(self.ref.read_as)
        if picked is None or "S" in self.ref.axes:
            return slice(None)
        return slice(min(picked), max(picked) + 1)
