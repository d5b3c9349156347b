"""Small data sets without fault, alike enough that one faulty case stands out, each case a body of its own."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import tifffile
from scipy import ndimage

from unet_med.io.discover import discover
from unet_med.manifest import BuildOptions, Manifest, build_manifest, load_manifest, save_manifest

Array = npt.NDArray[np.generic]
BODY_SHAPE = (40, 36, 28)
NAMES = "1=kidney_left,2=kidney_right"


def save_nifti(path: Path, values: Array, affine: Array | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.eye(4) if affine is None else affine), path)


def load_nifti(path: Path) -> Array:
    return np.asarray(nib.load(path).dataobj)


def body(seed: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """A body of its own shape and texture in air, and its two kidneys: left (1) is where R is small."""
    random = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, BODY_SHAPE), indexing="ij"), axis=-1).astype(float)
    middle = np.array(BODY_SHAPE) / 2 + random.uniform(-1, 1, 3)
    axes = np.array([17.0, 14.0, 12.0]) * random.uniform(0.9, 1.1, 3)
    inside = (((grid - middle) / axes) ** 2).sum(-1) < 1
    texture = ndimage.gaussian_filter(random.normal(size=BODY_SHAPE), 2.0)
    image = np.where(inside, 100 + 30 * texture / texture.std(), 0.0)
    label = np.zeros(BODY_SHAPE, np.uint8)
    for value, side in ((1, -1.0), (2, 1.0)):
        centre = middle + np.array([side * 8.0, -2.0, 0.0]) + random.uniform(-1, 1, 3)
        label[(((grid - centre) / np.array([3.5, 4.0, 6.0])) ** 2).sum(-1) < 1] = value
    image += 110.0 * (label > 0) + random.normal(0, 2.0, BODY_SHAPE)
    return image.astype(np.float32), label


def write_bodies(folder: Path, cases: int = 8, seed: int = 0) -> Path:
    for number in range(cases):
        image, label = body(1000 * seed + number)
        save_nifti(folder / f"images/c{number}.nii.gz", image)
        save_nifti(folder / f"labels/c{number}.nii.gz", label)
    return folder


def tissue(seed: int, shape: tuple[int, int] = (96, 96)) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """A picture (rows, columns) of smooth texture, and its bright parts."""
    random = np.random.default_rng(seed)
    texture = ndimage.gaussian_filter(random.normal(size=shape), 2.0)
    texture = texture / texture.std() + random.normal(0, 0.05, shape)
    return (120 + 35 * texture).clip(0, 255).astype(np.uint8), (texture > 0.8).astype(np.uint8)


def save_picture(folder: Path, name: str, image: Array, label: Array) -> None:
    for kind, values in (("images", image), ("labels", label)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(folder / kind / f"{name}.tif", values, photometric="minisblack")


def write_tissues(folder: Path, cases: int = 8, seed: int = 0) -> Path:
    for number in range(cases):
        save_picture(folder, f"p{number}", *tissue(1000 * seed + number))
    return folder


def manifest_of(folder: Path, path: Path, **options: object) -> Manifest:
    """Builds the manifest of a folder, writes it and reads it again."""
    report = build_manifest(folder, discover(folder), BuildOptions(**options), "set")  # type: ignore[arg-type]
    save_manifest(report.manifest, path)
    return load_manifest(path)
