"""Volumes of touching nuclei as a confocal microscope sees them, with exact object labels.

Nuclei are ellipsoids in micrometres, some cut by the faces of the volume. Where two would meet, a point belongs to the
one in which it lies deeper. Planes are twice as far apart as pixels, the image is blurred along the light's axis, it
darkens with depth, and photons are counted.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile
from scipy import ndimage

from unet_med.phantoms.pictures import NUCLEI
from unet_med.phantoms.places import PhantomSet, places

FloatArray = npt.NDArray[np.float64]

VOXEL_UM = (1.0, 0.5, 0.5)
"""Distance of planes, rows and columns."""

_APART = 1.75
_RADII_UM = (3.2, 4.4)
_BLUR_UM = (0.9, 0.35, 0.35)
_CLUMP_UM3 = 2600.0
_PHOTONS = 220.0


def write_phantoms_nuclei(
    folder: Path, cases: int = 6, seed: int = 0, unlabelled: int = 2, truth: Path | None = None
) -> PhantomSet:
    """Writes OME-TIFF volumes of touching nuclei with exact object labels.

    ``folder/images/<case>.ome.tif`` (uint16, ZYX, voxel size declared) and ``folder/labels/<case>.tif`` (uint16 object
    numbers) are for training, ``folder/unlabelled/<case>.ome.tif`` for prediction; the labels of the latter lie in
    ``truth``.

    Args:
        folder: Where to write; made if missing.
        cases: Number of labelled volumes.
        seed: The same seed gives the same files.
        unlabelled: Number of further volumes.
        truth: Folder for the labels of the unlabelled; default ``folder/truth``.
    """
    names = [f"volume{n + 1:02d}" for n in range(cases + unlabelled)]
    found = places(folder, truth, names, cases, (".ome.tif", ".tif"))
    for number, (image, label) in enumerate(found.pairs()):
        volume, objects = make_nuclei_3d(seed, number)
        _write_volume(image, volume, number)
        _write_objects(label, objects)
    return replace(found, label_names=NUCLEI)


def make_nuclei_3d(
    seed: int, number: int, shape: tuple[int, int, int] = (28, 72, 80)
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16]]:
    """Returns a volume (planes, rows, columns) and its object numbers, both on voxels of :data:`VOXEL_UM`."""
    random = np.random.default_rng([seed, number, 17])
    points = np.moveaxis(np.indices(shape), 0, -1) * np.array(VOXEL_UM)
    best = np.full(shape, np.inf)
    objects = np.zeros(shape, dtype=np.int64)
    brightness = [0.0]
    for centre, radii, turn in _placed(random, np.array(shape) * np.array(VOXEL_UM)):
        radius = np.linalg.norm(((points - centre) @ turn) / radii, axis=-1)
        closer = (radius < 1.0) & (radius < best)
        brightness.append(float(random.uniform(0.35, 1.0)))
        objects[closer] = len(brightness) - 1
        best[closer] = radius[closer]
    inside = objects > 0
    grain = ndimage.gaussian_filter(random.normal(size=shape), [0.6 / step for step in VOXEL_UM])
    signal = np.asarray(brightness)[objects] * (1.0 + 0.25 * grain / grain.std()) * inside
    clean = ndimage.gaussian_filter(signal, [blur / step for blur, step in zip(_BLUR_UM, VOXEL_UM, strict=True)])
    clean = 0.06 + clean.clip(min=0.0) * np.linspace(1.0, 0.6, shape[0])[:, None, None]
    noisy = random.poisson(clean * _PHOTONS) / _PHOTONS + random.normal(0.0, 0.01, shape)
    volume = np.clip(np.rint(noisy * 20000.0), 0, 65535).astype(np.uint16)
    _, compact = np.unique(objects, return_inverse=True)  # a covered nucleus leaves no gap in the numbers
    return volume, compact.reshape(shape).astype(np.uint16)


def _placed(random: np.random.Generator, extent: FloatArray) -> list[tuple[FloatArray, FloatArray, FloatArray]]:
    """Returns (centre, half axes, turn) of nuclei in um, in clumps of one to five that touch."""
    kept: list[tuple[FloatArray, FloatArray, FloatArray]] = []
    for _ in range(max(3, round(float(extent.prod()) / _CLUMP_UM3))):
        centre = random.uniform(0.0, extent)
        for _ in range(int(random.integers(1, 6))):
            radii = random.uniform(*_RADII_UM, 3)
            if all(np.linalg.norm(centre - other) > _APART * max(_RADII_UM[0], radii.min()) for other, _, _ in kept):
                kept.append((centre, radii, _turn(random)))
            heading = random.normal(size=3)
            centre = centre + heading / np.linalg.norm(heading) * random.uniform(6.0, 7.5)
    return kept


def _turn(random: np.random.Generator) -> FloatArray:
    """Returns a random rotation."""
    turn, _ = np.linalg.qr(random.normal(size=(3, 3)))
    return np.asarray(turn, dtype=np.float64)


def _write_volume(path: Path, volume: npt.NDArray[np.uint16], number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata: dict[str, object] = {"axes": "ZYX", "UUID": f"urn:uuid:00000000-0000-4000-8000-{number:012d}"}
    for axis, step in zip("ZYX", VOXEL_UM, strict=True):
        metadata |= {f"PhysicalSize{axis}": step, f"PhysicalSize{axis}Unit": "µm"}
    tifffile.imwrite(path, volume, ome=True, photometric="minisblack", metadata=metadata, compression="zlib")


def _write_objects(path: Path, objects: npt.NDArray[np.uint16]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"axes": "ZYX", "unit": "um", "spacing": VOXEL_UM[0]}
    resolution = (1.0 / VOXEL_UM[2], 1.0 / VOXEL_UM[1])
    tifffile.imwrite(path, objects, imagej=True, resolution=resolution, metadata=metadata)
