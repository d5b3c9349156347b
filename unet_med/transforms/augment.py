"""Random changes of training patches: first every parameter is drawn, then they are applied.

All spatial changes (rotation, scaling, elastic deformation, mirroring) are one resampling of the case at the
coordinates that the patch's voxels come from, so nothing is lost at the patch's border. Ranges follow nnU-Net; the
elastic deformation is that of Ronneberger et al. (2015): random displacements on a coarse grid, interpolated.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.transforms import AdjustContrast, GaussianSmooth
from scipy import ndimage

from unet_med.config import Augment
from unet_med.errors import ConfigError

FloatArray = npt.NDArray[np.float32]

_ANISOTROPY_RATIO = 3.0


@dataclass(frozen=True, eq=False)
class SpatialChange:
    """Where the voxels of a patch come from.

    Attributes:
        matrix: (d, d), patch offset in voxels from its centre -> offset in the case.
        displacement: (d, g, ..., g) voxels at the control points, or ``None``.
        flips: Axes of the patch that are reversed.
    """

    matrix: npt.NDArray[np.float64]
    displacement: npt.NDArray[np.float64] | None
    flips: tuple[int, ...]

    @property
    def is_crop(self) -> bool:
        """Whether it needs no interpolation."""
        return self.displacement is None and bool(np.array_equal(self.matrix, np.eye(len(self.matrix))))


@dataclass(frozen=True)
class IntensityChange:
    """What happens to the values of a patch; ``None`` where nothing does."""

    noise_sd: float | None
    noise_seed: int
    blur_sigma: float | None
    brightness: float | None
    contrast: float | None
    zoom: float | None
    gamma: float | None
    gamma_inverted: float | None


def draw_spatial(
    settings: Augment, rng: np.random.Generator, dims: int, spacing: tuple[float, ...] | None
) -> SpatialChange:
    """Draws rotation, scaling, elastic displacement and mirroring for a patch of ``dims`` axes.

    ``spacing`` is the network grid's: rotations are rotations in millimetres, and where one axis is more than three
    times coarser than the finest they stay in the plane of the others.
    """
    if settings.rotation_degrees == "auto" or settings.mirror_axes == "auto":
        raise ConfigError("augmentation is not resolved", "augment", "resolve the pipeline with `unet-med plan`")
    voxel = np.ones(dims) if spacing is None else np.asarray(spacing[:dims], dtype=np.float64)
    matrix = np.eye(dims)
    if rng.random() < settings.rotation_probability:
        rotation = _rotation(rng, dims, settings.rotation_degrees, voxel)
        matrix = np.diag(1 / voxel) @ rotation @ np.diag(voxel)
    if rng.random() < settings.scaling_probability:
        matrix = matrix / rng.uniform(*settings.scaling_factor)
    displacement = None
    if rng.random() < settings.elastic_probability:
        grid = (settings.elastic_grid,) * dims
        displacement = rng.normal(0.0, settings.elastic_sd_voxels, (dims, *grid)) * (voxel.min() / voxel).reshape(
            dims, *(1,) * dims
        )
    flips = tuple(a for a in settings.mirror_axes if a < dims and rng.random() < settings.mirror_probability)
    return SpatialChange(matrix, displacement, flips)


def draw_intensity(settings: Augment, rng: np.random.Generator) -> IntensityChange:
    """Draws the intensity changes of a patch."""

    def maybe(probability: float, bounds: tuple[float, float]) -> float | None:
        chosen, value = rng.random() < probability, float(rng.uniform(*bounds))
        return value if chosen else None

    variance = maybe(settings.noise_probability, settings.noise_variance)
    return IntensityChange(
        noise_sd=None if variance is None else variance**0.5,
        noise_seed=int(rng.integers(2**31)),
        blur_sigma=maybe(settings.blur_probability, settings.blur_sigma_voxels),
        brightness=maybe(settings.brightness_probability, settings.brightness_factor),
        contrast=maybe(settings.contrast_probability, settings.contrast_factor),
        zoom=maybe(settings.low_resolution_probability, settings.low_resolution_zoom),
        gamma=maybe(settings.gamma_probability, settings.gamma_range),
        gamma_inverted=maybe(settings.gamma_inverted_probability, settings.gamma_range),
    )


def sample_patch(
    array: npt.NDArray[Any],
    centre: npt.NDArray[np.float64],
    shape: tuple[int, ...],
    change: SpatialChange,
    *,
    nearest: bool,
    mirrored_border: bool,
) -> FloatArray:
    """Cuts a patch out of a case and applies a spatial change.

    Args:
        array: (C, *s), may be memory-mapped: only the part that is needed is read.
        centre: (d,) position of the patch's centre in the case, in voxels.
        shape: Size of the patch.
        change: What :func:`draw_spatial` returned.
        nearest: Nearest voxel (labels) instead of linear interpolation.
        mirrored_border: Mirror the case at its border; zeros otherwise.

    Returns:
        (C, *shape) float32.
    """
    if change.is_crop:
        patch = _crop(array, centre, shape, mirrored_border)
    else:
        patch = _resample(array, centre, shape, change, nearest, mirrored_border)
    if change.flips:
        patch = np.flip(patch, tuple(axis + 1 for axis in change.flips))
    return np.ascontiguousarray(patch, dtype=np.float32)


def apply_intensity(image: FloatArray, change: IntensityChange) -> FloatArray:
    """Returns the patch (C, *s) with its values changed, in nnU-Net's order."""
    if change.noise_sd is not None:
        noise = np.random.default_rng(change.noise_seed).standard_normal(image.shape, dtype=np.float32)
        image = image + noise * np.float32(change.noise_sd)
    if change.blur_sigma is not None:
        image = _to_numpy(GaussianSmooth(sigma=change.blur_sigma, approx="sampled")(torch.from_numpy(image)))
    if change.brightness is not None:
        image = image * np.float32(change.brightness)
    if change.contrast is not None:
        axes = tuple(range(1, image.ndim))
        mean = image.mean(axis=axes, keepdims=True)
        low, high = image.min(axis=axes, keepdims=True), image.max(axis=axes, keepdims=True)
        image = ((image - mean) * np.float32(change.contrast) + mean).clip(low, high)
    if change.zoom is not None:
        image = _low_resolution(image, change.zoom)
    for gamma, inverted in ((change.gamma_inverted, True), (change.gamma, False)):
        if gamma is not None and np.ptp(image) > 0:
            adjust = AdjustContrast(gamma=gamma, invert_image=inverted, retain_stats=True)
            image = _to_numpy(adjust(torch.from_numpy(np.ascontiguousarray(image))))
    return np.ascontiguousarray(image, dtype=np.float32)


def _to_numpy(values: Any) -> FloatArray:
    return np.asarray(torch.as_tensor(values), dtype=np.float32)


def _rotation(
    rng: np.random.Generator, dims: int, degrees: tuple[float, float], voxel: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    anisotropic = voxel.max() / voxel.min() > _ANISOTROPY_RATIO
    planes = [(a, b) for a in range(dims) for b in range(a + 1, dims)]
    if anisotropic:
        planes = [plane for plane in planes if int(voxel.argmax()) not in plane] or planes
    rotation = np.eye(dims)
    for a, b in planes:
        angle = np.deg2rad(rng.uniform(*degrees))
        turn = np.eye(dims)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        rotation = rotation @ turn
    return rotation


def _crop(
    array: npt.NDArray[Any], centre: npt.NDArray[np.float64], shape: tuple[int, ...], mirrored: bool
) -> FloatArray:
    starts = [round(c - (n - 1) / 2) for c, n in zip(centre, shape, strict=True)]
    return _read_box(array, starts, shape, mirrored)


def _read_box(array: npt.NDArray[Any], starts: list[int], shape: tuple[int, ...], mirrored: bool) -> FloatArray:
    """Reads a box that may reach over the border of the case."""
    if mirrored:
        patch = array
        for axis, (start, size) in enumerate(zip(starts, shape, strict=True)):
            patch = patch.take(mirrored_index(np.arange(start, start + size), array.shape[axis + 1]), axis=axis + 1)
        return np.asarray(patch, dtype=np.float32)
    box = np.zeros((array.shape[0], *shape), dtype=np.float32)
    source, target = [slice(None)], [slice(None)]
    for start, size, length in zip(starts, shape, array.shape[1:], strict=True):
        low, high = max(start, 0), min(start + size, length)
        if low >= high:
            return box
        source.append(slice(low, high))
        target.append(slice(low - start, high - start))
    box[tuple(target)] = array[tuple(source)]
    return box


def mirrored_index(index: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
    """Returns indices reflected at both borders of an axis, without repeating the border voxel."""
    if length == 1:
        return np.zeros_like(index)
    period = 2 * (length - 1)
    folded = np.abs(index) % period
    return np.where(folded >= length, period - folded, folded)


def _resample(
    array: npt.NDArray[Any],
    centre: npt.NDArray[np.float64],
    shape: tuple[int, ...],
    change: SpatialChange,
    nearest: bool,
    mirrored: bool,
) -> FloatArray:
    """Reads the box that the patch's voxels come from, and interpolates in it."""
    corners = np.array(list(product(*[(-(n - 1) / 2, (n - 1) / 2) for n in shape]))) @ change.matrix.T
    field = None if change.displacement is None else _smooth_field(change.displacement, shape)
    reach = 0.0 if field is None else float(np.abs(field).max())
    low = np.floor(centre + corners.min(axis=0) - reach).astype(int) - 1
    size = np.ceil(centre + corners.max(axis=0) + reach).astype(int) + 2 - low
    box = _read_box(array, [int(v) for v in low], tuple(int(v) for v in size), mirrored)
    grid = torch.empty((*shape, len(shape)), dtype=torch.float32)
    for axis in range(len(shape)):
        scale = 2.0 / max(int(size[axis]) - 1, 1)
        position = torch.full(shape, float(centre[axis] - low[axis]) * scale - 1.0)
        for source, length in enumerate(shape):
            step = torch.arange(length, dtype=torch.float32) - (length - 1) / 2
            along = [length if other == source else 1 for other in range(len(shape))]
            position += (step * float(change.matrix[axis, source] * scale)).reshape(along)
        if field is not None:
            position += torch.from_numpy(field[axis] * scale).float()
        grid[..., len(shape) - 1 - axis] = position
    sampled = torch.nn.functional.grid_sample(
        torch.from_numpy(box)[None],
        grid[None],
        mode="nearest" if nearest else "bilinear",
        padding_mode="zeros",
        align_corners=True,
    )
    return np.asarray(sampled[0].numpy(), dtype=np.float32)


def _smooth_field(displacement: npt.NDArray[np.float64], shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Cubic interpolation of the control points over the patch."""
    field = displacement
    for axis, size in enumerate(shape):
        control = field.shape[axis + 1]
        position = np.linspace(0, control - 1, size)
        field = ndimage.spline_filter1d(field, order=3, axis=axis + 1, mode="mirror")
        field = np.moveaxis(_cubic_weights(position, control) @ np.moveaxis(field, axis + 1, -2), -2, axis + 1)
    return field


def _cubic_weights(position: npt.NDArray[np.float64], control: int) -> npt.NDArray[np.float64]:
    """(len(position), control) weights of the cubic B-spline at each position, mirrored at the border."""
    weights = np.zeros((len(position), control))
    for shift in range(-1, 3):
        knot = np.floor(position).astype(int) + shift
        distance = np.abs(position - knot)
        value = np.where(distance < 1, 2 / 3 - distance**2 + distance**3 / 2, np.maximum(2 - distance, 0) ** 3 / 6)
        np.add.at(weights, (np.arange(len(position)), mirrored_index(knot, control)), value)
    return weights


def _low_resolution(image: FloatArray, zoom: float) -> FloatArray:
    small = tuple(max(1, round(n * zoom)) for n in image.shape[1:])
    tensor = torch.from_numpy(np.ascontiguousarray(image))[None]
    mode = "trilinear" if len(small) == 3 else "bilinear"
    coarse = torch.nn.functional.interpolate(tensor, size=small, mode="nearest-exact")
    return _to_numpy(torch.nn.functional.interpolate(coarse, size=image.shape[1:], mode=mode, align_corners=False)[0])
