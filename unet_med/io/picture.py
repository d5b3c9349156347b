"""PNG and JPEG in, by pillow; 16-bit colour PNG, which pillow would cut to 8 bits, by imagecodecs.

A picture is 2-D and has no physical size: what these formats call a resolution is meant for printers.
"""

from __future__ import annotations

import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from unet_med.errors import InputRefusedError
from unet_med.io.channels import RGB, chosen_channels, named, read_channels
from unet_med.io.pixel_size import calibrated
from unet_med.io.reading import (
    COPY_FILE_AGAIN,
    FileSource,
    check_frame,
    native,
    provisional_id,
    refused_ref,
    refusing,
    whole,
)
from unet_med.io.source import IntakeOptions, SourceRef
from unet_med.volume import Region, Volume

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_DAMAGED = "the picture is damaged or truncated"
_FAULTS = (UnidentifiedImageError, SyntaxError, struct.error)
_ORIENTATION_TAG = 0x0112
_GREY = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_COLOUR = ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA")


def inspect_picture(path: Path, options: IntakeOptions = IntakeOptions()) -> list[SourceRef]:  # noqa: B008
    """Returns the one source of a PNG or JPEG file from its header; unusable with a reason where it is refused."""
    kind = "png" if _is_png(path) else "jpeg"
    try:
        with refusing(_DAMAGED, "", COPY_FILE_AGAIN, *_FAULTS):
            return [_inspect(path, kind, options)]
    except InputRefusedError as error:
        return [refused_ref(path, kind, error)]


def _inspect(path: Path, kind: str, options: IntakeOptions) -> SourceRef:
    deep = 0
    if kind == "png":
        _check_chunks(path)
        deep = _deep_samples(path)
    with _opened(path) as image:
        if getattr(image, "n_frames", 1) > 1:
            raise InputRefusedError(
                "the picture is an animation", remedy="save its frames as a TIFF stack with axes TYX"
            )
        if image.mode not in _GREY + _COLOUR:
            raise InputRefusedError(f"the picture is stored as {image.mode}", remedy="save it as grey or RGB")
        width, height = image.size
        notes = _notes(image, kind)
        stored, channels, dtype = _layout(image, deep)
    names = RGB if channels == len(RGB) else tuple(map(str, range(channels)))
    picked, used = chosen_channels(names, options)
    geometry, size_used, size_notes = calibrated((width, height), None, options, microscope=True)
    return SourceRef(
        id=provisional_id(path),
        kind=kind,
        files=(path,),
        axes="YX" if stored == 1 else "YXS",
        shape=(height, width) if stored == 1 else (height, width, stored),
        geometry=geometry,
        channels=len(picked),
        channel_names=named(names, picked),
        dtype=dtype,
        notes=(*notes, *size_notes),
        read_as=used | size_used,
    )


@dataclass(frozen=True)
class PictureSource(FileSource):
    """A PNG or JPEG picture: 1 channel (grey) or 3 (RGB), one frame."""

    def read(self, region: Region | None = None, frame: int = 0) -> Volume:
        """Returns (C, I, J) = (C, columns, rows); palettes become colours, alpha is dropped.

        Raises:
            InputRefusedError: The file is damaged or truncated.
        """
        check_frame(frame, 1, self.id)
        array = self._decode(palette=True)
        picked = read_channels(self.ref.read_as)
        bounds = whole(region, self.geometry)
        return Volume(
            (array if picked is None else array[list(picked)])[(slice(None), *bounds)], self.geometry.crop(bounds)
        )

    def read_indices(self) -> npt.NDArray[Any]:
        """Returns (C, I, J) with the numbers as stored, which is what label images mean.

        That is: a palette's indices, and greys of 2 or 4 bits not stretched to 8.
        """
        array = self._decode(palette=False)
        step = _grey_step(self.ref.files[0]) if self.ref.kind == "png" else 1
        return array if step == 1 else array // step

    def _decode(self, *, palette: bool) -> npt.NDArray[Any]:
        path = self.ref.files[0]
        with refusing(_DAMAGED, self.id, COPY_FILE_AGAIN, *_FAULTS, imagecodecs.PngError):
            if self.ref.kind == "png" and _deep_samples(path):
                return _columns_first(imagecodecs.png_decode(path.read_bytes()))
            with _opened(path) as image:
                image.load()
                if image.mode in ("P", "PA") and (palette or image.mode == "PA"):
                    return _columns_first(np.asarray(image.convert("RGB")))
                return _columns_first(native(np.asarray(image)))


def _columns_first(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Turns (rows, columns[, samples]) into (C, columns, rows) without alpha: a view."""
    if array.ndim == 2:
        return array.T[np.newaxis]
    colours = 1 if array.shape[2] < 3 else 3
    return array[..., :colours].transpose(2, 1, 0)


def _opened(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            return Image.open(path, formats=("PNG", "JPEG"))
        except Image.DecompressionBombError as error:
            raise InputRefusedError(
                "the picture has too many pixels for a format that is only read as a whole",
                remedy="save it as TIFF with tiles, which is read in parts",
            ) from error


def _is_png(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(8) == _PNG_SIGNATURE


def _deep_samples(path: Path) -> int:
    """Returns the number of stored samples of a 16-bit PNG with more than one; 0 for all others."""
    with path.open("rb") as file:
        header = file.read(26)
    depth, colour_type = header[24], header[25]
    return {2: 3, 4: 2, 6: 4}.get(colour_type, 0) if depth == 16 else 0


def _grey_step(path: Path) -> int:
    """Returns the factor by which pillow stretches grey values of 2 or 4 bits to the range of 8 bits; else 1."""
    with path.open("rb") as file:
        header = file.read(26)
    return {2: 85, 4: 17}.get(header[24], 1) if header[25] == 0 else 1


def _layout(image: Image.Image, deep: int) -> tuple[int, int, str]:
    """Returns samples stored for each pixel, channels read, and the type of their values."""
    if deep:
        return deep, 1 if deep == 2 else 3, "uint16"
    if image.mode in ("P", "PA"):
        return 1, 3, "uint8"
    stored = len(image.getbands())
    dtype = {"I": "int32", "F": "float32"}.get(image.mode, "uint16" if image.mode.startswith("I;16") else "uint8")
    return stored, 1 if stored < 3 else 3, dtype


def _notes(image: Image.Image, kind: str) -> list[str]:
    notes = []
    if image.mode in ("LA", "La", "RGBA", "RGBa", "RGBX", "PA") or "transparency" in image.info:
        notes.append("transparency is dropped")
    if image.mode in ("P", "PA"):
        notes.append("palette colours become RGB; as a label image its stored numbers are used")
    orientation = image.getexif().get(_ORIENTATION_TAG, 1) if kind == "jpeg" else 1
    if orientation not in (0, 1):
        notes.append(f"the camera's rotation mark (EXIF orientation {orientation}) is not applied")
    return notes


def _check_chunks(path: Path) -> None:
    """Walks through the chunks of a PNG without decoding them: all there, and enough of them for its size.

    Deflate packs at most 1032 bytes into one; a header that claims more is refused before memory is asked for.
    """
    size = path.stat().st_size
    packed = 0
    with path.open("rb") as file:
        file.seek(len(_PNG_SIGNATURE))
        while True:
            head = file.read(8)
            if len(head) < 8:
                raise InputRefusedError("the picture is truncated", remedy=COPY_FILE_AGAIN)
            length, name = struct.unpack(">I4s", head)
            if file.tell() + length + 4 > size:
                raise InputRefusedError("the picture is truncated", remedy=COPY_FILE_AGAIN)
            if name == b"IHDR":
                width, height, depth, colour = struct.unpack(">IIBB", file.read(10))
                file.seek(length - 10 + 4, 1)
                promised = width * height * depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 1) // 8
                continue
            packed += length if name == b"IDAT" else 0
            file.seek(length + 4, 1)
            if name == b"IEND":
                break
    if promised > 1032 * packed + 1024:
        raise InputRefusedError(
            f"the picture claims {width} x {height} pixels but holds only {packed} bytes", remedy=COPY_FILE_AGAIN
        )
