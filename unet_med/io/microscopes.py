"""Files of microscopes (Zeiss CZI, Nikon ND2, Leica LIF) through bioio, which the extra ``microscopes`` brings."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.errors import InputRefusedError
from unet_med.io.channels import RGB, chosen_channels, named, names_of
from unet_med.io.pixel_size import calibrated, known_sizes, sensible
from unet_med.io.reading import (
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

KINDS = {".czi": "czi", ".nd2": "nd2", ".lif": "lif"}
"""Suffixes of these files."""

_UNREADABLE = "the microscope's file is damaged, or stored in a way that its reader does not know"
_REMEDY = "copy the file again from its origin, or export the images as OME-TIFF"
_FAULTS = (AttributeError, AssertionError, SyntaxError)
_MOST_SCENES = 10_000


def inspect_microscope(path: Path, options: IntakeOptions = IntakeOptions()) -> list[SourceRef]:  # noqa: B008
    """Returns the sources of a file, one for each of its scenes; unusable where it, or its reader, is missing."""
    kind = KINDS[path.suffix.lower()]
    try:
        with refusing(_UNREADABLE, "", _REMEDY, *_FAULTS):
            image = _opened(path, kind)
            scenes = list(image.scenes)[:_MOST_SCENES]
            return [_inspect(path, kind, image, number, len(scenes), options) for number in range(len(scenes))]
    except InputRefusedError as error:
        return [refused_ref(path, kind, error)]


def _opened(path: Path, kind: str) -> Any:
    """Returns bioio's image.

    Raises:
        InputRefusedError: bioio or its reader of this kind is not installed.
    """
    if any(importlib.util.find_spec(name) is None for name in ("bioio", f"bioio_{kind}")):
        raise InputRefusedError(
            f"reading {kind.upper()} files needs the extra `microscopes`",
            remedy="install it (pip install 'unet-med[microscopes]'), or export the images as OME-TIFF",
        )
    from bioio import BioImage

    reader = importlib.import_module(f"bioio_{kind}")
    return BioImage(path, reader=reader.Reader)


def _inspect(path: Path, kind: str, image: Any, number: int, scenes: int, options: IntakeOptions) -> SourceRef:
    """Returns the source of one scene; unusable with a reason where it is refused."""
    name = provisional_id(path) + (f"-s{number + 1}" if scenes > 1 else "")
    used: dict[str, Any] = {"series": number} if number else {}
    image.set_scene(number)
    letters, full = str(image.dims.order), tuple(int(n) for n in image.shape)
    kept = [place for place, letter in enumerate(letters) if full[place] > 1 or letter in "XY"]
    stored, shape = "".join(letters[place] for place in kept), tuple(full[place] for place in kept)
    try:
        axes, axes_used = meaning(stored, shape, options)
        channels = count(axes, shape, CHANNEL_LETTERS)
        told = RGB if count(axes, shape, "S") == channels == len(RGB) else image.channel_names or ()
        names = names_of([str(one) for one in told], channels)
        picked, channels_used = chosen_channels(names, options)
        grid = grid_of(axes, shape)
        own, missing = known_sizes(_sizes(image)[: len(grid)])
        geometry, size_used, more = calibrated(grid, own, options, microscope=True)
    except InputRefusedError as error:
        return replace(refused_ref(path, kind, error, axes=stored, shape=shape), id=name, read_as=used)
    return SourceRef(
        id=name,
        kind=kind,
        files=(path,),
        axes=axes,
        shape=shape,
        geometry=geometry,
        channels=len(picked),
        channel_names=named(names, picked),
        frames=count(axes, shape, FRAME_LETTERS),
        dtype=native_dtype(np.dtype(image.dtype)),
        notes=(
            *([f"image {number + 1} of {scenes} in its file"] if scenes > 1 else []),
            *([] if size_used else missing),
            *more,
        ),
        read_as=used | axes_used | channels_used | size_used,
    )


def _sizes(image: Any) -> list[float | None]:
    """Returns the pixel size along X, Y and Z in mm; bioio tells micrometres."""
    sizes = image.physical_pixel_sizes
    return [sensible(float(size), 1e-3) if size is not None else None for size in (sizes.X, sizes.Y, sizes.Z)]


@dataclass(frozen=True)
class MicroscopeSource(StackSource):
    """A scene of a microscope's file; bioio reads the planes or tiles that a region needs."""

    _known: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def read(self, region: Region | None = None, frame: int = 0) -> Volume:
        """Returns (C, X, Y[, Z]) values as stored, of one frame.

        Raises:
            InputRefusedError: The file is damaged, its reader is missing, or there is no such frame.
        """
        check_frame(frame, self.frames, self.id)
        bounds = whole(region, self.geometry)
        with refusing(_UNREADABLE, self.id, _REMEDY, *_FAULTS):
            array = self._array()
            values: npt.NDArray[Any] = np.asarray(array[self.index(bounds, frame)])
            return Volume(native(self.channels_first(values)), self.geometry.crop(bounds))

    def _array(self) -> Any:
        """Returns the lazy array of the scene without axes of length 1."""
        if not self._known:
            image = _opened(self.ref.files[0], self.ref.kind)
            image.set_scene(int(self.ref.read_as.get("series", 0)))
            lazy, letters = image.dask_data, str(image.dims.order)
            self._known["array"] = lazy[
                tuple(
                    0 if n == 1 and letter not in "XY" else slice(None)
                    for letter, n in zip(letters, lazy.shape, strict=True)
                )
            ]
        return self._known["array"]
