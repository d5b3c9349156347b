"""Our intake as a MONAI reader: ``LoadImage(reader=UnetMedReader())`` gives the voxels and affine of this package.

``LoadImage`` falls back to its other readers when ``read`` raises, and those load wrongly what is refused here. So a
refusal waits until ``get_data``, where it ends the loading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
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
from unet_med.io.dicom.annotations import AnnotationSource, belongs_to, open_label
from unet_med.io.discover import discover, open_source
from unet_med.io.source import IntakeOptions, SourceRef
from unet_med.volume import ImageSource, Volume

_SEVERAL = {"series", "channels"}
AnyPath = str | PathLike[str]


class UnetMedReader(ImageReader):  # type: ignore[misc]
    """Reads any file, or the one DICOM series of a folder, that this package reads.

    Arrays come as (I, J[, K]) for one channel and (C, I, J[, K]) for several. The affine is RAS+ mm, as MONAI's own
    readers give it: 4x4 for volumes, 3x3 for pictures. An uncalibrated image gets the identity. A DICOM SEG alone gives
    its label values on its own grid.

    With ``labels=True`` the paths of one call hold one label (a DICOM SEG, an RTSTRUCT, or a label file) and, for
    DICOM, the series that it refers to, for example both in one folder; the label values come on that series' grid.

    Args:
        frame: Which frame of images that have several.
        options: The intake options.
        labels: Read the label instead of the image.
        **switches: Single intake options by name (``series="s013"``, ``untilt=True``, ``axes="ZYX"``, ...), which is
            all that a configuration file needs: ``LoadImaged(keys, reader="unet_med.io.monai_reader.UnetMedReader",
            untilt=True)``.

    Raises:
        UsageError: There is no such switch.
    """

    def __init__(
        self,
        frame: int = 0,
        options: IntakeOptions = IntakeOptions(),  # noqa: B008
        *,
        labels: bool = False,
        **switches: Any,
    ) -> None:
        super().__init__()
        self.frame = frame
        self.options = _with_switches(options, switches)
        self.labels = labels

    def verify_suffix(self, filename: Sequence[AnyPath] | AnyPath) -> bool:
        """Whether the files may be tried: any file or folder that exists (DICOM needs no suffix)."""
        return all(Path(name).exists() for name in _listed(filename))

    def read(self, data: Sequence[AnyPath] | AnyPath, **kwargs: Any) -> list[Volume | UnetMedError]:
        """Returns one volume for each path, or why there is none; several become channels in :meth:`get_data`.

        Of labels there is one for all paths.
        """
        paths = [Path(name) for name in _listed(data)]
        if self.labels:
            return [_or_error(lambda: self._label(paths))]
        return [_or_error(lambda path=path: self._image(path)) for path in paths]  # type: ignore[misc]

    def _image(self, path: Path) -> Volume:
        found = discover(path, self.options)
        if not found.sources and len(found.annotations) == 1:
            return AnnotationSource(found.annotations[0]).read(frame=self.frame)
        return self._only(found.sources).read(frame=self.frame)

    def _only(self, sources: Sequence[SourceRef]) -> ImageSource:
        if len(sources) != 1:
            raise UsageError(
                f"{len(sources)} images, not one",
                remedy="give the path of one image or of one series' folder, or choose with series=",
            )
        return open_source(sources[0])

    def _label(self, paths: Sequence[Path]) -> Volume:
        found = [discover(path, self.options) for path in paths]
        labels = [one for discovery in found for one in discovery.annotations]
        images = [one for discovery in found for one in discovery.sources]
        if not labels:
            return self._only(images).read(frame=self.frame)
        if len(labels) > 1:
            raise UsageError(f"{len(labels)} labels, not one", remedy="give the file of one label, and its series")
        images = [image for image in images if belongs_to(labels[0], image)]
        if not images:
            return AnnotationSource(labels[0]).read()
        if len(images) > 1:
            raise UsageError(
                f"the label refers to {len(images)} images that are there", remedy="choose one with series="
            )
        return open_label(labels[0], images[0]).read()

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


def _or_error(read: Callable[[], Volume]) -> Volume | UnetMedError:
    try:
        return read()
    except UnetMedError as error:
        return error


def _with_switches(options: IntakeOptions, switches: Mapping[str, Any]) -> IntakeOptions:
    known = {field.name for field in fields(IntakeOptions)}
    unknown = sorted(set(switches) - known)
    if unknown:
        raise UsageError(f"no such option: {', '.join(unknown)}", "UnetMedReader", f"give {', '.join(sorted(known))}")
    given = dict(switches)
    for name in _SEVERAL & switches.keys():
        given[name] = (given[name],) if isinstance(given[name], str) else tuple(given[name])
    return replace(options, **given)


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
