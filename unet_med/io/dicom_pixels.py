"""Pixels of one DICOM slice as real values: decoded by pydicom, rescaled, MONOCHROME1 turned, padding found."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unet_med.errors import InputRefusedError
from unet_med.io.dicom_headers import NATIVE_SYNTAXES

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

INVERTED_MODALITIES = frozenset({"CR", "DX", "MG", "RG", "PX", "IO", "XA", "RF"})
"""Projections, whose MONOCHROME1 pixels are turned so that more signal is brighter."""

_PADDING_VALUE, _PADDING_LIMIT = 0x00280120, 0x00280121
_PIXEL_TAGS: list[int] = [
    *(0x00080060, 0x00280002, 0x00280004, 0x00280006, 0x00280008, 0x00280010, 0x00280011, 0x00280100, 0x00280101),
    *(0x00280102, 0x00280103, _PADDING_VALUE, _PADDING_LIMIT, 0x00281052, 0x00281053, 0x00283000),
    *(0x7FE00001, 0x7FE00002, 0x7FE00008, 0x7FE00009, 0x7FE00010),
]


_JPEG = frozenset({"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"})
_PILLOW_JPEG_BITS = 8


@dataclass(frozen=True, eq=False)
class Slice:
    """One decoded slice.

    Attributes:
        values: (rows, columns) float32, real values.
        padding: (rows, columns), where the stored value means "no measurement"; ``None`` for nowhere.
    """

    values: npt.NDArray[np.float32]
    padding: npt.NDArray[np.bool_] | None


@lru_cache(maxsize=64)
def missing_decoder(syntax: str, bits: int = 8) -> str:
    """Returns the name of a transfer syntax that nothing installed here can decode; empty when one can.

    Args:
        syntax: Its UID.
        bits: Bits stored in a pixel; Pillow alone does not decode JPEG of more than 8.
    """
    if syntax in NATIVE_SYNTAXES:
        return ""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    uid = UID(syntax)
    try:
        decoder = get_decoder(uid)
    except NotImplementedError:
        return uid.name if uid.name != syntax else "an unknown transfer syntax"
    plugins = set(decoder.available_plugins) - ({"pillow"} if bits > _PILLOW_JPEG_BITS and syntax in _JPEG else set())
    return "" if plugins else uid.name


def read_slice(path: Path) -> Slice:
    """Reads and decodes one single-frame file.

    Raises:
        InputRefusedError: The file holds no single grey picture any more.
        Exception: Whatever the decoder raises on damaged pixels.
    """
    from pydicom import dcmread

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's texts may quote values of the header
        dataset = dcmread(path, force=True, specific_tags=_PIXEL_TAGS)
        _complete_meta(dataset)
        stored = np.asarray(dataset.pixel_array)
        if stored.ndim != 2:
            raise InputRefusedError("the file holds no single grey picture", remedy="scan the folder again")
        padding = _padding(dataset, stored)
        values = _real(stored, dataset)
        if turned(str(dataset.get("Modality", "")), str(dataset.PhotometricInterpretation)):
            ends = _real(_stored_range(dataset, stored), dataset)
            values = np.float32(ends[0]) + np.float32(ends[1]) - values
    return Slice(np.asarray(values, dtype=np.float32), padding)


def turned(modality: str, photometric: str) -> bool:
    """Whether a picture is stored dark on bright and turned: MONOCHROME1 of a projection."""
    return photometric == "MONOCHROME1" and modality in INVERTED_MODALITIES


def _complete_meta(dataset: Dataset) -> None:
    """Gives a file without a meta group the transfer syntax it was found to have."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if "TransferSyntaxUID" in dataset.file_meta:
        return
    implicit, little = dataset.original_encoding
    explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit


def _real(stored: npt.NDArray[Any], dataset: Dataset) -> npt.NDArray[np.float32]:
    """Applies the modality LUT, or slope and intercept in float64."""
    if dataset.get("ModalityLUTSequence"):
        from pydicom.pixels.processing import apply_rescale

        return np.asarray(apply_rescale(stored, dataset), dtype=np.float32)
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    if slope in (None, "") and intercept in (None, ""):
        return stored.astype(np.float32)
    factor = 1.0 if slope in (None, "") else float(slope)
    offset = 0.0 if intercept in (None, "") else float(intercept)
    return np.asarray(stored * np.float64(factor) + np.float64(offset), dtype=np.float32)


def _stored_range(dataset: Dataset, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns the smallest and largest value that the pixels could store."""
    bits = int(dataset.BitsStored)
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if dataset.PixelRepresentation else (0, (1 << bits) - 1)
    return np.array([low, high], dtype=stored.dtype)


def _padding(dataset: Dataset, stored: npt.NDArray[Any]) -> npt.NDArray[np.bool_] | None:
    """Returns where the stored values are padding, compared in the pixels' own type."""
    if stored.dtype.kind == "f":
        return None
    first = _padding_number(dataset, _PADDING_VALUE)
    if first is None:
        return None
    limit = _padding_number(dataset, _PADDING_LIMIT)
    low, high = sorted((first, first if limit is None else limit))
    info = _stored_range(dataset, stored)
    compared = stored.astype(np.int64)
    if (low < info[0] or high > info[1]) and str(dataset.file_meta.TransferSyntaxUID) in NATIVE_SYNTAXES:
        from pydicom.pixels.utils import pixel_array

        # The padding uses bits above Bits Stored, which decoding has cleared.
        compared = np.asarray(pixel_array(dataset, raw=True, correct_unused_bits=False)).astype(np.int64)
    mask: npt.NDArray[np.bool_] = (compared >= low) & (compared <= high)
    return mask if mask.any() else None


def _padding_number(dataset: Dataset, tag: int) -> int | None:
    """Returns a padding value as the pixels would store it, whatever VR its writer chose."""
    element = dataset.get_item(tag)
    raw = getattr(element, "value", None)
    if raw is None or raw == b"" or raw == "":
        return None
    if isinstance(raw, bytes):
        number = int.from_bytes(raw[:2], "little" if dataset.original_encoding[1] else "big")
    else:
        number = int(raw) & 0xFFFF
    bits = min(16, int(dataset.BitsAllocated))
    number &= (1 << bits) - 1
    return number - (1 << bits) if dataset.PixelRepresentation and number >> (bits - 1) else number
