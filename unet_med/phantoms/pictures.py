"""Microscopy pictures of touching nuclei, with exact object labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile

from unet_med.phantoms.places import PhantomSet, places

FloatArray = npt.NDArray[np.float64]

NUCLEI: Mapping[str, int] = {"background": 0, "nucleus": 1}
"""Labels of the 2-D phantoms, whose files hold object numbers."""


def write_phantoms_2d(
    folder: Path, cases: int = 16, seed: int = 0, unlabelled: int = 4, truth: Path | None = None
) -> PhantomSet:
    """Writes OME-TIFF pictures of touching nuclei with exact object labels.

    ``folder/images/<case>.ome.tif`` (uint16, pixel size declared) and ``folder/labels/<case>.tif`` (uint16 object
    numbers) are for training, ``folder/unlabelled/<case>.ome.tif`` for prediction; the labels of the latter lie in
    ``truth``.

    Args:
        folder: Where to write; made if missing.
        cases: Number of labelled pictures.
        seed: The same seed gives the same files.
        unlabelled: Number of further pictures.
        truth: Folder for the labels of the unlabelled; default ``folder/truth``.
    """
    found = places(folder, truth, [f"field{n + 1:02d}" for n in range(cases + unlabelled)], cases, (".ome.tif", ".tif"))
    for number, (image, label) in enumerate(found.pairs()):
        picture, objects, pixel_um = make_nuclei(seed, number)
        _write_picture(image, picture, pixel_um, number)
        _write_objects(label, objects, pixel_um)
    return replace(found, label_names=NUCLEI)


def make_nuclei(
    seed: int, number: int, shape: tuple[int, int] = (160, 192)
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16], float]:
    """Returns a picture (rows, cols), its object numbers (rows, cols) and the pixel size in um."""
    random = np.random.default_rng([seed, number, 2])
    pixel_um = float(random.choice([0.4, 0.5]))
    y, x = np.indices(shape) * pixel_um
    height, width = shape[0] * pixel_um, shape[1] * pixel_um
    best = np.full(shape, np.inf)
    objects = np.zeros(shape, dtype=np.uint16)
    brightness = [0.0]
    for row in _place_nuclei(random, height, width):
        centre_y, centre_x, major, minor, angle = row
        along = (x - centre_x) * np.cos(angle) + (y - centre_y) * np.sin(angle)
        across = (y - centre_y) * np.cos(angle) - (x - centre_x) * np.sin(angle)
        radius = np.hypot(along / major, across / minor)
        closer = (radius < 1.0) & (radius < best)
        brightness.append(float(random.uniform(0.12, 0.75)))
        objects[closer] = len(brightness) - 1
        best[closer] = radius[closer]
    signal = np.asarray(brightness)[objects] * (1.0 - 0.35 * np.where(objects > 0, best, 0.0) ** 2)
    lamp_y, lamp_x = random.uniform(-0.5, 0.5, 2)
    uneven = 0.95 * np.exp(-((x / width - 0.5 - lamp_x) ** 2 + (y / height - 0.5 - lamp_y) ** 2) / 0.18)
    clean = 0.08 + uneven + signal
    noisy = random.poisson(clean * 900.0) / 900.0 + random.normal(0.0, 0.02, shape)
    picture = np.clip(np.rint(noisy * 16000.0), 0, 65535).astype(np.uint16)
    _, compact = np.unique(objects, return_inverse=True)  # a covered nucleus leaves no gap in the numbers
    return picture, compact.reshape(shape).astype(np.uint16), pixel_um


def _place_nuclei(random: np.random.Generator, height: float, width: float) -> list[FloatArray]:
    """Returns (y, x, half axes, angle) of nuclei in um, in clumps of one to four that touch."""
    clumps = max(4, round(height * width / 480.0))
    placed: list[FloatArray] = []
    for _ in range(clumps):
        centre = random.uniform([0.0, 0.0], [height, width])
        for _ in range(int(random.integers(1, 5))):
            major, minor = random.uniform(4.5, 6.5), random.uniform(3.4, 4.6)
            placed.append(np.array([*centre, major, minor, random.uniform(0.0, np.pi)]))
            heading = random.uniform(0.0, 2.0 * np.pi)
            centre = centre + random.uniform(7.0, 9.0) * np.array([np.sin(heading), np.cos(heading)])
    kept: list[FloatArray] = []
    for nucleus in placed:
        if all(np.hypot(*(nucleus[:2] - other[:2])) > 6.5 for other in kept):
            kept.append(nucleus)
    return kept


def _write_picture(path: Path, picture: npt.NDArray[np.uint16], pixel_um: float, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {
        "axes": "YX",
        "UUID": f"urn:uuid:00000000-0000-4000-8000-{number:012d}",
        "PhysicalSizeX": pixel_um,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": pixel_um,
        "PhysicalSizeYUnit": "µm",
    }
    tifffile.imwrite(path, picture, ome=True, photometric="minisblack", metadata=metadata, compression="zlib")


def _write_objects(path: Path, objects: npt.NDArray[np.uint16], pixel_um: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(
        path, objects, imagej=True, resolution=(1.0 / pixel_um, 1.0 / pixel_um), metadata={"axes": "YX", "unit": "um"}
    )
