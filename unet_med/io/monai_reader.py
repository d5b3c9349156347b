"""Our intake as a MONAI reader: ``LoadImage(reader=UnetMedReader())`` gives the voxels and affine of this package.

``LoadImage`` falls back to its other readers when ``read`` raises, and those load wrongly what is refused here. So a
refusal waits until ``get_data``, where it ends the loading.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from monai.data.image_reader import ImageReader
from monai.data.utils import affine_to_spacing
from monai.utils import MetaKeys, SpaceKeys

from unet_med.errors import InputRefusedError, UnetMedError, UsageError
from unet_med.geometry import Geometry
from unet_med.io.discover import discover, open_source
from unet_med.io.source import IntakeOptions
from unet_med.volume import Volume

AnyPath = str | PathLike[str]


class UnetMedReader(ImageReader):  # type: ignore[misc]
    """Reads any file, or the one DICOM series of a folder, that this package reads.

    Arrays come as (I, J[, K]) for one channel and (C, I, J[, K]) for several. The affine is RAS+ mm, as MONAI's own
    readers give it: 4x4 for volumes, 3x3 for pictures. An uncalibrated image gets the identity.

    Args:
        frame: Which frame of images that have several.
        options: The intake options: axes, pixel size, channels, series.
    """

    def __init__(self, frame: int = 0, options: IntakeOptions = IntakeOptions()) -> None:  # noqa: B008
        super().__init__()
        self.frame = frame
        self.options = options

    def verify_suffix(self, filename: Sequence[AnyPath] | AnyPath) -> bool:
        """Whether the files may be tried: any file or folder that exists (DICOM needs no suffix)."""
        return all(Path(name).exists() for name in _listed(filename))

    def read(self, data: Sequence[AnyPath] | AnyPath, **kwargs: Any) -> list[Volume | UnetMedError]:
        """Returns one volume for each path, or why there is none; several become channels in :meth:`get_data`."""
        return [self._read_one(Path(name)) for name in _listed(data)]

    def _read_one(self, path: Path) -> Volume | UnetMedError:
        try:
            return self._volume(path)
        except UnetMedError as error:
            return error

    def _volume(self, path: Path) -> Volume:
        found = discover(path, self.options)
        if len(found.sources) != 1:
            raise UsageError(
                f"{len(found.sources)} images, not one", remedy="give the path of one image or of one series' folder"
            )
        source = found.sources[0]
        if not source.usable:
            raise InputRefusedError(source.reason, source.id)
        return open_source(source).read(frame=self.frame)

    def get_data(
        self, img: Sequence[Volume | UnetMedError] | Volume | UnetMedError
    ) -> tuple[npt.NDArray[Any], dict[str, Any]]:
        """Returns the array, and the metadata that MONAI keeps with it.

        Raises:
            InputRefusedError: An image is refused, with the reason; or several do not lie on one grid.
            UsageError: A path holds no image, or several.
        """
        volumes = []
        for one in [img] if isinstance(img, (Volume, UnetMedError)) else img:
            if isinstance(one, UnetMedError):
                raise one
            volumes.append(one)
        first = volumes[0].geometry
        if any(not first.same_grid(other.geometry) for other in volumes[1:]):
            raise InputRefusedError(
                "the images do not lie on one grid", remedy="resample them first, or load them one by one"
            )
        array = volumes[0].array if len(volumes) == 1 else np.concatenate([volume.array for volume in volumes])
        single = array.shape[0] == 1
        return (array[0] if single else array), _meta(first, float("nan") if single else 0)


def _listed(names: Sequence[AnyPath] | AnyPath) -> Iterable[AnyPath]:
    return [names] if isinstance(names, (str, PathLike)) else names


def _meta(geometry: Geometry, channel_dim: float) -> dict[str, Any]:
    affine = np.eye(geometry.ndim + 1) if geometry.affine is None else np.array(geometry.affine)
    return {
        MetaKeys.AFFINE: affine.copy(),
        MetaKeys.ORIGINAL_AFFINE: affine,
        MetaKeys.SPATIAL_SHAPE: np.array(geometry.shape),
        MetaKeys.SPACE: SpaceKeys.RAS,
        MetaKeys.ORIGINAL_CHANNEL_DIM: channel_dim,
        "spacing": affine_to_spacing(affine, geometry.ndim),
    }
