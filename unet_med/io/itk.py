"""NRRD and MetaImage (MHA, MHD) in, by SimpleITK.

SimpleITK places voxels in LPS; ``Geometry.from_lps`` turns that into RAS. The text of the header is read as well, for
what SimpleITK does not tell: whether a spacing was stored at all, in which unit, and whether all data are there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK

from unet_med.errors import InputRefusedError
from unet_med.geometry import SHEAR_TOLERANCE, Geometry
from unet_med.io.channels import chosen_channels, read_channels
from unet_med.io.pixel_size import calibrated, mm_per_unit
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

_DAMAGED = "the file is damaged or truncated"
_HEADER_BYTES = 2**20
_DTYPES = {
    SimpleITK.sitkInt8: "int8",
    SimpleITK.sitkUInt8: "uint8",
    SimpleITK.sitkInt16: "int16",
    SimpleITK.sitkUInt16: "uint16",
    SimpleITK.sitkInt32: "int32",
    SimpleITK.sitkUInt32: "uint32",
    SimpleITK.sitkInt64: "int64",
    SimpleITK.sitkUInt64: "uint64",
    SimpleITK.sitkFloat32: "float32",
    SimpleITK.sitkFloat64: "float64",
    SimpleITK.sitkVectorInt8: "int8",
    SimpleITK.sitkVectorUInt8: "uint8",
    SimpleITK.sitkVectorInt16: "int16",
    SimpleITK.sitkVectorUInt16: "uint16",
    SimpleITK.sitkVectorInt32: "int32",
    SimpleITK.sitkVectorUInt32: "uint32",
    SimpleITK.sitkVectorInt64: "int64",
    SimpleITK.sitkVectorUInt64: "uint64",
    SimpleITK.sitkVectorFloat32: "float32",
    SimpleITK.sitkVectorFloat64: "float64",
}


@dataclass(frozen=True)
class _Header:
    """What the text of a header says.

    Attributes:
        has_spacing: Whether voxel sizes are stored.
        mm_per_unit: Millimetres of the unit of positions.
        data: The file that holds the voxels; ``None`` when there are several.
        offset: Where they begin in it.
        packed: Whether they are compressed or text, so that their size is not known beforehand.
    """

    has_spacing: bool
    mm_per_unit: float
    data: Path | None
    offset: int
    packed: bool


def inspect_itk(path: Path, options: IntakeOptions = IntakeOptions()) -> list[SourceRef]:  # noqa: B008
    """Returns the one source of an NRRD, MHA or MHD file from its header; unusable with a reason where refused."""
    kind = "nrrd" if path.name.lower().endswith((".nrrd", ".nhdr")) else "mha"
    try:
        with refusing(_DAMAGED, "", COPY_FILE_AGAIN):
            return [_inspect(path, kind, options)]
    except InputRefusedError as error:
        return [refused_ref(path, kind, error)]


def _inspect(path: Path, kind: str, options: IntakeOptions) -> SourceRef:
    header = _read_nrrd(path) if kind == "nrrd" else _read_meta(path)
    reader = _reader(path)
    shape = tuple(int(n) for n in reader.GetSize())
    if len(shape) not in (2, 3):
        raise InputRefusedError(
            f"the file has {len(shape)} axes ({' x '.join(map(str, shape))}): it holds several volumes",
            remedy="split it into one file for each volume first",
        )
    dtype = _DTYPES.get(reader.GetPixelIDValue())
    if dtype is None:
        raise InputRefusedError("the file holds values that are not real numbers", remedy="save real numbers")
    stored = int(reader.GetNumberOfComponents())
    _check_complete(header, int(np.prod(shape, dtype=object)) * stored * np.dtype(dtype).itemsize)
    picked, used = chosen_channels([str(number) for number in range(stored)], options)
    geometry, size_used, notes = _place(reader, shape, header, options)
    letters = "IJK"[: len(shape)]
    return SourceRef(
        id=provisional_id(path),
        kind=kind,
        files=(path,) if header.data is None or header.data == path else (path, header.data),
        axes=letters if stored == 1 else f"C{letters}",
        shape=shape if stored == 1 else (stored, *shape),
        geometry=geometry,
        channels=len(picked),
        dtype=dtype,
        notes=tuple(notes),
        read_as=used | size_used,
    )


@dataclass(frozen=True)
class ItkSource(FileSource):
    """An NRRD or MetaImage image; the components of vector images are its channels."""

    def read(self, region: Region | None = None, frame: int = 0) -> Volume:
        """Returns (C, I, J[, K]) values as stored.

        Raises:
            InputRefusedError: The file is truncated or damaged.
        """
        check_frame(frame, 1, self.id)
        bounds = whole(region, self.geometry)
        with refusing(_DAMAGED, self.id, COPY_FILE_AGAIN):
            reader = _reader(self.ref.files[0])
            if region is not None:
                reader.SetExtractIndex([part.start for part in bounds])
                reader.SetExtractSize([part.stop - part.start for part in bounds])
            array = array_of(reader.Execute())
        if array.ndim == len(bounds):
            array = array[..., np.newaxis]
        channels = native(array.transpose(range(array.ndim)[::-1]))
        picked = read_channels(self.ref.read_as)
        return Volume(channels if picked is None else channels[list(picked)], self.geometry.crop(bounds))


class _Lent:
    """The voxels of an image for numpy, which keeps this object, and by it the image, as long as an array needs it."""

    def __init__(self, image: SimpleITK.Image) -> None:
        self.image = image
        view = SimpleITK.GetArrayViewFromImage(image)
        address, _ = view.__array_interface__["data"]
        self.__array_interface__ = view.__array_interface__ | {"data": (address, False)}


def array_of(image: SimpleITK.Image) -> npt.NDArray[Any]:
    """Returns the voxels (K, J, I[, C]) of an image that nobody else uses: its own memory, not a copy."""
    return np.asarray(_Lent(image))


def _reader(path: Path) -> SimpleITK.ImageFileReader:
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader


def _place(
    reader: SimpleITK.ImageFileReader, shape: tuple[int, ...], header: _Header, options: IntakeOptions
) -> tuple[Geometry, dict[str, object], list[str]]:
    """Returns the grid in RAS mm, the switches used and notes."""
    if not header.has_spacing:
        geometry, used, notes = calibrated(shape, None, options)
        return geometry, used, [*notes, "no voxel size in the header"]
    ndim = len(shape)
    lps = np.eye(4)
    lps[:ndim, :ndim] = np.array(reader.GetDirection()).reshape(ndim, ndim) * np.array(reader.GetSpacing())
    lps[:ndim, 3] = reader.GetOrigin()
    lps[:3] *= header.mm_per_unit
    if ndim == 2:
        full = Geometry.from_lps((*shape, 1), lps).affine
        keep = [0, 1, 3]
        geometry = Geometry(shape, None if full is None else full[np.ix_(keep, keep)])
    else:
        geometry = Geometry.from_lps(shape, lps)
    if geometry.shear > SHEAR_TOLERANCE:
        raise InputRefusedError(
            f"the grid is sheared (largest cosine between axes {geometry.shear:.4f})",
            remedy="regrid the image to a rectangular grid first",
        )
    return geometry, {}, ["positions stored in another unit, read in mm"] if header.mm_per_unit != 1.0 else []


def _check_complete(header: _Header, expected: int) -> None:
    if header.data is None or header.packed:
        return
    if not header.data.is_file():
        raise InputRefusedError("the file with the voxels is missing", remedy="copy it beside its header")
    present = header.data.stat().st_size - header.offset
    if present < expected:
        raise InputRefusedError(
            f"the file is truncated: {present} of {expected} bytes are there", remedy=COPY_FILE_AGAIN
        )


def _read_nrrd(path: Path) -> _Header:
    """Parses the header of an NRRD file (lines ``key: value`` up to an empty line)."""
    with path.open("rb") as file:
        start = file.read(_HEADER_BYTES)
    text, _, _ = start.replace(b"\r\n", b"\n").partition(b"\n\n")
    end = re.search(rb"\r?\n\r?\n", start)
    fields = _fields(text, ":")
    sizes = f"{fields.get('space directions', '')} {fields.get('spacings', '')}".lower()
    units = re.findall(r'"([^"]*)"', fields.get("space units", ""))
    name = fields.get("data file", fields.get("datafile"))
    data: Path | None = path
    if name is not None:
        data = None if name.upper().startswith("LIST") or "%" in name else path.parent / name
    encoding = fields.get("encoding", "raw")
    skips = any(int(fields.get(key, "0") or 0) for key in ("line skip", "lineskip", "byte skip", "byteskip"))
    return _Header(
        has_spacing=bool(re.search(r"\d", sizes)),
        mm_per_unit=_unit(units),
        data=data,
        offset=0 if name is not None or end is None else end.end(),
        packed=encoding != "raw" or skips,
    )


def _read_meta(path: Path) -> _Header:
    """Parses the header of a MetaImage file (lines ``Key = value``, ``ElementDataFile`` last)."""
    with path.open("rb") as file:
        start = file.read(_HEADER_BYTES)
    end = re.search(rb"(?m)^ElementDataFile\s*=.*$\n?", start)
    fields = _fields(start[: end.end()] if end else start, "=")
    name = fields.get("elementdatafile", "LOCAL")
    local = name.upper() == "LOCAL"
    several = name.upper().startswith("LIST") or "%" in name
    return _Header(
        has_spacing="elementspacing" in fields or "elementsize" in fields,
        mm_per_unit=_unit([fields["distanceunits"]] if "distanceunits" in fields else []),
        data=path if local else None if several else path.parent / name,
        offset=end.end() if local and end else 0,
        packed=fields.get("compresseddata", "false").lower() == "true"
        or fields.get("binarydata", "true").lower() == "false"
        or fields.get("headersize", "0") != "0",
    )


def _fields(text: bytes, separator: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in text.decode("utf-8", "replace").splitlines():
        key, found, value = line.partition(separator)
        if found and not line.startswith("#"):
            fields.setdefault(key.strip().lower(), value.removeprefix("=").strip())
    return fields


def _unit(units: list[str]) -> float:
    """Returns the millimetres of the one unit named; 1 when none is."""
    named = {unit.strip().lower() for unit in units if unit.strip() and unit.strip() != "?"}
    if not named:
        return 1.0
    scale = mm_per_unit(named.pop())
    if scale is None or named:
        raise InputRefusedError("the positions have an unknown or mixed unit", remedy="save the image in mm")
    return scale
