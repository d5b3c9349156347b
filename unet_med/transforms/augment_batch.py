"""The changes of :mod:`unet_med.transforms.augment`, applied to a batch at once on any device.

The draws are the same, and so is what they do: only the values of the noise differ, which a generator of the device
makes. Everything that depends on the draws alone (which box of a case, how large) is known without asking the device,
so nothing here waits for it. Sums of shifted copies stand in for convolutions: they stay float32 on cards whose
convolutions round to TF32, and are faster than a convolution of each channel on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from unet_med.transforms.augment import IntensityChange, SpatialChange, mirrored_index

_TRUNCATED = 4.0
"""Reach of a blur in standard deviations."""
_ROOT_2_PI = float(np.sqrt(2 * np.pi))


@dataclass(frozen=True, eq=False)
class Cut:
    """The box of a case that a patch is made of.

    Attributes:
        start: First voxel of the box along each axis; may be negative.
        size: Voxels of the box along each axis.
        centre: (d,) the patch's centre in the case, in voxels.
        change: What happens to the patch.
    """

    start: tuple[int, ...]
    size: tuple[int, ...]
    centre: npt.NDArray[np.float64]
    change: SpatialChange


def plan_cuts(
    centres: Sequence[npt.NDArray[np.float64]], changes: Sequence[SpatialChange], shape: tuple[int, ...]
) -> list[Cut]:
    """Returns the boxes that a batch of patches of ``shape`` needs.

    Patches that are only cropped and mirrored need as much as they are; the boxes of all others have one size, so that
    they can be interpolated together.
    """
    cuts = [_plan(centre, change, shape) for centre, change in zip(centres, changes, strict=True)]
    sizes = [cut.size for cut in cuts if not cut.change.is_crop]
    common = tuple(max(along) for along in zip(*sizes, strict=True))
    return [cut if cut.change.is_crop else Cut(cut.start, common, cut.centre, cut.change) for cut in cuts]


def _plan(centre: npt.NDArray[np.float64], change: SpatialChange, shape: tuple[int, ...]) -> Cut:
    if change.is_crop:
        start = [round(c - (n - 1) / 2) for c, n in zip(centre, shape, strict=True)]
        return Cut(tuple(start), shape, centre, change)
    corners = np.array(list(product(*[(-(n - 1) / 2, (n - 1) / 2) for n in shape]))) @ change.matrix.T
    reach = _reach(change, shape)
    low = np.floor(centre + corners.min(axis=0) - reach).astype(int) - 1
    size = np.ceil(centre + corners.max(axis=0) + reach).astype(int) + 2 - low
    return Cut(tuple(int(v) for v in low), tuple(int(v) for v in size), centre, change)


def _reach(change: SpatialChange, shape: tuple[int, ...]) -> float:
    """How far an elastic deformation can move a voxel: a bound, for its maximum is known on the device only."""
    if change.displacement is None:
        return 0.0
    control = change.displacement.shape[1:]
    gains = [np.abs(_spline_matrix(n, g)).sum(axis=1).max() for n, g in zip(shape, control, strict=True)]
    return float(np.abs(change.displacement).max() * np.prod(gains))


def read_box(source: Tensor | npt.NDArray[Any], cut: Cut, *, mirrored_border: bool) -> Tensor:
    """Reads the box of a cut, which may reach over the border of the case.

    Args:
        source: (C, *s), a tensor on any device, or an array that may be memory-mapped.
        cut: What to read.
        mirrored_border: Mirror the case at its border; zeros otherwise.

    Returns:
        (C, *cut.size) float32 on the device of ``source``.
    """
    lengths = source.shape[1:]
    if mirrored_border:
        spans = zip(cut.start, cut.size, lengths, strict=True)
        places = [mirrored_index(np.arange(start, start + n), length) for start, n, length in spans]
        box = _part(source, [(int(place.min()), int(place.max()) + 1) for place in places])
        for axis, place in enumerate(places):
            box = box.index_select(axis + 1, send(torch.from_numpy(place - place.min()), box.device))
        return box.float()
    spans = zip(cut.start, cut.size, lengths, strict=True)
    bounds = [(max(start, 0), min(start + n, length)) for start, n, length in spans]
    if any(low >= high for low, high in bounds):
        device = source.device if isinstance(source, Tensor) else None
        return torch.zeros((source.shape[0], *cut.size), device=device)
    padding: list[int] = []
    for (low, high), start, n in zip(reversed(bounds), reversed(cut.start), reversed(cut.size), strict=True):
        padding += (low - start, start + n - high)
    return F.pad(_part(source, bounds).float(), padding)


def _part(source: Tensor | npt.NDArray[Any], bounds: Sequence[tuple[int, int]]) -> Tensor:
    part = source[(slice(None), *(slice(low, high) for low, high in bounds))]
    if isinstance(part, Tensor):
        return part
    return torch.from_numpy(np.array(part, dtype=np.int32 if part.dtype == np.uint16 else None))


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Returns a tensor on a device without waiting for what the device is busy with."""
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def sample_patches(boxes: Sequence[Tensor], cuts: Sequence[Cut], shape: tuple[int, ...], *, nearest: bool) -> Tensor:
    """Applies spatial changes to a batch.

    Args:
        boxes: What :func:`read_box` returned for each of ``cuts``, all on one device.
        cuts: What :func:`plan_cuts` returned for ``shape``.
        shape: Size of the patches.
        nearest: Nearest voxel (labels) instead of linear interpolation.

    Returns:
        (N, C, *shape) float32.
    """
    patches = boxes[0].new_empty((len(boxes), boxes[0].shape[0], *shape))
    moved = [number for number, cut in enumerate(cuts) if not cut.change.is_crop]
    for number, (box, cut) in enumerate(zip(boxes, cuts, strict=True)):
        if cut.change.is_crop:
            patches[number] = box.flip([axis + 1 for axis in cut.change.flips]) if cut.change.flips else box
    if moved:
        sampled = F.grid_sample(
            torch.stack([boxes[number] for number in moved]),
            _grid([cuts[number] for number in moved], shape, patches.device),
            mode="nearest" if nearest else "bilinear",
            padding_mode="zeros",
            align_corners=True,
        )
        for row, number in enumerate(moved):
            patches[number] = sampled[row]
    return patches


def _grid(cuts: Sequence[Cut], shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Where the voxels of patches come from: (N, *shape, d) for ``grid_sample`` of their boxes, -1 to 1."""
    dims = len(shape)
    scale = 2.0 / (np.array(cuts[0].size) - 1.0)
    place = np.stack([(cut.centre - cut.start) * scale - 1.0 for cut in cuts])
    matrix = np.stack([cut.change.matrix * _signs(cut.change, dims) * scale[:, None] for cut in cuts])
    numbers = send(torch.from_numpy(np.concatenate([place[..., None], matrix], axis=2)).float(), device)
    position = numbers[..., 0].reshape(len(cuts), dims, *(1,) * dims)
    for axis, length in enumerate(shape):
        step = torch.arange(length, dtype=torch.float32, device=device) - (length - 1) / 2
        step = step.reshape([length if other == axis else 1 for other in range(dims)])
        position = position + numbers[..., 1 + axis].reshape(len(cuts), dims, *(1,) * dims) * step
    if any(cut.change.displacement is not None for cut in cuts):
        position = position + _fields(cuts, shape, scale, device)
    return position.flip(1).movedim(1, -1)


def _signs(change: SpatialChange, dims: int) -> npt.NDArray[np.float64]:
    """A mirrored patch is one whose steps from the centre are reversed."""
    return np.array([-1.0 if axis in change.flips else 1.0 for axis in range(dims)])


def _fields(
    cuts: Sequence[Cut], shape: tuple[int, ...], scale: npt.NDArray[np.float64], device: torch.device
) -> Tensor:
    """Elastic deformations (N, d, *shape): cubic interpolation of the control points over the patches."""
    some = next(cut.change.displacement for cut in cuts if cut.change.displacement is not None)
    control = [
        np.zeros_like(some)
        if cut.change.displacement is None
        else np.flip(cut.change.displacement, tuple(axis + 1 for axis in cut.change.flips))
        for cut in cuts
    ]
    field = send(torch.from_numpy(np.stack(control) * scale.reshape(-1, *(1,) * len(shape))).float(), device)
    for axis, length in enumerate(shape):
        weights = send(torch.from_numpy(_spline_matrix(length, field.shape[2 + axis])).float(), device)
        along = [length if other == axis else 1 for other in range(len(shape))]
        parts = (field.narrow(2 + axis, k, 1) * weights[:, k].reshape(along) for k in range(weights.shape[1]))
        field = reduce(torch.add, parts)
    return field


@lru_cache
def _spline_matrix(size: int, control: int) -> npt.NDArray[np.float64]:
    """(size, control): what each control point adds to each of ``size`` places evenly spread between first and last."""
    places = np.linspace(0, control - 1, size)[None]
    units = [ndimage.map_coordinates(unit, places, order=3, mode="mirror") for unit in np.eye(control)]
    return np.stack(units, axis=1)


# ---- intensities ----------------------------------------------------------------------------------------------------


def change_intensities(images: Tensor, changes: Sequence[IntensityChange]) -> Tensor:
    """Changes the values of a batch, in the order of :func:`unet_med.transforms.augment.apply_intensity`.

    Args:
        images: (N, C, *s) float32; overwritten.
        changes: One for each image.

    Returns:
        (N, C, *s) float32. Noise is a function of its seed and of the kind of device.
    """
    for number, change in enumerate(changes):
        if change.noise_sd is not None:
            generator = torch.Generator(images.device).manual_seed(change.noise_seed)
            noise = torch.randn(images.shape[1:], generator=generator, device=images.device)
            images[number].add_(noise, alpha=change.noise_sd)
    _change_some(images, _gaussians([change.blur_sigma for change in changes]), _blurred)
    _change_some(images, [change.brightness for change in changes], torch.mul)
    _change_some(images, [change.contrast for change in changes], _contrasted)
    for number, change in enumerate(changes):
        if change.zoom is not None:
            images[number] = _low_resolution(images[number], change.zoom)
    _change_some(images, [change.gamma_inverted for change in changes], lambda x, gamma: -_with_gamma(-x, gamma))
    _change_some(images, [change.gamma for change in changes], _with_gamma)
    return images


def _change_some(
    images: Tensor,
    values: Sequence[float | npt.NDArray[np.float64] | None],
    change: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """Applies ``change`` at once to the images that have a value; it gets their values as (n, v, 1, ..., 1)."""
    chosen = [(number, value) for number, value in enumerate(values) if value is not None]
    if not chosen:
        return
    given = send(torch.from_numpy(np.array([value for _, value in chosen], dtype=np.float32)), images.device)
    given = given.reshape(len(chosen), -1, *(1,) * (images.dim() - 2))
    changed = change(torch.stack([images[number] for number, _ in chosen]), given)
    for row, (number, _) in enumerate(chosen):
        images[number] = changed[row]


def _gaussians(sigmas: Sequence[float | None]) -> list[npt.NDArray[np.float64] | None]:
    """Sampled Gaussians, as long as the longest of them."""
    tails = [0 if sigma is None else int(max(sigma * _TRUNCATED, 0.5) + 0.5) for sigma in sigmas]
    x = np.arange(-max(tails), max(tails) + 1)
    return [
        None if sigma is None else np.where(abs(x) <= tail, np.exp(-0.5 * (x / sigma) ** 2), 0) / (sigma * _ROOT_2_PI)
        for sigma, tail in zip(sigmas, tails, strict=True)
    ]


def _blurred(images: Tensor, weights: Tensor) -> Tensor:
    """Convolves each image with its own weights along every axis; zeros beyond the border."""
    taps = weights.shape[1]
    for axis in range(2, images.dim()):
        padding = [0, 0] * (images.dim() - 1 - axis) + [taps // 2] * 2
        padded = F.pad(images, padding)
        parts = (padded.narrow(axis, k, images.shape[axis]) * weights[:, k : k + 1] for k in range(taps))
        images = reduce(torch.add, parts)
    return images


def _contrasted(images: Tensor, factor: Tensor) -> Tensor:
    axes = list(range(2, images.dim()))
    mean, low, high = (f(images, dim=axes, keepdim=True) for f in (torch.mean, torch.amin, torch.amax))
    return torch.clamp((images - mean) * factor + mean, low, high)


def _with_gamma(images: Tensor, gamma: Tensor) -> Tensor:
    """Gamma curve between the extremes of each image, whose mean and standard deviation stay as they are."""
    axes = list(range(1, images.dim()))
    low, high = images.amin(axes, keepdim=True), images.amax(axes, keepdim=True)
    width = high - low
    sd, mean = torch.std_mean(images, axes, keepdim=True)
    curve = ((images - low) / (width + 1e-7)) ** gamma * width + low
    curve_sd, curve_mean = torch.std_mean(curve, axes, keepdim=True)
    return torch.where(width > 0, (curve - curve_mean) / (curve_sd + 1e-8) * sd + mean, images)


def _low_resolution(image: Tensor, zoom: float) -> Tensor:
    size = image.shape[1:]
    small = tuple(max(1, round(n * zoom)) for n in size)
    coarse = F.interpolate(image[None], size=small, mode="nearest-exact")
    return F.interpolate(coarse, size=size, mode="trilinear" if len(size) == 3 else "bilinear", align_corners=False)[0]
