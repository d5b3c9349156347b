"""One window of an image as a network sees it, and what the network says of it when parts are hidden."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import prod
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unet_med.geometry import undo_reorient
from unet_med.inference.chances import label_chances
from unet_med.inference.loaded import LoadedModel
from unet_med.inference.tiling import WindowAxis
from unet_med.labels import LabelMap
from unet_med.networks import Segmenter
from unet_med.transforms.preprocess import Prepared
from unet_med.transforms.resample import spline_rows
from unet_med.volume import Region, Volume

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]

_BATCH_VOXELS = 2**18
"""Voxels that go through the network together."""


@dataclass(frozen=True, eq=False)
class View:
    """A window of an image.

    Attributes:
        network: What looks at it, in eval mode.
        labels: What the outputs of the network mean.
        axes: One window along each axis of the network's grid.
        region: The voxels of that grid that the window reads: beyond what it labels where the network needs context.
        image: (C, *region) float32, normalised, on the network's device.
        spacing_mm: Of the network's grid; ``None`` when uncalibrated.
    """

    network: Segmenter
    labels: LabelMap
    axes: tuple[WindowAxis, ...]
    region: Region
    image: Tensor
    spacing_mm: tuple[float, ...] | None

    @classmethod
    def at(cls, model: LoadedModel, prepared: Prepared, centre: Sequence[int]) -> Self:
        """Puts the window of a model around a voxel, as far as the image reaches.

        A 2-D model sees the slice of that voxel.

        Args:
            model: Whose window it is.
            prepared: The image, with the channels of a first stage where the model is a cascade.
            centre: A voxel of the network's grid.
        """
        size, window = prepared.geometry.shape, model.tiles.window
        sides = zip(size, window, model.context, centre, strict=False)
        axes = [_placed(n, wide, border, middle) for n, wide, border, middle in sides]
        through = model.bundle.config.network.slices // 2
        axes += [
            WindowAxis(n, 1, through, (middle,), (torch.ones(1),))
            for n, middle in zip(size[len(window) :], centre[len(window) :], strict=True)
        ]
        region = tuple(slice(*axis.support(0)) for axis in axes)
        rows = prepared.slab(0, region[0].start, region[0].stop)[(slice(None), slice(None), *region[1:])]
        network = cast("Segmenter", model.network)
        image = rows.to(model.device).contiguous()
        return cls(network, model.bundle.labels, tuple(axes), region, image, prepared.geometry.spacing_mm)

    @property
    def inside(self) -> Region:
        """The voxels of the network's grid that the window labels."""
        return tuple(slice(*axis.inside(0)) for axis in self.axes)

    @property
    def labelled(self) -> Region:
        """The same voxels, counted from the beginning of :attr:`region`."""
        return tuple(
            slice(part.start - whole.start, part.stop - whole.start)
            for part, whole in zip(self.inside, self.region, strict=True)
        )

    @property
    def is_flat(self) -> bool:
        """Whether a 2-D network looks at a slice of a volume."""
        return self.network.layout.dims < len(self.axes)

    def entering(self, image: Tensor) -> Tensor:
        """Returns what the network gets for (C, *region): (channels, *window with context)."""
        for n, axis in enumerate(self.axes):
            image = axis.read(image, n + 1, 0, self.region[n].start)
        return image.movedim(-1, 1).flatten(0, 1) if self.is_flat else image

    def trimmed(self, output: Tensor) -> Tensor:
        """Returns the part of an output (N, outputs, *window) that lies inside of the image, (N, outputs, *inside)."""
        output = output[..., None] if self.is_flat else output
        for n, axis in enumerate(self.axes):
            output = axis.trimmed(output, n + 2, 0)
        return output

    def logits(self, images: Sequence[Tensor], network: Segmenter | None = None) -> Tensor:
        """Returns (N, outputs, *inside) of N images (C, *region); ``network`` looks in place of the view's own."""
        with torch.inference_mode():
            batch = torch.stack([self.entering(image) for image in images])
            return self.trimmed((network or self.network)(batch)).float()

    def found(self) -> npt.NDArray[Any]:
        """Returns the labels (*inside) that the network gives to this window alone."""
        return self.labels.from_outputs(self.logits([self.image])[0])

    def confidences(
        self,
        images: Iterable[Tensor],
        masks: Sequence[BoolArray],
        places: Sequence[int],
        network: Segmenter | None = None,
    ) -> FloatArray:
        """Returns how likely labels are within their masks, on average, for each of many images.

        Args:
            images: (C, *region) each.
            masks: (*inside) for each label, none empty.
            places: Which label of the map each one is, from 0.
            network: Looks in place of the view's own.

        Returns:
            (images, labels), from 0 to 1.
        """
        rows = []
        for some in _batches(images, max(1, _BATCH_VOXELS // prod(self.image.shape[1:]))):
            chances = label_chances(self.logits(some, network).movedim(1, 0), self.labels)
            inside = zip(places, masks, strict=True)
            rows.append(np.stack([chances[place][:, mask].mean(axis=1) for place, mask in inside], axis=1))
        return np.concatenate(rows).astype(np.float64)


def _batches(images: Iterable[Tensor], size: int) -> Iterator[list[Tensor]]:
    rest = iter(images)
    while some := list(islice(rest, size)):
        yield some


def _placed(size: int, window: int, border: int, centre: int) -> WindowAxis:
    """One window around a voxel; an axis shorter than it lies in its middle."""
    missing = max(0, window - size)
    start = -(missing // 2) if missing else min(max(0, centre - window // 2), size - window)
    return WindowAxis(size, window, border, (start,), (torch.ones(min(size, window)),))


def prepared_for(model: LoadedModel, volume: Volume) -> Prepared:
    """Returns an image as a model sees it, with what its first stage found where it is a cascade.

    Raises:
        ModelError: when the number of channels is not the model's.
        InputRefusedError: when the image cannot be prepared.
    """
    prepared = model.preprocessor.prepare(volume)
    return prepared if model.low is None else model.with_prior(prepared, model.low.predict(volume).labels)


def on_image(prepared: Prepared, region: Region, values: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
    """Brings a map from a region of the network's grid to the image, as logits go back; 0 elsewhere.

    Args:
        prepared: The image.
        region: Of the network's grid.
        values: (*region).

    Returns:
        (I, J[, K]) on the image's own grid.
    """
    whole = torch.zeros(prepared.geometry.shape)
    whole[region] = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    box = tuple(part.stop - part.start for part in prepared.box)
    grid = whole[None]
    for axis, (size, wanted) in enumerate(zip(prepared.geometry.shape, box, strict=True)):
        grid = spline_rows(grid, axis + 1, prepared.back[axis], 0, size, wanted, 0, wanted)
    turned = np.zeros([prepared.reference.shape[axis] for axis in prepared.order], dtype=np.float32)
    turned[prepared.box] = grid[0].numpy()
    return np.ascontiguousarray(undo_reorient(turned, prepared.order, prepared.flips))
