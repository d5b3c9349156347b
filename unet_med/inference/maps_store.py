"""Maps of objects on disk: written rows by rows as they are predicted, read region by region to cut objects out.

One byte for each map and voxel, in compressed chunks (a Zarr array), so that maps of an image larger than memory can be
kept: thresholds are tried on them without a network.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from unet_med.errors import InputRefusedError
from unet_med.instances.maps import ObjectMaps
from unet_med.io.atomic import disk_errors, remove
from unet_med.volume import Region

if TYPE_CHECKING:
    import zarr

CHUNK = {2: 512, 3: 64}
"""Voxels of a chunk along each axis, by the axes of the image."""


class MapStore:
    """Maps of one frame in a folder; see :meth:`create` and :meth:`open`.

    Attributes:
        path: The folder.
        channels: Background, classes, border and distance.
        shape: (I, J[, K]) of the image.
    """

    def __init__(self, path: Path, array: zarr.Array[Any]) -> None:
        self.path = path
        self.channels = int(array.shape[0])
        self.shape = tuple(int(n) for n in array.shape[1:])
        self._array = array

    @classmethod
    def create(cls, path: Path, channels: int, shape: Sequence[int]) -> Self:
        """Makes a store that says nothing (zeros) until it is written; what has this name is replaced.

        Args:
            path: Folder to make.
            channels: Outputs of the network: background, classes, border and distance.
            shape: (I, J[, K]) of the image.

        Raises:
            MachineError: when the disk is full or the folder cannot be written.
        """
        import zarr

        with disk_errors(path.name):
            remove(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            array = zarr.create_array(
                store=str(path),
                shape=(channels, *shape),
                chunks=(channels, *(min(n, CHUNK[len(shape)]) for n in shape)),
                dtype="uint8",
                fill_value=0,
                compressors=zarr.codecs.ZstdCodec(level=1),
                zarr_format=3,
            )
        return cls(path, array)

    @classmethod
    def in_memory(cls, channels: int, shape: Sequence[int]) -> Self:
        """Makes a store that lies on no disk; arguments as for :meth:`create`."""
        import zarr

        array = zarr.create_array(store={}, shape=(channels, *shape), dtype="uint8", fill_value=0, compressors=None)
        return cls(Path("maps"), array)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Opens what :meth:`create` made.

        Raises:
            InputRefusedError: when the folder is not there or holds something else.
        """
        import zarr

        try:
            array = zarr.open_array(str(path), mode="r+")
        except (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError, zarr.errors.BaseZarrError) as error:
            raise InputRefusedError(
                "the maps of a case are missing or damaged", path.name, "predict again: they are made anew"
            ) from error
        if array.ndim not in (3, 4) or array.dtype != np.uint8:
            raise InputRefusedError("the folder holds no maps of objects", path.name, "predict again")
        return cls(path, array)

    def write(self, region: Region, maps: ObjectMaps) -> None:
        """Writes the maps of a region; (*s) of the maps is the region's shape.

        Raises:
            MachineError: when the disk is full.
        """
        with disk_errors(self.path.name):
            self._array[(slice(None), *region)] = maps.stored()

    def read(self, region: Region | None = None) -> ObjectMaps:
        """Returns the maps of a region, of the whole image for ``None``."""
        return ObjectMaps.from_stored(self.read_stored(region))

    def read_stored(self, region: Region | None = None) -> np.typing.NDArray[np.uint8]:
        """Returns (channels, *s) uint8 as stored, which :meth:`ObjectMaps.from_stored` understands."""
        bounds = tuple(slice(0, n) for n in self.shape) if region is None else region
        return np.asarray(self._array[(slice(None), *bounds)])
