"""A label image at full, half, quarter, ... resolution: what viewers of large pictures draw from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.io.atomic import remove
from unet_med.io.mapped import let_go, mapped

Pages = npt.NDArray[Any]
"""(..., rows, columns), as files have them."""

SMALLEST_SIDE = 1024
"""Levels are added until no picture is longer."""
_BAND_VALUES = 2**22


@contextmanager
def levels_of(pages: Pages, part: Path, *, keep: bool = False) -> Iterator[list[Pages]]:
    """Yields ``pages`` and its levels, each half as large as the one before in rows and columns (rounded up).

    Args:
        pages: Label images (..., rows, columns).
        part: An output that is being written; the levels lie beside it meanwhile.
        keep: Leave them to the next one who asks for them, unless something goes wrong.

    Raises:
        MachineError: when the disk is full.
    """
    folder = part.with_name(part.name + ".levels")
    whole = folder / "whole"
    levels = [pages]
    try:
        while max(levels[-1].shape[-2:]) > SMALLEST_SIDE:
            finer = levels[-1]
            rows, columns = (-(-n // 2) for n in finer.shape[-2:])
            coarser = mapped(folder / f"{len(levels)}.npy", (*finer.shape[:-2], rows, columns), finer.dtype)
            if not whole.exists():
                _halve(finer, coarser)
            levels.append(coarser)
        if len(levels) > 1:
            whole.touch()
        yield levels
    except BaseException:
        keep = False
        raise
    finally:
        if not keep:
            remove(folder)


def _halve(finer: Pages, coarser: Pages) -> None:
    """Writes the commonest label of each 2 x 2 pixels of ``finer``, band by band."""
    rows = max(1, _BAND_VALUES // max(1, 2 * finer.shape[-1]))
    for lead in np.ndindex(finer.shape[:-2]):
        for start in range(0, coarser.shape[-2], rows):
            stop = min(start + rows, coarser.shape[-2])
            coarser[lead][start:stop] = commonest_of_four(np.asarray(finer[lead][2 * start : 2 * stop]))
            let_go(finer)
            let_go(coarser)


def commonest_of_four(picture: Pages) -> Pages:
    """Returns the label that most of each 2 x 2 pixels have, (ceil(rows / 2), ceil(columns / 2)).

    Of several that are as common the first one, row by row; at an odd end the last row or column counts twice.
    """
    odd = [(0, n % 2) for n in picture.shape]
    picture = np.pad(picture, odd, mode="edge") if any(end for _, end in odd) else picture
    a, b = picture[::2, ::2], picture[::2, 1::2]
    c, d = picture[1::2, ::2], picture[1::2, 1::2]
    rest = np.where((b == c) | (b == d), b, np.where(c == d, c, a))
    return np.where((a == b) | (a == c) | (a == d), a, rest)
