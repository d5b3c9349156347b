"""From an image on its own grid to what the network sees, and back.

Training, validation and prediction all build this one object from the resolved configuration, so they cannot
differ. The steps: turn the axes towards RAS, crop to what is not zero, normalise, resample. The order and the rules
follow nnU-Net (Isensee et al., Nature Methods 18, 203-211, 2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from unet_med.config import ChannelNormalisation, PipelineConfig
from unet_med.errors import ConfigError, InputRefusedError, ModelError
from unet_med.geometry import Geometry, reorient
from unet_med.transforms.intensity import Intensity, measure, nonzero_box
from unet_med.transforms.resample import GridChange, Scratch, resample_labels
from unet_med.volume import Region, Volume

ANISOTROPY_RATIO = 3.0
"""Above this ratio of spacings the coarse axis is resampled separately, by the nearest slice."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image ready for the network, with all that is needed to go back.

    Nothing of it is held at full size: a slab is normalised and resampled when it is asked for.

    Attributes:
        geometry: The network's grid.
        reference: The grid the image came on.
        order, flips: How the axes were turned (see :func:`unet_med.geometry.reorient`).
        box: The part of the turned image that was kept.
    """

    geometry: Geometry
    reference: Geometry
    order: tuple[int, ...]
    flips: tuple[bool, ...]
    box: Region
    _image: npt.NDArray[Any]
    _intensities: tuple[Intensity, ...]
    _change: GridChange

    def slab(self, axis: int, start: int, stop: int, device: torch.device | None = None) -> torch.Tensor:
        """Returns the rows [start, stop) along a spatial axis: (C, *grid) float32, the other axes whole.

        However the grid is cut, a voxel gets the same value: to the bit where nothing is resampled, else to the
        rounding of float32 (see :mod:`unet_med.transforms.resample`).

        Args:
            axis: Axis of the network's grid.
            start: First row.
            stop: The row after the last.
            device: Where to compute; ``None``: on the CPU.
        """
        return self._change.slab(self._normalised(axis, start, stop, device), axis, start, stop)

    @property
    def array(self) -> npt.NDArray[np.float32]:
        """All of it: (C, I, J[, K]) float32, computed anew at every access."""
        whole = np.empty((len(self._intensities), *self.geometry.shape), dtype=np.float32)
        scratch = Scratch()
        for start, stop in self._change.chunks():
            place = torch.from_numpy(whole[:, start:stop])
            self._change.slab(self._normalised(0, start, stop), 0, start, stop, place, scratch)
        return whole

    def _normalised(self, axis: int, start: int, stop: int, device: torch.device | None = None) -> torch.Tensor:
        """What the rows [start, stop) are resampled from."""
        cut = self._image[(slice(None),) * (axis + 1) + (slice(*self._change.support(axis, start, stop)),)]
        values = torch.from_numpy(np.array(cut, dtype=np.float32, order="C")).to(device or "cpu")
        outside = (values == 0).all(dim=0) if any(one.masked for one in self._intensities) else None
        for channel, intensity in zip(values, self._intensities, strict=True):
            intensity.apply_(channel, outside)
        return values


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

    def prepare(self, volume: Volume) -> Prepared:
        """Decides on the grid and measures the intensities; the volume is neither copied nor changed.

        The result reads the volume's array when it is asked for voxels.

        Raises:
            ModelError: if the number of channels is not the pipeline's.
            InputRefusedError: for a constant channel, or an uncalibrated image where millimetres are needed.
        """
        if volume.channels != len(self._normalisation):
            raise ModelError(
                f"made for {len(self._normalisation)} channels, the image has {volume.channels}",
                remedy="choose the channels with --channel, or train on images like these",
            )
        order, flips = volume.geometry.canonical_axes()
        turned = reorient(volume.array, order, flips)
        geometry = volume.geometry.reoriented(order, flips)
        box = nonzero_box(turned) if self._crop else tuple(slice(0, n) for n in geometry.shape)
        image = turned[(slice(None), *box)]
        intensities = measure(image, self._normalisation, nonzero_only=self._crop)
        kept = geometry.crop(box)
        grid = self._network_grid(kept)
        change = GridChange(kept.shape, grid.shape, self._image_order, _coarse_axis(kept, grid))
        return Prepared(grid, volume.geometry, order, flips, box, image, intensities, change)

    def prepare_label(self, label: npt.NDArray[np.integer[Any]], prepared: Prepared) -> npt.NDArray[np.integer[Any]]:
        """Brings labels (I, J[, K]) from the reference grid to the network's; linear per label, then the largest."""
        turned = reorient(label, prepared.order, prepared.flips)[prepared.box]
        return resample_labels(turned, prepared.geometry.shape)

    def _network_grid(self, geometry: Geometry) -> Geometry:
        if self._spacing_mm is None:
            return geometry
        own = geometry.spacing_mm
        if own is None:
            raise InputRefusedError(
                "the image says nothing about its pixel size, and this model works in millimetres",
                remedy="give the size with --pixel-size",
            )
        wanted = self._spacing_mm + own[len(self._spacing_mm) :]  # a 2-D network leaves the slice axis alone
        return geometry.resampled(wanted[: geometry.ndim])


def _coarse_axis(kept: Geometry, grid: Geometry) -> int | None:
    """The axis that is resampled by the nearest slice, or ``None``."""
    for geometry in (kept, grid):
        spacing = geometry.spacing_mm
        if spacing is not None and geometry.ndim == 3 and max(spacing) / min(spacing) > ANISOTROPY_RATIO:
            return int(np.argmax(spacing))
    return None
