"""Invented data sets with exact truth: CT-like DICOM series, pictures and volumes of nuclei, movies of cells.

Shapes are formulas in physical units, evaluated at the centre of every voxel, so the truth does not depend on the
grid. No real image went into them, and no real person is named. The same seed gives the same bytes.
"""

from __future__ import annotations

from unet_med.phantoms.cells import CELLS, Movie, make_cells, write_phantoms_cells
from unet_med.phantoms.nuclei import make_nuclei_3d, write_phantoms_nuclei
from unet_med.phantoms.pictures import NUCLEI, make_nuclei, write_phantoms_2d
from unet_med.phantoms.places import PhantomSet
from unet_med.phantoms.series import NOISE_HU, RESCALE_INTERCEPT_HU, make_grid, write_phantoms_3d
from unet_med.phantoms.threshold import best_threshold_dice
from unet_med.phantoms.torso import ORGANS, Torso, make_torso

__all__ = [
    "CELLS",
    "NOISE_HU",
    "NUCLEI",
    "ORGANS",
    "RESCALE_INTERCEPT_HU",
    "Movie",
    "PhantomSet",
    "Torso",
    "best_threshold_dice",
    "make_cells",
    "make_grid",
    "make_nuclei",
    "make_nuclei_3d",
    "make_torso",
    "write_phantoms_2d",
    "write_phantoms_3d",
    "write_phantoms_cells",
    "write_phantoms_nuclei",
]
