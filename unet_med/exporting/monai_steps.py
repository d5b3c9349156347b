"""What stands before, around and after the network of a MONAI bundle: MONAI, torch, NumPy and SciPy, nothing else.

A bundle carries this file as ``scripts/steps.py``. It does what the package does in parts and rows, on whole images:
the grid, the intensities, the windows and the mask are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations, product
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from scipy import ndimage
from torch import Tensor

Settings = Mapping[str, Any]
Case = dict[str, Any]
Network = Callable[[Tensor], Tensor]
Array = npt.NDArray[Any]

_ANISOTROPIC = 3.0
_ROUNDING = 1e-9
_SMALLEST = 1e-8


class Prepare:
    """From an image as it is stored to what the network sees.

    Args:
        settings: ``preprocess`` of the pipeline; ``normalisation`` has one entry for each channel.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __call__(self, case: Case) -> Case:
        """Replaces ``image`` (C, I, J[, K]); ``box`` (3, axes) says what was kept: start, stop, size before."""
        image = case["image"]
        array = np.asarray(image.as_tensor().cpu().numpy(), dtype=np.float32)
        order, flips = network_axes(image.affine, array.ndim - 1, self._settings)
        turned = _turned(array, order, flips)
        box = [(0, size) for size in turned.shape[1:]]
        if self._settings["crop_to_nonzero"]:
            box = _nonzero_box(turned)
        kept = np.ascontiguousarray(turned[(slice(None), *(slice(*side) for side in box))])
        values = _normalised(kept, self._settings)
        grid = _Grid.of(image.affine, order, kept.shape[1:], self._settings)
        values = grid.resampled(values, int(self._settings["image_order"]), bool(self._settings["keeps_range"]))
        record = np.array([*zip(*box, strict=True), turned.shape[1:]])
        return {**case, "image": MetaTensor(torch.from_numpy(values), meta=image.meta), "box": record}


class Windows:
    """Runs a network on overlapping windows of an image of any size and blends what it says.

    Args:
        window: Voxels that a window puts out, along each axis of the network.
        context: Voxels that it reads beyond each of its ends; mirrored outside of the image.
        overlap: Share of a window that the next one covers at least.
        sigma: Width of the blending weight, in window lengths.
        centre: ``middle``, or ``voxel`` for half a voxel behind it.
        mirror_axes: Axes along which flips are averaged.
    """

    def __init__(
        self,
        window: Sequence[int],
        context: Sequence[int],
        overlap: float,
        sigma: float,
        centre: str = "middle",
        mirror_axes: Sequence[int] = (),
    ) -> None:
        self._window, self._context = tuple(window), tuple(context)
        self._overlap, self._sigma, self._centre = overlap, sigma, centre
        axes = [axis + 2 for axis in mirror_axes]
        self._flips = [list(some) for count in range(len(axes) + 1) for some in combinations(axes, count)]

    def __call__(self, inputs: Tensor, network: Network, *_: Any, **__: Any) -> Tensor:
        """Maps (N, C, *grid) to logits (N, outputs, *grid); a 2-D network goes through a volume slice by slice."""
        image = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        with torch.no_grad():
            if image.dim() - 2 == len(self._window):
                return self._blended(image, network)
            slices = [self._blended(image[..., number], network) for number in range(image.shape[-1])]
            return torch.stack(slices, dim=-1)

    def _blended(self, image: Tensor, network: Network) -> Tensor:
        sizes = tuple(image.shape[2:])
        sides = list(zip(sizes, self._window, self._context, strict=True))
        before = [max(0, window - size) // 2 for size, window, _ in sides]
        for axis, (size, window, border) in enumerate(sides):
            image = _extended(image, axis + 2, before[axis], max(0, window - size) - before[axis], border)
        axes = [_shares(max(size, window), window, self) for size, window, _ in sides]
        out: Tensor | None = None
        for places in product(*axes):
            patch = image
            for axis, ((start, _), window, border) in enumerate(zip(places, self._window, self._context, strict=True)):
                patch = patch.narrow(axis + 2, start, window + 2 * border)
            logits = self._run(patch.contiguous(), network)
            if out is None:
                out = logits.new_zeros((*logits.shape[:2], *map(max, sizes, self._window)))
            part = out
            for axis, (start, share) in enumerate(places):
                part = part.narrow(axis + 2, start, self._window[axis])
                logits = logits * share.to(logits.device).view(-1, *[1] * (len(sizes) - 1 - axis))
            part += logits
        if out is None:
            raise ValueError("an image without voxels has no windows")
        for axis, size in enumerate(sizes):
            out = out.narrow(axis + 2, before[axis], size)
        return out

    def _run(self, patch: Tensor, network: Network) -> Tensor:
        total: Tensor | None = None
        for flips in self._flips:
            logits = network(patch.flip(flips)).flip(flips) if flips else network(patch)
            total = logits if total is None else total + logits
        if total is None:
            raise ValueError("without any flip nothing is computed")
        return total / len(self._flips)


class Restore:
    """From logits on the network's grid to a mask on the grid of the image as it is stored.

    Args:
        settings: As for :class:`Prepare`.
        regions: Of overlapping regions the value of each, outermost first; nothing for labels that exclude each other.
        postprocess: ``keep_largest`` and ``fill_holes`` (values of labels) and ``minimum_voxels``.
    """

    def __init__(self, settings: Settings, regions: Sequence[int], postprocess: Settings) -> None:
        self._settings, self._regions, self._postprocess = settings, tuple(regions), postprocess

    def __call__(self, case: Case) -> Case:
        """Replaces ``pred``, logits (outputs, *grid), by the mask (1, I, J[, K]) with the metadata of ``image``."""
        image, logits = case["image"], case["pred"]
        logits = logits.as_tensor() if isinstance(logits, MetaTensor) else logits
        start, stop, size = np.asarray(case["box"]).reshape(3, -1).astype(int).tolist()
        shape = tuple(last - first for first, last in zip(start, stop, strict=True))
        order, flips = network_axes(image.affine, len(shape), self._settings)
        found = self._labels(_Grid.of(image.affine, order, shape, self._settings).returned(logits.float()))
        mask = np.zeros(size, dtype=np.uint8 if found.max(initial=0) < 256 else np.uint16)
        mask[tuple(slice(first, last) for first, last in zip(start, stop, strict=True))] = found
        mask = _turned_back(mask, order, flips)
        mask = _cleaned(mask, self._postprocess)
        return {**case, "pred": MetaTensor(torch.from_numpy(mask[None]), meta=image.meta)}

    def _labels(self, logits: Tensor) -> Array:
        if not self._regions:
            return np.asarray(logits.argmax(dim=0).cpu().numpy())
        labels = torch.zeros(logits.shape[1:], dtype=torch.int64, device=logits.device)
        for value, output in zip(self._regions, logits, strict=True):
            labels.masked_fill_(output > 0, value)
        return np.asarray(labels.cpu().numpy())


class Evaluate:
    """Goes from files to masks, one case after the other.

    Args:
        cases: What ``preprocessing`` takes.
        preprocessing, network, inferer, postprocessing: The parts of the bundle.
        device: Where the network is.
    """

    def __init__(
        self,
        cases: Iterable[Case],
        preprocessing: Callable[[Case], Case],
        network: Network,
        inferer: Callable[[Tensor, Network], Tensor],
        postprocessing: Callable[[Case], Case],
        device: torch.device,
    ) -> None:
        self._cases, self._before, self._after = cases, preprocessing, postprocessing
        self._network, self._inferer, self._device = network, inferer, device

    def run(self) -> int:
        """Predicts all cases and returns how many there were."""
        done = 0
        for entry in self._cases:
            case = self._before(entry)
            pred = self._inferer(case["image"][None].to(self._device), self._network)[0]
            self._after({**case, "pred": pred})
            done += 1
        return done


# ---- grids -----------------------------------------------------------------------------------------------------------


def network_axes(affine: Any, ndim: int, settings: Settings) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Returns which axis of the image becomes which of the network's, and which of these are then reversed."""
    order, flips = tuple(range(ndim)), (False,) * ndim
    if settings["orientation"] != "stored" and ndim == 3:
        world, signs = _closest_axes(np.asarray(affine, dtype=np.float64)[:3, :3])
        order = tuple(world.index(axis) for axis in range(3))
        flips = tuple(
            (signs[axis] < 0) != (way in "LPI") for axis, way in zip(order, settings["orientation"], strict=True)
        )
    if settings["axes"] is not None:
        chosen = [axis for axis in settings["axes"] if axis < ndim]
        order, flips = tuple(order[axis] for axis in chosen), tuple(flips[axis] for axis in chosen)
    return order, flips


def _closest_axes(matrix: Array) -> tuple[list[int], list[int]]:
    """Returns for each axis of the grid the axis of the world it follows, each once, and its sign."""
    cosines = matrix / np.linalg.norm(matrix, axis=0)
    left, world = np.abs(cosines), [0, 0, 0]
    for _ in range(3):
        row, column = np.unravel_index(int(np.argmax(left)), left.shape)
        world[int(column)] = int(row)
        left[row, :] = left[:, column] = -1.0
    return world, [1 if cosines[world[axis], axis] >= 0 else -1 for axis in range(3)]


def _turned(array: Array, order: Sequence[int], flips: Sequence[bool]) -> Array:
    turned = array.transpose(0, *(axis + 1 for axis in order))
    return np.asarray(turned[(slice(None), *(slice(None, None, -1 if flip else 1) for flip in flips))])


def _turned_back(array: Array, order: Sequence[int], flips: Sequence[bool]) -> Array:
    straight = array[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    return np.ascontiguousarray(straight.transpose(*np.argsort(order)))


def _nonzero_box(image: Array) -> list[tuple[int, int]]:
    found = (image != 0).any(axis=0)
    places = [
        np.flatnonzero(found.any(axis=tuple(n for n in range(found.ndim) if n != axis))) for axis in range(found.ndim)
    ]
    return [
        (int(at[0]), int(at[-1]) + 1) if at.size else (0, size) for at, size in zip(places, found.shape, strict=True)
    ]


class _Grid:
    """The change from the image's grid to the network's and back.

    Attributes:
        source, target: Shapes.
        coarse, coarse_back: The axis along which the nearest slice is taken on the way there and back, if any.
    """

    def __init__(
        self, source: tuple[int, ...], target: tuple[int, ...], coarse: int | None, coarse_back: int | None
    ) -> None:
        self.source, self.target, self.coarse, self.coarse_back = source, target, coarse, coarse_back

    @classmethod
    def of(cls, affine: Any, order: Sequence[int], shape: Sequence[int], settings: Settings) -> _Grid:
        source = tuple(shape)
        if settings["spacing_mm"] is None:
            return cls(source, source, None, None)
        sizes = np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0)
        own = tuple(float(sizes[axis]) for axis in order)
        wanted = (*settings["spacing_mm"], *own[len(settings["spacing_mm"]) :])[: len(own)]
        target = tuple(max(1, round(n * a / b)) for n, a, b in zip(source, own, wanted, strict=True))
        exact = bool(settings["nnunet"])
        new = wanted if exact else tuple(a * n / m for a, n, m in zip(own, source, target, strict=True))
        return cls(source, target, _coarse((own, new), exact), _coarse((new, own), True) if exact else None)

    def resampled(self, values: Array, order: int, keeps_range: bool) -> Array:
        """Returns (C, *target) float32 of (C, *source) by a spline, by the nearest slice along a coarse axis."""
        if self.source == self.target:
            return values
        fine = [m / n for n, m in zip(self.source, self.target, strict=True)]
        steps = np.ones(len(fine))
        if self.coarse is not None:
            steps[self.coarse], fine[self.coarse] = fine[self.coarse], 1.0
        out = np.stack([_zoomed(_zoomed(channel, steps, 0), fine, order) for channel in values])
        if keeps_range:
            others = tuple(axis for axis in range(values.ndim - 1) if axis != self.coarse)
            for channel, source in zip(out, values, strict=True):
                lowest, highest = (limit(source, axis=others, keepdims=True) for limit in (np.min, np.max))
                np.clip(channel, _zoomed(lowest, steps, 0), _zoomed(highest, steps, 0), out=channel)
        return out

    def returned(self, logits: Tensor) -> Tensor:
        """Returns (outputs, *source) of (outputs, *target), linearly, by the nearest slice along a coarse axis."""
        if self.source == self.target:
            return logits
        size = list(self.source)
        if self.coarse_back is not None:
            axis, rows = self.coarse_back, self.source[self.coarse_back]
            place = (torch.arange(rows, dtype=torch.float64) + 0.5) * (self.target[axis] / rows)
            logits = logits.index_select(axis + 1, place.floor().long().to(logits.device))
        mode = "bilinear" if len(size) == 2 else "trilinear"
        return F.interpolate(logits[None], size=size, mode=mode, align_corners=False)[0]


def _zoomed(array: Array, factors: Sequence[float] | Array, order: int) -> Array:
    if all(factor == 1.0 for factor in factors):
        return array
    return np.asarray(ndimage.zoom(array, factors, order=order, mode="nearest", grid_mode=True))


def _coarse(spacings: Sequence[Sequence[float]], alone: bool) -> int | None:
    """The coarsest axis of the first spacing that is anisotropic."""
    for spacing in spacings:
        if len(spacing) == 3 and max(spacing) / min(spacing) > _ANISOTROPIC:
            return None if alone and list(spacing).count(max(spacing)) > 1 else int(np.argmax(spacing))
    return None


# ---- intensities -----------------------------------------------------------------------------------------------------


def _normalised(image: Array, settings: Settings) -> Array:
    """Returns (C, *s) float32 of about zero mean and unit deviation."""
    inside = {"nonzero": (image != 0).any(axis=0)}
    inside["filled"] = ndimage.binary_fill_holes(inside["nonzero"]) if image.ndim == 4 else inside["nonzero"]
    usual = "nonzero" if settings["crop_to_nonzero"] else "all"
    return np.stack(
        [
            _normalised_channel(channel, one, inside.get(one["inside"] or usual))
            for channel, one in zip(image, settings["normalisation"], strict=True)
        ]
    )


def _normalised_channel(channel: Array, settings: Settings, inside: Array | None) -> Array:
    scheme = settings["scheme"]
    if scheme == "none":
        return channel
    if scheme == "ct":
        lowest, highest = settings["window"]
        clipped = np.clip(channel, np.float32(lowest), np.float32(highest))
        return np.asarray((clipped - np.float32(settings["mean"])) / np.float32(settings["sd"]))
    if scheme == "rescale":
        low, high = float(channel.min()), float(channel.max())
        return np.asarray((channel - np.float32(low)) / np.float32(high - low))
    if scheme == "percentile":
        low, high = np.quantile(channel.astype(np.float64), [0.005, 0.995])
        if high > low:
            channel = np.clip(channel, np.float32(low), np.float32(high))
    counted = (channel if inside is None else channel[inside]).astype(np.float64)
    mean, sd = (float(counted.mean()), float(counted.std())) if counted.size else (0.0, 0.0)
    values = (channel - np.float32(mean)) / np.float32(max(sd, _SMALLEST))
    return np.asarray(values if inside is None else np.where(inside, values, np.float32(0)))


# ---- windows ---------------------------------------------------------------------------------------------------------


def _extended(image: Tensor, axis: int, before: int, after: int, border: int) -> Tensor:
    """Returns the image with what windows read beyond its ends: mirrored where they read a border, else zeros."""
    if not border:
        return F.pad(image, [0, 0] * (image.dim() - 1 - axis) + [before, after]) if before or after else image
    size = image.shape[axis]
    index = torch.arange(-before - border, size + after + border, device=image.device)
    index = index.remainder(2 * (size - 1)) if size > 1 else torch.zeros_like(index)
    return image.index_select(axis, torch.where(index < size, index, 2 * (size - 1) - index))


def _shares(size: int, window: int, settings: Windows) -> list[tuple[int, Tensor]]:
    """Returns where windows begin along an axis, and the share of each in every voxel that it covers."""
    starts = [0]
    if size > window:
        count = ceil((size - window) / max(1.0, window * (1.0 - settings._overlap)) - _ROUNDING) + 1
        starts = [round(number * (size - window) / (count - 1)) for number in range(count)]
    middle = window // 2 if settings._centre == "voxel" else (window - 1) / 2
    place = (torch.arange(window, dtype=torch.float64) - middle) / (window * settings._sigma)
    weight = torch.exp((-0.5 * place**2).clamp_min(-60.0)).float().double()
    total = torch.zeros(size, dtype=torch.float64)
    for start in starts:
        total[start : start + window] += weight
    return [(start, (weight / total[start : start + window]).float()) for start in starts]


# ---- masks -----------------------------------------------------------------------------------------------------------


def _cleaned(mask: Array, settings: Settings) -> Array:
    """Returns the mask without small components, with the largest ones alone where asked, then without holes."""
    smallest, largest = settings["minimum_voxels"], set(settings["keep_largest"])
    for label in [int(value) for value in np.unique(mask) if value]:
        if smallest <= 1 and label not in largest:
            continue
        numbers, count = ndimage.label(mask == label)
        sizes = np.bincount(numbers.ravel(), minlength=count + 1)
        dropped = sizes < smallest
        if label in largest:
            dropped |= np.arange(count + 1) != 1 + int(np.argmax(sizes[1:]))
        dropped[0] = False
        mask[dropped[numbers]] = 0
    return _filled(mask, set(settings["fill_holes"]))


def _filled(mask: Array, labels: set[int]) -> Array:
    """Fills components of background that reach no border and touch one of these labels alone."""
    if not labels:
        return mask
    holes, count = ndimage.label(mask == 0)
    open_ends = [np.unique(holes.take([0, -1], axis=axis)) for axis in range(mask.ndim) if mask.shape[axis] > 1]
    closed = set(range(1, count + 1)) - set(np.concatenate(open_ends).tolist() if open_ends else [])
    boxes = ndimage.find_objects(holes)
    out = mask.copy()
    for number in closed:
        box = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in boxes[number - 1])
        hole = holes[box] == number
        around = np.unique(mask[box][ndimage.binary_dilation(hole) & ~hole])
        if len(around) == 1 and int(around[0]) in labels:
            out[box][hole] = around[0]
    return out
