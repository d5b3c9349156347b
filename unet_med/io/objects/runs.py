"""Masks as run lengths, as COCO stores them: lengths of background and object in turn, column by column.

COCO's columns are the first axis here, so that the runs of a mask (I, J) follow its memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from unet_med.errors import InputRefusedError
from unet_med.io.objects.drawn import cropped
from unet_med.io.polygons import Picture

_FIRST = 48
"""The character of five bits that are 0."""

_MORE = 32
_SIGN = 16


def run_lengths(mask: Picture, start: tuple[int, int], size: tuple[int, int]) -> list[int]:
    """Returns the run lengths of a mask that lies at ``start`` in a picture of ``size`` (columns, rows).

    The first run is background, perhaps of length 0; together they make up the picture.
    """
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    firsts, ends = (_flat(edges == step, start, size[1]) for step in (1, -1))
    apart = np.concatenate([[True], firsts[1:] != ends[:-1]]) if len(firsts) else np.empty(0, dtype=np.bool_)
    bounds = np.stack([firsts[apart], ends[np.roll(apart, -1)]], axis=1).ravel()
    lengths = np.diff(np.concatenate([[0], bounds, [size[0] * size[1]]]))
    return [int(n) for n in (lengths if lengths[-1] else lengths[:-1])]


def _flat(found: Picture, start: tuple[int, int], rows: int) -> npt.NDArray[np.int64]:
    columns, places = np.nonzero(found)
    return (columns.astype(np.int64) + start[0]) * rows + places + start[1]


def mask_of_runs(lengths: Sequence[int], size: tuple[int, int]) -> tuple[Picture, tuple[int, int]] | None:
    """Returns the mask that run lengths stand for, cut to its box, and its place; ``None`` for an empty mask.

    Args:
        lengths: As :func:`run_lengths` returns them.
        size: Columns and rows of the picture.

    Raises:
        InputRefusedError: They do not make up such a picture.
    """
    runs = np.asarray(lengths, dtype=np.int64).reshape(-1)
    if (runs < 0).any() or (runs > size[0] * size[1]).any() or int(runs.sum()) != size[0] * size[1]:
        raise InputRefusedError(
            f"run lengths do not make up a picture of {size[0]} x {size[1]} pixels",
            remedy="export the file again; its masks belong to pictures of another size",
        )
    bounds = np.cumsum(runs)
    firsts, ends = bounds[:-1:2], bounds[1::2]
    full = ends > firsts
    firsts, ends = firsts[full], ends[full]
    if not len(firsts):
        return None
    left, right = int(firsts[0] // size[1]), int((ends[-1] - 1) // size[1]) + 1
    flips = np.zeros((right - left) * size[1] + 1, dtype=np.int8)
    np.add.at(flips, firsts - left * size[1], 1)
    np.add.at(flips, ends - left * size[1], -1)
    mask = np.cumsum(flips[:-1], dtype=np.int8).astype(np.bool_).reshape(right - left, size[1])
    return cropped(mask, (left, 0))


def packed(lengths: Sequence[int]) -> str:
    """Returns run lengths as COCO's short text: five bits in a character, differences to the last but one run."""
    characters: list[int] = []
    for place, length in enumerate(lengths):
        rest = length - (lengths[place - 2] if place > 2 else 0)
        while True:
            bits, rest = rest & 31, rest >> 5
            if rest == (-1 if bits & _SIGN else 0):
                characters.append(bits + _FIRST)
                break
            characters.append((bits | _MORE) + _FIRST)
    return bytes(characters).decode("ascii")


def unpacked(text: str) -> list[int]:
    """Returns the run lengths of COCO's short text.

    Raises:
        InputRefusedError: It is no such text.
    """
    codes = np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int64) - _FIRST
    lasts = np.flatnonzero(codes & _MORE == 0) + 1
    if (codes < 0).any() or (codes > 63).any() or (len(codes) and (not len(lasts) or lasts[-1] != len(codes))):
        raise InputRefusedError("run lengths are damaged", remedy="export the file again")
    lengths: list[int] = []
    for first, end in pairwise([0, *lasts.tolist()]):
        value = sum((int(code) & 31) << (5 * place) for place, code in enumerate(codes[first:end]))
        if codes[end - 1] & _SIGN:
            value -= 1 << (5 * (end - first))
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
    return lengths
