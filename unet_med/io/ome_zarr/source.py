"""An OME-Zarr image as a source."""

from __future__ import annotations

import lzma
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.errors import InputRefusedError
from unet_med.io.channels import chosen_channels, named, names_of
from unet_med.io.ome_zarr.metadata import (
    ArrayHeader,
    Multiscale,
    Node,
    header_of,
    label_images,
    multiscale_of,
    read_node,
)
from unet_med.io.pixel_size import calibrated, known_sizes
from unet_med.io.reading import (
    COPY_FILE_AGAIN,
    check_frame,
    native,
    native_dtype,
    provisional_id,
    refused_ref,
    refusing,
    whole,
)
from unet_med.io.source import IntakeOptions, SourceRef
from unet_med.io.stack import CHANNEL_LETTERS, FRAME_LETTERS, StackSource, count, grid_of, meaning
from unet_med.volume import Region, Volume

_DAMAGED = "the Zarr folder is damaged or incomplete"
_FAULTS = (AttributeError, AssertionError, SystemError, lzma.LZMAError, zlib.error)
_SURELY_FITS = 2**28


def inspect_zarr(folder: Path, options: IntakeOptions = IntakeOptions()) -> list[SourceRef]:  # noqa: B008
    """Returns the source of an OME-Zarr image or Zarr array from its metadata; unusable where it is refused."""
    try:
        with refusing(_DAMAGED, "", COPY_FILE_AGAIN, *_FAULTS):
            return [_inspect(folder, options)]
    except InputRefusedError as error:
        return [refused_ref(folder, "zarr", error)]


def _inspect(folder: Path, options: IntakeOptions) -> SourceRef:
    image, headers = _arrays(folder)
    header = headers[0]
    letters, axes_used = meaning(image.axes, header.shape, options)
    axes, shape = _squeezed(letters, header.shape)
    names = names_of(image.channels, count(axes, shape, CHANNEL_LETTERS))
    picked, channels_used = chosen_channels(names, options)
    grid = grid_of(axes, shape)
    own, missing = known_sizes(image.spacing("XYZ"[: len(grid)]))
    geometry, size_used, more = calibrated(grid, own, options, microscope=True)
    held = label_images(folder)
    return SourceRef(
        id=provisional_id(folder),
        kind="zarr",
        files=(folder,),
        axes=axes,
        shape=shape,
        geometry=geometry,
        channels=len(picked),
        channel_names=named(names, picked),
        frames=count(axes, shape, FRAME_LETTERS),
        seconds_per_frame=image.seconds() if "T" in axes else None,
        levels=_levels(letters, axes, headers),
        dtype=native_dtype(header.dtype),
        notes=(
            *([] if size_used else missing),
            *more,
            *([f"its folder holds label images, too: {', '.join(held)}"] if held else []),
        ),
        read_as=axes_used | channels_used | size_used,
    )


def _arrays(folder: Path) -> tuple[Multiscale, list[ArrayHeader]]:
    """Returns the image in a folder and the headers of its arrays; a smaller copy that is damaged is left out."""
    node = _node(folder)
    image = multiscale_of(node)
    headers = [header_of(_node(folder / image.paths[0]))]
    if len(image.axes) != len(headers[0].shape):
        raise InputRefusedError("the axes of the OME-Zarr image are not those of its array", remedy=COPY_FILE_AGAIN)
    for path in image.paths[1:]:
        try:
            headers.append(header_of(_node(folder / path)))
        except InputRefusedError:
            break
    return image, headers


def _node(folder: Path) -> Node:
    node = read_node(folder)
    if node is None:
        raise InputRefusedError("an array of the OME-Zarr image is missing", remedy=COPY_FILE_AGAIN)
    return node


def _squeezed(letters: str, shape: Sequence[int]) -> tuple[str, tuple[int, ...]]:
    """Returns axes and shape without the axes of length 1 that many writers always store; X and Y stay."""
    kept = [(letter, n) for letter, n in zip(letters, shape, strict=True) if n > 1 or letter in "XY"]
    return "".join(letter for letter, _ in kept), tuple(n for _, n in kept)


def _levels(letters: str, axes: str, headers: Sequence[ArrayHeader]) -> tuple[tuple[int, ...], ...]:
    """Returns the shapes of the smaller copies, in the order of ``axes``."""
    full = [header.shape for header in headers[1:] if len(header.shape) == len(letters)]
    return tuple(tuple(shape[letters.index(letter)] for letter in axes) for shape in full)


@dataclass(frozen=True)
class ZarrSource(StackSource):
    """An OME-Zarr image. Metadata is read once; of the voxels only the chunks that a frame and region need."""

    _known: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def read(self, region: Region | None = None, frame: int = 0) -> Volume:
        """Returns (C, X, Y[, Z]) values as stored, of one frame.

        Raises:
            InputRefusedError: A chunk is damaged, or there is no such frame.
        """
        check_frame(frame, self.frames, self.id)
        bounds = whole(region, self.geometry)
        with refusing(_DAMAGED, self.id, COPY_FILE_AGAIN, *_FAULTS):
            letters, array = self._opened()
            index = dict(zip(self.ref.axes, self.index(bounds, frame), strict=True))
            values = _taken(array, tuple(index.get(letter, 0) for letter in letters))
            return Volume(native(self.channels_first(values)), self.geometry.crop(bounds))

    def _opened(self) -> tuple[str, Any]:
        """Returns the letters of the stored axes and the array, opened once."""
        if not self._known:
            import zarr
            from zarr.storage import LocalStore

            folder = self.ref.files[0]
            image, _ = _arrays(folder)
            node = _node(folder / image.paths[int(self.ref.read_as.get("level", 0))])
            header_of(node)
            store = LocalStore(node.folder, read_only=True)
            self._known["array"] = zarr.open_array(store, mode="r", zarr_format=node.version)
            self._known["letters"] = str(self.ref.read_as.get("axes", image.axes))
        return self._known["letters"], self._known["array"]


def _taken(array: Any, index: tuple[int | slice, ...]) -> npt.NDArray[Any]:
    """Returns a part of a Zarr array; a chunk that asks for far more memory than chunks have is damaged."""
    wanted = math.prod(
        1 if isinstance(part, int) else len(range(n)[part]) for part, n in zip(index, array.shape, strict=True)
    )
    try:
        return np.asarray(array[index])
    except MemoryError as error:
        if (wanted + math.prod(array.chunks)) * array.dtype.itemsize > _SURELY_FITS:
            raise
        raise InputRefusedError(_DAMAGED, remedy=COPY_FILE_AGAIN) from error
