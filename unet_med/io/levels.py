"""Smaller copies of an image that lie in its file (a pyramid): to look at a slide without reading all of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from unet_med.geometry import Geometry
from unet_med.io.source import SourceRef
from unet_med.io.stack import grid_of


def smaller(ref: SourceRef, side: int) -> SourceRef:
    """Returns the smallest copy of an image whose longest side along X and Y is at least ``side``; else the image.

    Args:
        ref: A usable source.
        side: Pixels that are wanted.
    """
    fitting = [number for number, shape in enumerate(ref.levels, 1) if max(grid_of(ref.axes, shape)[:2]) >= side]
    return copy_of(ref, fitting[-1]) if fitting else ref


def copy_of(ref: SourceRef, level: int) -> SourceRef:
    """Returns the smaller copy of this number, counted from 1, as a source: the same place with coarser voxels."""
    shape = ref.levels[level - 1]
    return replace(
        ref,
        shape=shape,
        geometry=None if ref.geometry is None else _coarser(ref.geometry, grid_of(ref.axes, shape)),
        levels=(),
        read_as={**ref.read_as, "level": level},
    )


def _coarser(geometry: Geometry, shape: tuple[int, ...]) -> Geometry:
    """Returns a grid of fewer voxels that fills the same box."""
    if geometry.affine is None:
        return Geometry(shape)
    steps = np.array([fine / coarse for fine, coarse in zip(geometry.shape, shape, strict=True)])
    grow = np.diag([*steps, 1.0])
    grow[:-1, -1] = (steps - 1) / 2
    return Geometry(shape, geometry.affine @ grow)
