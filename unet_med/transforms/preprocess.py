"""From an image on its own grid to what the network sees, and back.

Training, validation and prediction all build this one object from the resolved configuration, so they cannot
differ. The steps: turn the axes towards RAS, crop to what is not zero, normalise, resample. The order and the rules
follow nnU-Net (Isensee et al., Nature Methods 18, 203-211, 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from unet_med.config import ChannelNormalisation, PipelineConfig, Preprocess
from unet_med.errors import ConfigError, InputRefusedError, ModelError
from unet_med.geometry import Geometry, reorient
from unet_med.io.mapped import let_go
from unet_med.transforms.intensity import Intensity, filled, measure, nonzero_box
from unet_med.transforms.prior import Prior
from unet_med.transforms.resample import GridChange, Order, Scratch, resample_labels
from unet_med.volume import LazyArray, Region, Volume

ANISOTROPY_RATIO = 3.0
"""Above this ratio of spacings the coarse axis is resampled separately, by the nearest slice."""

_RANGE_ROWS = 16
_COPIED_ROWS = 128


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image ready for the network, with all that is needed to go back.

    Nothing of it is held at full size: a slab is normalised and resampled when it is asked for.

    Attributes:
        geometry: The network's grid.
        reference: The grid the image came on.
        order, flips: How the axes were turned (see :func:`unet_med.geometry.reorient`).
        box: The part of the turned image that was kept.
        prior: The mask of a cascade's first stage on the network's grid, whose channels follow the image's.
        back: Spline orders by which logits go back to the image, one for each axis: linear, or the nearest slice.
    """

    geometry: Geometry
    reference: Geometry
    order: tuple[int, ...]
    flips: tuple[bool, ...]
    box: Region
    back: tuple[Order, ...]
    _image: npt.NDArray[Any]
    _intensities: tuple[Intensity, ...]
    _change: GridChange
    _mask: npt.NDArray[np.bool_] | None = None
    _keeps_range: bool = False
    prior: Prior | None = None

    def slab(self, axis: int, start: int, stop: int, device: torch.device | None = None) -> torch.Tensor:
        """Returns the rows [start, stop) along a spatial axis: (C, *grid) float32, the other axes whole.

        The channels of :attr:`prior` are the last ones.

        However the grid is cut, a voxel gets the same value: to the bit where nothing is resampled, else to the
        rounding of float32 (see :mod:`unet_med.transforms.resample`).

        Args:
            axis: Axis of the network's grid.
            start: First row.
            stop: The row after the last.
            device: Where to compute; ``None``: on the CPU.
        """
        rows = self._normalised(axis, *self._change.support(axis, start, stop), device)
        rows = self._within_range(self._change.slab(rows, axis, start, stop), axis, start, stop)
        return rows if self.prior is None else self.prior.joined(rows, axis, start, stop)

    @property
    def slowest(self) -> int | None:
        """The axis along which an image that is not in memory is read in order; ``None`` for one that is."""
        image: object = self._image
        return self.order.index(image.slowest) if isinstance(image, LazyArray) else None

    @property
    def intensities(self) -> tuple[Intensity, ...]:
        """How each channel is normalised."""
        return self._intensities

    @property
    def array(self) -> npt.NDArray[np.float32]:
        """All of the image: (C, I, J[, K]) float32, computed anew at every access."""
        whole = np.empty((len(self._intensities), *self.geometry.shape), dtype=np.float32)
        scratch = Scratch()
        for start, stop in self._change.chunks():
            place = torch.from_numpy(whole[:, start:stop])
            rows = self._normalised(0, *self._change.support(0, start, stop))
            self._within_range(self._change.slab(rows, 0, start, stop, place, scratch), 0, start, stop)
        return whole

    def copy_to(self, out: npt.NDArray[np.float32]) -> None:
        """Writes all of the image into ``out``, (C, I, J[, K]), part by part in the order in which it is read."""
        axis = self.slowest or 0
        for start in range(0, self.geometry.shape[axis], _COPIED_ROWS):
            stop = min(start + _COPIED_ROWS, self.geometry.shape[axis])
            out[(slice(None),) * (axis + 1) + (slice(start, stop),)] = self.slab(axis, start, stop).numpy()
            let_go(out)

    def _normalised(self, axis: int, start: int, stop: int, device: torch.device | None = None) -> torch.Tensor:
        """The rows [start, stop) of the kept image along an axis, (C, *s)."""
        rows = (slice(None),) * axis + (slice(start, stop),)
        cut = self._image[(slice(None), *rows)]
        values = torch.from_numpy(np.array(cut, dtype=np.float32, order="C")).to(device or "cpu")
        kinds = {one.inside for one in self._intensities}
        outside = {}
        if "nonzero" in kinds:
            outside["nonzero"] = (values == 0).all(dim=0)
        if "filled" in kinds and self._mask is not None:
            outside["filled"] = torch.from_numpy(~self._mask[rows]).to(values.device)
        for channel, intensity in zip(values, self._intensities, strict=True):
            intensity.apply_(channel, outside.get(intensity.inside))
        return values

    def _within_range(self, rows: torch.Tensor, axis: int, start: int, stop: int) -> torch.Tensor:
        """Takes back in place what a spline overshoots: values of ``rows`` beyond those that it interpolates."""
        if not self._keeps_range or self._change.source == self._change.target:
            return rows
        lowest, highest = (limit.to(rows.device) for limit in self._range)
        if axis == self._change.coarse:
            lowest, highest = (limit.narrow(axis + 1, start, stop - start) for limit in (lowest, highest))
        return torch.clamp(rows, lowest, highest, out=rows)

    @cached_property
    def _range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Lowest and highest value of each channel, of each slice where slices are interpolated on their own."""
        coarse = self._change.coarse
        axis = (self.slowest or 0) if coarse is None else coarse
        others = tuple(n + 1 for n in range(self._image.ndim - 1) if n != axis)
        size = self._image.shape[axis + 1]
        rows = [self._normalised(axis, n, min(n + _RANGE_ROWS, size)) for n in range(0, size, _RANGE_ROWS)]
        lowest = torch.cat([part.amin(others, keepdim=True) for part in rows], axis + 1)
        highest = torch.cat([part.amax(others, keepdim=True) for part in rows], axis + 1)
        if coarse is None:
            return lowest.amin(axis + 1, keepdim=True), highest.amax(axis + 1, keepdim=True)
        nearest = self._change.nearest(coarse)
        return lowest.index_select(axis + 1, nearest), highest.index_select(axis + 1, nearest)


class Preprocessor:
    """Preprocessing of a resolved pipeline.

    Raises:
        ConfigError: if the pipeline still holds ``auto`` values that preprocessing needs.
    """

    def __init__(self, config: PipelineConfig) -> None:
        settings = config.preprocess
        if settings.normalisation == "auto" or settings.spacing_mm == "auto" or settings.crop_to_nonzero == "auto":
            raise ConfigError(
                "preprocessing is not resolved", "preprocess", "resolve the pipeline with `unet-med plan`"
            )
        self._normalisation: list[ChannelNormalisation] = settings.normalisation
        self._spacing_mm = settings.spacing_mm
        self._crop = settings.crop_to_nonzero
        self._image_order = settings.image_order
        self._settings = settings

    def prepare(self, volume: Volume) -> Prepared:
        """Decides on the grid and measures the intensities; the volume is neither copied nor changed.

        The result reads the volume's array when it is asked for voxels, which may be an array that is not in memory
        (:func:`unet_med.volume.lazily`).

        Raises:
            ModelError: if the number of channels is not the pipeline's.
            InputRefusedError: for a constant channel, or an uncalibrated image where millimetres are needed.
        """
        if volume.channels != len(self._normalisation):
            raise ModelError(
                f"made for {len(self._normalisation)} channels, the image has {volume.channels}",
                remedy="choose the channels with --channel, or train on images like these",
            )
        order, flips = network_axes(volume.geometry, self._settings)
        turned = reorient(volume.array, order, flips)
        geometry = volume.geometry.reoriented(order, flips)
        box = nonzero_box(turned) if self._crop else tuple(slice(0, n) for n in geometry.shape)
        image = turned[(slice(None), *box)]
        mask = filled(image) if any(one.inside == "filled" for one in self._normalisation) else None
        intensities = measure(image, self._normalisation, nonzero_only=self._crop, mask=mask)
        kept = geometry.crop(box)
        wanted = self._spacing(kept)
        grid = kept if wanted is None else kept.resampled(wanted)
        exact = self._settings.resampling == "nnunet"
        own, new = kept.spacing_mm, wanted if exact else grid.spacing_mm
        change = GridChange(kept.shape, grid.shape, self._image_order, _coarse_axis((own, new), alone=exact))
        coarse = _coarse_axis((new, own), alone=True) if exact else None
        back: tuple[Order, ...] = tuple(0 if axis == coarse else 1 for axis in range(kept.ndim))
        keeps_range = exact and self._image_order == 3
        return Prepared(grid, volume.geometry, order, flips, box, back, image, intensities, change, mask, keeps_range)

    def prepare_label(self, label: npt.NDArray[np.integer[Any]], prepared: Prepared) -> npt.NDArray[np.integer[Any]]:
        """Brings labels (I, J[, K]) from the reference grid to the network's; linear per label, then the largest."""
        turned = reorient(label, prepared.order, prepared.flips)[prepared.box]
        return resample_labels(turned, prepared.geometry.shape)

    def prepare_chances(self, chances: npt.NDArray[np.float32], prepared: Prepared) -> npt.NDArray[np.float32]:
        """Brings (C, I, J[, K]) shares of one from the reference grid to the network's, linearly: (C, *grid)."""
        turned = reorient(chances, prepared.order, prepared.flips)[(slice(None), *prepared.box)]
        change = GridChange(turned.shape[1:], prepared.geometry.shape, 1)
        return change.whole(torch.from_numpy(np.array(turned, dtype=np.float32, order="C"))).numpy()

    def _spacing(self, geometry: Geometry) -> tuple[float, ...] | None:
        """The spacing that the pipeline asks for; ``None`` to keep the image's own voxels."""
        if self._spacing_mm is None:
            return None
        own = geometry.spacing_mm
        if own is None:
            raise InputRefusedError(
                "the image says nothing about its pixel size, and this model works in millimetres",
                remedy="give the size with --pixel-size",
            )
        wanted = self._spacing_mm + own[len(self._spacing_mm) :]  # a 2-D network leaves the slice axis alone
        return tuple(wanted[: geometry.ndim])


def network_axes(geometry: Geometry, settings: Preprocess) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Returns how the axes of an image are turned for the network, ``(order, flips)`` of :func:`reorient`.

    Args:
        geometry: Grid of the image.
        settings: ``orientation`` and ``axes`` are used; a picture has no third axis.
    """
    order, flips = geometry.canonical_axes()
    if settings.orientation == "stored":
        order, flips = tuple(range(geometry.ndim)), (False,) * geometry.ndim
    elif geometry.orientation:  # a picture has none
        flips = tuple(flip != (way in "LPI") for flip, way in zip(flips, settings.orientation, strict=True))
    if settings.axes is not None:
        chosen = [axis for axis in settings.axes if axis < geometry.ndim]
        order, flips = tuple(order[axis] for axis in chosen), tuple(flips[axis] for axis in chosen)
    return order, flips


def _coarse_axis(spacings: Sequence[tuple[float, ...] | None], alone: bool) -> int | None:
    """The axis that is resampled by the nearest slice: the coarsest of the first anisotropic spacing, or ``None``.

    Args:
        spacings: Spacings in mm, the one that decides first.
        alone: Whether two axes that are equally coarse are resampled like all others.
    """
    for spacing in spacings:
        if spacing is not None and len(spacing) == 3 and max(spacing) / min(spacing) > ANISOTROPY_RATIO:
            several = alone and spacing.count(max(spacing)) > 1
            return None if several else int(np.argmax(spacing))
    return None
